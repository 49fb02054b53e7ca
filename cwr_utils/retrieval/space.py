"""Whitenings of the training photos, and the database's descriptors in each of them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from cwr_utils import aggregation, whitening
from cwr_utils.aggregation import Aggregator, OnlineIndex
from cwr_utils.arrays import l2_normalize
from cwr_utils.grouping import GroupedIndex, Groups, derive
from cwr_utils.names import GLOBAL_POOLINGS
from cwr_utils.retrieval.method import REGION_AGGREGATIONS, Method
from cwr_utils.store import Store
from cwr_utils.whitening import Whitening, WhiteningError

# Classes of a photo that count towards the theme list (Fig. 5 uses queries' top 64).
THEME_TOP_CLASSES = 64
LARGE = 10_000  # photos, whose descriptors take minutes in each process


def pooled(
    store: Store, name: str, rows: slice | np.ndarray = slice(None)
) -> np.ndarray:
    """(n, K) vectors of a global pooling, or (n, R, K) of the regions of R-MAC."""
    if name in REGION_AGGREGATIONS:
        return store.read("regions", rows)[:, REGION_AGGREGATIONS.index(name)]
    return store.read("globals", rows)[:, GLOBAL_POOLINGS.index(name)]


def baseline(store: Store, name: str, fitted: Whitening | None) -> np.ndarray:
    """(n, D) descriptors without classes, (n, K) without whitening.

    Memory holds the vectors of one block of the store at a time.
    """
    size = fitted.dimensions if fitted else store.shape("globals")[-1]
    described = np.empty((len(store), size), np.float32)
    for block in store.blocks:
        rows = slice(block.start, block.stop)
        vectors = pooled(store, name, rows)
        if name in REGION_AGGREGATIONS:
            described[rows] = aggregation.regions(vectors, fitted)
        else:
            described[rows] = fitted(vectors) if fitted else l2_normalize(vectors)
    return described


@dataclass(frozen=True, eq=False)
class Training:
    """The photos that whitening is fitted on.

    Attributes:
        store: with them, and perhaps with others.
        rows: which of its images they are.
        source: what tables call them.
    """

    store: Store
    rows: np.ndarray
    source: str

    @classmethod
    def choose(
        cls, store: Store, source: str, images: Sequence[str] | None
    ) -> "Training":
        """The photos of a store, or those of some names.

        Raises:
            ValueError: if a name is not in the store.
        """
        chosen = set(store.names if images is None else images)
        rows = [row for row, name in enumerate(store.names) if name in chosen]
        if len(rows) < len(chosen):
            raise ValueError(
                f"{len(chosen) - len(rows)} of the `training_images` are not in "
                f"{store.path}."
            )
        if images is not None:
            source += f" ({len(rows)} of {len(store)} photos)"
        return cls(store.require_complete(), np.array(rows, int), source)

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of each photo."""
        return [self.store.hashes[self.store.names[row]] for row in self.rows]

    def theme(self, length: int) -> list[int]:
        """The most frequent of the photos' top classes."""
        top = self.store.read("top_classes", self.rows)[:, :THEME_TOP_CLASSES]
        return aggregation.theme_classes(top, length)

    def fit(self, kind: str, per_photo: int) -> Whitening:
        """The whitening with every axis that the vectors support.

        Args:
            kind: "class", "regional", or a pooling; see `Method.trained_on`.
            per_photo: N_pca, of "class" and, for each region, "regional".
        """
        if kind == "class":
            blocks = self.store.iter_top_class_vectors(per_photo)
            vectors = np.concatenate([block for _, block in blocks])[self.rows]
        elif kind == "regional":
            vectors = aggregation.region_vectors(self.store, per_photo, self.rows)
        else:
            vectors = pooled(self.store, kind, self.rows)
        return whitening.fit(vectors.reshape(-1, vectors.shape[-1]), self.source)


