"""The look of all figures, and how they are saved."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from PIL import Image

from cwr_utils.figures.text import FONT
from cwr_utils.files import whole_file

# Inches on paper: one column of a two-column page, and its full width. Charts are one
# column wide and rows of photos a page, so that nothing is scaled when it is printed.
COLUMN = 3.3
PAGE = 6.9
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


def use_style() -> None:
    """Set matplotlib's parameters for every figure of the project."""
    mpl.rcParams.update(STYLE)


def save_figure(fig: Figure, name: str, figures_dir: str | Path) -> Path:
    """Write a figure as ``<name>.png`` and ``<name>.pdf``.

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
    pictures = [image.get_array() for axes in fig.axes for image in axes.images]
    photos = any(np.ndim(pixels) == 3 for pixels in pictures if pixels is not None)
    dpi = PHOTO_DPI if photos else mpl.rcParams["savefig.dpi"]
    path = Path(figures_dir, f"{name}.png")
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
