"""Class vectors to image descriptors: offline, online and theme (Secs. 3.2, 3.3).

Each class vector is whitened and l2-normalised; the descriptor of an image is the
l2-normalised sum over N_C classes. The three ways differ only in which classes: each
image's own most probable (offline, OfA), the query's (online, OnA), or one fixed list
(theme, Fig. 5).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from cwr_utils.arrays import check_shape, l2_normalize
from cwr_utils.store import Store
from cwr_utils.whitening import Whitening

BLOCK_IMAGES = 1024
READ_CLASSES = 16  # together: one read of many classes is quicker than many reads


def aggregate(whitened, num_classes: Sequence[int]) -> dict[int, np.ndarray]:
    """Sum the first N_C whitened class vectors of each image, for several N_C at once.

    Args:
        whitened: (N, C, D) whitened class vectors, most probable class first.
        num_classes: the values of N_C wanted, each between 1 and C.

    Returns:
        N_C -> (N, D) float32 descriptors, l2-normalised.

    Raises:
        ValueError: if a value of N_C is outside 1..C.
    """
    _, classes, _ = check_shape(whitened, "N C D", "whitened")
    wrong = [n for n in num_classes if not 1 <= n <= classes]
    if wrong:
        raise ValueError(f"`num_classes` must be in 1..{classes}; got {wrong}.")
    descriptors, start, total = {}, 0, None
    for count in sorted(set(num_classes)):
        part = whitened[:, start:count].sum(axis=1, dtype=np.float32)
        total = part if total is None else total + part
        descriptors[count] = l2_normalize(total)
        start = count
    return descriptors


def repeat_previous(whitened) -> np.ndarray:
    """Describe a class that an image has no vector of by the class before it.

    Deviation: only `Protocol.repeat_previous_class` does; else it adds nothing. A first
    class without a vector stays zero (the authors' code would take one of another
    image).

    Args:
        whitened: (..., C, D) whitened class vectors; a row of zeros is an empty CAM's.

    Returns:
        (..., C, D), a copy.
    """
    filled = np.array(whitened)
    for number in range(1, filled.shape[-2]):
        row, previous = filled[..., number, :], filled[..., number - 1, :]
        empty = ~row.any(axis=-1)
        row[empty] = previous[empty]
    return filled


def offline(
    store: Store,
    whitening: Whitening,
    num_classes: Sequence[int],
    repeat_empty: bool = False,
) -> dict[int, np.ndarray]:
    """Offline aggregation (OfA): each image's own top N_C classes.

    Memory holds one block of class vectors at a time.

    Args:
        store: class vectors of N images.
        whitening: fitted on class vectors of another data set.
        num_classes: values of N_C.
        repeat_empty: apply `repeat_previous`.

    Returns:
        N_C -> (N, D) float32 descriptors.
    """
    num_classes = sorted(set(num_classes))
    shape = (len(store), whitening.dimensions)
    descriptors = {count: np.empty(shape, np.float32) for count in num_classes}
    for images, vectors in store.iter_top_class_vectors(num_classes[-1]):
        whitened = whitening(vectors)
        if repeat_empty:
            whitened = repeat_previous(whitened)
        for count, rows in aggregate(whitened, num_classes).items():
            descriptors[count][images] = rows
    return descriptors


class OnlineIndex:
    """Online aggregation (OnA): every image described by the query's classes.

    A class is read and whitened once for the whole collection and kept while memory
    allows, so queries that share classes share the work.
    """

    def __init__(self, store: Store, whitening: Whitening, cache_bytes: int = 2**31):
        """Wrap a store of all classes.

        Args:
            store: class vectors of N images, all classes.
            whitening: fitted on class vectors of another data set.
            cache_bytes: memory for whitened classes, at least one; the least recently
                used go first.
        """
        self.store = store
        self.whitening = whitening
        per_class = 2 * len(store) * whitening.dimensions
        self._capacity = max(1, cache_bytes // max(per_class, 1))
        self._classes: OrderedDict[int, np.ndarray] = OrderedDict()

    def descriptors(
        self,
        classes: Sequence[int],
        num_classes: Sequence[int] | None = None,
        repeat_empty: bool = False,
    ) -> dict[int, np.ndarray]:
        """Describe all images by the first N_C of a list of classes.

        Args:
            classes: the query's classes, most probable first.
            num_classes: values of N_C; all of `classes` if None.
            repeat_empty: as `repeat_previous` does.

        Returns:
            N_C -> (N, D) float32 descriptors.

        Raises:
            ValueError: if a value of N_C is outside 1..len(classes).
        """
        wanted = sorted(set(num_classes or [len(classes)]))
        wrong = [n for n in wanted if not 1 <= n <= len(classes)]
        if wrong:
            raise ValueError(
                f"`num_classes` must be in 1..{len(classes)}, the number of `classes` "
                f"given; got {wrong}."
            )
        total = np.zeros((len(self.store), self.whitening.dimensions), np.float32)
        result, vectors = {}, np.zeros(1, np.float16)
        for count, class_id in enumerate(classes[: wanted[-1]], start=1):
            previous = vectors
            vectors = self._whitened(int(class_id), classes[: wanted[-1]])
            if repeat_empty:
                empty = ~vectors.any(axis=1, keepdims=True)
                vectors = np.where(empty, previous, vectors)
            total += vectors
            if count in wanted:
                result[count] = l2_normalize(total)
        return result

    def _whitened(self, class_id: int, upcoming: Iterable[int]) -> np.ndarray:
        """(N, D) float16 whitened vectors of one class; reads missing ones together."""
        if class_id not in self._classes:
            missing = [int(c) for c in upcoming if int(c) not in self._classes]
            at_once = min(READ_CLASSES, self._capacity)
            self._load(missing[missing.index(class_id) :][:at_once])
        self._classes.move_to_end(class_id)
        return self._classes[class_id]

    def _load(self, classes: list[int]) -> None:
        shape = (len(classes), len(self.store), self.whitening.dimensions)
        whitened = np.empty(shape, np.float16)
        for start in range(0, len(self.store), BLOCK_IMAGES):
            rows = slice(start, min(start + BLOCK_IMAGES, len(self.store)))
            vectors = self.store.class_vectors(classes, rows)
            whitened[:, rows] = self.whitening(vectors).swapaxes(0, 1)
        for class_id, vectors in zip(classes, whitened, strict=True):
            # A copy each: a view would keep its neighbours alive.
            self._classes[class_id] = vectors.copy()
        while len(self._classes) > self._capacity:
            self._classes.popitem(last=False)


def theme_classes(top_classes, num_classes: int) -> list[int]:
    """The most frequent classes among the top classes of a set of images (Fig. 5a).

    Args:
        top_classes: (Q, n) classes, most probable first, of queries of another data
            set.
        num_classes: length of the list.

    Returns:
        Class numbers by falling frequency; ties go to the class that stands higher in
        the images' own lists, then to the lower number.
    """
    top_classes = np.asarray(top_classes)
    classes, first, counts = np.unique(
        top_classes.T, return_index=True, return_counts=True
    )
    order = np.lexsort((classes, first // len(top_classes), -counts))
    return classes[order][:num_classes].tolist()


def class_frequencies(top_classes, classes: Sequence[int]) -> np.ndarray:
    """Share of images that have each class among their top classes (Fig. 5a).

    Args:
        top_classes: (Q, n) classes of each image.
        classes: the classes asked for.

    Returns:
        (len(classes),) shares in [0, 1].
    """
    top_classes = np.asarray(top_classes)
    return np.array([(top_classes == c).any(axis=1).mean() for c in classes])


def regions(vectors, whitening: Whitening | None) -> np.ndarray:
    """R-MAC: whiten each region's vector, sum, normalise (Tolias et al., ICLR 2016).

    Args:
        vectors: (N, R, K) region vectors; rows of zeros are padding.
        whitening: fitted on region vectors of another data set, or None.

    Returns:
        (N, D) float32 descriptors, or (N, K) without whitening.
    """
    check_shape(vectors, "N R K", "vectors")
    vectors = l2_normalize(vectors) if whitening is None else whitening(vectors)
    return l2_normalize(vectors.sum(axis=1))
