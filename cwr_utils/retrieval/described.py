"""Photos and queries as one setup describes them: its stores, checked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cwr_utils.datasets import Dataset, Query
from cwr_utils.extraction import (
    MOST_TOP_CLASSES,
    VECTOR_FACTS,
    Describer,
    ImageMaps,
    Setup,
    describer_of,
    open_photos,
    open_queries,
    query_content,
)
from cwr_utils.reranking import Match, RegionDescriber
from cwr_utils.retrieval.asked import Asked, first_classes
from cwr_utils.retrieval.experiment import Experiment
from cwr_utils.retrieval.method import BY_QUERY, Method
from cwr_utils.retrieval.space import Space, Spaces, Training, baseline
from cwr_utils.store import Store
from cwr_utils.whitening import refuse_test_images


@dataclass(frozen=True, eq=False, repr=False)
class Described:
    """One setup's stores of an experiment, and what is computed from them.

    Attributes:
        experiment: with this setup alone, see `Experiment.parts`.
        database: store of the photos.
        asked: the queries and their store.
        spaces: whitenings, and the descriptors of the database in each.
        maps: feature and CAM maps of the photos, for re-ranking.
    """

    experiment: Experiment
    database: Store
    asked: Asked
    spaces: Spaces
    maps: ImageMaps

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        database: Store,
        queries: Store,
        training: Store | None,
        maps: ImageMaps | None = None,
    ) -> "Described":
        """Hold stores, and check that they are those of the experiment.

        Args:
            experiment: what they must be of.
            database: store of the photos.
            queries: store of the queries.
            training: store of the photos that whitening is fitted on; None allows only
                methods without whitening. It may keep fewer classes or, at the user's
                own risk, be of another size.
            maps: of the photos; those of the setup if None.

        Raises:
            StoreError: if a store is incomplete, or not of these photos, queries and
                settings; names the difference.
            ValueError: if training images are not in `training`.
            WhiteningError: if training photos are in the database or are queries.
        """
        setup, data = experiment.setup, experiment.data
        hashes = data.hashes()
        photos = {name: hashes[name] for name in data.images}
        database.require(setup.photo_facts(data), photos).require_complete()
        asked = _asked(experiment, database, queries)
        fitted_on = _training(experiment, database, asked, training)
        spaces = Spaces(database, fitted_on, setup.network.class_weights)
        return cls(experiment, database, asked, spaces, maps or ImageMaps(data, setup))

    @classmethod
    def open(cls, experiment: Experiment) -> "Described":
        """Open the stores that an extraction of the experiment has written.

        Raises:
            StoreError: if one is missing, incomplete or of something else; run the
                extraction first.
        """
        setup, data = experiment.setup, experiment.data
        training = experiment.training and open_photos(experiment.training, setup)
        queries = open_queries(data, setup)
        return cls.of(experiment, open_photos(data, setup), queries, training)

    def ask(self, queries: Sequence[Query], described: Store) -> "Described":
        """Put other queries, from their store, to the same database.

        Raises:
            StoreError: if the store is of other queries or settings.
        """
        data = replace(self.data, queries=tuple(queries))
        experiment = replace(self.experiment, data=data)
        asked = _asked(experiment, self.database, described)
        return replace(self, experiment=experiment, asked=asked)

    def under(self, experiment: Experiment) -> "Described":
        """The same photos under other flags; what they leave as it is is shared.

        Raises:
            StoreError: if photos or queries were not described under these flags.
        """
        setup, data, asked = experiment.setup, self.data, self.asked
        if setup.photo_facts(data) != self.setup.photo_facts(data):
            return Described.open(experiment)
        if setup.query_facts() != self.setup.query_facts():
            asked = _asked(experiment, self.database, open_queries(data, setup))
        maps = self.maps.under(setup)
        return replace(self, experiment=experiment, asked=asked, maps=maps)

    def fresh(self) -> "Described":
        """The same stores and whitenings, with nothing else computed yet."""
        asked = Asked(self.data.queries, self.asked.store)
        maps = ImageMaps(self.data, self.setup)
        return replace(self, asked=asked, spaces=self.spaces.fresh(), maps=maps)

    @property
    def data(self) -> Dataset:
        """The photos, queries and ground truth."""
        return self.experiment.data

    @property
    def setup(self) -> Setup:
        """How they are described."""
        return self.experiment.setup

    @cached_property
    def describer(self) -> Describer:
        """What describes queries that are in no store."""
        return describer_of(self.setup.of_queries)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Name of each photo -> its row in the database."""
        return {name: row for row, name in enumerate(self.data.images)}

    @cached_property
    def theme(self) -> list[int]:
        """The fixed class list of theme aggregation, most frequent first."""
        if self.experiment.theme is not None:
            return list(self.experiment.theme)
        return self.spaces.require_training().theme(MOST_TOP_CLASSES)

    def space(self, method: Method) -> Space:
        """The descriptors of a class aggregation."""
        return self.spaces.of(method, self.setup.protocol.repeat_previous_class)

    def classes(self, method: Method, query: int) -> list[int]:
        """The classes that describe a query."""
        if method.aggregation == "theme":
            count = min(method.num_classes, len(self.setup.network.class_names))
            return first_classes(self.theme, count, "theme list")
        return self.asked.classes(query, method.num_classes)

    def regions(self, method: Method) -> RegionDescriber:
        """What describes regions of photos for a method, when it re-ranks."""
        return RegionDescriber(
            self.setup.network.class_weights,
            self.space(method).aggregator,
            self.setup.power,
            self.setup.protocol,
        )

    def descriptors(
        self, method: Method, queries: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `Collection.descriptors`; classes that many queries have cost less."""
        if not method.by_class:
            database, fitted = self.spaces.baseline(method), self.spaces.fitted(method)
            vectors = baseline(self.asked.store, method.aggregation, fitted)
            yield from ((vectors[query], database) for query in queries)
            return
        space = self.space(method)
        if method.aggregation == "regional":
            both = self.database, self.asked.store
            database, vectors = (space.regional(s, method.num_classes) for s in both)
            yield from ((vectors[query], database) for query in queries)
            return
        lists = [self.classes(method, query) for query in queries]
        if method.aggregation in BY_QUERY:
            pairs = zip(queries, lists, strict=True)
            weighing = [self.asked.probabilities(*pair) for pair in pairs]
            described = space.by_query(method, lists, weighing)
        elif method.aggregation == "theme":
            described = (space.by_list(classes) for classes in lists)
        else:
            offline = space.offline([method.num_classes])
            described = (offline[method.num_classes] for _ in lists)
        for query, classes, database in zip(queries, lists, described, strict=True):
            yield self.asked.describe(query, classes, space.aggregator), database

    def closer(self, method: Method, query: int, rows: np.ndarray) -> np.ndarray:
        """See `Collection.closer`."""
        classes = self.classes(method, query)
        weighing = self.asked.probabilities(query, classes)
        return self.space(method).closer(method, rows, classes, weighing)

    def match(
        self, method: Method, query: int, images: Sequence[str]
    ) -> dict[str, Match]:
        """Image -> its best region for a query; each is looked for only once."""
        describer, count = self.regions(method), method.rerank_classes
        return self.asked.match(query, count, images, self.maps, describer)

    def photo_bytes(self, method: Method) -> int:
        """Bytes a photo that one stage of a method keeps to answer any query."""
        if method.aggregation == "online":
            return self.database.entry_bytes("class_vectors")
        if method.aggregation == "grouped":
            store = self.spaces.grouped_index(method).store
            return sum(map(store.entry_bytes, ("classes", "vectors")))
        return 4 * (method.dimensions or self.setup.channels)


def _asked(experiment: Experiment, database: Store, queries: Store) -> Asked:
    """The queries of an experiment, checked to be those of their store."""
    data, contents = experiment.data, {}
    for query in data.queries:
        content = database.hashes.get(query.image)
        if content is None and query.image in data.paths:
            content = data.sha256(query.image)
        # A photo that is nowhere on the disk is known by its description alone.
        content = content or queries.hashes.get(query.name, "").split(" ")[0]
        contents[query.name] = query_content(query, content)
    queries.require(experiment.setup.query_facts(), contents).require_complete()
    return Asked(data.queries, queries)


def _training(
    experiment: Experiment, database: Store, asked: Asked, store: Store | None
) -> Training | None:
    """The photos to fit on, checked to be the experiment's and none of those tested."""
    if store is None or experiment.training is None:
        return None
    hashes, facts = experiment.training.hashes(), experiment.setup.facts
    store.require(
        {name: facts[name] for name in VECTOR_FACTS},
        {name: hashes[name] for name in experiment.training.images},
    )
    training = Training.choose(
        store, experiment.training.name, experiment.training_images
    )
    under_test = [entry.split()[0] for entry in asked.store.hashes.values()]
    refuse_test_images(
        training.hashes,
        [*database.hashes.values(), *under_test],
        experiment.i_know_this_fits_whitening_on_the_test_set,
    )
    return training
