"""Online aggregation from few vectors a photo: groups of classes, quantised.

A photo keeps the whitened vectors of its G most probable classes only. Each stands for
a group: its own class, and all other classes whose columns of the classifier are more
like its own than like those of the photo's other G - 1. A query takes from every photo,
for each class of its own, the vector that stands for it. Deviation: not in the paper.

Groups belong to a photo because fixed ones put classes together that a photo needs
apart: what looks like a palace looks like a monastery too, and both say something.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from cwr_utils import derived
from cwr_utils.aggregation import SUMS_BYTES, describe_parts
from cwr_utils.arrays import check_shape, l2_normalize
from cwr_utils.store import ArraySpec, Store
from cwr_utils.whitening import Whitening

ROWS = 512  # photos read and described at a time


class Groups(NamedTuple):
    """What is kept of a photo.

    Attributes:
        count: G, its most probable classes; of a network with fewer, all.
        bits: of a component, one of `names.BITS`; 16 is half precision, not quantised.
    """

    count: int
    bits: int


def quantize(vectors: np.ndarray, bits: int) -> np.ndarray:
    """Round vectors to whole numbers, each scaled by its own largest component.

    The scale is not kept: of a unit vector it comes back with the length, see
    `dequantize`.

    Args:
        vectors: (..., D) of length 1, or zero.
        bits: one of `names.BITS`.

    Returns:
        (..., D) float16 or int8, or (..., ceil(D / 2)) uint8: two components a byte.
    """
    if bits == 16:
        return vectors.astype(np.float16)
    most = 2 ** (bits - 1) - 1
    peak = np.abs(vectors).max(axis=-1, keepdims=True)
    whole = np.rint(vectors * (most / np.where(peak > 0, peak, 1))).astype(np.int8)
    if bits == 8:
        return whole
    whole = np.concatenate([whole, np.zeros_like(whole[..., :1])], axis=-1)
    pairs = whole[..., : whole.shape[-1] // 2 * 2].view(np.uint8) & 15
    return pairs[..., ::2] | pairs[..., 1::2] << 4


def dequantize(stored: np.ndarray, bits: int, dimensions: int) -> np.ndarray:
    """(..., D) float32 vectors of length 1, or zero, from those of `quantize`."""
    if bits == 4:
        halves = np.stack([stored & 15, stored >> 4], axis=-1).astype(np.int8)
        signed = (halves ^ 8) - 8  # the fourth bit is the sign
        stored = signed.reshape(*stored.shape[:-1], -1)[..., :dimensions]
    return l2_normalize(stored.astype(np.float32))


def derive(
    store: Store,
    whitening: Whitening,
    groups: Groups,
    executor: Executor | None = None,
) -> Store:
    """The whitened vectors of each photo's most probable classes, kept beside a store.

    They are computed where they are not there yet, once for the contents of the photos,
    their settings, the whitening and the groups. One photo is one contiguous record.

    Args:
        store: class vectors of N images, all or at least `groups.count` of each.
        whitening: fitted on class vectors of another data set.
        groups: what is kept.
        executor: where the records are computed, see `derived.derive`.

    Returns:
        A store with `vectors` (G, D) as `quantize` gives them and `classes` (G,), most
        probable first.

    Raises:
        StoreError: if the store keeps fewer classes, or the disk is full.
    """
    count = min(groups.count, store.shape("probabilities")[0])
    groups = groups._replace(count=count)
    facts = {
        "of": "groups",
        "whitening": whitening.sha256,
        "dimensions": whitening.dimensions,
        "groups": groups.count,
        "bits": groups.bits,
    }
    specs = record_specs(groups, whitening.dimensions)
    compute = partial(_records, whitening=whitening, groups=groups)
    name = f"g{groups.count}-b{groups.bits}"
    return derived.derive(store, name, facts, specs, compute, executor)


def record_specs(groups: Groups, dimensions: int) -> dict[str, ArraySpec]:
    """The arrays of a store of `derive`, for vectors of D = `dimensions`."""
    row = quantize(np.zeros((1, dimensions), np.float32), groups.bits)
    shape = groups.count, row.shape[1]
    return {
        "classes": ArraySpec((groups.count,), "int32"),
        "vectors": ArraySpec(shape, row.dtype.name, by_photo=True),
    }


def _records(
    store: Store, rows: Sequence[int], whitening: Whitening, groups: Groups
) -> dict[str, np.ndarray]:
    """What is kept of some photos."""
    vectors = whitening(store.top_class_vectors(groups.count, rows))
    classes = store.top_classes(groups.count, rows)
    return {"classes": classes, "vectors": quantize(vectors, groups.bits)}


class GroupedIndex:
    """Photos described by a query's classes, from the vectors that stand for them.

    Attributes:
        store: of `derive`.
    """

    def __init__(
        self, store: Store, bits: int, dimensions: int, class_weights: np.ndarray
    ):
        """Read which classes each photo keeps; vectors are read when asked for.

        Args:
            store: of `derive`.
            bits: of a component there, see `Groups`.
            dimensions: D.
            class_weights: (M, C) of the classifier, by which classes are alike.
        """
        self.store, self._bits, self._dimensions = store, bits, dimensions
        self._class_weights = class_weights

    @cached_property
    def _kept(self) -> np.ndarray:
        """(N, G) classes."""
        return self.store.read("classes")

    @cached_property
    def _columns(self) -> np.ndarray:
        """(C, M) of length 1; what all columns share changes no probability."""
        columns = self._class_weights.T
        return l2_normalize(columns - columns.mean(axis=0))

    def stand_ins(self, classes: Sequence[int], rows) -> np.ndarray:
        """Which of a photo's kept classes stands for each class.

        The same where it is kept, or else the one whose column has the largest cosine
        with its own, the centre of all columns taken away; of two the more probable.

        Args:
            classes: C of the network's.
            rows: (L,) of the photos.

        Returns:
            (L, C) places in the photo's list of kept classes.
        """
        kept = self._kept[rows]
        places = np.empty((len(kept), len(classes)), int)
        for number, class_id in enumerate(classes):
            alike = self._columns @ self._columns[class_id]
            alike[class_id] = np.inf
            places[:, number] = alike[kept].argmax(axis=1)
        return places

    def named(self, classes: Sequence[int], row: int) -> list[int]:
        """The classes that stand for some classes in one photo."""
        places = self.stand_ins(classes, [row])[0]
        return self._kept[row][places].tolist()

    def parts(self, rows, classes: Sequence[int]) -> np.ndarray:
        """(L, C, D) float32 whitened vectors that stand for classes in some photos."""
        rows = np.asarray(rows, int)
        return self._parts(rows, self.store.read("vectors", rows), classes)

    def _parts(self, rows, stored: np.ndarray, classes: Sequence[int]) -> np.ndarray:
        """`parts` from the records (L, G, ...) of these photos."""
        places = self.stand_ins(classes, rows)
        chosen = stored[np.arange(len(stored))[:, None], places]
        return dequantize(chosen, self._bits, self._dimensions)

    def describe(
        self, rows, classes: Sequence[int], weights=None, repeat_empty: bool = False
    ) -> np.ndarray:
        """Describe some photos by a query's classes; only these are read.

        Args:
            rows: (L,) of the photos, in any order.
            classes: of the query, most probable first.
            weights: (C,) above 0, how much each counts; all the same if None.
            repeat_empty: see `aggregation.repeat_previous`.

        Returns:
            (L, D) float32, of length 1; zero where no vector stands for any class.
        """
        rows = np.asarray(rows, int)
        check_shape(rows, "L", "rows")
        weights = np.ones(len(classes)) if weights is None else weights
        return self._describe(rows, [classes], [weights], repeat_empty)[0]

    def _describe(self, rows, lists, weights, repeat_empty: bool) -> np.ndarray:
        """(Q, L, D) by each of several lists; a photo is read once for all."""
        shape = len(lists), len(rows), self._dimensions
        described = np.empty(shape, np.float32)
        for start in range(0, len(rows), ROWS):
            some = slice(start, start + ROWS)
            stored = self.store.read("vectors", rows[some])
            for number, classes in enumerate(lists):
                parts = self._parts(rows[some], stored, classes)
                found = describe_parts(parts, weights[number], repeat_empty)
                described[number, some] = found
        return described

    def many(
        self,
        lists: Sequence[Sequence[int]],
        repeat_empty: bool = False,
        weights: Sequence[np.ndarray] | None = None,
    ) -> Iterator[np.ndarray]:
        """(N, D) descriptors of all photos by each of several lists of classes.

        Arguments are those of `aggregation.OnlineIndex.many`.
        """
        every = np.arange(len(self.store))
        weights = weights or [np.ones(len(classes)) for classes in lists]
        each = 4 * len(every) * self._dimensions
        together = max(1, SUMS_BYTES // max(1, each))
        for first in range(0, len(lists), together):
            some = slice(first, first + together)
            yield from self._describe(every, lists[some], weights[some], repeat_empty)
