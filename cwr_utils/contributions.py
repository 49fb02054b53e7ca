"""A score taken apart: what each class, or each cell, adds to a likeness."""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cwr_utils import pooling
from cwr_utils.aggregation import Aggregator
from cwr_utils.arrays import check_shape, widen
from cwr_utils.backend import ops
from cwr_utils.images import Cells
from cwr_utils.reranking import Match, query_cams
from cwr_utils.retrieval import Collection, Described, Method, Result

OTHER_PAIRS = "pairs of different classes"
AS_A_WHOLE = "not told apart by class"

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
        result: of a method that adds class vectors (`Method.adds_classes`); of others
            only the last row comes.
        number: of the query.
        image: name of an image of the database.

    Returns:
        Columns class (number), name and contribution, the largest first; the last row
        (class -1) has the pairs of different classes, and the rounding of descriptors
        to half precision. The column adds up to the score: of several setups, the mean
        of theirs. Behind the first photos of a cascade that last row has also what
        their scores are lowered by.
    """
    query = collection.data.queries[number]
    rank = result.rankings[query.name].index(image)
    score = float(result.scores[query.name][rank])
    same: dict[int, float] = defaultdict(float)
    if result.method.adds_classes:
        members = collection.members
        for member in members:
            pair = _Pair.of(member, result, number).parts(image)
            for c, share in contributions(*pair)[0].items():
                same[c] += share / len(members)
    names = collection.first.setup.network.class_names
    order = sorted(same, key=lambda c: -same[c])
    rows = [(c, names[c], same[c]) for c in order]
    rest = OTHER_PAIRS if result.method.adds_classes else AS_A_WHOLE
    rows.append((-1, rest, score - sum(same.values())))
    return pd.DataFrame(rows, columns=["class", "name", "contribution"])


def cell_contributions(
    collection: Collection, result: Result, number: int, image: str
) -> np.ndarray:
    """What each cell of an image adds to its score: a heat map of the match.

    Args:
        collection: where the result comes from.
        result: of a class aggregation.
        number: of the query.
        image: name of an image of the database.

    Returns:
        (H, W) on the grid of the pooled layer, see `similarity_map`; 0 outside the
        region that re-ranking chose. It adds up to the score, but for the half
        precision of the index, and what scores behind a cascade are lowered by. Of
        several setups it is the mean of their maps, on the grid of the first.

    Raises:
        ValueError: if the method adds no class vectors.
    """
    if not result.method.adds_classes:
        raise ValueError(
            "Cells are told apart where a score is a product of sums of class vectors; "
            f"got {result.method.label}."
        )
    pairs = [_Pair.of(member, result, number) for member in collection.members]
    maps = [pair.cells(image) for pair in pairs]
    grid = maps[0].shape
    return np.sum([_share_out(cells, grid) for cells in maps], axis=0) / len(maps)


def _share_out(cells: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Cells on another grid, each shared out by area, so that the sum stays."""
    for axis, (old, new) in enumerate(zip(cells.shape, grid, strict=True)):
        start, end = np.arange(new)[:, None] / new, np.arange(1, new + 1)[:, None] / new
        before, after = np.arange(old) / old, np.arange(1, old + 1) / old
        overlap = np.minimum(end, after) - np.maximum(start, before)
        shares = old * np.clip(overlap, 0, None)  # (new, old), columns add up to 1
        cells = np.moveaxis(np.tensordot(shares, cells, (1, axis)), 0, axis)
    return cells.astype(np.float32)


