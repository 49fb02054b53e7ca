"""Re-ranking by shared k-reciprocal neighbours."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from scipy import sparse

from cwr_utils import ranking
from cwr_utils.rerankers.base import (
    ExactIndex,
    Index,
    Prepared,
    Reranker,
    by_row,
    neighbours,
    photos,
    single,
)

PAIRS = 1 << 16  # whose descriptors are compared at a time: 256 MiB of 512 dimensions
ROUNDING = 1e-6  # of a cosine: a query that is a photo is as near as that photo


@dataclass(frozen=True)
class KReciprocal(Reranker):
    """k-reciprocal encoding (Zhong et al., "Re-ranking Person...", CVPR 2017).

    Two photos are k-reciprocal if each is among the k nearest of the other; a photo is
    so with itself. The set of a photo holds its k1-reciprocal ones, and the k1 /
    2-reciprocal ones of each of these, where two thirds of them are in it already. Its
    members weigh ``exp(-d)``, in sum 1, and the weights are averaged over the photo and
    its k2 - 1 nearest. With J, the sum over photos of the smaller weights divided by
    that of the larger ones, the score is ``(1 - weight) J + weight cos``, the same as
    the paper's blend of Jaccard and original distance.

    Deviations: ``d = 1 - cos``; the authors' code divides squared distances by the
    largest in their row, which one odd photo sets. Photos are encoded without the
    queries, so that no query changes what another one gets; in that code all queries
    are photos too. A photo is reciprocal to a query that is at least as near to it as
    the k1-th of its own neighbours.

    Attributes:
        k1: neighbours that may be reciprocal.
        k2: photos whose weights are averaged; 1 is the photo alone.
        weight: of the cosine similarity, lambda in the paper; 1 is that alone.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    name: ClassVar[str] = "k_reciprocal"
    title: ClassVar[str] = "k-reciprocal"
    is_last: ClassVar[bool] = True

    def __post_init__(self):
        """See `Reranker`."""
        super().__post_init__()
        self._require_some("k1", "k2")
        if self.weight > 1:
            self._refuse("weight", "between 0 and 1")

    def prepare(self, database, index: Index = ExactIndex) -> Prepared:
        """See `Reranker.prepare`; encodes the photos."""
        return _Encoded(self, photos(database), index)


class _Encoded(Prepared):
    def __init__(self, how: KReciprocal, database: np.ndarray, index: Index):
        super().__init__(database)
        self._how = how
        scores, rows = neighbours(database, max(how.k1, how.k2 - 1), index)
        near = rows[:, : how.k1]
        # What is at least that near is among the k1 nearest of a photo.
        self._reach = np.full(len(database), -np.inf, np.float32)
        if near.shape[1] == how.k1:
            self._reach = scores[:, how.k1 - 1]
        self._half = _mutual(rows[:, : how.k1 // 2])
        self._own = self._encode(database, _mutual(near))
        averaged = _average(self._own, rows[:, : how.k2 - 1], self._own)
        self._columns, self._sums = (
            averaged.tocsc(),
            averaged.sum(axis=1, dtype=np.float32),
        )

    def scores(self, queries) -> np.ndarray:
        how, queries = self._how, single(queries)
        cosines = ranking.similarities(queries, self.database)
        rows = ranking.order(cosines, max(how.k1, how.k2 - 1))
        near = rows[:, : how.k1]
        nearness = np.take_along_axis(cosines, near, axis=1)
        mutual = nearness >= self._reach[near] - ROUNDING
        reciprocal = by_row(mutual.astype(np.int32), near, len(self.database))
        own = self._encode(queries, reciprocal)
        encoded = _average(own, rows[:, : how.k2 - 1], self._own)
        weight = np.float32(how.weight)
        return (1 - weight) * self._jaccard(encoded) + weight * cosines

    def _encode(self, vectors, reciprocal: sparse.csr_array) -> sparse.csr_array:
        """(n, N) weights in the sets of (n, D) vectors, of (n, N) reciprocal photos."""
        common = (reciprocal @ self._half).multiply(reciprocal).tocsr()
        sizes = np.diff(self._half.indptr)
        common.data = (3 * common.data >= 2 * sizes[common.indices]).astype(np.int32)
        members = (reciprocal + common @ self._half).tocoo()
        members.eliminate_zeros()
        row, column = members.coords
        weights = np.empty(len(row), np.float32)
        for start in range(0, len(row), PAIRS):
            part = slice(start, start + PAIRS)
            pair = vectors[row[part]], self.database[column[part]]
            weights[part] = np.exp(np.einsum("nd,nd->n", *pair))  # exp(-d) e
        weights /= np.bincount(row, weights)[row]
        return sparse.csr_array((weights, (row, column)), shape=members.shape)

    def _jaccard(self, encoded: sparse.csr_array) -> np.ndarray:
        """(Q, N) sum of the smaller weights by the sum of the larger ones."""
        count = len(self.database)
        common = np.zeros((encoded.shape[0], count), np.float32)
        for query, (start, end) in enumerate(pairwise(encoded.indptr)):
            columns = self._columns[:, encoded.indices[start:end]]
            mine = np.repeat(encoded.data[start:end], np.diff(columns.indptr))
            smaller = np.minimum(columns.data, mine)
            common[query] = np.bincount(columns.indices, smaller, count)
        both = encoded.sum(axis=1, dtype=np.float32)[:, None] + self._sums
        return common / (both - common)


def _mutual(rows: np.ndarray) -> sparse.csr_array:
    """(N, N) 1 where two photos are among the other's `rows` (N, k); 1 for itself."""
    near = by_row(np.int32(1), rows, len(rows))
    return (near.multiply(near.T) + sparse.eye_array(len(rows), dtype=np.int32)).tocsr()


def _average(own, rows: np.ndarray, weights: sparse.csr_array) -> sparse.csr_array:
    """(n, N) mean of own weights and of those of the photos `rows` (n, k)."""
    near = by_row(np.float32(1), rows, weights.shape[0])
    return ((own + near @ weights) / np.float32(1 + rows.shape[1])).tocsr()
