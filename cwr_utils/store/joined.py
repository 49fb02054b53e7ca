"""Images of several stores, read as if they were one."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cwr_utils.store.base import BLOCK, Store, StoreError


class JoinedStore(Store):
    """Chosen images of several stores, read as if they were one; never written.

    A store cannot grow, but another one can stand beside it: so a collection that gets
    more photos is not described anew.
    """

    def __init__(self, stores: Sequence[Store], images: Mapping[str, str]):
        """Find every image by its content.

        Args:
            stores: of the same settings; incomplete ones serve with what they have.
            images: name -> SHA-256 of its content, in the order of the first axis.

        Raises:
            StoreError: if no store has an image.
        """
        places = {
            content: (number, row)
            for number, store in enumerate(stores)
            for content, row in store.rows_by_content().items()
        }
        missing = [name for name, content in images.items() if content not in places]
        if missing or not stores:
            raise StoreError(
                f"{len(missing)} images are in none of {len(stores)} stores: "
                f"{', '.join(missing[:5])}. Describe them first."
            )
        self.path, self.config, self.block = stores[0].path, stores[0].config, BLOCK
        self.names, self.hashes = list(images), dict(images)
        self._stores = list(stores)
        self._places = np.array([places[content] for content in images.values()])

    @property
    def sources(self) -> list[Store]:
        """See `Store.sources`."""
        return [source for store in self._stores for source in store.sources]

    @property
    def arrays(self) -> list[str]:
        """See `Store.arrays`."""
        return self._stores[0].arrays

    def shape(self, array: str) -> tuple[int, ...]:
        """Of the largest entry; others are filled up with zeros (R-MAC regions)."""
        shapes = [store.shape(array) for store in self._stores]
        return tuple(max(sizes) for sizes in zip(*shapes, strict=True))

    def dtype(self, array: str) -> np.dtype:
        """See `Store.dtype`."""
        return self._stores[0].dtype(array)

    def read(
        self, name: str, images: slice | Sequence[int] | np.ndarray = slice(None)
    ) -> np.ndarray:
        """See `Store.read`."""
        return self._gather(
            images, self.shape(name), lambda s, rows: s.read(name, rows)
        )

    def class_vectors(
        self,
        classes: Sequence[int],
        images: slice | Sequence[int] | np.ndarray = slice(None),
    ) -> np.ndarray:
        """See `Store.class_vectors`."""
        shape = (len(classes), self.shape("class_vectors")[1])
        return self._gather(
            images, shape, lambda store, rows: store.class_vectors(classes, rows)
        )

    def _gather(self, images, shape: tuple[int, ...], read: Callable) -> np.ndarray:
        """(n, *shape) entries from where they are."""
        places = self._places[images]
        parts = []
        for number, store in enumerate(self._stores):
            here = np.flatnonzero(places[:, 0] == number)
            if here.size:
                parts.append((here, read(store, places[here, 1])))
        found = np.zeros((len(places), *shape), parts[0][1].dtype)
        for here, values in parts:
            found[(here, *map(slice, values.shape[1:]))] = values
        return found
