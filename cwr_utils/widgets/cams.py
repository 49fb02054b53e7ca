"""The CAM explorer: where each class is seen in a photo."""

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
import pandas as pd

from cwr_utils.datasets import Dataset
from cwr_utils.extraction import Setup
from cwr_utils.figures.panels import COLOUR_MAPS, Board, Picture, cam_board
from cwr_utils.images import Box
from cwr_utils.inspection import PhotoCams, look
from cwr_utils.widgets.controls import (
    WIDE,
    Explorer,
    Finder,
    Gallery,
    Message,
    PhotoPanel,
    first_key,
)

NOTHING = -1  # instead of a second class


@dataclass(frozen=True)
class CamView:
    """What the explorer shows of a photo.

    Attributes:
        classes: one or two class numbers; two are shown side by side, with their mean.
        opacity: of the colours over the photo, 0 to 1.
        colours: one of `COLOUR_MAPS`.
        raw: maps as the network gives them, not scaled to [0, 1].
        boxes: whether to draw the boxes of the five thresholds.
        box: the query box in pixels, or None.
    """

    classes: tuple[int, ...]
    opacity: float = 0.6
    colours: str = COLOUR_MAPS[0]
    raw: bool = False
    boxes: bool = True
    box: Box | None = None


def show_cams(
    cams: PhotoCams, view: CamView, names: Sequence[str], credit: str = ""
) -> tuple[Board, pd.DataFrame]:
    """Draw a view.

    Args:
        cams: the maps of the photo.
        view: what to show of it.
        names: of all classes.
        credit: photographer and licence.

    Returns:
        The board, and the boxes: one row a threshold, x1, y1, x2, y2 in pixels.
    """
    maps = cams.maps(view.classes, view.raw)
    titles = [f"{names[c]}  {cams.probabilities[c]:.1%}" for c in view.classes]
    shown = {title: maps[..., i] for i, title in enumerate(titles)}
    if len(view.classes) > 1:
        shown["mean of both"] = maps.mean(axis=-1)
    boxes = cams.boxes(view.classes)
    board = cam_board(
        cams.photo,
        shown,
        title="Class activation maps",
        opacity=view.opacity,
        colours=view.colours,
        boxes=boxes if view.boxes else None,
        box=view.box,
        mask=None if view.box is None else cams.cells(view.box),
        credit=credit,
    )
    table = pd.DataFrame.from_dict(boxes, "index", columns=["x1", "y1", "x2", "y2"])
    return board, table.rename_axis("threshold").round(0).astype(int)


class CamExplorer(Explorer):
    """Choose a photo and classes; see their maps, boxes, and the query region.

    One forward pass serves all classes of a photo.
    """

    def __init__(self, data: Dataset, setup: Setup, query: int = 0):
        """Look at the first photo.

        Args:
            data: photos and queries to choose from.
            setup: network, layer, size and flags.
            query: number of the query to begin with; the first photo if there is none.
        """
        self._setup, self._names = setup, setup.network.class_names
        self.message = Message()
        start = first_key(data, query)
        self.panel = PhotoPanel(data, start, self._on_photo, self.message)
        self.first = Finder("Class", "Find a class")
        self.second = Finder("Compare with", "Find another")
        self.opacity = ipywidgets.FloatSlider(
            value=0.6, min=0, max=1, step=0.05, description="Opacity", **WIDE
        )
        self.colours = ipywidgets.Dropdown(
            options=COLOUR_MAPS, description="Colours", **WIDE
        )
        self.scale = ipywidgets.Dropdown(
            options=[("scaled to 0..1", False), ("raw values", True)],
            description="Values",
            **WIDE,
        )
        self.boxes = ipywidgets.Checkbox(
            value=True, description="Boxes at the five thresholds", indent=False
        )
        self.picture = Gallery()
        controls = (self.first, self.second, self.opacity, self.colours, self.scale)
        self._look()
        for control in (*controls, self.boxes):
            control.observe(lambda _: self._draw(), "value")
        self._draw()
        looks = ipywidgets.VBox([self.opacity, self.colours, self.scale, self.boxes])
        chosen = ipywidgets.Box(
            [self.first, self.second, looks], _dom_classes=("cwr-controls",)
        )
        super().__init__(self.panel, [chosen, self.message, self.picture])

    @property
    def view(self) -> CamView:
        """What is shown now."""
        chosen = (self.first.value, self.second.value)
        return CamView(
            tuple(dict.fromkeys(c for c in chosen if c != NOTHING)),
            self.opacity.value,
            self.colours.value,
            self.scale.value,
            self.boxes.value,
            self.panel.box,
        )

    def still(self) -> Picture:
        """See `Explorer.still`."""
        credit = self.panel.source.credit
        return show_cams(self.cams, self.view, self._names, credit)[0].picture()

    def _look(self) -> None:
        self.cams = look(self._setup, self.panel.source.photo)
        names, shares = self._names, self.cams.probabilities
        order = self.cams.top(len(names))
        options = [(f"{names[c]}  {shares[c]:.1%}", c) for c in order]
        self._quiet = True
        self.first.offer(options, order[0])
        self.second.offer(
            [("nothing", NOTHING), *options], next(iter(order[1:]), NOTHING)
        )
        self._quiet = False

    def _on_photo(self) -> None:
        if self.cams.photo is not self.panel.source.photo:
            self._look()
        self._draw()

    def _draw(self) -> None:
        if self._quiet:
            return
        with self.message.errors():
            source = self.panel.source
            board, boxes = show_cams(self.cams, self.view, self._names, source.credit)
            self.picture.show(board)
            cells = self.cams.grid
            self.message.say(
                f"{source.query.name}: {len(boxes)} boxes; grid of {cells[0]} x "
                f"{cells[1]} cells; probabilities are those of the whole photo."
            )
