"""Re-ranking of the first photos by descriptors refined among themselves."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cwr_utils import ranking
from cwr_utils.rerankers.base import (
    ExactIndex,
    Index,
    Prepared,
    Reranker,
    photos,
    single,
)


@dataclass(frozen=True)
class SuperGlobal(Reranker):
    """SuperGlobal's re-ranking (Shao et al., "Global Features are All...", ICCV 2023).

    Among the first `top` photos each x is refined to the weighted mean of itself,
    weight 1, and its nearest ones among them, weights ``beta * max(x . x_i, 0)``. The
    expanded query is the largest value in each dimension over the best refined
    descriptors (generalised mean, p to infinity), as many as went into one. The score
    is the mean of the products of query and expanded query with the refined descriptor.
    Nothing is normalised again, as in the authors' code. Other photos follow in the
    order of their similarity.

    Deviation: the authors' code lets negative similarities weigh too.

    Attributes:
        top: photos that are ranked again, M; 0 changes nothing.
        neighbours: of each, K.
        beta: weight of neighbours.
    """

    top: int = 400
    neighbours: int = 9
    beta: float = 0.15

    name: ClassVar[str] = "super_global"
    title: ClassVar[str] = "SuperGlobal"
    is_last: ClassVar[bool] = True

    def prepare(self, database, index: Index = ExactIndex) -> Prepared:
        """See `Reranker.prepare`; there is nothing to compute."""
        return _Refining(self, photos(database))


class _Refining(Prepared):
    def __init__(self, how: SuperGlobal, database: np.ndarray):
        super().__init__(database)
        self._how = how

    def scores(self, queries) -> np.ndarray:
        queries = single(queries)
        scores = ranking.similarities(queries, self.database)
        if not self._how.top:
            return scores
        for query, row in zip(queries, scores, strict=True):
            order = ranking.order(row)
            head, tail = np.split(order, [self._how.top])
            found = self._refined(query, self.database[head])
            if len(tail) and found.min() <= row[tail[0]]:
                found += row[tail[0]] - found.min() + 1  # above all others
            row[head] = found
        return scores

    def _refined(self, query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """(M,) scores of the first descriptors (M, D)."""
        among = vectors @ vectors.T
        np.fill_diagonal(among, np.inf)  # itself first, whatever equals it
        near = ranking.order(among, self._how.neighbours + 1)
        weights = self._how.beta * np.maximum(np.take_along_axis(among, near, 1), 0)
        weights[:, 0] = 1
        weights /= weights.sum(axis=1, keepdims=True)
        refined = np.einsum("mk,mkd->md", weights, vectors[near])
        scores = refined @ query
        best = ranking.order(scores, self._how.neighbours + 1)
        return (scores + refined @ refined[best].max(axis=0)) / 2
