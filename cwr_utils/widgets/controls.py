"""What both explorers are built from: sources of photos, pictures, messages."""

import base64
import hashlib
import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets

from cwr_utils.datasets import Dataset, Query
from cwr_utils.figures.canvas import fit_photo
from cwr_utils.figures.panels import Picture
from cwr_utils.images import MIN_SIDE, Box, decode, read_image
from cwr_utils.store import StoreError

# Errors that a person can mend; everything else is a bug and shows a traceback.
MENDABLE = (ValueError, StoreError)
_SHOWN = 360  # pixels of the longer side of a photo that a box is drawn on
_WIDE = {"description_width": "110px"}


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


def check_region(box: Box | None) -> Box | None:
    """The box, if it is large enough to be described.

    Raises:
        ValueError: if a side is below `MIN_SIDE` pixels.
    """
    if box is not None and min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
        raise ValueError(
            f"The box has {box[2] - box[0]:.0f} x {box[3] - box[1]:.0f} pixels, too "
            f"few to describe: draw one of at least {MIN_SIDE} x {MIN_SIDE}."
        )
    return box


class PhotoBox(anywidget.AnyWidget):
    """A photo on which a box is drawn; `box` is in pixels of the photo, [] is none."""

    _esm = Path(__file__).with_name("photo_box.js")
    jpeg = traitlets.Bytes().tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)
    size = traitlets.List(traitlets.Int(), [1, 1]).tag(sync=True)
    box = traitlets.List(traitlets.Float()).tag(sync=True)


class Gallery(anywidget.AnyWidget):
    """A picture whose areas are buttons; `chosen` is the number of one, from 1."""

    _esm = Path(__file__).with_name("gallery.js")
    jpeg = traitlets.Bytes().tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)
    size = traitlets.List(traitlets.Int(), [1, 1]).tag(sync=True)
    areas = traitlets.List().tag(sync=True)
    labels = traitlets.List().tag(sync=True)
    chosen = traitlets.Int(0).tag(sync=True)

    def show(self, picture: Picture, chosen: int = 0) -> None:
        """Put another picture up."""
        with self.hold_sync():
            self.size = list(picture.pixels.shape[1::-1])
            self.areas, self.labels = list(picture.areas), list(picture.labels)
            self.text, self.chosen = picture.text, chosen
            self.jpeg = picture.jpeg()


class PhotoPanel(ipywidgets.VBox):
    """Chooses a photo and a box on it: by the mouse, or by sliders.

    Calls `changed` after each choice; `source` and `box` say what was chosen.
    """

    def __init__(
        self, data: Dataset, start: Key, changed: Callable, report: "Message"
    ) -> None:
        """Show the photo of a key of `choices`; nothing is called yet."""
        self._data, self._changed, self._report = data, changed, report
        self._quiet = False
        self.choice = ipywidgets.Dropdown(
            options=choices(data), value=start, description="Photo", style=_WIDE
        )
        self.upload = ipywidgets.FileUpload(
            accept="image/*",
            description="Upload a photo",
            layout=ipywidgets.Layout(width="auto"),
        )
        self.photo = PhotoBox()
        edges = {"style": _WIDE, "continuous_update": False, "min": 0}
        self.x = ipywidgets.IntRangeSlider(description="Box, left-right", **edges)
        self.y = ipywidgets.IntRangeSlider(description="Box, top-bottom", **edges)
        self.whole = ipywidgets.Button(description="Whole photo")
        self.own = ipywidgets.Button(description="Box of the query")
        self.box: Box | None = None
        self.source = open_source(data, *start)
        self._show_source()
        self.choice.observe(self._on_choice, "value")
        self.upload.observe(self._on_upload, "value")
        self.photo.observe(lambda _: self._set(self._drawn()), "box")
        for slider in (self.x, self.y):
            slider.observe(lambda _: self._set(self._slid()), "value")
        self.whole.on_click(lambda _: self._set(None))
        self.own.on_click(lambda _: self._set(self.source.query.box))
        hint = ipywidgets.HTML("Drag on the photo to draw a box.")
        buttons = ipywidgets.HBox([self.whole, self.own])
        super().__init__(
            [self.choice, self.upload, self.photo, hint, self.x, self.y, buttons],
            layout=ipywidgets.Layout(width="390px", flex="0 0 auto"),
        )

    def _on_choice(self, change) -> None:
        if change["new"] is not None:
            with self._report.errors():
                self._open(open_source(self._data, *change["new"]))

    def _on_upload(self, change) -> None:
        if change["new"]:
            file = change["new"][0]
            with self._report.errors():
                self._open(read_upload(file["name"], bytes(file["content"])))
                with self.choice.hold_trait_notifications():
                    self.choice.value = None
            # Or the same file, uploaded again, would be no change.
            self.upload.value = ()

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
            self._show_box(check_region(box))
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


class Explorer(ipywidgets.VBox):
    """A widget for which a picture stands in where no kernel runs."""

    def still(self) -> Picture:
        """What the explorer shows now, as one picture."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        picture = self.still()
        jpeg = base64.b64encode(picture.jpeg()).decode()
        return {**bundle, "image/jpeg": jpeg, "text/plain": picture.text}
