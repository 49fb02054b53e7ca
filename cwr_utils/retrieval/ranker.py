"""A method put to a collection: search, re-ranking, query expansion."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from cwr_utils import ranking
from cwr_utils.rerankers import Prepared
from cwr_utils.reranking import Match
from cwr_utils.retrieval.collection import Collection
from cwr_utils.retrieval.method import Method, Result

_BEHIND = 1e-6  # a difference of two scores that single precision keeps


def rank(collection: Collection, method: Method) -> Result:
    """Rank the database for every query.

    Args:
        collection: the photos, and the queries put to them.
        method: the setting.

    Raises:
        ValueError: if the method ranks by stored descriptors where the protocol's
            `rerank_moves_index` changes them.
        WhiteningError: if the training photos cannot support its dimensions.
    """
    result, queries = Result(method, {}, {}, {}), collection.data.queries
    moves, chain = collection.first.setup.protocol.rerank_moves_index, method.chain
    changes = method.rerank and moves != "no"
    if changes and (chain.steps or method.cascade):
        what = f"`refine` ({chain})" if chain.steps else "`cascade`"
        raise ValueError(
            f"{what} ranks by the descriptors as they are stored, and the "
            "protocol's `rerank_moves_index` changes them for each query: "
            "choose one of the two."
        )
    progress = tqdm(
        queries,
        desc=method.label,
        leave=False,
        disable=not method.rerank or len(queries) < 2,
    )
    described = collection.descriptors(method, range(len(queries)))
    last, prepared, index = None, None, None
    for number, (query, (vector, descriptors)) in enumerate(
        zip(progress, described, strict=True)
    ):
        if prepared is None or descriptors is not last:
            last, prepared = descriptors, chain.prepare(descriptors)
            index = None
        # Under "run" all queries share one index, except online, where each has
        # descriptors of its own.
        if index is None or moves != "run":
            index = descriptors.copy() if changes else prepared.database
        asked = _Asked(collection, method, number, index, prepared)
        order, scores, result.matches[query.name], averaged = asked.rank(vector)
        result.rankings[query.name] = asked.names(order)
        result.scores[query.name] = scores[order]
        result.averaged[query.name] = asked.names(averaged)
    return result


@dataclass(frozen=True, eq=False)
class _Asked:
    """One query, put to the database.

    Attributes:
        collection: the photos and queries.
        method: the setting.
        number: of the query.
        index: (N, D); rows of re-ranked photos are changed where the protocol says so.
        prepared: of `Method.chain`.
    """

    collection: Collection
    method: Method
    number: int
    index: np.ndarray
    prepared: Prepared

    def rank(
        self, vector: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Match], np.ndarray]:
        """Rows, best first, scores by row, matches, and rows averaged, by a descriptor.

        Source: Sections 3.4 (re-ranking) and 4.1 (query expansion).
        """
        method, protocol = self.method, self.collection.first.setup.protocol
        scores = self.scores(vector)
        if protocol.query_replaces_own_row:
            image = self.collection.data.queries[self.number].image
            if (own := self.collection.first.rows.get(image)) is not None:
                scores[own] = max(1.0, scores.max())
        # An expanded query searches anew: until then only the head is needed.
        head = max(method.rerank, method.query_expansion)
        order = ranking.order(scores, head if method.query_expansion else None)
        matched = {}
        if method.rerank:
            top = order[: method.rerank]
            names = self.names(top)
            matched = self.collection.match(method, self.number, names)
            scores = scores.copy()
            scores[top] = [matched[name].score for name in names]
            best = top[ranking.order(scores[top])]
            order = np.concatenate([best, order[method.rerank :]])
            if protocol.rerank_moves_index != "no":
                self.index[top] = [matched[name].descriptor for name in names]
        averaged = order[: method.query_expansion]
        if method.query_expansion:
            members = self.index[averaged]
            if method.cascade:
                members = self.collection.closer(method, self.number, averaged)
            rows, rule = range(len(averaged)), protocol.expand_with_query
            vector = ranking.expand_query(vector, members, rows, len(rows), rule)
            scores = self.scores(vector)
            order = ranking.order(scores)
        return order, scores, matched, averaged

    def scores(self, vector: np.ndarray) -> np.ndarray:
        """(N,) likeness of a descriptor (D,) with each photo."""
        if self.method.refine:
            scores = self.prepared.scores(vector[None])[0]
        else:
            scores = ranking.similarities(vector[None], self.index)[0]
        return self._look_closer(vector, scores) if self.method.cascade else scores

    def _look_closer(self, vector: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Score the first photos of a cascade again; the others stay behind them.

        Args:
            vector: (D,) of the query.
            scores: (N,) of the first stage, changed in place: those of the others are
                lowered by one number for all, where it is needed.
        """
        first = ranking.order(scores, self.method.cascade)
        near = self.collection.closer(self.method, self.number, first) @ vector
        if self.method.refine:  # neighbours and the query's classes differ
            near = (near + scores[first]) / 2
        others = np.ones(len(scores), bool)
        others[first] = False
        if others.any():
            scores[others] -= max(0, scores[others].max() - near.min() + _BEHIND)
        scores[first] = near
        return scores

    def names(self, rows: Iterable[int]) -> list[str]:
        """Names of the photos in some rows."""
        return [self.collection.data.images[row] for row in rows]
