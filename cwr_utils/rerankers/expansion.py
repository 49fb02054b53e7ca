"""Descriptors averaged with those of their neighbours: of queries and of photos."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cwr_utils import ranking
from cwr_utils.arrays import l2_normalize
from cwr_utils.rerankers.base import (
    ExactIndex,
    Index,
    Prepared,
    Reranker,
    by_row,
    neighbours,
    photos,
)


@dataclass(frozen=True)
class AlphaQE(Reranker):
    """Alpha-weighted query expansion (Radenovic et al., TPAMI 2018).

    The query becomes the l2-normalised ``q + sum_i max(q . x_i, 0) ** alpha x_i`` over
    its first photos. `alpha` 0 is average query expansion, `ranking.expand_query`.

    Attributes:
        photos: that are averaged; 0 changes nothing.
        alpha: how much more the first ones count.
    """

    photos: int = 10
    alpha: float = 3.0

    name: ClassVar[str] = "alpha_qe"
    title: ClassVar[str] = "alpha-QE"

    def prepare(self, database, index: Index = ExactIndex) -> Prepared:
        """See `Reranker.prepare`; there is nothing to compute."""
        return _Expanding(self, photos(database))


class _Expanding(Prepared):
    def __init__(self, how: AlphaQE, database: np.ndarray):
        super().__init__(database)
        self._how = how

    def expand(self, queries: np.ndarray) -> np.ndarray:
        if not self._how.photos:
            return queries
        found = ranking.search(queries, self.database, self._how.photos)
        return _averaged(queries, *found, self.database, self._how.alpha)


@dataclass(frozen=True)
class DatabaseAugmentation(Reranker):
    """Database-side feature augmentation: every photo is expanded as a query is.

    Turcot and Lowe (ICCV Workshops 2009) and Arandjelovic and Zisserman (CVPR 2012) add
    up the visual words of photos that match, Gordo et al. (IJCV 2017) the global
    descriptors of neighbours. A photo becomes the l2-normalised
    ``x + sum_i max(x . x_i, 0) ** alpha x_i`` over its nearest others.

    Deviation: Gordo et al. weigh by rank, ``(k - rank) / k``; here it is similarity.

    Attributes:
        photos: neighbours that are averaged; 0 changes nothing.
        alpha: how much more the nearest ones count.
    """

    photos: int = 10
    alpha: float = 1.0

    name: ClassVar[str] = "dba"
    title: ClassVar[str] = "DBA"

    def prepare(self, database, index: Index = ExactIndex) -> Prepared:
        """See `Reranker.prepare`; `Prepared.database` is augmented."""
        database = photos(database)
        if self.photos and len(database) > 1:
            found = neighbours(database, self.photos, index)
            database = _averaged(database, *found, database, self.alpha)
        return Prepared(database)


def _averaged(vectors, scores, rows, database, alpha: float) -> np.ndarray:
    """(n, D) each vector and its neighbours, weighted and summed, l2-normalised."""
    weights = np.maximum(scores, 0) ** alpha
    return l2_normalize(vectors + by_row(weights, rows, len(database)) @ database)