class Spaces:
    """Whitenings fitted on the training photos; each is fitted once.

    Attributes:
        database: store of the photos that are searched.
        training: the photos to fit on, or None.
    """

    def __init__(
        self, database: Store, training: Training | None, class_weights: np.ndarray
    ):
        """Nothing is fitted yet; `class_weights` (M, C) are those of the network."""
        self.database, self.training = database, training
        self._class_weights = class_weights
        self._fit = cache(lambda *vectors: self.require_training().fit(*vectors))
        self._whitening = cache(self._keep)
        self._space = cache(lambda aggregator: Space(self, aggregator))
        self._grouped = cache(self._open_groups)
        self._index: OnlineIndex | None = None
        self._baseline: tuple[tuple, np.ndarray] | None = None

    def fresh(self) -> "Spaces":
        """The same whitenings, with no descriptors computed yet."""
        again = Spaces(self.database, self.training, self._class_weights)
        again._fit = self._fit
        return again

    def require_training(self) -> Training:
        """The photos to fit on.

        Raises:
            WhiteningError: if there are none.
        """
        if self.training is None:
            raise WhiteningError(
                "This method needs whitening, and no training photos were given: name "
                "another data set to fit it on."
            )
        return self.training

    def fitted(self, method: Method) -> Whitening | None:
        """The whitening of a method; None if it has none.

        Raises:
            WhiteningError: if the training photos cannot support the dimensions.
        """
        if not method.dimensions:
            return None
        return self._whitening(*method.whitened_by)

    def _keep(
        self, trained_on: tuple[str, int], dimensions: int, *scaling: float
    ) -> Whitening:
        return self._fit(*trained_on).keep(dimensions).scaled(*scaling)

    def supported(self, method: Method) -> Method:
        """A method with D lowered to half of its whitening vectors if it is above that.

        n vectors support n - 1 dimensions, but the last ones are mostly noise: with
        N_pca = 1 a small whitening set gives little more than nothing for D = 512.
        """
        if not method.dimensions:
            return method
        fitted = self._fit(*method.trained_on)
        most = max(1, min(fitted.vectors // 2, fitted.dimensions))
        return replace(method, dimensions=min(method.dimensions, most))

    def of(self, method: Method, repeat_empty: bool) -> "Space":
        """The descriptors of a class aggregation.

        Args:
            method: whose whitening it is.
            repeat_empty: see `Protocol.repeat_previous_class`.
        """
        fitted = self._whitening(*method.whitened_by)
        return self._space(Aggregator(fitted, repeat_empty, method.class_weighting))

    def baseline(self, method: Method) -> np.ndarray:
        """(N, D) descriptors of the database without classes; the last are kept."""
        key = method.aggregation, method.whitened_by
        if self._baseline is None or self._baseline[0] != key:
            fitted = self.fitted(method)
            self._baseline = key, baseline(self.database, method.aggregation, fitted)
        return self._baseline[1]

    def online_index(self, fitted: Whitening) -> OnlineIndex:
        """The index of a whitening; one at a time, as it holds vectors in memory."""
        if self._index is None or self._index.whitening is not fitted:
            self._index = OnlineIndex(self.database, fitted)
        return self._index

    def group(self, method: Method, executor: Executor | None = None) -> Store:
        """The store of a method that is "grouped"; it is made where it is not there.

        Args:
            method: whose groups and whitening they are.
            executor: where it is made, see `grouping.derive`.

        Raises:
            StoreError: if the photos' store keeps fewer classes than the method.
        """
        fitted = self._whitening(*method.whitened_by)
        return derive(self.database, fitted, _groups(method), executor)

    def grouped_index(self, method: Method) -> GroupedIndex:
        """The index of a method that is "grouped", from its store; see `group`."""
        return self._grouped(self._whitening(*method.whitened_by), _groups(method))

    def _open_groups(self, fitted: Whitening, groups: Groups) -> GroupedIndex:
        store = derive(self.database, fitted, groups)
        return GroupedIndex(store, groups.bits, fitted.dimensions, self._class_weights)


def _groups(method: Method) -> Groups:
    return Groups(method.groups, method.bits)


class Space:
    """Descriptors by class vectors that are whitened in one way.

    Attributes:
        aggregator: from the class vectors of a photo or region to a descriptor.
    """

    def __init__(self, spaces: Spaces, aggregator: Aggregator):
        """Nothing is computed yet."""
        self.aggregator = aggregator
        self._spaces = spaces
        self._offline: dict[int, np.ndarray] = {}
        self._last: tuple[tuple, list[np.ndarray]] = ((), [])  # of `online`
        self._regional = cache(self._describe_regions)
        self._by_list = cache(lambda *classes: next(self.online([classes])))

    def offline(self, counts: Sequence[int]) -> dict[int, np.ndarray]:
        """N_C -> (N, D), each photo by its own classes; one pass over the store.

        Of more than `LARGE` photos they are kept on disk.
        """
        new = sorted(set(counts) - self._offline.keys())
        if len(self._spaces.database) > LARGE:
            self._offline |= {n: self.keep_offline(n).read("descriptors") for n in new}
        elif new:
            store = self._spaces.database
            self._offline |= aggregation.offline(store, self.aggregator, new)
        return self._offline

    def keep_offline(self, count: int, executor: Executor | None = None) -> Store:
        """See `aggregation.keep_offline`."""
        store = self._spaces.database
        return aggregation.keep_offline(store, self.aggregator, count, executor)

    def online(
        self, lists: Sequence[Sequence[int]], probabilities: Sequence | None = None
    ) -> Iterator[np.ndarray]:
        """(N, D) by each of several lists of classes; the last are kept if small.

        Args:
            lists: of classes.
            probabilities: of the classes in each list; all the same if None.
        """
        own = self.aggregator
        if probabilities is None:
            probabilities = [np.ones(len(classes)) for classes in lists]
        weights = [own.weights(part) for part in probabilities]
        index = self._spaces.online_index(own.whitening)
        each = 4 * len(index.store) * own.whitening.dimensions
        if len(lists) * each > aggregation.SUMS_BYTES:
            return index.many(lists, own.repeat_empty, weights)
        # Methods that re-rank or expand in different ways ask for the same.
        key = tuple(map(tuple, lists)), tuple(part.tobytes() for part in weights)
        if self._last[0] != key:
            self._last = key, list(index.many(lists, own.repeat_empty, weights))
        return iter(self._last[1])

    def by_query(
        self, method: Method, lists: Sequence[Sequence[int]], probabilities: Sequence
    ) -> Iterator[np.ndarray]:
        """(N, D) by each of several lists of classes, online or from groups."""
        if method.aggregation != "grouped":
            return self.online(lists, probabilities)
        own = self.aggregator
        weights = [own.weights(part) for part in probabilities]
        index = self._spaces.grouped_index(method)
        return index.many(lists, own.repeat_empty, weights)

    def closer(
        self, method: Method, rows, classes: Sequence[int], probabilities
    ) -> np.ndarray:
        """(L, D) of the photos in some rows, as `by_query` describes them."""
        own = self.aggregator
        index = (
            self._spaces.grouped_index(method)
            if method.aggregation == "grouped"
            else self._spaces.online_index(own.whitening)
        )
        return index.describe(
            rows, classes, own.weights(probabilities), own.repeat_empty
        )

    def regional(self, store: Store, count: int) -> np.ndarray:
        """(n, D) of all photos or queries of a store, see `aggregation.regional`."""
        return self._regional(store, count)

    def _describe_regions(self, store: Store, count: int) -> np.ndarray:
        return aggregation.regional(store, self.aggregator, count)

    def by_list(self, classes: Sequence[int]) -> np.ndarray:
        """(N, D) by one list of classes that all queries share."""
        return self._by_list(*classes)
