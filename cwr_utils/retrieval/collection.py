"""The stores of an experiment, opened: what its methods share."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from cwr_utils import evaluation, ranking
from cwr_utils.datasets import Dataset, Query
from cwr_utils.extraction import (
    MOST_TOP_CLASSES,
    VECTOR_FACTS,
    Describer,
    ImageMaps,
    describe_query,
    describer_of,
    open_photos,
    open_queries,
    query_content,
)
from cwr_utils.identity import digest
from cwr_utils.protocol import Protocol
from cwr_utils.rerankers import Prepared
from cwr_utils.reranking import Match, RegionDescriber
from cwr_utils.retrieval.asked import Asked, first_classes
from cwr_utils.retrieval.experiment import Experiment
from cwr_utils.retrieval.method import BY_QUERY, Method, Result
from cwr_utils.retrieval.space import Space, Spaces, Training, baseline
from cwr_utils.store import JoinedStore, Store, StoreError
from cwr_utils.whitening import Whitening, refuse_test_images


class Collection:
    """Photos that are searched, the queries put to them, and what was computed.

    Attributes:
        experiment: what was opened.
        data: its photos, queries and ground truth.
        setup: how they are described.
        database: store of the photos.
        asked: the queries and their store.
        spaces: whitenings, and the descriptors of the database in each.
        maps: feature and CAM maps of the photos, for re-ranking.
        also: the same photos and queries as the other setups of the experiment describe
            them.
    """

    def __init__(
        self,
        experiment: Experiment,
        database: Store,
        queries: Store | Asked,
        training: Store | Spaces | None,
        maps: ImageMaps | None = None,
        also: Sequence["Collection"] = (),
    ):
        """Hold stores, and check that they are those of the experiment.

        Args:
            experiment: what they must be of.
            database: store of the photos.
            queries: store of the queries, or what is known of them already.
            training: store of the photos that whitening is fitted on, or what is fitted
                already; None allows only methods without whitening. The store may keep
                fewer classes or, at the user's own risk, be of another size.
            maps: of the photos; those of the setup if None.
            also: opened with each of `experiment.also`.

        Raises:
            StoreError: if a store is incomplete, or not of these photos, queries and
                settings; names the difference.
            ValueError: if training images are not in `training`.
            WhiteningError: if training photos are in the database or are queries.
        """
        self.experiment, self.data = experiment, experiment.data
        self.setup, self.database = experiment.setup, database
        self.also = tuple(also)
        if not isinstance(training, Spaces):  # they are of this database
            hashes = self.data.hashes()
            photos = {name: hashes[name] for name in self.data.images}
            facts = self.setup.photo_facts(self.data)
            database.require(facts, photos).require_complete()
        if not isinstance(queries, Asked):
            queries = self._open_queries(self.data, queries)
        self.asked = queries
        self.maps = maps or ImageMaps(self.data, self.setup)
        self._row = {name: row for row, name in enumerate(self.data.images)}
        if not isinstance(training, Spaces):
            fitted_on, weights = self._open_training(training), self.setup.network
            training = Spaces(self.database, fitted_on, weights.class_weights)
        self.spaces = training

    @classmethod
    def open(cls, experiment: Experiment) -> "Collection":
        """Open the stores that an extraction of the experiment has written.

        Raises:
            StoreError: if one is missing, incomplete or of something else; run the
                extraction first.
        """
        setup, data = experiment.setup, experiment.data
        training = experiment.training and open_photos(experiment.training, setup)
        queries = open_queries(data, setup)
        also = [cls.open(part) for part in experiment.parts[1:]]
        photos = open_photos(data, setup)
        return cls(experiment, photos, queries, training, also=also)

    def _open_queries(self, data: Dataset, queries: Store) -> Asked:
        contents = {}
        for query in data.queries:
            content = self.database.hashes.get(query.image)
            if content is None and query.image in data.paths:
                content = data.sha256(query.image)
            # A photo that is nowhere on the disk is known by its description alone.
            content = content or queries.hashes.get(query.name, "").split(" ")[0]
            contents[query.name] = query_content(query, content)
        queries.require(self.setup.query_facts(), contents).require_complete()
        return Asked(data.queries, queries)

    def _open_training(self, store: Store | None) -> Training | None:
        experiment = self.experiment
        if store is None or experiment.training is None:
            return None
        hashes, facts = experiment.training.hashes(), self.setup.facts
        store.require(
            {name: facts[name] for name in VECTOR_FACTS},
            {name: hashes[name] for name in experiment.training.images},
        )
        training = Training.choose(
            store, experiment.training.name, experiment.training_images
        )
        under_test = [entry.split()[0] for entry in self.asked.store.hashes.values()]
        refuse_test_images(
            training.hashes,
            [*self.database.hashes.values(), *under_test],
            experiment.i_know_this_fits_whitening_on_the_test_set,
        )
        return training

    def ask(self, queries: Sequence[Query], *described: Store) -> "Collection":
        """Put other queries to the same database; what was computed for it is shared.

        Args:
            queries: those to run.
            described: their store, and that of each other setup.

        Raises:
            StoreError: if a store is of other queries or settings.
            ValueError: if there are not as many stores as setups.
        """
        data = replace(self.data, queries=tuple(queries))
        first, *others = described
        return Collection(
            replace(self.experiment, data=data),
            self.database,
            self._open_queries(data, first),
            self.spaces,
            self.maps,
            [c.ask(queries, s) for c, s in zip(self.also, others, strict=True)],
        )

    def ask_stored(self, query: Query) -> "Collection":
        """Put one of the stored queries alone; its photo and box stay as they are."""
        members = (self, *self.also)
        stores = [
            JoinedStore([c.queries], {query.name: c.queries.hashes[query.name]})
            for c in members
        ]
        return self.ask([query], *stores)

    def ask_photo(self, query: Query, photo: np.ndarray, sha256: str) -> "Collection":
        """Put one query that is in no store, see `extraction.describe_query`."""
        return self.ask_photos([(query, photo, sha256)])

    def ask_photos(
        self, asked: Sequence[tuple[Query, np.ndarray, str]]
    ) -> "Collection":
        """Put queries that are in no store; each comes with its photo and its hash."""
        stores = []
        for member in (self, *self.also):
            alone = [describe_query(member.describer, *query) for query in asked]
            described = {n: c for store in alone for n, c in store.hashes.items()}
            stores.append(JoinedStore(alone, described))
        return self.ask([query for query, *_ in asked], *stores)

    def under(self, protocol: Protocol) -> "Collection":
        """The same under all flags of a protocol; what they leave as it is is shared.

        Raises:
            StoreError: if photos or queries were not described under these flags.
        """
        experiment, data = self.experiment.under(protocol), self.data
        setup = experiment.setup
        if setup.photo_facts(data) != self.setup.photo_facts(data):
            return Collection.open(experiment)
        asked: Asked | Store = self.asked
        if setup.query_facts() != self.setup.query_facts():
            asked = open_queries(data, setup)
        maps = self.maps.under(setup)
        also = [c.under(replace(protocol, resize=c.setup.resize)) for c in self.also]
        return Collection(experiment, self.database, asked, self.spaces, maps, also)

    def at_difficulty(self, difficulty: str) -> "Collection":
        """The same, every query judged by one difficulty of the revisited protocol.

        Raises:
            ValueError: if there is no such difficulty, or the ground truth knows none.
        """
        data = self.data.at_difficulty(difficulty)
        experiment = replace(self.experiment, data=data)
        also = [other.at_difficulty(difficulty) for other in self.also]
        shared = (self.database, self.asked, self.spaces, self.maps)
        return Collection(experiment, *shared, also)

    def fresh(self) -> "Collection":
        """The same stores and whitenings, with nothing else computed yet."""
        asked = Asked(self.data.queries, self.queries)
        also = [member.fresh() for member in self.also]
        spaces = self.spaces.fresh()
        return Collection(self.experiment, self.database, asked, spaces, also=also)

    def at_layer(self, layer: str) -> "Collection":
        """The same with the stores of another layer.

        Raises:
            StoreError: if they are missing or incomplete.
        """
        return Collection.open(self.experiment.at_layer(layer))

    def other_layers(self) -> list[str]:
        """Layers whose stores are there too, made with otherwise equal settings."""
        found = []
        for layer in self.setup.network.feature_layers():
            try:
                self.at_layer(layer.name)
            except (StoreError, ValueError):  # not there, or not with this power
                continue
            found.append(layer.name)
        return [name for name in found if name != self.setup.layer]

    def row_of(self, image: str) -> int:
        """Row of a photo in the database."""
        return self._row[image]

    @property
    def queries(self) -> Store:
        """The store of the queries."""
        return self.asked.store

    @property
    def training(self) -> Training | None:
        """The photos that whitening is fitted on."""
        return self.spaces.training

    @property
    def source(self) -> str:
        """What tables call these photos; "" if there are none."""
        return self.training.source if self.training else ""

    @cached_property
    def describer(self) -> Describer:
        """What describes queries that are in no store."""
        return describer_of(self.setup.of_queries)

    @property
    def top_classes(self) -> np.ndarray:
        """(Q, n) each query's most probable classes, from its cropped region."""
        return self.asked.top_classes

    @cached_property
    def theme(self) -> list[int]:
        """The fixed class list of theme aggregation, most frequent first."""
        if self.experiment.theme is not None:
            return list(self.experiment.theme)
        return self.spaces.require_training().theme(MOST_TOP_CLASSES)

    def whitening(self, method: Method) -> Whitening | None:
        """The whitening a method uses, fitted once; None if it uses none.

        Raises:
            WhiteningError: if the training photos cannot support the dimensions.
        """
        return self.spaces.fitted(method)

    def supported(self, method: Method) -> Method:
        """See `Spaces.supported`; what all setups support."""
        for member in (self, *self.also):
            method = member.spaces.supported(method)
        return method

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

    def offline_curve(self, method: Method, num_classes: Sequence[int]) -> None:
        """Describe the database offline for several N_C in one pass over the stores."""
        for member in (self, *self.also):
            member.space(method).offline(num_classes)

    def descriptors(self, method: Method, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Descriptors of one query and of the database for it.

        Args:
            method: the setting.
            query: number of the query.

        Returns:
            (D,) and (N, D), l2-normalised; the latter is shared, not a copy. Of n
            setups they have n D components, so that their product is the mean score.
            Of a cascade the database is that of its first stage, see `closer`.
        """
        return next(self._descriptors(method.first_stage, [query]))

    def closer(self, method: Method, query: int, rows: np.ndarray) -> np.ndarray:
        """Describe some photos by the classes of a query: the second step of a cascade.

        Args:
            method: the setting, of which the cascade does not matter.
            query: number of the query.
            rows: (L,) of the photos.

        Returns:
            (L, D), l2-normalised; (L, n D) of n setups, as `descriptors`.
        """
        parts = [c._own_closer(method, query, rows) for c in (self, *self.also)]
        return _join(parts) if self.also else parts[0]

    def _own_closer(self, method: Method, query: int, rows: np.ndarray) -> np.ndarray:
        classes = self.classes(method, query)
        weighing = self.asked.probabilities(query, classes)
        return self.space(method).closer(method, rows, classes, weighing)

    def _descriptors(
        self, method: Method, queries: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`descriptors` for several queries; what they share is computed once."""
        if not self.also:
            yield from self._own_descriptors(method, queries)
            return
        members = (self, *self.also)
        last, joined = (), np.empty(0)
        for found in zip(
            *(c._own_descriptors(method, queries) for c in members), strict=True
        ):
            vectors, databases = zip(*found, strict=True)
            if [id(array) for array in databases] != [id(array) for array in last]:
                last, joined = databases, _join(databases)
            yield _join(vectors), joined

    def _own_descriptors(
        self, method: Method, queries: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`_descriptors` by `setup` alone; classes that many queries have cost less."""
        if not method.by_class:
            database = self.spaces.baseline(method)
            fitted = self.whitening(method)
            vectors = baseline(self.queries, method.aggregation, fitted)
            yield from ((vectors[query], database) for query in queries)
            return
        space = self.space(method)
        if method.aggregation == "regional":
            both = self.database, self.queries
            database, vectors = (space.regional(s, method.num_classes) for s in both)
            yield from ((vectors[query], database) for query in queries)
            return
        lists = [self.classes(method, query) for query in queries]
        if method.aggregation in BY_QUERY:
            pairs = zip(queries, lists, strict=True)
            weighing = [self.asked.probabilities(*pair) for pair in pairs]
            described = (
                space.online(lists, weighing)
                if method.aggregation == "online"
                else space.grouped(method, lists, weighing)
            )
        elif method.aggregation == "theme":
            described = (space.by_list(classes) for classes in lists)
        else:
            offline = space.offline([method.num_classes])
            described = (offline[method.num_classes] for _ in lists)
        for query, classes, database in zip(queries, lists, described, strict=True):
            yield self.asked.describe(query, classes, space.aggregator), database

    def match_region(self, method: Method, query: int, image: str) -> Match:
        """Best CAM-box region of a photo for a query."""
        return self._match(method, query, [image])[image]

    def _match(
        self, method: Method, query: int, images: Sequence[str]
    ) -> dict[str, Match]:
        """Image -> best region; of several setups the mean score of their own ones."""
        members = (self, *self.also)
        found = [c._own_match(method, query, images) for c in members]
        if not self.also:
            return found[0]
        return {
            image: Match(
                float(np.mean([matches[image].score for matches in found])),
                found[0][image].box,
                _join([matches[image].descriptor for matches in found]),
            )
            for image in images
        }

    def _own_match(
        self, method: Method, query: int, images: Sequence[str]
    ) -> dict[str, Match]:
        describer, count = self.regions(method), method.rerank_classes
        return self.asked.match(query, count, images, self.maps, describer)

    def run(self, method: Method) -> Result:
        """Rank the database for every query."""
        result = Result(method, {}, {}, {})
        queries = self.data.queries
        progress = tqdm(
            queries,
            desc=method.label,
            leave=False,
            disable=not method.rerank or len(queries) < 2,
        )
        described = self._descriptors(method.first_stage, range(len(queries)))
        moves, chain = self.setup.protocol.rerank_moves_index, method.chain
        changes = method.rerank and moves != "no"
        if changes and (chain.steps or method.cascade):
            what = f"`refine` ({chain})" if chain.steps else "`cascade`"
            raise ValueError(
                f"{what} ranks by the descriptors as they are stored, and the "
                "protocol's `rerank_moves_index` changes them for each query: "
                "choose one of the two."
            )
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
            found = self._rank(method, number, vector, index, prepared)
            order, scores, result.matches[query.name], averaged = found
            result.rankings[query.name] = self._names(order)
            result.scores[query.name] = scores[order]
            result.averaged[query.name] = self._names(averaged)
        return result

    def _rank(
        self,
        method: Method,
        number: int,
        vector: np.ndarray,
        index: np.ndarray,
        prepared: Prepared,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Match], np.ndarray]:
        """Rows, best first, scores by row, matches, and rows averaged, of one query.

        Args:
            method: the setting.
            number: of the query.
            vector: (D,) its descriptor.
            index: (N, D); rows of re-ranked photos are changed where the protocol
                says so.
            prepared: of `Method.chain`.
        """
        protocol = self.setup.protocol

        def score(vector: np.ndarray) -> np.ndarray:
            if method.refine:
                found = prepared.scores(vector[None])[0]
            else:
                found = ranking.similarities(vector[None], index)[0]
            if method.cascade:
                self._look_closer(method, number, vector, found)
            return found

        scores = score(vector)
        own = self._row.get(self.data.queries[number].image)
        if protocol.query_replaces_own_row and own is not None:
            scores[own] = max(1.0, scores.max())
        # An expanded query searches anew: until then only the head is needed.
        head = max(method.rerank, method.query_expansion)
        order = ranking.order(scores, head if method.query_expansion else None)
        matched = {}
        if method.rerank:
            top = order[: method.rerank]
            names = self._names(top)
            matched = self._match(method, number, names)
            scores = scores.copy()
            scores[top] = [matched[name].score for name in names]
            best = top[ranking.order(scores[top])]
            order = np.concatenate([best, order[method.rerank :]])
            if protocol.rerank_moves_index != "no":
                index[top] = [matched[name].descriptor for name in names]
        averaged = order[: method.query_expansion]
        if method.query_expansion:
            members = index[averaged]
            if method.cascade:
                members = self.closer(method, number, averaged)
            rows, rule = range(len(averaged)), protocol.expand_with_query
            vector = ranking.expand_query(vector, members, rows, len(rows), rule)
            scores = score(vector)
            order = ranking.order(scores)
        return order, scores, matched, averaged

    def _look_closer(
        self, method: Method, number: int, vector: np.ndarray, scores: np.ndarray
    ) -> None:
        """Score the first photos of a cascade again; the others stay behind them.

        Args:
            method: with a cascade.
            number: of the query.
            vector: (D,) its descriptor.
            scores: (N,) of the first stage, changed in place: those of the others are
                lowered by one number for all, where it is needed.
        """
        first = ranking.order(scores, method.cascade)
        near = self.closer(method, number, first) @ vector
        if method.refine:  # neighbours and the query's classes say different things
            near = (near + scores[first]) / 2
        others = np.ones(len(scores), bool)
        others[first] = False
        if others.any():
            scores[others] -= max(0, scores[others].max() - near.min() + _BEHIND)
        scores[first] = near

    def _names(self, rows: Iterable[int]) -> list[str]:
        return [self.data.images[row] for row in rows]

    def photo_bytes(self, method: Method) -> int:
        """Bytes a photo that are kept to answer any query, of all setups together.

        Those of its descriptor, in single precision; online, of its class vectors, as
        they are stored; grouped, of what it keeps of them; of a cascade both.
        """
        stages = dict.fromkeys([method.first_stage, replace(method, cascade=0)])
        members = (self, *self.also)
        return sum(c._own_bytes(stage) for c in members for stage in stages)

    def _own_bytes(self, method: Method) -> int:
        if method.aggregation == "online":
            return self.database.entry_bytes("class_vectors")
        if method.aggregation == "grouped":
            store = self.spaces.grouped_index(method).store
            return sum(map(store.entry_bytes, ("classes", "vectors")))
        return 4 * (method.dimensions or self.setup.channels)

    def evaluate(self, result: Result, self_match: bool | None = None) -> pd.DataFrame:
        """Per-query table of `evaluation.evaluate`.

        Args:
            result: from `run`.
            self_match: whether a query's own photo counts; None is what the ground
                truth says, for each query.
        """
        return evaluation.evaluate(result.rankings, self.data.queries, self_match)

    def compare(
        self, methods: Iterable[Method]
    ) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Result]]:
        """Run methods, with a progress bar; those of an offline curve in one pass.

        Returns:
            One row a method (see `row`); one row a query and method; the results by
            `Method.slug`.
        """
        rows, tables, results, methods = [], [], {}, list(methods)
        counts = defaultdict(list)
        for method in methods:
            if method.aggregation == "offline":
                counts[method.whitened_by, method.class_weighting].append(method)
        for curve in counts.values():
            self.offline_curve(curve[0], [method.num_classes for method in curve])
        for method in tqdm(methods, desc="methods"):
            result = self.run(method)
            results[method.slug] = result
            rows.append(self.row(result))
            table = self.evaluate(result)
            table.insert(0, "method", method.label)
            table.insert(1, "slug", method.slug)
            tables.append(table)
        return pd.DataFrame(rows), pd.concat(tables, ignore_index=True), results

    def by_difficulty(
        self, results: Iterable[Result]
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Easy, Medium and Hard of the revisited protocol, from the same rankings.

        To look closer, `at_difficulty` gives a collection that is judged by one.

        Args:
            results: from `run`.

        Returns:
            One row a method and difficulty, with the measures of `row`; `queries` is
            how many have positives, so that the means are over them, and `left_out`
            how many have none. One row a query besides: see `evaluate`.

        Raises:
            ValueError: if the ground truth knows no difficulties.
        """
        rows, tables = [], []
        judges = {name: self.at_difficulty(name) for name in evaluation.DIFFICULTIES}
        for result, (difficulty, judge) in product(results, judges.items()):
            method, table = result.method, judge.evaluate(result)
            interval = evaluation.bootstrap(table["ap"], table["landmark"])
            scored = int(table["ap"].count())
            names = {"method": method.label, "slug": method.slug}
            names["difficulty"] = difficulty
            rows.append(
                {
                    **names,
                    "dimensions": method.dimensions,
                    "mAP": evaluation.mean_average_precision(table),
                    "mAP_low": interval.low,
                    "mAP_high": interval.high,
                    **_mean_precisions(table),
                    "queries": scored,
                    "left_out": len(table) - scored,
                    "images": len(self.data.images),
                    "dataset": self.data.name,
                    "note": self.data.note,
                }
            )
            tables.append(pd.DataFrame(names, table.index).join(table))
        return pd.DataFrame(rows), pd.concat(tables, ignore_index=True)

    def row(self, result: Result) -> dict:
        """One row of a table of methods; mAP with the 95 % interval over landmarks.

        mP@1, mP@5 and mP@10 are those of the revisited protocol on every data set
        (`evaluation.precision_at`). A query's own photo is junk there, as in
        `mAP_without_self`: it would be a free hit at rank 1.

        Its `identity` is a digest of all that its numbers depend on, `setting` that of
        all but the method: rows of one setting may stand side by side.
        """
        method, facts = result.method, self.experiment.facts
        shown = self.experiment.shown
        used = self.whitening(method)
        # Revisited queries are not in the database: nothing of theirs could count.
        inside = all(query.image in self._row for query in self.data.queries)
        rule, own, others = (
            self.evaluate(result, rule) for rule in (None, inside, False)
        )
        mean = evaluation.mean_average_precision
        interval = evaluation.bootstrap(rule["ap"], rule["landmark"])
        return {
            "method": method.label,
            "mAP": mean(rule),
            "mAP_low": interval.low,
            "mAP_high": interval.high,
            "mAP_with_self": mean(own),
            "mAP_without_self": mean(others),
            **_mean_precisions(others),
            **method.settings,
            "slug": method.slug,
            **{name: shown[name] for name in _ROW_FACTS},
            "protocol": self.setup.protocol.name,
            "whitening": used.source if used else "",
            "whitening_vectors": used.vectors if used else 0,
            "queries": len(self.data.queries),
            "landmarks": interval.groups,
            "images": len(self.data.images),
            "dataset": self.data.name,
            "note": self.data.note,
            "setting": digest(facts),
            "identity": digest({**facts, **method.settings}),
        }


_BEHIND = 1e-6  # a difference of two scores that single precision keeps


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Descriptors (..., D) of several setups end to end, of length 1 again."""
    return np.concatenate(parts, axis=-1) / np.sqrt(np.float32(len(parts)))


def _mean_precisions(per_query: pd.DataFrame) -> dict[str, float]:
    """The mP@k of a table of `evaluation.evaluate`, by the names of columns."""
    mean = evaluation.mean_precision_at
    return {f"mP@{k}": mean(per_query, k) for k in evaluation.DEPTHS}


# Facts that a row shows, so that a difference can be named.
_ROW_FACTS = (
    "network",
    "weights_sha256",
    "precision",
    "layer",
    "resize",
    "power",
    "package_version",
    "dataset_sha256",
    "training_sha256",
)
