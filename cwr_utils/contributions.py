"""A score taken apart by class: what each class adds to the likeness of two photos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cwr_utils.reranking import Match
from cwr_utils.retrieval import Collection, Method, Result

OTHER_PAIRS = "pairs of different classes"

# A descriptor as a sum over classes: class number -> (D,).
Parts = dict[int, np.ndarray]


def contributions(query: Parts, image: Parts) -> tuple[dict[int, float], float]:
    """A cosine similarity, class by class.

    Descriptors are sums over classes, so their product is a sum over pairs of classes:
    ``q . d = sum_c q_c . d_c + sum_{c != c'} q_c . d_c'``.

    Args:
        query: parts that add up to the query's descriptor.
        image: parts that add up to the image's descriptor.

    Returns:
        ``q_c . d_c`` for each class that both have, and the sum over all other pairs.
    """
    if not query or not image:
        return {}, 0.0
    same = {c: float(query[c] @ image[c]) for c in query if c in image}
    whole = [np.sum(list(parts.values()), axis=0) for parts in (query, image)]
    return same, float(whole[0] @ whole[1]) - sum(same.values())


def class_contributions(
    collection: Collection, result: Result, number: int, image: str
) -> pd.DataFrame:
    """What each class adds to the score of an image.

    With re-ranking, the score is that of the best region. With query expansion, the
    query is a sum of descriptors, whose parts add up class by class. (Under
    `rerank_moves_index="run"` only for a result of one query: earlier queries would
    have changed the index.)

    Args:
        collection: where the result comes from.
        result: of a class aggregation; of others only the last row comes.
        number: of the query.
        image: name of an image of the database.

    Returns:
        Columns class (number), name and contribution, the largest first; the last row
        (class -1) has the pairs of different classes, and the rounding of descriptors
        to half precision. The column adds up to the score.
    """
    query = collection.data.queries[number]
    rank = result.rankings[query.name].index(image)
    score = float(result.scores[query.name][rank])
    same: dict[int, float] = {}
    if result.method.by_class:
        found = result.matches[query.name], result.averaged[query.name]
        pair = _Pair(collection, result.method, number, *found)
        same, _ = contributions(*pair.parts(image))
    names = collection.setup.network.class_names
    order = sorted(same, key=lambda c: -same[c])
    rows = [(c, names[c], same[c]) for c in order]
    rows.append((-1, OTHER_PAIRS, score - sum(same.values())))
    return pd.DataFrame(rows, columns=["class", "name", "contribution"])


@dataclass(frozen=True)
class _Pair:
    """A query and whatever it is compared with.

    Attributes:
        collection: where the result comes from.
        method: of the result.
        number: of the query.
        matches: image -> best region of those that were re-ranked.
        averaged: images that query expansion averaged.
    """

    collection: Collection
    method: Method
    number: int
    matches: Mapping[str, Match]
    averaged: Sequence[str]

    def parts(self, image: str) -> tuple[Parts, Parts]:
        """Parts of the descriptors of query and image, as the score compared them."""
        collection, method = self.collection, self.method
        query, flags = collection.data.queries[self.number], collection.setup.protocol
        own = self._query(collection.classes(method, self.number))
        if self.averaged:
            members = [self._indexed(name) for name in self.averaged]
            expanded = members + [own] * flags.expand_with_query
            return _unit(_add(expanded)), self._indexed(image)
        if image in self.matches:
            classes = collection.asked.classes(self.number, method.rerank_classes)
            return self._query(classes), self._region(image)
        if flags.query_replaces_own_row and image == query.image:
            return own, own
        return own, self._indexed(image)

    def _query(self, classes: Sequence[int]) -> Parts:
        return self._sum(classes, self.collection.asked.vectors(self.number, classes))

    def _indexed(self, image: str) -> Parts:
        """What stands in the index for an image: itself, or its best region."""
        moves = self.collection.setup.protocol.rerank_moves_index
        if image in self.matches and moves != "no":
            return self._region(image)
        store, row = self.collection.database, self.collection.row_of(image)
        if self.method.aggregation == "offline":
            top = store.read("top_classes", [row])[0]
            classes = top[: self.method.num_classes].tolist()
        else:
            classes = self.collection.classes(self.method, self.number)
        if self.collection.setup.classes is None:
            vectors = store.class_vectors(classes, slice(row, row + 1))[0]
        else:  # only the image's own top classes are kept, in their order
            vectors = store.read("class_vectors", [row])[0][: len(classes)]
        return self._sum(classes, vectors)

    def _region(self, image: str) -> Parts:
        match = self.matches[image]
        if not np.isfinite(match.score):
            return {}
        count = self.method.rerank_classes
        classes = self.collection.asked.classes(self.number, count)
        describer = self.collection.regions(self.method)
        maps = self.collection.maps(image)
        whitened = describer.parts(maps, classes, match.box)
        return _unit(dict(zip(classes, whitened, strict=True)))

    def _sum(self, classes: Sequence[int], vectors: np.ndarray) -> Parts:
        """Whitened class vectors of (C, K) as the descriptor sums them."""
        whitened = self.collection.space(self.method).aggregator.parts(vectors)
        return _unit(dict(zip(classes, whitened, strict=True)))


def _add(members: Sequence[Mapping[int, np.ndarray]]) -> Parts:
    total: Parts = {}
    for parts in members:
        for c, vector in parts.items():
            total[c] = total[c] + vector if c in total else vector
    return total


def _unit(parts: Parts) -> Parts:
    """Scaled so that their sum has length 1; an empty one stays."""
    length = float(np.linalg.norm(sum(parts.values()))) if parts else 0.0
    return {c: vector / length for c, vector in parts.items()} if length else parts
