"""What both explorers are built from: sources of photos, lists, boards, messages."""

import base64
import hashlib
import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets

from cwr_utils.datasets import Dataset, Query
from cwr_utils.figures.canvas import fit_photo, relevance_mark
from cwr_utils.figures.panels import Board, Card, Picture, colour_stops
from cwr_utils.images import Box, check_region, decode, read_image
from cwr_utils.store import StoreError

# Errors that a person can mend; everything else is a bug and shows a traceback.
MENDABLE = (ValueError, StoreError)
_SHOWN = 720  # pixels of the longer side of a photo that a box is drawn on
_MOST = 2000  # entries of a list that are sent to the browser
WIDE: Any = {"style": {"description_width": "84px"}}


_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Source:
    """A photo to look at or to search for.

    Attributes:
        query: its name, box and ground truth, which are empty for a plain photo.
        photo: (H, W, 3) uint8.
        sha256: of the file.
        credit: photographer and licence.
        known: whether it is a query of the data set, described in its store.
    """

    query: Query
    photo: np.ndarray = field(compare=False)
    sha256: str
    credit: str = ""
    known: bool = False


Key = tuple[str, Any]  # ("query", its number) or ("image", its name)


def choices(data: Dataset) -> list[tuple[str, Key]]:
    """Labels and keys of all queries and images, as `open_source` takes them."""
    queries: list[tuple[str, Key]] = [
        (f"query: {query.name}", ("query", i)) for i, query in enumerate(data.queries)
    ]
    return queries + [(f"photo: {name}", ("image", name)) for name in data.images]


def first_key(data: Dataset, query: int) -> Key:
    """That of a query by its number, or of the first photo if there are no queries."""
    if data.queries:
        return "query", query % len(data.queries)
    return "image", data.images[0]


def open_source(data: Dataset, kind: str, which: Any) -> Source:
    """A query by its number, or an image by its name.

    Raises:
        ImageError: if the file cannot be read.
    """
    query = data.queries[which] if kind == "query" else Query(which, which)
    photo, sha256 = read_image(data.path(query.image)), data.sha256(query.image)
    return Source(query, photo, sha256, data.credit(query.image), kind == "query")


def read_upload(name: str, content: bytes) -> Source:
    """A photo that was uploaded, with all the checks of a file.

    Raises:
        ImageError: if it is no image, or not a whole one.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    return Source(Query(name, ""), decode(content, name), sha256)


class PhotoBox(anywidget.AnyWidget):
    """A photo on which a box is drawn; `box` is in pixels of the photo, [] is none.

    Another photo that is uploaded, dropped or pasted comes as a message: its name, and
    its bytes, or why the browser could not send them.
    """

    _esm = _HERE / "photo_box.js"
    jpeg = traitlets.Bytes().tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)
    size = traitlets.List(traitlets.Int(), [1, 1]).tag(sync=True)
    box = traitlets.List(traitlets.Float()).tag(sync=True)


class Keys(anywidget.AnyWidget):
    """The looks of an explorer, and its peace from JupyterLab's shortcuts."""

    _esm = _HERE / "keys.js"
    _css = _HERE / "explorer.css"


class Gallery(anywidget.AnyWidget):
    """A `Board` as HTML; `chosen` is the number of a card, from 1.

    Cards beyond the first ones are sent when they are scrolled to.
    """

    _esm = _HERE / "board.js"
    title = traitlets.Unicode().tag(sync=True)
    summary = traitlets.Unicode().tag(sync=True)
    cards = traitlets.List().tag(sync=True)
    bars = traitlets.List().tag(sync=True)
    scale = traitlets.List().tag(sync=True)
    total = traitlets.Int(0).tag(sync=True)
    choice = traitlets.Bool(False).tag(sync=True)
    chosen = traitlets.Int(0).tag(sync=True)
    version = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        more: Callable[[int], Sequence[Card]] = lambda first: (),
        csv: Callable[[], tuple[str, str]] | None = None,
    ):
        """An empty board.

        Args:
            more: gives cards from the number of the first one on, counted from 0.
            csv: gives name and content of the file to be saved; None makes a board
                whose cards cannot be chosen.
        """
        super().__init__(choice=csv is not None)
        self._more, self._csv = more, csv
        self.on_msg(self._answer)

    def show(self, board: Board, chosen: int = 0, total: int = 0) -> None:
        """Put up another board, of as many cards in all."""
        with self.hold_sync():
            self.title, self.summary = board.title, board.summary
            self.cards = [
                {**_facts(c), "jpeg": Picture(c.pixels, "").jpeg()} for c in board.cards
            ]
            self.bars = [list(bar) for bar in board.bars]
            low, high, colours = board.scale or (0, 0, "")
            ends = [f"{low:.3g}", f"{high:.3g}"]
            self.scale = [*ends, *colour_stops(colours)] if board.scale else []
            self.chosen, self.total = chosen, max(total, len(board.cards))
            self.version += 1

    def _answer(self, _, content: dict, buffers) -> None:
        """Send what a view asks for: the ranking as a file, or further cards."""
        if "save" in content and self._csv:
            name, text = self._csv()
            self.send({"name": name, "csv": text})
        elif "first" in content:
            cards = self._more(content["first"])
            facts = {"first": content["first"], "version": self.version}
            photos = [Picture(card.pixels, "").jpeg() for card in cards]
            self.send({**facts, "cards": [_facts(card) for card in cards]}, photos)


