"""The look of all figures, on a screen and in print, and how they are saved."""

import functools
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec
from weakref import WeakKeyDictionary

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from PIL import Image

from cwr_utils.figures.text import FONT
from cwr_utils.files import whole_file

# Inches on paper: one column of a two-column page, and its full width. Charts are one
# column wide and rows of photos a page, so that nothing is scaled when it is printed.
# On a screen charts are a page wide too, with their panels side by side.
COLUMN = 3.3
PAGE = 6.9
SCREEN_DPI = 150  # a page is 1,035 pixels, a letter of 7.5 points 16 pixels high
SMALLEST = 5.0  # points; names and credits of photos have that size

# Okabe and Ito's palette, told apart with every common colour blindness.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILLION, PURPLE, SKY = "#D55E00", "#CC79A7", "#56B4E9"
GREY, SOFT, BLACK = "#8A8A8A", "#555555", "#222222"
COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)))
HEAT = "viridis"

# Colour and symbol of a photo in a ranking; "unknown" is a folder without ground truth.
RELEVANCE = {
    "positive": (GREEN, "✓"),
    "ok": (GREEN, "(✓)"),  # a positive too, seen in part
    "negative": (VERMILLION, "✗"),
    "junk": (SOFT, "~"),
    "query": (BLUE, "●"),
    "unknown": (BLACK, ""),
}

# Any: matplotlib's types spell out every key and its values.
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": [FONT],
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "mathtext.fontset": "dejavusans",
    "text.usetex": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "image.cmap": HEAT,
    "image.interpolation": "antialiased",
    "figure.figsize": (COLUMN, 2.5),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "figure.max_open_warning": 0,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
}

PHOTO_DPI = 150
PHOTO_BYTES = 440_000


_Arguments = ParamSpec("_Arguments")
_screen = False  # what figures are drawn for now
_again: WeakKeyDictionary[Figure, Callable[[], Figure]] = WeakKeyDictionary()


def use_style(screen: bool = True) -> None:
    """Set matplotlib's parameters for every figure of the project.

    Args:
        screen: draw charts as wide as a notebook; they are saved for print all the
            same. False draws them for print at once.
    """
    global _screen
    mpl.rcParams.update(STYLE)
    if screen:
        mpl.rcParams["figure.dpi"] = SCREEN_DPI
    _screen = screen


def on_screen() -> bool:
    """Whether figures are drawn for a screen now."""
    return _screen


def room(inches: float) -> float:
    """Inches for a text beside a chart: what print has, or more on a screen."""
    return 1.8 * inches if _screen else inches


@contextmanager
def _for_print() -> Iterator[None]:
    global _screen
    before, _screen = _screen, False
    try:
        yield
    finally:
        _screen = before


def two_sizes(
    draw: Callable[_Arguments, Figure],
) -> Callable[_Arguments, Figure]:
    """A figure that looks different in print: `save_figure` draws it again."""

    @functools.wraps(draw)
    def drawn(*args: _Arguments.args, **options: _Arguments.kwargs) -> Figure:
        figure = draw(*args, **options)
        _again[figure] = functools.partial(draw, *args, **options)
        return figure

    return drawn


def save_figure(fig: Figure, name: str, figures_dir: str | Path) -> Path:
    """Write a figure as ``<name>.png`` and ``<name>.pdf``, at the size of print.

    A chart that was drawn for a screen is drawn again, with the same arguments.
    The files hold no date and no version, so the same figure gives the same bytes. A
    PNG of photos that would be large is stored with 256 colours.

    Args:
        fig: the figure.
        name: file name without suffix.
        figures_dir: folder, made where it does not exist.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: if the name is empty or has a folder in it.
    """
    if not name or Path(name).name != name:
        raise ValueError(
            f"`name` must be a plain file name, its folder goes to `figures_dir`; "
            f"got {name!r}."
        )
    if _screen and fig in _again:
        with _for_print():
            printed = _again[fig]()
        try:
            return _write(printed, name, Path(figures_dir))
        finally:
            plt.close(printed)  # or a notebook would show it too
    return _write(fig, name, Path(figures_dir))


def _write(fig: Figure, name: str, folder: Path) -> Path:
    pictures = [image.get_array() for axes in fig.axes for image in axes.images]
    photos = any(np.ndim(pixels) == 3 for pixels in pictures if pixels is not None)
    dpi = PHOTO_DPI if photos else mpl.rcParams["savefig.dpi"]
    path = folder / f"{name}.png"
    for kind in ("pdf", "png"):
        data = _render(fig, kind, dpi)
        with whole_file(path.with_suffix(f".{kind}")) as part:
            part.write_bytes(_smaller_png(data) if photos and kind == "png" else data)
    return path


def _render(fig: Figure, kind: str, dpi: float) -> bytes:
    """The figure as a file without date and version."""
    nothing = {"png": ["Software"], "pdf": ["CreationDate", "Creator", "Producer"]}
    buffer = io.BytesIO()
    # Notebooks crop what they save; a figure in a paper keeps its size.
    with mpl.rc_context({"pdf.fonttype": 42, "savefig.bbox": None}):
        fig.savefig(buffer, format=kind, dpi=dpi, metadata=dict.fromkeys(nothing[kind]))
    return buffer.getvalue()


def _smaller_png(png: bytes) -> bytes:
    """The same picture without transparency, and with 256 colours if it is large."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    packed = _pack(image)
    if len(packed) <= PHOTO_BYTES:
        return packed
    few = image.reduce(2).quantize(256)  # a quarter of the pixels has all colours
    few = image.quantize(palette=few, dither=Image.Dither.FLOYDSTEINBERG)
    # The margin keeps its exact colour: grey paper would show.
    colours = few.getpalette() or []
    index = np.asarray(few)[0, 0]
    colours[3 * index : 3 * index + 3] = np.asarray(image)[0, 0].tolist()
    few.putpalette(colours)
    return _pack(few)


def _pack(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png", compress_level=6)  # 9: 0.5 % less, thrice the time
    return buffer.getvalue()
