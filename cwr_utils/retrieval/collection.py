"""An experiment, opened: its photos and queries by all setups together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cwr_utils.datasets import Dataset, Query
from cwr_utils.extraction import describe_query
from cwr_utils.protocol import Protocol
from cwr_utils.reranking import Match
from cwr_utils.retrieval.described import Described
from cwr_utils.retrieval.experiment import Experiment
from cwr_utils.retrieval.method import Method
from cwr_utils.store import JoinedStore, Store, StoreError


@dataclass(frozen=True, eq=False, repr=False)
class Collection:
    """Photos that are searched, and the queries put to them.

    Attributes:
        experiment: what was opened.
        members: the photos and queries as each of its setups describes them.
    """

    experiment: Experiment
    members: tuple[Described, ...]

    @classmethod
    def open(cls, experiment: Experiment) -> "Collection":
        """Open the stores that an extraction of the experiment has written.

        Raises:
            StoreError: if one is missing, incomplete or of something else; run the
                extraction first.
        """
        return cls(experiment, tuple(map(Described.open, experiment.parts)))

    @property
    def data(self) -> Dataset:
        """The photos, queries and ground truth."""
        return self.experiment.data

    @property
    def first(self) -> Described:
        """The photos as the first setup describes them."""
        return self.members[0]

    @property
    def source(self) -> str:
        """What tables call the photos that whitening is fitted on; "" without them."""
        training = self.first.spaces.training
        return training.source if training else ""

    def ask(self, queries: Sequence[Query], *described: Store) -> "Collection":
        """Put other queries to the same database; what was computed for it is shared.

        Args:
            queries: those to run.
            described: their store, one for each setup.

        Raises:
            StoreError: if a store is of other queries or settings.
            ValueError: if there are not as many stores as setups.
        """
        data = replace(self.data, queries=tuple(queries))
        pairs = zip(self.members, described, strict=True)
        members = tuple(member.ask(queries, store) for member, store in pairs)
        return Collection(replace(self.experiment, data=data), members)

    def ask_stored(self, query: Query) -> "Collection":
        """Put one of the stored queries alone; its photo and box stay as they are."""
        stores = [member.asked.store for member in self.members]
        own = [JoinedStore([s], {query.name: s.hashes[query.name]}) for s in stores]
        return self.ask([query], *own)

    def ask_photos(
        self, asked: Sequence[tuple[Query, np.ndarray, str]]
    ) -> "Collection":
        """Put queries that are in no store; each comes with its photo and its hash.

        See `extraction.describe_query`.
        """
        stores = []
        for member in self.members:
            alone = [describe_query(member.describer, *query) for query in asked]
            described = {n: c for store in alone for n, c in store.hashes.items()}
            stores.append(JoinedStore(alone, described))
        return self.ask([query for query, *_ in asked], *stores)

    def under(self, protocol: Protocol) -> "Collection":
        """The same under all flags of a protocol; what they leave as it is is shared.

        Raises:
            StoreError: if photos or queries were not described under these flags.
        """
        experiment = self.experiment.under(protocol)
        pairs = zip(self.members, experiment.parts, strict=True)
        return Collection(experiment, tuple(m.under(part) for m, part in pairs))

    def at_difficulty(self, difficulty: str) -> "Collection":
        """The same, every query judged by one difficulty of the revisited protocol.

        Raises:
            ValueError: if there is no such difficulty, or the ground truth knows none.
        """
        data = self.data.at_difficulty(difficulty)
        return replace(self, experiment=replace(self.experiment, data=data))

    def fresh(self) -> "Collection":
        """The same stores and whitenings, with nothing else computed yet."""
        return replace(self, members=tuple(member.fresh() for member in self.members))

    def at_layer(self, layer: str) -> "Collection":
        """The same with the stores of another layer.

        Raises:
            StoreError: if they are missing or incomplete.
        """
        return Collection.open(self.experiment.at_layer(layer))

    def other_layers(self) -> list[str]:
        """Layers whose stores are there too, made with otherwise equal settings."""
        found, setup = [], self.first.setup
        for layer in setup.network.feature_layers():
            try:
                self.at_layer(layer.name)
            except (StoreError, ValueError):  # not there, or not with this power
                continue
            found.append(layer.name)
        return [name for name in found if name != setup.layer]

    def supported(self, method: Method) -> Method:
        """See `Spaces.supported`; what all setups support."""
        for member in self.members:
            method = member.spaces.supported(method)
        return method

    def offline_curve(self, method: Method, num_classes: Sequence[int]) -> None:
        """Describe the database offline for several N_C in one pass over the stores."""
        for member in self.members:
            member.space(method).offline(num_classes)

    def descriptors(
        self, method: Method, queries: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Descriptors of queries, and of the database for each of them.

        What the queries share is computed once.

        Args:
            method: the setting.
            queries: their numbers.

        Yields:
            (D,) and (N, D), l2-normalised; the latter is shared, not a copy. Of n
            setups they have n D components, so that their product is the mean score.
            Of a cascade the database is that of its first stage, see `closer`.
        """
        method, last, joined = method.first_stage, (), np.empty(0)
        for found in zip(
            *(member.descriptors(method, queries) for member in self.members),
            strict=True,
        ):
            vectors, databases = zip(*found, strict=True)
            if [id(array) for array in databases] != [id(array) for array in last]:
                last, joined = databases, _join(databases)
            yield _join(vectors), joined

    def closer(self, method: Method, query: int, rows: np.ndarray) -> np.ndarray:
        """Describe some photos by the classes of a query: the second step of a cascade.

        Args:
            method: the setting, of which the cascade does not matter.
            query: number of the query.
            rows: (L,) of the photos.

        Returns:
            (L, D), l2-normalised; (L, n D) of n setups, as `descriptors`.
        """
        return _join([member.closer(method, query, rows) for member in self.members])

    def match(
        self, method: Method, query: int, images: Sequence[str]
    ) -> dict[str, Match]:
        """Image -> best region; of several setups the mean score of their own ones."""
        found = [member.match(method, query, images) for member in self.members]
        return {
            image: Match(
                float(np.mean([matches[image].score for matches in found])),
                found[0][image].box,
                _join([matches[image].descriptor for matches in found]),
            )
            for image in images
        }

    def photo_bytes(self, method: Method) -> int:
        """Bytes a photo that are kept to answer any query, of all setups together.

        Those of its descriptor, in single precision; online, of its class vectors, as
        they are stored; grouped, of what it keeps of them; of a cascade both.
        """
        stages = dict.fromkeys([method.first_stage, replace(method, cascade=0)])
        return sum(m.photo_bytes(stage) for m in self.members for stage in stages)


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Descriptors (..., D) of several setups end to end, of length 1 again."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts, axis=-1) / np.sqrt(np.float32(len(parts)))