def similarity_map(
    query: np.ndarray,
    features: np.ndarray,
    cams: np.ndarray,
    aggregator: Aggregator,
    power: float = 1.0,
    box: Cells | None = None,
    probabilities: np.ndarray | None = None,
) -> np.ndarray:
    """The similarity of a photo, or of a region of it, with a query, cell by cell.

    Up to its normalisations a descriptor is linear in the cells. With the sums
    ``S_ck = sum_ij X_ijk^p CAM_ijc`` of Eq. 4, a cell's part of the class vector
    ``v_ck = CW_k S_ck^(1/p)`` is ``v_ck X_ijk^p CAM_ijc / S_ck``; divided by the length
    of v_c these are parts x_cij of the unit vector x_c. Centring subtracts the mean m
    once a class: each cell takes the share of it that it has in the squared length of
    x_c. With q the query, P the projection, w_c the whitened vector before its own l2,
    a_c the weight of the class and L the length of the sum over classes, a cell adds

        ``sum_c a_c (x_cij . Pq - (x_cij . x_c) (m . Pq)) / (|w_c| L)``

    which is one product of X^p with a (K, C) matrix.

    Args:
        query: (D,) descriptor.
        features: (H, W, K), non-negative.
        cams: (h, w, C) in [0, 1], of the classes that describe the photo.
        aggregator: of the photo's class vectors.
        power: their exponent p.
        box: the region in cells; None is the whole photo.
        probabilities: (C,) of the classes, where they weigh.

    Returns:
        (H, W) float32; its sum is the product of the query with the descriptor.
    """
    height, width, channels = check_shape(features, "H W K", "features")
    check_shape(query, f"{aggregator.whitening.dimensions}", "query")
    grid = height, width
    x1, y1, x2, y2 = box or (0, 0, width, height)
    inside = widen(np.asarray(features))[y1:y2, x1:x2].astype(np.float32)
    cams = ops.convert_to_numpy(pooling.resize_maps(np.asarray(cams), grid))
    weights = cams[y1:y2, x1:x2].reshape(-1, cams.shape[-1])
    powered = inside.reshape(-1, channels) ** power
    sums = weights.T @ powered
    # Of a cell's X^p CAM, what the root and the channel weight make of it.
    scale = np.where(sums > 0, sums, np.inf) ** (1 / power - 1)
    scale = scale * ops.convert_to_numpy(pooling.channel_weights(inside))
    vectors = sums * scale
    scaling, factors = aggregator.whitening.scales(vectors)
    if probabilities is None:
        probabilities = np.ones(len(vectors))
    times = _times_summed(
        scaling > 0, aggregator.repeat_empty, aggregator.weights(probabilities)
    )
    summed = aggregator.whitening.unscale(
        ((times * scaling) @ vectors)[None], np.array([times @ factors])
    )
    length = float(np.linalg.norm(summed))
    cells = np.zeros(grid, np.float32)
    if not length:
        return cells
    direction = aggregator.whitening.projection @ query
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    parts = direction - (aggregator.whitening.mean @ direction) * unit
    parts *= scale * (times * scaling / length)[:, None]
    shares = (weights * (powered @ parts.T)).sum(axis=1)
    cells[y1:y2, x1:x2] = shares.reshape(y2 - y1, x2 - x1)
    return cells


def _times_summed(present: np.ndarray, repeat_empty: bool, weights) -> np.ndarray:
    """(C,) weight of each vector in the sum; see `aggregation.repeat_previous`."""
    if not repeat_empty:
        return np.where(present, weights, 0).astype(np.float32)
    last = np.maximum.accumulate(np.where(present, np.arange(len(present)), -1))
    known = last >= 0
    return np.bincount(last[known], weights[known], len(present)).astype(np.float32)


