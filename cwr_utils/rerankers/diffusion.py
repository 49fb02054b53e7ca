"""Ranking on the graph of photos that are each other's neighbours."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg

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

TOLERANCE = 1e-6  # of the residual, as in the authors' code
# Times a cosine: exact, so that order is kept, and smaller than what diffusion gives.
BEHIND = np.float32(2.0**-64)


@dataclass(frozen=True)
class Diffusion(Reranker):
    """Diffusion over a sparse graph (Iscen et al., "Efficient Diffusion", CVPR 2017).

    W joins photos that are each among the other's nearest ones, by
    ``max(cos, 0) ** exponent``; D has its row sums, ``S = D^-1/2 W D^-1/2``. A query is
    y: that power of the cosine of its nearest photos, 0 elsewhere. With `degree` 0 the
    scores are the paper's, ``(I - alpha S)^-1 y`` by conjugate gradients. W is made
    once; of more than `truncation` photos it is cut to the query's first ones, and D
    made of what is left. Photos that nothing reaches follow in the order of their
    cosine.

    Deviation: `degree` 1/2 ranks by ``D^-1/2 (I - alpha S)^-1 D^1/2 y``, which is
    ``(I - alpha D^-1 W)^-1 y``: a photo receives the mean of its neighbours, not their
    sum (a variant in Zhou et al., "Learning with Local and Global Consistency", NIPS
    2003). S has the eigenvector ``D^1/2 1`` with the eigenvalue 1, so that its share of
    y is multiplied by 1 / (1 - alpha), a hundred. Where 50 neighbours are a large part
    of the collection, all of it is one component, the other eigenvalues are lower, and
    photos are ranked by their degree whatever the query is: the landmark with the most
    photos comes first. Divided by ``D^1/2`` that eigenvector is constant and orders
    nothing.

    Found with OfA-8 (EfficientNet-Lite0 at 512x360) on 164 photos of Oxford and on 152
    of objects, 4 or 5 a group: mAP is .891 and .847 by cosine, .796 and .411 with
    `degree` 0, .964 and .863 with 1/2. Degree 0 raises Oxford's landmarks with 24
    photos and more (.910 to .936) and ruins those with 9 to 12 (.812 to .483; .905 with
    1/2). `alpha` 0.9 mends it in part (.959, .783), a cut to 50 photos does not (.751,
    .322).

    Attributes:
        neighbours: of a photo in the graph.
        query_neighbours: photos that a query starts from.
        alpha: share that is passed on, below 1; 0 leaves the order as it is.
        exponent: of the cosine, gamma in the paper.
        degree: 0 is the paper, 1/2 takes out what does not depend on the query.
        truncation: photos that a query can reach; Yang et al. (AAAI 2019) take 1,000.
        iterations: of conjugate gradients, at most.
    """

    neighbours: int = 50
    query_neighbours: int = 10
    alpha: float = 0.99
    exponent: float = 3.0
    degree: float = 0.5
    truncation: int = 1000
    iterations: int = 20

    name: ClassVar[str] = "diffusion"
    title: ClassVar[str] = "diffusion"
    is_last: ClassVar[bool] = True

    def __post_init__(self):
        """See `Reranker`."""
        super().__post_init__()
        self._require_some("neighbours", "query_neighbours", "truncation", "iterations")
        if self.alpha >= 1:
            self._refuse("alpha", "below 1")
        if self.degree > 0.5:
            self._refuse("degree", "between 0 and 0.5")

    def prepare(self, database, index: Index = ExactIndex) -> Prepared:
        """See `Reranker.prepare`; makes the graph."""
        return _Diffusing(self, photos(database), index)


class _Diffusing(Prepared):
    def __init__(self, how: Diffusion, database: np.ndarray, index: Index):
        super().__init__(database)
        self._how = how
        cosines, rows = neighbours(database, how.neighbours, index)
        graph = by_row(self._weights(cosines), rows, len(database))
        self._graph = graph.minimum(graph.T).tocsr()  # 0 unless both have each other
        # The whole of it, if no query has it cut.
        count = len(database)
        self._whole = (
            self._system(np.arange(count)) if count <= how.truncation else None
        )

    def _weights(self, cosines: np.ndarray) -> np.ndarray:
        return np.maximum(cosines, 0).astype(np.float64) ** self._how.exponent

    def _system(self, rows: np.ndarray) -> tuple[sparse.csr_array, np.ndarray]:
        """``I - alpha S`` of some photos, and their ``D ** degree``."""
        graph = self._graph[rows][:, rows]
        degrees = graph.sum(axis=1)
        degrees[degrees == 0] = 1  # it passes nothing on
        scale = sparse.diags_array(degrees**-0.5)
        system = sparse.eye_array(len(rows)) - self._how.alpha * scale @ graph @ scale
        return system.tocsr(), degrees**self._how.degree

    def scores(self, queries) -> np.ndarray:
        how = self._how
        cosines = ranking.similarities(single(queries), self.database)
        scores = cosines * BEHIND
        for row, cosine in zip(scores, cosines, strict=True):
            near = ranking.order(cosine, how.truncation)
            first, near = near[: how.query_neighbours], np.sort(near)
            query = np.zeros(len(cosine))
            query[first] = self._weights(cosine[first])
            system, degrees = self._whole or self._system(near)
            found, _ = cg(
                system, degrees * query[near], rtol=TOLERANCE, maxiter=how.iterations
            )
            row[near] += np.maximum(found / degrees, 0)
        return scores
