"""The queries put to a collection, and what was computed for them."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np

from cwr_utils.aggregation import Aggregator
from cwr_utils.datasets import Query
from cwr_utils.extraction import ImageMaps
from cwr_utils.reranking import HEAT_MAP_CLASSES, Match, RegionDescriber
from cwr_utils.store import Store


class Asked:
    """Queries and their store.

    Attributes:
        queries: in the order of the store.
        store: their class vectors, top classes and baselines.
    """

    def __init__(self, queries: Sequence[Query], store: Store):
        """Hold the store; nothing is read yet."""
        self.queries, self.store = tuple(queries), store
        self._block = cache(self._read_block)
        self._likely = cache(lambda n: store.read("probabilities", [n])[0])
        self._described = cache(self._describe)
        self._matches: dict[tuple, dict[str, Match]] = defaultdict(dict)

    @cached_property
    def top_classes(self) -> np.ndarray:
        """(Q, n) each query's most probable classes, from its cropped region."""
        return self.store.read("top_classes")

    def classes(self, number: int, count: int) -> list[int]:
        """The first `count` classes of a query; of a network with fewer, all.

        Raises:
            ValueError: if fewer are known.
        """
        count = min(count, self.store.shape("class_vectors")[0])
        known = self.top_classes[number].tolist()
        return first_classes(known, count, "list of a query's top classes")

    def _read_block(self, block: int) -> np.ndarray:
        """(n, C, K) class vectors of a block, to read which takes as long as one."""
        rows = self.store.blocks[block]
        return self.store.read("class_vectors", slice(rows.start, rows.stop))

    def vectors(self, number: int, classes: Sequence[int]) -> np.ndarray:
        """(C, K) class vectors of a query."""
        block, row = divmod(number, self.store.block)
        return self._block(block)[row, list(classes)]

    def probabilities(self, number: int, classes: Sequence[int]) -> np.ndarray:
        """(C,) probabilities of classes for a query."""
        return self._likely(number)[list(classes)]

    def describe(
        self, number: int, classes: Sequence[int], aggregator: Aggregator
    ) -> np.ndarray:
        """(D,) descriptor of a query by some classes; computed once, do not change."""
        return self._described(number, tuple(classes), aggregator)

    def _describe(
        self, number: int, classes: tuple[int, ...], aggregator: Aggregator
    ) -> np.ndarray:
        weighing = self.probabilities(number, classes)
        return aggregator(self.vectors(number, classes), weighing)

    def match(
        self,
        number: int,
        count: int,
        images: Sequence[str],
        maps: ImageMaps,
        describer: RegionDescriber,
    ) -> dict[str, Match]:
        """Best regions of photos for a query; each is looked for only once.

        Args:
            number: of the query.
            count: of its classes that describe a region.
            images: names of the photos.
            maps: of the photos.
            describer: of their regions.
        """
        known = self._matches[describer.key, number, count]
        new = [image for image in images if image not in known]
        classes = self.classes(number, count)
        query = self.describe(number, classes, describer.aggregator)
        # One class may describe a region, but two draw its boxes.
        drawn = self.top_classes[number][: max(count, HEAT_MAP_CLASSES)].tolist()
        weighing = self.probabilities(number, classes)
        found = describer.best(query, maps.many(new), drawn, count, weighing)
        known.update(zip(new, found, strict=True))
        return {image: known[image] for image in images}


def first_classes(classes: list[int], count: int, what: str) -> list[int]:
    """The head of a list of classes.

    Raises:
        ValueError: if it is not that long.
    """
    if count > len(classes):
        raise ValueError(
            f"{count} classes were asked for; the {what} has {len(classes)}."
        )
    return classes[:count]
