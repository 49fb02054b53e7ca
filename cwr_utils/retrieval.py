"""One setting from stores to rankings and scores: what a row of a table is.

A `Method` names the setting; `Retrieval` holds the stores of one data set and shares
whitenings, descriptors and region matches between the methods that it runs.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from cwr_utils import aggregation, evaluation, ranking, reranking, whitening
from cwr_utils.arrays import l2_normalize
from cwr_utils.datasets import Dataset, Query
from cwr_utils.extraction import (
    MOST_TOP_CLASSES,
    ExtractionConf,
    ImageMaps,
    query_content,
    query_folder,
    store_path,
)
from cwr_utils.networks import CamNetwork
from cwr_utils.pooling import GLOBAL_POOLINGS, REGION_POOLINGS
from cwr_utils.protocol import PRESETS, Protocol
from cwr_utils.reranking import HEAT_MAP_CLASSES
from cwr_utils.store import Store, StoreError
from cwr_utils.whitening import Whitening

# Classes of a photo that count towards the theme list (Fig. 5 uses queries' top 64).
THEME_TOP_CLASSES = 64
CLASS_AGGREGATIONS = ("offline", "online", "theme")
REGION_AGGREGATIONS = tuple(f"rmac_{pool}" for pool in REGION_POOLINGS)
# What has to be the same where vectors are compared.
VECTOR_SETTINGS = ("network", "weights_sha256", "layer", "power", "flip_negative_cams")
# Settings of the extraction that a row of a table needs besides its method's.
_ROW_SETTINGS = ("network", "weights_sha256", "layer", "resize", "power")
# What a match of a query and a photo depends on, besides the stores.
MATCH_FLAGS = (
    "flip_negative_cams",
    "repeat_previous_class",
    "rerank_thresholds",
    "rerank_largest",
    "rerank_fallback",
    "rerank_squares_upright",
)
AGGREGATIONS = GLOBAL_POOLINGS + REGION_AGGREGATIONS + CLASS_AGGREGATIONS

_NAMES = {
    "sum": "Raw features",
    "channel_weighted": "Raw + channel weights",
    "max": "MAC",
    "gem": "GeM",
    "crow": "CroW",
    "rmac_max": "R-MAC",
    "rmac_gem": "R-MAC, GeM regions",
    "rmac_mean": "R-MAC, mean regions",
    "offline": "OfA",
    "online": "OnA",
    "theme": "Theme list",
}


@dataclass(frozen=True)
class Method:
    """One way to describe, rank and re-rank.

    Attributes:
        aggregation: one of `AGGREGATIONS`.
        num_classes: N_C, classes a descriptor (class aggregations only).
        num_whitening_classes: N_pca, top class vectors of each whitening photo.
        dimensions: D after PCA-whitening; 0 ranks without whitening.
        query_expansion: images averaged into the expanded query; 0 is none.
        rerank: R, images re-ranked by CAM boxes; 0 is none.
        rerank_classes: classes that describe a region.
    """

    aggregation: str = "online"
    num_classes: int = 8
    num_whitening_classes: int = 16
    dimensions: int = 512
    query_expansion: int = 0
    rerank: int = 0
    rerank_classes: int = 6

    def __post_init__(self):
        """Check the values.

        Raises:
            ValueError: if the aggregation is unknown, a number negative, or a class
                method is asked to do without whitening.
        """
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(
                f"`aggregation` must be one of {', '.join(AGGREGATIONS)}; "
                f"got {self.aggregation!r}."
            )
        for name, value in asdict(self).items():
            least = 1 if "classes" in name else 0
            if name != "aggregation" and value < least:
                raise ValueError(f"`{name}` must be at least {least}; got {value}.")
        if self.by_class and not self.dimensions:
            raise ValueError(
                "Class vectors are whitened: `dimensions` must be above 0."
            )
        if self.rerank and not self.by_class:
            raise ValueError(
                "Re-ranking describes regions by class vectors: it needs one of the "
                f"aggregations {', '.join(CLASS_AGGREGATIONS)}."
            )

    @property
    def by_class(self) -> bool:
        """Whether descriptors are sums of class vectors."""
        return self.aggregation in CLASS_AGGREGATIONS

    @property
    def label(self) -> str:
        """What tables and figures call it."""
        text = _NAMES[self.aggregation]
        if self.aggregation == "sum" and self.dimensions:
            text = "Raw"  # "Raw + PCA", as in Table 1a
        if self.by_class:
            plural = "es" if self.num_classes > 1 else ""
            text += f", {self.num_classes} class{plural}"
        elif self.dimensions:
            text += " + PCA"
        if self.rerank:
            text += f" + R{self.rerank}"
        if self.query_expansion:
            text += f" + QE{self.query_expansion}"
        return text

    @property
    def slug(self) -> str:
        """File-safe name with every setting that matters."""
        parts = [self.aggregation]
        if self.by_class:
            parts += [f"nc{self.num_classes}", f"npca{self.num_whitening_classes}"]
        parts.append(f"d{self.dimensions}" if self.dimensions else "raw")
        if self.rerank:
            parts.append(f"r{self.rerank}c{self.rerank_classes}")
        if self.query_expansion:
            parts.append(f"qe{self.query_expansion}")
        return "-".join(parts)


@dataclass(frozen=True)
class Result:
    """What a method found.

    Attributes:
        method: the setting.
        rankings: query name -> all image names, best first.
        scores: query name -> their scores, in that order; re-ranked images carry the
            score of their best region.
        matches: query name -> image name -> best region (re-ranking only).
    """

    method: Method
    rankings: dict[str, list[str]]
    scores: dict[str, np.ndarray]
    matches: dict[str, dict[str, reranking.Match]]


class Retrieval:
    """The stores of one data set, and everything its methods share."""

    def __init__(
        self,
        dataset: Dataset,
        database: Store,
        queries: Store,
        training: Store | None = None,
        *,
        training_images: Sequence[str] | None = None,
        protocol: Protocol = PRESETS["corrected"],
        maps: ImageMaps | None = None,
        theme: Sequence[int] | None = None,
        keep_whitenings: bool = False,
        i_know_this_fits_whitening_on_the_test_set: bool = False,
    ):
        """Hold the stores and check that they may be used together.

        Args:
            dataset: images, queries and ground truth under test.
            database: store of `dataset.images`.
            queries: store of `dataset.queries`.
            training: store of the photos that whitening is fitted on; None allows
                only methods without whitening.
            training_images: names in `training` to fit on; all if None.
            protocol: flags of search, expansion and re-ranking.
            maps: feature and CAM maps of `dataset`, for re-ranking.
            theme: fixed class list; the most frequent top classes of the training
                photos if None.
            keep_whitenings: keep what was fitted in the folder of `training`, for
                other processes and later runs.
            i_know_this_fits_whitening_on_the_test_set: allow training photos that are
                searched, distractors among them.

        Raises:
            StoreError: if a store is incomplete, of other images or queries, or of
                other settings than the rest.
            ValueError: if `training_images` are not in `training`.
            WhiteningError: if training photos are in the database or are queries.
        """
        self.dataset = dataset
        self.database = database.require_complete()
        self.queries = queries.require_complete()
        self.training = training.require_complete() if training is not None else None
        self.protocol = protocol
        self.maps = maps
        self._theme = list(theme) if theme is not None else None
        self._keep_whitenings = keep_whitenings
        self._memo: dict = {}  # of the database and the whitening
        self._asked: dict = {}  # of the queries
        self._row = {name: row for row, name in enumerate(dataset.images)}
        _require_names("image", dataset.name, dataset.images, database)
        names = [query.name for query in dataset.queries]
        _require_names("query", dataset.name, names, queries)
        _require_boxes(dataset, database, queries)
        _require_settings(database, queries, (*VECTOR_SETTINGS, "resize"))
        if training is None:
            return
        # The whitening set may have been resized otherwise, at the user's own risk.
        _require_settings(database, training, VECTOR_SETTINGS)
        chosen = set(training.names if training_images is None else training_images)
        rows = [row for row, name in enumerate(training.names) if name in chosen]
        self._training_rows = np.array(rows, int)
        if len(rows) < len(chosen):
            raise ValueError(
                f"{len(chosen) - len(rows)} of the `training_images` are not in "
                f"{training.path}."
            )
        self.source = training.config["dataset"]
        if training_images is not None:
            self.source += f" ({len(rows)} of {len(training)} photos)"
        under_test = list(database.hashes.values())
        under_test += [entry.split()[0] for entry in queries.hashes.values()]
        whitening.refuse_test_images(
            [training.hashes[name] for name in chosen],
            under_test,
            i_know_this_fits_whitening_on_the_test_set,
        )

    @property
    def self_match(self) -> bool:
        """Whether a query's own photo counts: only if the ground truth lists it."""
        return all(q.image in q.positives for q in self.dataset.queries)

    @property
    def top_classes(self) -> np.ndarray:
        """(Q, n) each query's most probable classes, from its cropped region."""
        return self._remember(
            "top_classes", lambda: self.queries.read("top_classes"), self._asked
        )

    @property
    def theme(self) -> list[int]:
        """The fixed class list of theme aggregation, most frequent first."""
        if self._theme is None:
            training, rows = self._require_training()
            top = training.read("top_classes", rows)[:, :THEME_TOP_CLASSES]
            self._theme = aggregation.theme_classes(top, MOST_TOP_CLASSES)
        return self._theme

    def ask(self, queries: Sequence[Query], described: Store) -> "Retrieval":
        """Put other queries to the same database; what was computed for it is shared.

        Args:
            queries: those to run.
            described: their store.

        Raises:
            StoreError: if the store is of other queries or settings.
        """
        other = copy.copy(self)
        other.dataset = replace(self.dataset, queries=tuple(queries))
        other.queries = described.require_complete()
        other._asked = {}
        _require_names("query", self.dataset.name, [q.name for q in queries], described)
        _require_boxes(other.dataset, self.database, described)
        _require_settings(self.database, described, (*VECTOR_SETTINGS, "resize"))
        return other

    @property
    def conf(self) -> ExtractionConf:
        """The settings of the extraction that made the stores."""
        names = [field.name for field in fields(ExtractionConf)]
        return ExtractionConf(**{name: self.database.config[name] for name in names})

    def other_layers(self) -> list[str]:
        """Layers whose stores lie beside these, made with otherwise equal settings."""
        names = [layer.name for layer in self.require_maps().network.feature_layers()]
        return [
            name
            for name in names
            if name != self.database.config["layer"]
            and all(path.exists() for path in self._paths(name))
        ]

    def at_layer(self, layer: str) -> "Retrieval":
        """The same data and protocol, with the stores of another layer.

        Raises:
            StoreError: if they are missing or incomplete.
        """
        database, queries, *training = self._paths(layer)
        conf, network = replace(self.conf, layer=layer), self.require_maps().network
        cache_dir = self.database.path.parents[2]
        chosen = None
        if self.training is not None:
            chosen = [self.training.names[row] for row in self._training_rows]
        return Retrieval(
            self.dataset,
            Store.open(database),
            Store.open(queries),
            Store.open(training[0]) if training else None,
            training_images=chosen,
            protocol=self.protocol,
            maps=ImageMaps(self.dataset, network, conf, cache_dir=cache_dir),
            theme=self._theme,  # top classes are those of every layer
        )

    def _paths(self, layer: str) -> list[Path]:
        """Folders of a layer's stores: database, queries, and training if there is."""
        cache, network = self.database.path.parents[2], self.require_maps().network
        conf = replace(self.conf, layer=layer)
        folder = store_path(cache, self.dataset, network, conf)
        paths = [folder / "database", folder / "queries"]
        if self.training is not None:
            paths.append(
                cache / self.training.config["dataset"] / folder.name / "database"
            )
        return paths

    def whitening(self, method: Method) -> Whitening | None:
        """The whitening a method uses, fitted once; None if it uses none."""
        return self.fitted(method) if method.dimensions else None

    def fitted(self, method: Method) -> Whitening:
        """The whitening of a method that has one.

        Raises:
            WhiteningError: if the training photos cannot support the dimensions.
        """
        return self._remember(
            ("whitening", *_trained_on(method), method.dimensions),
            lambda: self._fit(method).keep(method.dimensions),
        )

    def supported(self, method: Method) -> Method:
        """A method with D lowered to half of its whitening vectors if it is above that.

        n vectors support n - 1 dimensions, but the last ones are mostly noise: with
        N_pca = 1 a small whitening set gives little more than nothing for D = 512.
        """
        if not method.dimensions:
            return method
        fitted = self._fit(method)
        most = max(1, min(fitted.vectors // 2, fitted.dimensions))
        return replace(method, dimensions=min(method.dimensions, most))

    def forget_descriptors(self) -> None:
        """Free the memory of descriptors that other methods would use again.

        Whitenings, whitened classes (one setting) and region matches stay.
        """
        for key in list(self._memo):
            if key[0] in ("offline", "theme", "baseline"):
                del self._memo[key]

    def _fit(self, method: Method) -> Whitening:
        """The whitening of a method with every axis that its vectors support."""

        def compute() -> Whitening:
            training, rows = self._require_training()
            if not self._keep_whitenings:
                return whitening.fit(self._training_vectors(method), self.source)
            key = {
                "trained on": _trained_on(method),
                "config": training.config,
                "photos": [
                    [name, training.hashes[name]]
                    for name in np.array(training.names)[rows].tolist()
                ],
            }
            return whitening.fit_once(
                training.path / "whitening",
                key,
                lambda: self._training_vectors(method),
                self.source,
            )

        return self._remember(("fit", *_trained_on(method)), compute)

    def require_maps(self) -> ImageMaps:
        """The maps.

        Raises:
            ValueError: if there are none.
        """
        if self.maps is None:
            raise ValueError("Re-ranking needs `maps`, an `extraction.ImageMaps`.")
        return self.maps

    def run(self, method: Method) -> Result:
        """Rank the database for every query.

        Raises:
            ValueError: if re-ranking is asked for and there are no maps.
        """
        if method.rerank:
            self.require_maps()
        rankings, scores, matches = {}, {}, {}
        progress = tqdm(
            self.dataset.queries,
            desc=method.label,
            leave=False,
            disable=not method.rerank or len(self.dataset.queries) < 2,
        )
        index = None
        described = self._describe_all(method)
        for number, (query, (vector, descriptors)) in enumerate(
            zip(progress, described, strict=True)
        ):
            moves = self.protocol.rerank_moves_index
            if moves != "run" or index is None:
                index = descriptors
                if method.rerank and moves != "no":
                    index = index.copy()
            order, found, matched = self._search(method, query, number, vector, index)
            rankings[query.name] = [self.dataset.images[row] for row in order]
            scores[query.name] = found[order]
            matches[query.name] = matched
            if method.aggregation == "online":
                index = None
        return Result(method, rankings, scores, matches)

    def describe(self, method: Method, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Descriptors of one query and of the database for it.

        Args:
            method: the setting.
            query: number of the query.

        Returns:
            (D,) and (N, D), l2-normalised; the latter is shared, not a copy.
        """
        if method.aggregation == "online":
            classes = self._query_classes(query, method.num_classes)
            descriptors = self._online_descriptors(method, classes)
            return self._query_vector(method, query, classes), descriptors
        if method.aggregation == "theme":
            classes = self._first(self.theme, method.num_classes, "theme list")
            repeat = self.protocol.repeat_previous_class
            key = ("theme", method.num_whitening_classes, method.dimensions, repeat)
            descriptors = self._remember(
                (*key, *classes), lambda: self._online_descriptors(method, classes)
            )
            return self._query_vector(method, query, classes), descriptors
        if method.aggregation == "offline":
            classes = self._query_classes(query, method.num_classes)
            descriptors = self._offline(method)[method.num_classes]
            return self._query_vector(method, query, classes), descriptors
        key = ("baseline", method.aggregation, method.dimensions)
        vectors, descriptors = (
            self._remember(key, lambda store=store: self._baseline(method, store), memo)
            for store, memo in (
                (self.queries, self._asked),
                (self.database, self._memo),
            )
        )
        return vectors[query], descriptors

    def _describe_all(self, method: Method) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What `describe` gives, for every query; classes that many have cost less."""
        queries = range(len(self.dataset.queries))
        if method.aggregation != "online":
            yield from (self.describe(method, query) for query in queries)
            return
        lists = [self._query_classes(q, method.num_classes) for q in queries]
        repeat = self.protocol.repeat_previous_class
        of_database = self._online(method).many(lists, repeat)
        for query, descriptors in zip(queries, of_database, strict=True):
            yield self._query_vector(method, query, lists[query]), descriptors

    def offline_curve(self, method: Method, num_classes: Sequence[int]) -> None:
        """Describe the database offline for several N_C in one pass over the store."""
        self._offline(method, num_classes)

    def match_region(self, method: Method, query: int, image: str) -> reranking.Match:
        """Best CAM-box region of a photo for a query."""
        classes = self._query_classes(query, method.rerank_classes)
        return next(self._match(method, query, classes, [image]))

    def under(self, protocol: Protocol) -> "Retrieval":
        """The same stores under other flags of search and re-ranking.

        What concerns extraction is not done anew; what was computed is shared.
        """
        other = copy.copy(self)
        other.protocol = protocol
        return other

    def evaluate(self, result: Result, self_match: bool | None = None) -> pd.DataFrame:
        """Per-query table of `evaluation.evaluate`.

        Args:
            result: from `run`.
            self_match: whether the query's own photo counts; None is the rule of the
                data set.
        """
        self_match = self.self_match if self_match is None else self_match
        return evaluation.evaluate(result.rankings, self.dataset.queries, self_match)

    def compare(
        self, methods: Iterable[Method]
    ) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Result]]:
        """Run methods, with a progress bar.

        Returns:
            One row a method (settings, mAP with and without self-match, whitening);
            one row a query and method; the results by `Method.slug`.
        """
        rows, tables, results = [], [], {}
        for method in tqdm(list(methods), desc="methods"):
            result = self.run(method)
            results[method.slug] = result
            rows.append(self.row(result))
            table = self.evaluate(result)
            table.insert(0, "method", method.label)
            table.insert(1, "slug", method.slug)
            tables.append(table)
        return pd.DataFrame(rows), pd.concat(tables, ignore_index=True), results

    def row(self, result: Result) -> dict:
        """One row of a table of methods; mAP with the 95 % interval over landmarks."""
        used = self.whitening(result.method)
        # Revisited queries are not in the database: nothing of theirs could count.
        inside = all(query.image in self._row for query in self.dataset.queries)
        tables = {own: self.evaluate(result, own and inside) for own in (True, False)}
        mean = {
            own: evaluation.mean_average_precision(table)
            for own, table in tables.items()
        }
        rule = tables[self.self_match]
        interval = evaluation.bootstrap(rule["ap"], rule["landmark"])
        return {
            "method": result.method.label,
            "mAP": mean[self.self_match],
            "mAP_low": interval.low,
            "mAP_high": interval.high,
            "mAP_with_self": mean[True],
            "mAP_without_self": mean[False],
            **asdict(result.method),
            "slug": result.method.slug,
            **{name: self.database.config[name] for name in _ROW_SETTINGS},
            "protocol": self.protocol.name,
            "whitening": used.source if used else "",
            "whitening_vectors": used.vectors if used else 0,
            "queries": len(self.dataset.queries),
            "landmarks": interval.groups,
            "images": len(self.dataset.images),
            "dataset": self.dataset.name,
            "note": self.dataset.note,
        }

    def _search(self, method: Method, query: Query, number: int, vector, index):
        scores = ranking.similarities(vector[None], index)[0]
        own = self._row.get(query.image)
        if self.protocol.query_replaces_own_row and own is not None:
            scores[own] = 1.0
        # An expanded query searches anew: until then only the head is needed.
        head = max(method.rerank, method.query_expansion)
        order = ranking.order(scores, head if method.query_expansion else None)
        matched = {}
        if method.rerank:
            order, scores, matched = self._rerank(method, number, order, scores)
            if self.protocol.rerank_moves_index != "no":
                for image, match in matched.items():
                    index[self._row[image]] = match.descriptor
        if method.query_expansion:
            vector = ranking.expand_query(
                vector,
                index,
                order,
                method.query_expansion,
                self.protocol.expand_with_query,
            )
            scores = ranking.similarities(vector[None], index)[0]
            order = ranking.order(scores)
        return order, scores, matched

    def _rerank(self, method: Method, number: int, order, scores):
        top = order[: method.rerank]
        names = [self.dataset.images[row] for row in top]
        classes = self._query_classes(number, method.rerank_classes)
        found = list(self._match(method, number, classes, names))
        matched = dict(zip(names, found, strict=True))
        scores = scores.copy()
        scores[top] = [match.score for match in matched.values()]
        order = np.concatenate(
            [top[ranking.order(scores[top])], order[method.rerank :]]
        )
        return order, scores, matched

    def _match(
        self, method: Method, query: int, classes: Sequence[int], images: Sequence[str]
    ) -> Iterator[reranking.Match]:
        """Best region of each image; each query and image is matched only once."""
        flags = [getattr(self.protocol, flag) for flag in MATCH_FLAGS]
        key = ("match", method.num_whitening_classes, method.dimensions, *flags)
        known = self._asked.setdefault((*key, *classes, query), {})
        new = [image for image in images if image not in known]
        maps = self.require_maps()
        # One class may describe a region, but two draw its boxes.
        drawn = self.top_classes[query][: max(len(classes), HEAT_MAP_CLASSES)]
        found = reranking.best_regions(
            self._query_vector(method, query, classes),
            maps.many(new, self.protocol.rerank_squares_upright),
            maps.network.class_weights[:, drawn],
            self.fitted(method),
            self.protocol,
            self.database.config["power"],
            len(classes),
        )
        known.update(zip(new, found, strict=True))
        return (known[image] for image in images)

    def _query_classes(self, query: int, count: int) -> list[int]:
        top = self.top_classes[query].tolist()
        return self._first(top, count, "list of a query's top classes")

    @staticmethod
    def _first(classes: list[int], count: int, what: str) -> list[int]:
        if count > len(classes):
            raise ValueError(
                f"{count} classes were asked for; the {what} has {len(classes)}."
            )
        return classes[:count]

    def _query_vector(self, method: Method, query: int, classes) -> np.ndarray:
        """(D,) sum of the query's whitened class vectors."""
        vectors = self._remember(
            ("query", query),
            lambda: self.queries.read("class_vectors", [query])[0],
            self._asked,
        )
        repeat = self.protocol.repeat_previous_class

        def describe():
            whitened = self.fitted(method)(vectors[list(classes)])
            if repeat:
                whitened = aggregation.repeat_previous(whitened)
            return l2_normalize(whitened.sum(axis=0))

        settings = method.num_whitening_classes, method.dimensions, repeat
        key = ("query", query, *settings, *classes)
        return self._remember(key, describe, self._asked)

    def _online_descriptors(self, method: Method, classes: list[int]) -> np.ndarray:
        """(N, D) of all images by a list of classes."""
        repeat = self.protocol.repeat_previous_class
        index = self._online(method)
        return index.descriptors(classes, repeat_empty=repeat)[len(classes)]

    def _online(self, method: Method) -> aggregation.OnlineIndex:
        key = (method.num_whitening_classes, method.dimensions)
        known, index = self._memo.get("online", (None, None))
        if known != key:  # one at a time: it holds whitened classes in memory
            index = aggregation.OnlineIndex(self.database, self.fitted(method))
            self._memo["online"] = key, index
        return index

    def _offline(self, method: Method, num_classes: Sequence[int] = ()) -> dict:
        repeat = self.protocol.repeat_previous_class
        key = ("offline", method.num_whitening_classes, method.dimensions, repeat)
        known = self._memo.setdefault(key, {})
        new = {method.num_classes, *num_classes} - known.keys()
        if new:
            fitted = self.fitted(method)
            known.update(
                aggregation.offline(self.database, fitted, sorted(new), repeat)
            )
        return known

    def _baseline(self, method: Method, store: Store) -> np.ndarray:
        """(n, D) descriptors of a global or regional baseline."""
        fitted = self.whitening(method)
        if method.aggregation in REGION_AGGREGATIONS:
            column = REGION_AGGREGATIONS.index(method.aggregation)
            return aggregation.regions(store.read("regions")[:, column], fitted)
        column = GLOBAL_POOLINGS.index(method.aggregation)
        vectors = store.read("globals")[:, column]
        return fitted(vectors) if fitted else l2_normalize(vectors)

    def _training_vectors(self, method: Method) -> np.ndarray:
        """(n, K) vectors that the whitening of a method is fitted on."""
        training, rows = self._require_training()
        if method.by_class:
            count = method.num_whitening_classes
            blocks = [block for _, block in training.iter_top_class_vectors(count)]
            vectors = np.concatenate(blocks)[rows]
        elif method.aggregation in REGION_AGGREGATIONS:
            column = REGION_AGGREGATIONS.index(method.aggregation)
            vectors = training.read("regions", rows)[:, column]
        else:
            column = GLOBAL_POOLINGS.index(method.aggregation)
            vectors = training.read("globals", rows)[:, column]
        return vectors.reshape(-1, vectors.shape[-1])

    def _require_training(self) -> tuple[Store, np.ndarray]:
        if self.training is None:
            raise whitening.WhiteningError(
                "This method needs whitening, and no training store was given: pass "
                "`training`, the store of another data set."
            )
        return self.training, self._training_rows

    def _remember(self, key, compute, memo: dict | None = None):
        memo = self._memo if memo is None else memo
        if key not in memo:
            memo[key] = compute()
        return memo[key]


def open_retrieval(
    dataset: Dataset,
    training: Dataset | None,
    network: CamNetwork,
    conf: ExtractionConf,
    cache_dir: str | Path,
    protocol: Protocol = PRESETS["corrected"],
    **options,
) -> Retrieval:
    """Open the stores that an extraction with the same settings has written.

    Args:
        dataset: images, queries and ground truth under test.
        training: photos to fit the whitening on, or None.
        network: the CAM network of the extraction.
        conf: the settings of the extraction.
        cache_dir: the folder of the stores.
        protocol: see `Protocol`.
        options: further keywords of `Retrieval`.

    Raises:
        StoreError: if a store is missing or incomplete; run the extraction first.
    """
    folder = store_path(cache_dir, dataset, network, conf)
    fitted_on = None
    if training is not None:
        path = store_path(cache_dir, training, network, conf)
        fitted_on = Store.open(path / "database")
    return Retrieval(
        dataset,
        Store.open(folder / "database"),
        Store.open(folder / query_folder(conf)),
        fitted_on,
        protocol=protocol,
        maps=ImageMaps(dataset, network, conf, cache_dir=cache_dir),
        **options,
    )


def ladder(
    whitening_photos: int,
    dimensions: int = 512,
    num_classes: Sequence[int] = (1, 8),
    num_whitening_classes: int = 16,
) -> list[Method]:
    """The methods of Table 1a and 2a, from raw features to online aggregation.

    Args:
        whitening_photos: photos that whitening is fitted on. A global pooling gives
            one vector a photo, so its dimensions are held to half of that number.
        dimensions: D of regional and class vectors.
        num_classes: values of N_C.
        num_whitening_classes: N_pca.

    Returns:
        Methods, simple ones first.
    """
    few = max(1, min(dimensions, whitening_photos // 2))
    methods = []
    for name in GLOBAL_POOLINGS:
        methods += [Method(name, dimensions=0), Method(name, dimensions=few)]
    methods += [Method(name, dimensions=dimensions) for name in REGION_AGGREGATIONS]
    methods += [
        Method(name, count, num_whitening_classes, dimensions)
        for name in CLASS_AGGREGATIONS
        for count in num_classes
    ]
    return methods


def _trained_on(method: Method) -> tuple[str, int]:
    """Kind of the training vectors of a method's whitening, and N_pca."""
    if method.by_class:
        return "class", method.num_whitening_classes
    return method.aggregation, 0


def _require_names(what: str, of: str, expected: Sequence[str], store: Store) -> None:
    if list(expected) != store.names:
        missing = [name for name in expected if name not in set(store.names)]
        raise StoreError(
            f"{store.path} holds {len(store)} {what} entries that are not those of "
            f"{of} ({len(expected)}; missing: {', '.join(missing[:5]) or '-'}). "
            "Extract this data set first, or open its own store."
        )


def _require_boxes(dataset: Dataset, database: Store, queries: Store) -> None:
    for query in dataset.queries:
        described = queries.hashes[query.name]
        photo = database.hashes.get(query.image, described.split()[0])
        if described != query_content(query, photo):
            raise StoreError(
                f"{queries.path} describes {query.name} by another box or photo than "
                f"{dataset.name} has now. Delete it and extract the queries again."
            )


def _require_settings(database: Store, other: Store, fields: Sequence[str]) -> None:
    """Vectors of another layer may have the same length: nothing else would notice."""
    for field_name in fields:
        here, there = (store.config.get(field_name) for store in (database, other))
        if here != there:
            raise StoreError(
                f"{other.path} was made with another {field_name}: {there!r} there, "
                f"{here!r} in {database.path}. Open stores of the same settings."
            )
