"""The search explorer: what a query finds, and why."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd

from cwr_utils import evaluation, explain
from cwr_utils.arrays import Kept
from cwr_utils.contributions import class_contributions
from cwr_utils.extraction import describe_query
from cwr_utils.figures.canvas import fit_photo
from cwr_utils.figures.panels import Picture, match_panels, result_panels, stack
from cwr_utils.images import Box, cells_to_box, read_image
from cwr_utils.retrieval import CLASS_AGGREGATIONS, Collection, Method, Result
from cwr_utils.store import JoinedStore
from cwr_utils.widgets.controls import (
    Explorer,
    Gallery,
    Message,
    PhotoPanel,
    Source,
    first_key,
)

TOP = 10
_LARGEST = 640  # pixels of the longer side of a photo that is kept


@dataclass(frozen=True)
class SearchView:
    """What the explorer shows of a search.

    Attributes:
        method: the setting.
        chosen: rank of the result that is looked at, from 1.
        top: results shown.
    """

    method: Method
    chosen: int = 1
    top: int = TOP


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
    def results(self) -> Kept:
        """Method -> its result; each is run only once."""
        return Kept(self.collection.run)

    def relevance(self, name: str) -> str:
        """How an image counts: one of `figures.RELEVANCE`."""
        query = self.collection.data.queries[0]
        kind = explain.relevance(query, name)
        truth = query.positives | query.junk
        return kind if kind == "query" or truth - {query.image} else "unknown"


def ask(collection: Collection, source: Source, box: Box | None) -> Search:
    """Describe a photo as a query; one of the data set is read from its store.

    Args:
        collection: what is searched.
        source: the photo.
        box: in its pixels, or None.
    """
    query = replace(source.query, box=box)
    if source.known and box == source.query.box:
        content = collection.queries.hashes[query.name]
        described = JoinedStore([collection.queries], {query.name: content})
    else:
        described = describe_query(
            collection.describer, query, source.photo, source.sha256
        )
    return Search(collection.ask([query], described), source, box)


def show_search(search: Search, view: SearchView) -> tuple[Picture, pd.DataFrame]:
    """Draw the query and its best results.

    Returns:
        The picture, and the whole ranking: name, score and relevance by rank.
    """
    (query,), data = search.collection.data.queries, search.collection.data
    result = search.results[view.method]
    ranking = result.rankings[query.name]
    table = pd.DataFrame(
        {
            "name": ranking,
            "score": result.scores[query.name],
            "relevance": [search.relevance(name) for name in ranking],
        },
        pd.RangeIndex(1, len(ranking) + 1, name="rank"),
    )
    shown = table.head(view.top)
    credits = [("query", search.source.credit)]
    credits += [(name, data.credit(name)) for name in shown["name"]]
    picture = result_panels(
        search.source.photo,
        [_thumbnail(data.path(name)) for name in shown["name"]],
        shown.to_dict("records"),
        box=search.box,
        title=f"{query.name}: {result.method.label}, {_score(search, result)}",
        chosen=view.chosen,
        credits=credits,
    )
    return picture, table


def show_match(search: Search, view: SearchView) -> tuple[Picture, pd.DataFrame]:
    """Draw the result that is looked at beside the query.

    Returns:
        The picture, and the table of `class_contributions`.
    """
    (query,), data = search.collection.data.queries, search.collection.data
    result = search.results[view.method]
    name = result.rankings[query.name][view.chosen - 1]
    score = result.scores[query.name][view.chosen - 1]
    shares = class_contributions(search.collection, result, 0, name)
    photo = read_image(data.path(name))
    match, box = result.matches[query.name].get(name), None
    if match is not None and match.box is not None:
        features, _ = search.collection.maps(name)
        grid = features.shape[1], features.shape[0]
        box = cells_to_box(match.box, (photo.shape[1], photo.shape[0]), grid)
    credits = dict.fromkeys([search.source.credit, data.credit(name)])
    picture = match_panels(
        search.source.photo,
        photo,
        list(zip(shares["name"], shares["contribution"], strict=True)),
        query_box=search.box,
        box=box,
        title=f"rank {view.chosen}: {name}, score {score:.3f}",
        credit="; ".join(filter(None, credits)),
    )
    return picture, shares


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
            chosen: rank of the result to begin with; 0 is the first that is not the
                query itself.
        """
        data, layer = collection.data, collection.setup.layer
        at = Kept(collection.at_layer)
        at[layer] = collection
        self._ask = lru_cache(8)(lambda layer, *photo: ask(at[layer], *photo))
        self._method = method
        self.message = Message()
        start = first_key(data, query)
        self.panel = PhotoPanel(data, start, self._update, self.message)
        # Class vectors are whitened: without training photos there are none.
        known = CLASS_AGGREGATIONS if collection.training is not None else ()
        wide = {"style": {"description_width": "110px"}}
        slow = {**wide, "continuous_update": False}
        self.aggregation = ipywidgets.Dropdown(
            options=list(dict.fromkeys([method.aggregation, *known])),
            value=method.aggregation,
            description="Aggregation",
            **wide,
        )
        self.classes = ipywidgets.IntSlider(
            value=method.num_classes, min=1, max=64, description="Classes", **slow
        )
        self.layer = ipywidgets.Dropdown(
            options=[layer, *collection.other_layers()], description="Layer", **wide
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
        self.results, self.match = Gallery(), Gallery()
        controls = [
            self.aggregation,
            self.classes,
            self.layer,
            self.expansion,
            self.rerank,
        ]
        for control in controls:
            control.observe(lambda _: self._update(), "value")
        self.results.observe(lambda _: self._look(), "chosen")
        self._run(chosen)
        note = ipywidgets.HTML(
            "Layers are those whose stores are in the cache folder; another one comes "
            "with notebook 2 and its parameter <code>feature_layer</code>."
        )
        columns = ipywidgets.VBox(controls[:3]), ipywidgets.VBox(controls[3:])
        rows = [ipywidgets.HBox(columns), note, self.message, self.results, self.match]
        shown = ipywidgets.VBox(rows)
        super().__init__([ipywidgets.HBox([self.panel, shown])])

    def still(self) -> Picture:
        """See `Explorer.still`."""
        return stack(
            [show(self.search, self.view)[0] for show in (show_search, show_match)]
        )

    def _update(self) -> None:
        self.message.say("Searching ...")
        with self.message.errors():
            self._run()

    def _run(self, chosen: int = 0) -> None:
        method = replace(
            self._method,
            aggregation=self.aggregation.value,
            num_classes=self.classes.value,
            query_expansion=self.expansion.value,
            rerank=self.rerank.value,
        )
        search = self._ask(self.layer.value, self.panel.source, self.panel.box)
        (ranking,) = search.results[method].rankings.values()
        own = search.relevance(ranking[0]) == "query" and len(ranking) > 1
        self._show(search, SearchView(method, chosen or 1 + own))

    def _look(self) -> None:
        if self.results.chosen != self.view.chosen:
            with self.message.errors():
                self._show(self.search, replace(self.view, chosen=self.results.chosen))

    def _show(self, search: Search, view: SearchView) -> None:
        picture, table = show_search(search, view)
        match, _ = show_match(search, view)
        self.search, self.view = search, view
        self.results.show(picture, view.chosen)
        self.match.show(match)
        self.message.say(
            f"{len(table)} photos ranked. Choose a result to see why it was found."
        )


@lru_cache(maxsize=512)
def _thumbnail(path: Path) -> np.ndarray:
    """A photo of the collection; the files do not change while one explores."""
    return fit_photo(read_image(path), _LARGEST, _LARGEST)
