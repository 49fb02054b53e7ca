"""Class vectors to image descriptors: offline, online and theme (Secs. 3.2, 3.3).

Each class vector is whitened and l2-normalised; the descriptor of an image is the
l2-normalised sum over N_C classes. The three ways differ only in which classes: each
image's own most probable (offline, OfA), the query's (online, OnA), or one fixed list
(theme, Fig. 5).
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from cwr_utils import derived
from cwr_utils.arrays import check_shape, l2_normalize, widen
from cwr_utils.store import ArraySpec, Store, StoreError
from cwr_utils.whitening import Whitening

BLOCK_IMAGES = 512  # 1 MiB of 512 channels: stays in a core's cache
CLASSES_TOGETHER = 8  # added while later ones are read
# All at once would compete for the disk, and the first come as late as the last.
READ_AHEAD = 3 * CLASSES_TOGETHER
SUMS_BYTES = 2**28  # of the queries that `OnlineIndex.many` describes together
_BLAS = ThreadpoolController().select(user_api="blas")


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


class Aggregator(NamedTuple):
    """From the class vectors of a photo or region to its descriptor.

    Attributes:
        whitening: of the class vectors.
        repeat_empty: whether to apply `repeat_previous`.
        weighting: how much each class counts, one of `names.CLASS_WEIGHTINGS`: the
            same (the paper), its probability, or 1 / its rank.
    """

    whitening: Whitening
    repeat_empty: bool = False
    weighting: str = "equal"

    def weights(self, probabilities) -> np.ndarray:
        """(..., C) float32 weights of classes.

        Args:
            probabilities: (..., C) of the classes, the most probable first.
        """
        weights = np.asarray(probabilities, np.float32)
        if self.weighting != "probability":
            weights = np.ones_like(weights)
        if self.weighting == "rank":
            weights /= np.arange(1, weights.shape[-1] + 1, dtype=np.float32)
        return weights

    def parts(self, vectors, probabilities=None) -> np.ndarray:
        """What a descriptor sums: whitened class vectors, times their weights.

        Args:
            vectors: (..., C, K) class vectors, the most probable class first.
            probabilities: (..., C) of these classes; needed only where they weigh.

        Returns:
            (..., C, D) float32.
        """
        return self.weigh(self.whitening(vectors), probabilities)

    def weigh(self, whitened: np.ndarray, probabilities=None) -> np.ndarray:
        """(..., C, D) parts of vectors (..., C, D) that are whitened; see `parts`."""
        if self.repeat_empty:
            whitened = repeat_previous(whitened)
        if self.weighting == "equal":
            return whitened
        if probabilities is None and self.weighting == "rank":
            probabilities = np.ones(np.shape(whitened)[-2])
        return whitened * self.weights(probabilities)[..., None]

    def __call__(self, vectors, probabilities=None) -> np.ndarray:
        """(..., D) descriptors of class vectors (..., C, K); see `parts`."""
        return l2_normalize(self.parts(vectors, probabilities).sum(axis=-2))


def offline(
    store: Store, aggregator: Aggregator, num_classes: Sequence[int]
) -> dict[int, np.ndarray]:
    """Offline aggregation (OfA): each image's own top N_C classes.

    Memory holds one block of class vectors at a time.

    Args:
        store: class vectors of N images.
        aggregator: with a whitening fitted on class vectors of another data set.
        num_classes: values of N_C; more than the network has are all of them.

    Returns:
        N_C -> (N, D) float32 descriptors.
    """
    num_classes = sorted(set(num_classes))
    shape = (len(store), aggregator.whitening.dimensions)
    descriptors = {count: np.empty(shape, np.float32) for count in num_classes}
    for images, vectors in store.iter_top_class_vectors(num_classes[-1]):
        probabilities, most = None, vectors.shape[1]
        if aggregator.weighting == "probability":
            probabilities = _probabilities(store, images, most)
        parts = aggregator.parts(vectors, probabilities)
        known = {count: min(count, most) for count in num_classes}
        rows = aggregate(parts, sorted(set(known.values())))
        for count, used in known.items():
            descriptors[count][images] = rows[used]
    return descriptors


def keep_offline(
    store: Store,
    aggregator: Aggregator,
    num_classes: int,
    executor: Executor | None = None,
) -> Store:
    """`offline` of one N_C for a collection too large to do it anew each time.

    Args:
        store: class vectors of N images.
        aggregator: with a whitening fitted on class vectors of another data set.
        num_classes: N_C.
        executor: where the descriptors are computed, see `derived.derive`.

    Returns:
        A store with `descriptors` (D,) float32, kept beside that of the images.

    Raises:
        StoreError: if fewer classes are stored, or the disk is full.
    """
    whitening = aggregator.whitening
    facts = {
        "of": "offline",
        "whitening": whitening.sha256,
        "dimensions": whitening.dimensions,
        "num_classes": num_classes,
        "class_weighting": aggregator.weighting,
        "repeat_empty": aggregator.repeat_empty,
    }
    specs = {"descriptors": ArraySpec((whitening.dimensions,), "float32")}
    compute = partial(_descriptors, aggregator=aggregator, num_classes=num_classes)
    name = f"offline{num_classes}"
    return derived.derive(store, name, facts, specs, compute, executor)


def _descriptors(
    store: Store, rows: Sequence[int], aggregator: Aggregator, num_classes: int
) -> dict[str, np.ndarray]:
    """Offline descriptors of some images."""
    vectors, probabilities = store.top_class_vectors(num_classes, rows), None
    if aggregator.weighting == "probability":
        probabilities = _probabilities(store, rows, vectors.shape[1])
    return {"descriptors": aggregator(vectors, probabilities)}


def regional(
    store: Store, aggregator: Aggregator, num_classes: int, rows: int = BLOCK_IMAGES
) -> np.ndarray:
    """Regional aggregation: each image's own top classes in every region of R-MAC.

    Deviation: not in the paper. R-MAC's sum over regions (Tolias et al., ICLR 2016) and
    the paper's over classes, of one whitened vector for each pair.

    Args:
        store: with `region_vectors` of at least that many classes.
        aggregator: with a whitening fitted on region vectors of another data set.
        num_classes: N_C.
        rows: images read at a time.

    Returns:
        (N, D) float32 descriptors.

    Raises:
        StoreError: if regions were described by fewer classes.
    """
    descriptors = np.empty((len(store), aggregator.whitening.dimensions), np.float32)
    for start in range(0, len(store), rows):
        images = slice(start, min(start + rows, len(store)))
        vectors = region_vectors(store, num_classes, images)
        probabilities = _probabilities(store, images, num_classes)[:, None]
        parts = aggregator.parts(vectors, probabilities)
        descriptors[images] = l2_normalize(parts.sum(axis=(1, 2)))
    return descriptors


def region_vectors(
    store: Store, num_classes: int, images: slice | np.ndarray
) -> np.ndarray:
    """(n, R, C, K) class vectors of the regions of some images.

    A network with fewer classes than `num_classes` gives all.

    Raises:
        StoreError: if regions were described by fewer classes.
    """
    kept = store.shape("region_vectors")[1] if store.has("region_vectors") else 0
    num_classes = min(num_classes, store.shape("probabilities")[0])
    if num_classes > kept:
        raise StoreError(
            f"{store.path} describes regions by {kept} classes; {num_classes} were "
            "asked for. Extract with a larger `region_classes`, or lower "
            "`num_classes` and `num_whitening_classes`."
        )
    return store.read("region_vectors", images)[:, :, :num_classes]


def _probabilities(
    store: Store, images: slice | Sequence[int] | np.ndarray, num_classes: int
) -> np.ndarray:
    """(n, C) probabilities of the first classes of some images."""
    top = store.read("top_classes", images)[:, :num_classes]
    return np.take_along_axis(store.read("probabilities", images), top, axis=1)


def describe_parts(parts, weights, repeat_empty: bool) -> np.ndarray:
    """The l2-normalised weighted sum of whitened class vectors.

    Args:
        parts: (..., C, D) float32, may be changed.
        weights: (C,).
        repeat_empty: as `repeat_previous` does.

    Returns:
        (..., D) float32, of length 1; zero where all parts are.
    """
    if repeat_empty:
        parts = repeat_previous(parts)
    parts *= np.asarray(weights, np.float32)[:, None]
    return l2_normalize(parts.sum(axis=-2))


class OnlineIndex:
    """Online aggregation (OnA): every image described by the query's classes.

    The first time a class is asked for, the lengths of its whitened vectors are
    computed for the whole collection, which is what whitening costs, and kept. Its
    vectors are kept as long as memory allows, and read again when they are not.
    """

    def __init__(self, store: Store, whitening: Whitening, cache_bytes: int = 2**30):
        """Wrap a store of all classes.

        Args:
            store: class vectors of N images, all classes.
            whitening: fitted on class vectors of another data set.
            cache_bytes: memory for class vectors, at least one class; the least
                recently used go first.
        """
        self.store = store
        self.whitening = whitening
        itemsize = store.dtype("class_vectors").itemsize
        per_class = itemsize * len(store) * len(whitening.mean)
        self._capacity = max(1, cache_bytes // max(per_class, 1))
        self._vectors: OrderedDict[int, Callable[[], np.ndarray]] = OrderedDict()
        self._scales: dict[int, np.ndarray] = {}  # (2, N), see `Whitening.scales`

    def descriptors(
        self,
        classes: Sequence[int],
        num_classes: Sequence[int] | None = None,
        repeat_empty: bool = False,
        weights=None,
    ) -> dict[int, np.ndarray]:
        """Describe all images by the first N_C of a list of classes.

        Args:
            classes: the query's classes, most probable first.
            num_classes: values of N_C; all of `classes` if None.
            repeat_empty: as `repeat_previous` does.
            weights: (len(classes),) above 0, how much each class counts; all the same
                if None.

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
        sums, factors = self._zeros(1)
        # What the class before added.
        last = (sums[0].copy(), factors[0].copy()) if repeat_empty else None
        result, start = {}, 0
        for count in wanted:
            part = classes[start:count]
            shares = np.ones(len(part)) if weights is None else weights[start:count]
            self._add(part, np.array([shares], "f4"), sums, factors, last)
            unscaled = self.whitening.unscale(sums[0], factors[0])
            result[count] = l2_normalize(unscaled)
            start = count
        return result

    def many(
        self,
        lists: Sequence[Sequence[int]],
        repeat_empty: bool = False,
        weights: Sequence[np.ndarray] | None = None,
    ) -> Iterator[np.ndarray]:
        """Describe all images by each of several lists of classes.

        A class that several lists have is read and scaled once for as many of them as
        `SUMS_BYTES` holds, which is cheaper than one call of `descriptors` for each.

        Args:
            lists: the classes of each query.
            repeat_empty: as `repeat_previous` does.
            weights: of the classes in each list, see `descriptors`.

        Yields:
            (N, D) float32 descriptors for each list, in order: those of `descriptors`.
        """
        together = max(1, SUMS_BYTES // max(1, self._zeros(1)[0].nbytes))
        weights = weights or [np.ones(len(classes), np.float32) for classes in lists]
        weighted = list(zip(lists, weights, strict=True))
        if repeat_empty or together == 1:  # the order of the classes matters
            for classes, shares in weighted:
                described = self.descriptors(classes, None, repeat_empty, shares)
                yield described[len(classes)]
            return
        for first in range(0, len(lists), together):
            group = [
                dict(zip(*pair, strict=True))
                for pair in weighted[first : first + together]
            ]
            classes = list(dict.fromkeys(c for part in group for c in part))
            members = np.array([[part.get(c, 0) for c in classes] for part in group])
            sums, factors = self._zeros(len(group))
            self._add(classes, members.astype("f4"), sums, factors, None)
            for number in range(len(group)):
                unscaled = self.whitening.unscale(sums[number], factors[number])
                yield l2_normalize(unscaled)

    def describe(
        self, rows, classes: Sequence[int], weights=None, repeat_empty: bool = False
    ) -> np.ndarray:
        """Describe some images by a query's classes.

        The store is laid out for whole classes: of each image and class the vectors of
        its block are read. `GroupedIndex.describe` reads only the images' own.

        Args:
            rows: (L,) of the images, in any order.
            classes: of the query, most probable first.
            weights: (C,) above 0, how much each counts; all the same if None.
            repeat_empty: as `repeat_previous` does.

        Returns:
            (L, D) float32, those rows of `descriptors`, but for rounding.
        """
        rows = np.asarray(rows, int)
        check_shape(rows, "L", "rows")
        weights = np.ones(len(classes)) if weights is None else weights
        described = np.empty((len(rows), self.whitening.dimensions), np.float32)
        for start in range(0, len(rows), BLOCK_IMAGES):
            some = slice(start, start + BLOCK_IMAGES)
            vectors = self.store.class_vectors(classes, rows[some])
            parts = self.whitening(widen(vectors))
            described[some] = describe_parts(parts, weights, repeat_empty)
        return described

    def _zeros(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(count, N, K) sums of vectors and (count, N) sums of factors."""
        shape = (count, len(self.store), len(self.whitening.mean))
        return np.zeros(shape, np.float32), np.zeros(shape[:2], np.float32)

    def _add(self, classes: Sequence[int], members, sums, factors, last) -> None:
        """Add the scaled vectors of classes to the sums that have them.

        Args:
            classes: C of them.
            members: (L, C), weight of each class in each sum; 0 where it is not in it.
            sums: (L, N, K), changed in place.
            factors: (L, N), changed in place.
            last: what the class before added, to be repeated; see `descriptors`.
        """
        order = np.arange(len(classes))
        if last is None:  # so that rounding does not depend on what is added together
            order = np.argsort(classes, kind="stable")
        members, chosen = members[:, order], np.asarray(classes)[order].tolist()
        for first in range(0, len(chosen), self._capacity):
            part = slice(first, first + self._capacity)
            self._add_kept(chosen[part], members[:, part], sums, factors, last)

    def _add_kept(self, classes: list[int], members, sums, factors, last) -> None:
        """`_add` for classes that all fit into memory."""
        for class_id in classes:  # what is here will not be pushed out by the rest
            if class_id in self._vectors:
                self._vectors.move_to_end(class_id)
        # Threads over blocks that fit a core's cache, each with BLAS of one thread:
        # NumPy's conversions and sums use one core only.
        with _BLAS.limit(limits=1), ThreadPoolExecutor(os.cpu_count()) as threads:
            for first in range(0, len(classes), CLASSES_TOGETHER):
                self._start(classes[first : first + READ_AHEAD])
                together = slice(first, first + CLASSES_TOGETHER)
                parts = []
                for class_id in classes[together]:
                    vectors = self._vectors[class_id]()
                    scales = self._scales.get(class_id)
                    if new := scales is None:
                        scales = np.empty((2, len(self.store)), np.float32)
                    parts.append((vectors, scales, new))
                add = partial(
                    self._add_block, parts, members[:, together], sums, factors, last
                )
                list(threads.map(add, range(0, len(self.store), BLOCK_IMAGES)))
                for class_id, part in zip(classes[together], parts, strict=True):
                    self._scales[class_id] = part[1]

    def _add_block(self, parts, members, sums, factors, last, start: int) -> None:
        rows = slice(start, start + BLOCK_IMAGES)
        for (vectors, scales, new), weights in zip(parts, members.T, strict=True):
            wide = widen(vectors[rows])
            if new:
                scales[:, rows] = self.whitening.scales(wide)
            scaled = wide * scales[0, rows, None]
            factor = scales[1, rows]
            if last:
                empty = scales[0, rows] == 0
                scaled[empty] = last[0][rows][empty]
                factor = np.where(empty, last[1][rows], factor)
                last[0][rows], last[1][rows] = scaled, factor
            for number in np.flatnonzero(weights):
                weight = weights[number]
                sums[number, rows] += scaled if weight == 1 else weight * scaled
                factors[number, rows] += weight * factor

    def _start(self, classes: list[int]) -> None:
        """Start to read the (N, K) vectors of those classes that are not in memory."""
        for class_id in classes:
            if class_id not in self._vectors:
                if len(self._vectors) >= self._capacity:
                    self._vectors.popitem(last=False)
                self._vectors[class_id] = self.store.start_class(class_id)


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