@dataclass(frozen=True)
class _Pair:
    """A query and whatever it is compared with.

    Attributes:
        member: the photos as one setup describes them.
        method: of the result.
        number: of the query.
        reranked: images whose best region was looked for.
        averaged: images that query expansion averaged.
        first: images that a cascade described by the query; all where there is none.
    """

    member: Described
    method: Method
    number: int
    reranked: Container[str]
    averaged: Sequence[str]
    first: Container[str]

    @classmethod
    def of(cls, member: Described, result: Result, number: int) -> "_Pair":
        """A query and what a result found for it."""
        name = member.data.queries[number].name
        found = result.matches[name], result.averaged[name]
        first = result.rankings[name][: result.method.cascade or None]
        return cls(member, result.method, number, *found, frozenset(first))

    def _aggregation(self, image: str) -> str:
        """How an image was described."""
        method = self.method if image in self.first else self.method.first_stage
        return method.aggregation

    def _match(self, image: str) -> Match:
        return self.member.match(self.method, self.number, [image])[image]

    def cells(self, image: str) -> np.ndarray:
        """(H, W) what each cell of an image adds to the score; see `similarity_map`."""
        member, setup = self.member, self.member.setup
        query, parts = self.parts(image)
        features, cam_maps = member.maps(image)
        if not query or not parts:
            return np.zeros(features.shape[:2], np.float32)
        flip = setup.protocol.flip_negative_cams
        classes = self._pooled_by(image, list(parts))
        cams = query_cams(cam_maps, setup.network.class_weights, classes, flip)
        return similarity_map(
            np.sum(list(query.values()), axis=0),
            features,
            np.asarray(cams),
            member.space(self.method).aggregator,
            setup.power,
            self._box(image, features.shape[1::-1]),
            self._probabilities(image, list(parts)),
        )

    def _pooled_by(self, image: str, classes: list[int]) -> list[int]:
        """The classes whose CAMs pooled an image for some classes of the query."""
        of_query = self._by_region(image) or self._is_own_row(image)
        if self._aggregation(image) != "grouped" or of_query:
            return classes
        index = self.member.spaces.grouped_index(self.method)
        return index.named(classes, self.member.rows[image])

    def _box(self, image: str, grid: tuple[int, int]) -> Cells | None:
        """The region in cells by which an image is compared; None is all of it."""
        member = self.member
        if self._by_region(image):
            return self._match(image).box
        query = member.data.queries[self.number]
        if self._is_own_row(image) and query.box is not None:
            size = member.data.size(image)
            return member.describer.query_cells(query.box, size, grid)
        return None

    def _by_region(self, image: str) -> bool:
        """Whether the best region of an image stands for it."""
        moves = self.member.setup.protocol.rerank_moves_index
        return image in self.reranked and (not self.averaged or moves != "no")

    def _is_own_row(self, image: str) -> bool:
        """Whether the query's descriptor stands for its own photo."""
        query = self.member.data.queries[self.number]
        replaces = self.member.setup.protocol.query_replaces_own_row
        return replaces and not self.averaged and image == query.image

    def parts(self, image: str) -> tuple[Parts, Parts]:
        """Parts of the descriptors of query and image, as the score compared them."""
        member, method = self.member, self.method
        flags = member.setup.protocol
        own = self._query(member.classes(method, self.number))
        if self.averaged:
            averaged = replace(self, first=self.averaged)
            found = [averaged._indexed(name) for name in self.averaged]
            expanded = found + [own] * flags.expand_with_query
            return _unit(_add(expanded)), self._indexed(image)
        if self._by_region(image):
            classes = member.asked.classes(self.number, method.rerank_classes)
            return self._query(classes), self._region(image)
        if self._is_own_row(image):
            return own, own
        return own, self._indexed(image)

    def _query(self, classes: Sequence[int]) -> Parts:
        asked = self.member.asked
        vectors = asked.vectors(self.number, classes)
        return self._sum(classes, vectors, asked.probabilities(self.number, classes))

    def _indexed(self, image: str) -> Parts:
        """What stands in the index for an image: itself, or its best region."""
        if self._by_region(image):
            return self._region(image)
        store, row = self.member.database, self.member.rows[image]
        if self._aggregation(image) == "grouped":
            return self._from_groups(row)
        if self._aggregation(image) == "offline":
            top = store.read("top_classes", [row])[0]
            classes = top[: self.method.num_classes].tolist()
        else:
            classes = self.member.classes(self.method, self.number)
        if self.member.setup.classes is None:
            vectors = store.class_vectors(classes, slice(row, row + 1))[0]
        else:  # only the image's own top classes are kept, in their order
            vectors = store.read("class_vectors", [row])[0][: len(classes)]
        return self._sum(classes, vectors, self._probabilities(image, classes))

    def _from_groups(self, row: int) -> Parts:
        """What an image keeps for the classes of the query, by these classes."""
        classes = self.member.classes(self.method, self.number)
        index = self.member.spaces.grouped_index(self.method)
        aggregator = self.member.space(self.method).aggregator
        weighing = self.member.asked.probabilities(self.number, classes)
        parts = aggregator.weigh(index.parts([row], classes)[0], weighing)
        return _unit(dict(zip(classes, parts, strict=True)))

    def _probabilities(self, image: str, classes: Sequence[int]) -> np.ndarray:
        """(C,) probabilities by which the classes of an image weigh: whose they are."""
        by_query = self._by_region(image) or self._is_own_row(image)
        if self._aggregation(image) != "offline" or by_query:
            return self.member.asked.probabilities(self.number, classes)
        row = self.member.rows[image]
        return self.member.database.read("probabilities", [row])[0][list(classes)]

    def _region(self, image: str) -> Parts:
        match = self._match(image)
        if not np.isfinite(match.score):
            return {}
        asked, count = self.member.asked, self.method.rerank_classes
        classes = asked.classes(self.number, count)
        describer = self.member.regions(self.method)
        maps = self.member.maps(image)
        weighing = asked.probabilities(self.number, classes)
        whitened = describer.parts(maps, classes, match.box, weighing)
        return _unit(dict(zip(classes, whitened, strict=True)))

    def _sum(
        self, classes: Sequence[int], vectors: np.ndarray, probabilities: np.ndarray
    ) -> Parts:
        """Whitened class vectors of (C, K) as the descriptor sums them."""
        aggregator = self.member.space(self.method).aggregator
        whitened = aggregator.parts(vectors, probabilities)
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
