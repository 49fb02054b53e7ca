"""What every store is: arrays over images, read by name and by class."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cwr_utils.identity import differences

BLOCK = 64  # images a shard; a disk reads their 64 KiB of a class faster than 32 KiB


class StoreError(RuntimeError):
    """A store that cannot be read or written."""


class StoreMismatchError(StoreError):
    """A store that was made with another configuration or from other images."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store.

    Attributes:
        shape: sizes of one image's entry, without the image axis.
        dtype: NumPy name of the data type.
        by_row: whether each index of the entry's first axis is its own inner chunk.
        by_photo: whether each image's entry is, so that some can be read alone.
    """

    shape: tuple[int, ...]
    dtype: str
    by_row: bool = False
    by_photo: bool = False


class Store(ABC):
    """Arrays over images.

    Attributes:
        path: where they are, for messages.
        names: image (or query) names, in the order of the first axis.
        config: what the arrays were made with.
        hashes: name -> SHA-256 of the content that was described.
        block: images that are read together.
    """

    path: Path
    names: list[str]
    config: dict
    hashes: dict[str, str]
    block: int

    @property
    @abstractmethod
    def arrays(self) -> list[str]:
        """Names of the arrays."""

    @abstractmethod
    def shape(self, array: str) -> tuple[int, ...]:
        """Shape of one image's entry in an array."""

    @abstractmethod
    def dtype(self, array: str) -> np.dtype:
        """Data type of an array."""

    @property
    @abstractmethod
    def sources(self) -> list["Store"]:
        """The stores on disk that are read."""

    @abstractmethod
    def read(
        self, name: str, images: slice | Sequence[int] | np.ndarray = slice(None)
    ) -> np.ndarray:
        """Read an array for some images.

        Args:
            name: the array.
            images: slice or indices of the first axis.

        Returns:
            ``(images, *shape)`` array of the stored data type.

        Raises:
            StoreError: if a shard is missing or damaged.
        """

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def items(self) -> list[tuple[str, str]]:
        """Name and content of each image, in the order of the first axis."""
        return list(self.hashes.items())

    def disk_bytes(self) -> int:
        """Bytes of all files that are read."""
        files = (file for store in self.sources for file in store.path.rglob("*"))
        return sum(file.stat().st_size for file in files if file.is_file())

    def has(self, array: str) -> bool:
        """Whether there is an array of that name."""
        return array in self.arrays

    def entry_bytes(self, array: str) -> int:
        """Bytes of one image's entry in an array."""
        return int(np.prod(self.shape(array))) * self.dtype(array).itemsize

    @property
    def blocks(self) -> list[range]:
        """Image indices of each block."""
        starts = range(0, len(self), self.block)
        return [range(i, min(i + self.block, len(self))) for i in starts]

    def missing_blocks(self) -> list[int]:
        """Numbers of the blocks that are not complete."""
        return []

    def rows_by_content(self) -> dict[str, int]:
        """Content -> index of the images in the blocks that are complete."""
        contents, missing = list(self.hashes.values()), set(self.missing_blocks())
        return {
            contents[row]: row
            for number, rows in enumerate(self.blocks)
            if number not in missing
            for row in rows
        }

    def require_complete(self) -> "Store":
        """Return the store itself, or raise StoreError if blocks are missing."""
        if missing := self.missing_blocks():
            raise StoreError(
                f"{self.path} lacks {len(missing)} of {len(self.blocks)} blocks: "
                "run the extraction again; it goes on where it stopped."
            )
        return self

    def require(
        self, config: Mapping, images: Mapping[str, str] | None = None
    ) -> "Store":
        """Return the store itself if it was made as is asked for, of these images.

        Args:
            config: facts that it must have; others that it has do not matter.
            images: name -> SHA-256 of its content, in the order of the first axis; any
                if None.

        Raises:
            StoreMismatchError: if a fact, an image or their order differs; names it.
        """
        there = {name: self.config[name] for name in config if name in self.config}
        what = "; ".join(differences(there, config))
        if not what and images is not None and self.items() != list(images.items()):
            what = f"images: {_changes(self.hashes, images)}"
        if what:
            raise StoreMismatchError(
                f"The store {self.path} was made with another {what}. Use another "
                "cache_dir, or delete the store to make it anew."
            )
        return self

    def class_vectors(
        self,
        classes: Sequence[int],
        images: slice | Sequence[int] | np.ndarray = slice(None),
    ) -> np.ndarray:
        """Read the vectors of given classes (online aggregation).

        Args:
            classes: class numbers.
            images: slice or indices of the first axis.

        Returns:
            (images, len(classes), K) as stored, l2-normalised rows.

        Raises:
            StoreError: if the store keeps only each image's own top classes.
        """
        self._require_all_classes()
        return self.read("class_vectors", images)[:, list(classes)]

    def start_class(self, class_id: int) -> Callable[[], np.ndarray]:
        """Start to read one class of all images, and go on.

        Reads of several classes may run together, while earlier ones are worked on.

        Args:
            class_id: the class.

        Returns:
            A function that waits for the (images, K) vectors and returns them, the same
            array each time.

        Raises:
            StoreError: if the store keeps only each image's own top classes.
        """
        vectors = self.class_vectors([class_id])[:, 0]
        return lambda: vectors

    def iter_top_class_vectors(
        self, num_classes: int
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Read each image's own most probable class vectors, block by block.

        Args:
            num_classes: N_C, classes an image; of a network with fewer, all.

        Yields:
            (slice of images, (images, num_classes, K) as stored), most probable first.

        Raises:
            StoreError: if fewer classes than that are stored.
        """
        for rows in self.blocks:
            images = slice(rows.start, rows.stop)
            yield images, self.top_class_vectors(num_classes, images)

    def top_class_vectors(
        self, num_classes: int, images: slice | Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Read the most probable class vectors of some images.

        Args:
            num_classes: N_C, classes an image; of a network with fewer, all.
            images: slice or indices of the first axis.

        Returns:
            (images, num_classes, K) as stored, most probable first.

        Raises:
            StoreError: if fewer classes than that are stored.
        """
        chosen = self.top_classes(num_classes, images)
        if self.config["classes"] is not None:
            return self._first_vectors(chosen.shape[1], images)
        # One contiguous read of the classes that these images need is far quicker than
        # one small read for each image and class.
        needed, position = np.unique(chosen, return_inverse=True)
        vectors = self.class_vectors(needed.tolist(), images)
        position = position.reshape(chosen.shape)
        return vectors[np.arange(len(chosen))[:, None], position]

    def top_classes(
        self, num_classes: int, images: slice | Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """(images, num_classes) most probable classes; see `top_class_vectors`."""
        everything = self.config["classes"] is None
        if everything:
            num_classes = min(num_classes, self.shape("class_vectors")[0])
        known = self.shape("top_classes")[0]
        if num_classes <= known:
            return self.read("top_classes", images)[:, :num_classes]
        if not everything:
            raise StoreError(
                f"{self.path} knows the top {known} classes of each image; "
                f"{num_classes} were asked for."
            )
        falling = -self.read("probabilities", images)
        return falling.argsort(axis=1, kind="stable")[:, :num_classes]

    def _first_vectors(self, count: int, images) -> np.ndarray:
        """(images, count, K) first entries of `class_vectors`."""
        return self.read("class_vectors", images)[:, :count]

    def _require_all_classes(self) -> None:
        if self.config["classes"] is not None:
            raise StoreError(
                f"{self.path} keeps only the top {self.config['classes']} classes of "
                "each image; online and theme aggregation need all (classes=None)."
            )


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """How the images of a store differ from others."""
    groups = {
        "changed": sorted(n for n in old.keys() & new.keys() if old[n] != new[n]),
        "new": sorted(new.keys() - old.keys()),
        "gone": sorted(old.keys() - new.keys()),
    }
    details = [
        f"{len(group)} {what} ({', '.join(group[:5])})"
        for what, group in groups.items()
        if group
    ]
    return "; ".join(details) or "the same ones in another order"