def _facts(card: Card) -> dict:
    """A card for the browser, without its photo."""
    colour, symbol = relevance_mark(card.relevance)
    marks = [[*mark.edges, mark.colour, mark.label] for mark in card.marks]
    known = card.relevance != "unknown"
    return {
        "title": card.title,
        "aside": card.aside,
        "note": card.note,
        "text": card.text or card.title,
        "credit": card.credit,
        "colour": colour if known else "",
        "symbol": symbol,
        "marks": marks,
    }


class Finder(ipywidgets.VBox):
    """A list to choose from, and a field that finds entries by a part of their name.

    Attributes:
        value: what is chosen.
    """

    value = traitlets.Any(None)

    def __init__(self, name: str, find: str, rows: int = 6):
        """An empty list.

        Args:
            name: label of the list.
            find: label of the field.
            rows: of the list that are seen.
        """
        self.find = ipywidgets.Text(
            description=find, placeholder="part of a name", **WIDE
        )
        self.list = ipywidgets.Select(description=name, rows=rows, **WIDE)
        self.note = ipywidgets.HTML()
        self._options: list[tuple[str, Any]] = []
        self._quiet = False
        parts = [self.find, self.list, self.note]
        super().__init__(parts, _dom_classes=("cwr-finder",))
        self.find.observe(lambda _: self._filter(), "value")
        self.list.observe(lambda _: self._chosen(), "value")

    def offer(self, options: Sequence[tuple[str, Any]], value: Any) -> None:
        """Take another list of labels and values, and choose one."""
        self._options = list(options)
        self._show_all(value)
        self.value = value

    @traitlets.observe("value")
    def _on_value(self, change) -> None:
        if change["new"] != self.list.value:
            self._show_all(change["new"])

    def _show_all(self, value: Any) -> None:
        self._quiet = True
        self.find.value = ""
        self._list(self._options, value)
        self._quiet = False

    def _filter(self) -> None:
        """Keep what has the text in it; the first is chosen if the last one is not."""
        if self._quiet:
            return
        text = self.find.value.strip().casefold()
        found = [entry for entry in self._options if text in entry[0].casefold()]
        if not found:
            self.note.value = f"Nothing is called {html.escape(repr(text))}."
            return
        known = any(value == self.value for _, value in found)
        self._quiet = True
        self._list(found, self.value if known else found[0][1])
        self._quiet = False
        self.value = self.list.value

    def _list(self, entries: list[tuple[str, Any]], value: Any) -> None:
        shown = entries[:_MOST]
        if all(other != value for _, other in shown):  # far down: it comes first
            shown = [entry for entry in entries if entry[1] == value] + shown
        self.list.options, self.list.value = shown, value
        hidden = len(entries) - len(shown)
        self.note.value = f"{hidden:,} more are found by name." if hidden > 0 else ""

    def _chosen(self) -> None:
        if not self._quiet:
            self.value = self.list.value


