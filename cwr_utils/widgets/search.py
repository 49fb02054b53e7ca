"""The search explorer: what a query finds, and why."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd

from cwr_utils import evaluation, explain
from cwr_utils.contributions import cell_contributions, class_contributions
from cwr_utils.extraction import MOST_TOP_CLASSES
from cwr_utils.figures.canvas import fit_photo
from cwr_utils.figures.panels import (
    SMALL,
    Board,
    Card,
    Picture,
    match_board,
    result_board,
    stack,
)
from cwr_utils.images import Box, cells_to_box, read_image
from cwr_utils.names import CLASS_WEIGHTINGS
from cwr_utils.rerankers import RERANKERS, Chain
from cwr_utils.retrieval import (
    BY_QUERY,
    CLASS_AGGREGATIONS,
    Collection,
    Method,
    Result,
    rank,
)
from cwr_utils.widgets.controls import (
    WIDE,
    Explorer,
    Gallery,
    Message,
    PhotoPanel,
    Source,
    first_key,
)

TOP = 10
PAGE = 30  # results sent to the browser at a time


@dataclass(frozen=True)
class SearchView:
    """What the explorer shows of a search.

    Attributes:
        method: the setting.
        chosen: place in the ranking of the result that is looked at, from 1.
        top: results shown.
        first: results left out before them.
    """

    method: Method
    chosen: int = 1
    top: int = TOP
    first: int = 0


@dataclass(frozen=True, eq=False)
class Search:
    """A photo with a box, put to a collection.

    Attributes:
        collection: with this one query.
        source: the photo.
        box: in its pixels, or None.
    """

    collection: Collection
    source: Source
    box: Box | None

    @cached_property
    def results(self) -> Callable[[Method], Result]:
        """From a method to its result; each is run only once."""
        return cache(lambda method: rank(self.collection, method))

    @cached_property
    def tables(self) -> Callable[[Method], pd.DataFrame]:
        """From a method to its ranking as a table; see `show_search`."""
        return cache(lambda method: self._table(self.results(method)))

    def _table(self, result: Result) -> pd.DataFrame:
        (query,) = self.collection.data.queries
        ranking = result.rankings[query.name]
        known = (query.positives | query.junk) - {query.image}
        kinds = [explain.relevance(query, name) for name in ranking]
        if not known:
            kinds = [kind if kind == "query" else "unknown" for kind in kinds]
        table = pd.DataFrame(
            {"name": ranking, "score": result.scores[query.name], "relevance": kinds},
            pd.RangeIndex(1, len(ranking) + 1, name="place"),
        )
        counts = ~table["relevance"].isin(["query", "junk"])
        table.insert(0, "rank", counts.cumsum().where(counts).astype("Int64"))
        return table


def ask(collection: Collection, source: Source, box: Box | None) -> Search:
    """Describe a photo as a query; one of the data set is read from its store.

    Args:
        collection: what is searched.
        source: the photo.
        box: in its pixels, or None.
    """
    query = replace(source.query, box=box)
    if not query.image:  # an upload may be a photo of the collection
        known = collection.first.database.hashes.items()
        own = (name for name, sha256 in known if sha256 == source.sha256)
        query = replace(query, image=next(own, ""))
    if source.known and box == source.query.box:
        asked = collection.ask_stored(query)
    else:
        asked = collection.ask_photos([(query, source.photo, source.sha256)])
    return Search(asked, source, box)


def show_search(search: Search, view: SearchView) -> tuple[Board, pd.DataFrame]:
    """Draw the best results of a query.

    Returns:
        The board, and the whole ranking by place: rank, name, score and relevance.
        Ranks count from 1 and leave out the query's own photo, which finds itself, and
        junk; there they are missing.
    """
    (query,), data = search.collection.data.queries, search.collection.data
    result, table = search.results(view.method), search.tables(view.method)
    shown = table.iloc[view.first : view.first + view.top]
    captions = shown.astype({"rank": object}).to_dict("records")
    board = result_board(
        f"{query.name}: {result.method.label}, {_score(search, result)}",
        [_thumbnail(data.path(name)) for name in shown["name"]],
        [{**words, "rank": _rank(words["rank"])} for words in captions],
        [data.credit(name) for name in shown["name"]],
    )
    return board, table


def show_match(search: Search, view: SearchView) -> tuple[Board, pd.DataFrame]:
    """Draw the result that is looked at beside the query, and where the two match.

    Returns:
        The board, and the table of `class_contributions`.
    """
    (query,), data = search.collection.data.queries, search.collection.data
    result = search.results(view.method)
    row = search.tables(view.method).loc[view.chosen]
    name, place = row["name"], _rank(row["rank"])
    shares = class_contributions(search.collection, result, 0, name)
    heat = None
    if result.method.adds_classes:
        heat = cell_contributions(search.collection, result, 0, name)
    photo = read_image(data.path(name))
    match, box = result.matches[query.name].get(name), None
    if match is not None and match.box is not None:
        features, _ = search.collection.first.maps(name)
        grid = features.shape[1], features.shape[0]
        box = cells_to_box(match.box, (photo.shape[1], photo.shape[0]), grid)
    place = row["relevance"] if place is None else f"rank {place}"
    place = "the query itself" if place == "query" else place
    board = match_board(
        search.source.photo,
        photo,
        list(zip(shares["name"], shares["contribution"], strict=True)),
        heat=heat,
        query_box=search.box,
        box=box,
        title=f"Why {name}? {place.capitalize()}, score {row['score']:.3f}",
        credits=(search.source.credit, data.credit(name)),
    )
    return board, shares


def _rank(value) -> int | None:
    return None if pd.isna(value) else int(value)


def _score(search: Search, result: Result) -> str:
    queries = search.collection.data.queries
    table = evaluation.evaluate(result.rankings, queries)
    ap = table["ap"][0]
    return "no ground truth" if np.isnan(ap) else f"AP {ap:.2f}"


class SearchExplorer(Explorer):
    """Choose a query, a box and a method; see what is found, and why."""

    def __init__(
        self, collection: Collection, method: Method, query: int = 0, chosen: int = 0
    ):
        """Run the first search.

        Args:
            collection: what is searched. Without queries it is a search tool for its
                own photos and those that are uploaded.
            method: a class aggregation to begin with.
            query: number of the query to begin with; the first photo if there is none.
            chosen: place in the ranking of the result to begin with; 0 is the first
                that is not the query itself.
        """
        data, setup = collection.data, collection.first.setup
        self._collection = collection
        self._at_layer, self._ask = cache(collection.at_layer), lru_cache(8)(ask)
        self._method = method
        self.message = Message()
        start = first_key(data, query)
        self.panel = PhotoPanel(data, start, self._update, self.message)
        # Class vectors are whitened: without training photos there are none.
        known = (
            CLASS_AGGREGATIONS if collection.first.spaces.training is not None else ()
        )
        if not setup.region_classes:
            known = [name for name in known if name != "regional"]
        slow: Any = {**WIDE, "continuous_update": False}
        self.aggregation = ipywidgets.Dropdown(
            options=list(dict.fromkeys([method.aggregation, *known])),
            value=method.aggregation,
            description="Aggregation",
            **WIDE,
        )
        most = min(MOST_TOP_CLASSES, len(setup.network.class_names))
        self.classes = ipywidgets.IntSlider(
            value=method.num_classes,
            min=1,
            max=max(most, method.num_classes),
            description="Classes",
            **slow,
        )
        self.weights = ipywidgets.Dropdown(
            options=CLASS_WEIGHTINGS,
            value=method.class_weighting,
            description="Weights",
            **WIDE,
        )
        self.exponent = ipywidgets.FloatSlider(
            value=method.whitening_exponent,
            max=max(1.0, method.whitening_exponent),
            step=0.05,
            description="Exponent",
            **slow,
        )
        self.refine = ipywidgets.Dropdown(
            options=_refiners(method),
            value=method.refine,
            description="Neighbours",
            **WIDE,
        )
        self.layer = ipywidgets.Dropdown(
            options=[setup.layer, *collection.other_layers()],
            description="Layer",
            **WIDE,
        )
        most = len(data.images)
        self.expansion = ipywidgets.IntSlider(
            value=method.query_expansion,
            max=min(max(20, method.query_expansion), most),
            description="Expansion",
            **slow,
        )
        self.rerank = ipywidgets.IntSlider(
            value=method.rerank,
            max=min(max(100, method.rerank), most),
            description="Re-rank",
            **slow,
        )
        self.results, self.match = Gallery(self._more, self._csv), Gallery()
        self.again = ipywidgets.Button(description="Search with this result")
        controls = [
            self.aggregation,
            self.classes,
            self.weights,
            self.layer,
            self.exponent,
            self.refine,
            self.expansion,
            self.rerank,
        ]
        for control in controls:
            control.observe(lambda _: self._update(), "value")
        self.results.observe(lambda _: self._look(), "chosen")
        self._run(chosen)
        self.again.on_click(lambda _: self._search_again())
        note = ipywidgets.HTML(
            "Layers are those whose stores are in the cache folder; another one comes "
            "with notebook 2 and its parameter <code>feature_layer</code>. Exponent: "
            "of the whitening. Neighbours: re-ranking by photos that are alike, the "
            "parameter <code>refine</code>."
        )
        method_box = ipywidgets.Box(controls, _dom_classes=("cwr-controls",))
        rows = [method_box, self.message, self.results, self.match, self.again, note]
        super().__init__(self.panel, rows)

    @property
    def ranking(self) -> pd.DataFrame:
        """The whole ranking, as `show_search` gives it and as it is saved."""
        return self.search.tables(self.view.method)

    def still(self) -> Picture:
        """See `Explorer.still`."""
        view = self.view
        found, match = (
            show(self.search, view)[0] for show in (show_search, show_match)
        )
        chosen = view.chosen if view.chosen <= view.top else 0
        return stack([found.picture(chosen), match.picture()])

    def _update(self) -> None:
        self.message.say("Searching ...")
        with self.message.errors():
            self._run()

    def _run(self, chosen: int = 0) -> None:
        by_query = self.aggregation.value in BY_QUERY
        method = replace(
            self._method,
            aggregation=self.aggregation.value,
            cascade=self._method.cascade if by_query else 0,
            num_classes=self.classes.value,
            class_weighting=self.weights.value,
            whitening_exponent=self.exponent.value,
            refine=self.refine.value,
            query_expansion=self.expansion.value,
            rerank=self.rerank.value,
        )
        collection = self._collection
        if self.layer.value != collection.first.setup.layer:
            collection = self._at_layer(self.layer.value)
        search = self._ask(collection, self.panel.source, self.panel.box)
        table = search.tables(method)
        others = table.index[table["relevance"] != "query"]
        start = chosen or (int(others[0]) if len(others) else 1)
        self.search, self.view = search, SearchView(method, start)
        board, _ = show_search(search, replace(self.view, top=PAGE))
        self.results.show(board, start, len(table))
        self._explain()

    def _look(self) -> None:
        if self.results.chosen != self.view.chosen:
            with self.message.errors():
                self.view = replace(self.view, chosen=self.results.chosen)
                self._explain()

    def _explain(self) -> None:
        self.match.show(show_match(self.search, self.view)[0])
        self.message.say(
            f"{len(self.ranking)} photos ranked; the query itself and junk have no "
            "rank. Choose a result to see why it was found."
        )

    def _search_again(self) -> None:
        self.panel.choice.value = "image", self.ranking["name"][self.view.chosen]

    def _more(self, first: int) -> tuple[Card, ...]:
        view = replace(self.view, top=PAGE, first=first)
        return show_search(self.search, view)[0].cards

    def _csv(self) -> tuple[str, str]:
        (query,) = self.search.collection.data.queries
        name = re.sub(r"[^\w.-]+", "_", f"{query.name}-{self.view.method.slug}")
        return f"{name}.csv", self.ranking.to_csv()


def _refiners(method: Method) -> list[tuple[str, str | None]]:
    """Name and text of what re-ranks: nothing, each alone, two together, its own."""
    texts = {name: str(Chain.parse(name)) for name in (*RERANKERS, "dba+alpha_qe")}
    if method.refine and method.refine not in texts.values():
        texts[method.chain.label] = method.refine
    return [("none", None), *texts.items()]


@lru_cache(maxsize=512)
def _thumbnail(path: Path) -> np.ndarray:
    """A photo of the collection; the files do not change while one explores."""
    return fit_photo(read_image(path), SMALL, SMALL)