class PhotoPanel(ipywidgets.Box):
    """Chooses a photo and a box on it: by the mouse, or by lists and sliders.

    Calls `changed` after each choice; `source` and `box` say what was chosen.
    """

    def __init__(
        self, data: Dataset, start: Key, changed: Callable, report: "Message"
    ) -> None:
        """Show the photo of a key of `choices`; nothing is called yet."""
        self._data, self._changed, self._report = data, changed, report
        self._quiet = False
        self._uploads: dict[str, Source] = {}
        self.choice = Finder("Photo", "Find a photo", rows=5)
        self.choice.offer(choices(data), start)
        self.photo = PhotoBox()
        style = {"description_width": "106px"}
        edges: Any = {"style": style, "continuous_update": False, "min": 0}
        self.x = ipywidgets.IntRangeSlider(description="Box, left-right", **edges)
        self.y = ipywidgets.IntRangeSlider(description="Box, top-bottom", **edges)
        self.whole = ipywidgets.Button(description="Whole photo")
        self.own = ipywidgets.Button(description="Box of the query")
        self.box: Box | None = None
        self.source = open_source(data, *start)
        self._show_source()
        self.choice.observe(self._on_choice, "value")
        self.photo.on_msg(self._on_upload)
        self.photo.observe(lambda _: self._set(self._drawn()), "box")
        for slider in (self.x, self.y):
            slider.observe(lambda _: self._set(self._slid()), "value")
        self.whole.on_click(lambda _: self._set(None))
        self.own.on_click(lambda _: self._set(self.source.query.box))
        buttons = ipywidgets.HBox([self.whole, self.own])
        controls = ipywidgets.VBox([self.choice, self.x, self.y, buttons])
        super().__init__([self.photo, controls], _dom_classes=("cwr-panel",))

    def upload(self, name: str, content: bytes) -> None:
        """Choose a photo that is not in the collection.

        Args:
            name: of the file.
            content: of the file.
        """
        with self._report.errors():
            self._uploads[name] = read_upload(name, content)
            mine = [(f"upload: {name}", ("upload", name)) for name in self._uploads]
            self._quiet = True
            self.choice.offer(mine + choices(self._data), ("upload", name))
            self._quiet = False
            self._open(self._uploads[name])

    def _on_upload(self, _, content: dict, buffers) -> None:
        if "refused" in content:
            self._report.say(f"{content['name']}: {content['refused']}.", wrong=True)
        else:
            self.upload(content["name"], bytes(buffers[0]))

    def _on_choice(self, change) -> None:
        kind, which = change["new"]
        if not self._quiet:
            with self._report.errors():
                if kind == "upload":
                    self._open(self._uploads[which])
                else:
                    self._open(open_source(self._data, kind, which))

    def _open(self, source: Source) -> None:
        self.source = source
        self._show_source()
        self._changed()

    def _show_source(self) -> None:
        photo = self.source.photo
        small = fit_photo(photo, _SHOWN, _SHOWN)
        with self.photo.hold_sync():
            self.photo.size = list(photo.shape[1::-1])
            self.photo.text = f"Photo {self.source.query.name}"
            self.photo.jpeg = Picture(small, "").jpeg()
        self.own.disabled = self.source.query.box is None
        self._show_box(self.source.query.box)

    def _show_box(self, box: Box | None) -> None:
        height, width = self.source.photo.shape[:2]
        self.box, self._quiet = box, True
        self.photo.box = list(map(float, box or ()))
        x1, y1, x2, y2 = box or (0, 0, width, height)
        for slider, most, value in (
            (self.x, width, (x1, x2)),
            (self.y, height, (y1, y2)),
        ):
            slider.max = most
            slider.value = [round(edge) for edge in value]
        self._quiet = False

    def _drawn(self) -> Box | None:
        return tuple(self.photo.box) or None  # pyright: ignore[reportReturnType]

    def _slid(self) -> Box:
        (x1, x2), (y1, y2) = self.x.value, self.y.value
        return float(x1), float(y1), float(x2), float(y2)

    def _set(self, box: Box | None) -> None:
        if self._quiet or box == self.box:
            return
        with self._report.errors():
            self._show_box(box and check_region(box))
            self._changed()
            return
        self._show_box(self.box)  # what was refused is drawn no longer


class Message(ipywidgets.HTML):
    """One line that says what happened or what went wrong."""

    def say(self, text: str, wrong: bool = False) -> None:
        """Show a line; an error is read out by screen readers."""
        role, mark = ("alert", "⚠ ") if wrong else ("status", "")
        weight = "bold" if wrong else "normal"
        self.value = (
            f'<span role="{role}" style="font-weight:{weight}">'
            f"{mark}{html.escape(text)}</span>"
        )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what a person can mend into a line."""
        try:
            yield
        except MENDABLE as error:
            self.say(str(error), wrong=True)


class Explorer(ipywidgets.Box):
    """A photo panel beside what is found; a picture stands in where no kernel runs."""

    def __init__(self, panel: PhotoPanel, shown: Sequence[ipywidgets.Widget]):
        """Lay the parts out: side by side, or below each other where it is narrow."""
        column = ipywidgets.VBox(shown, _dom_classes=("cwr-shown",))
        keys = Keys(_dom_classes=("cwr-keys",))
        super().__init__([keys, panel, column], _dom_classes=("cwr-explorer",))

    def still(self) -> Picture:
        """What the explorer shows now, as one picture."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        picture = self.still()
        jpeg = base64.b64encode(picture.jpeg()).decode()
        return {**bundle, "image/jpeg": jpeg, "text/plain": picture.text}
