"""Photos on paper: axes placed by the inch, frames, boxes, heat maps, captions."""

from collections.abc import Sequence
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cwr_utils.arrays import check_shape
from cwr_utils.figures.style import BLACK, HEAT, PAGE, RELEVANCE, SMALLEST, SOFT
from cwr_utils.figures.text import line_height, wrap_text
from cwr_utils.images import check_box

MARGIN = 0.05
WIDEST = PAGE - 2 * MARGIN


def canvas(width: float, height: float) -> Figure:
    """A figure of some inches whose axes `place_axes` puts down."""
    fig = plt.figure(figsize=(width + 2 * MARGIN, height + 2 * MARGIN))
    fig.set_layout_engine("none")
    return fig


def place_axes(
    fig: Figure, left: float, top: float, width: float, height: float
) -> Axes:
    """Axes at inches from the upper left corner, inside the margin."""
    wide, tall = fig.get_size_inches()
    bottom = tall - MARGIN - top - height
    return fig.add_axes(
        ((left + MARGIN) / wide, bottom / tall, width / wide, height / tall)
    )


def write_text(
    fig: Figure,
    text: str,
    left: float,
    top: float,
    width: float,
    *,
    size: float,
    lines: int = 1,
    align: str = "left",
    color: str = BLACK,
    weight: str = "normal",
    keep: int = 0,
) -> None:
    """Write text in at most `lines` lines of `width` inches; see `fit_line`."""
    wide, tall = fig.get_size_inches()
    x = MARGIN + left + {"left": 0, "center": width / 2, "right": width}[align]
    # From the baseline, so that lines with and without tall letters are level.
    style: Any = {"ha": align, "va": "baseline"}
    style |= {"fontsize": size, "color": color, "fontweight": weight}
    for number, line in enumerate(wrap_text(text, width, size, lines, keep, weight)):
        y = MARGIN + top + size / 72 + number * line_height(size)
        fig.text(x / wide, 1 - y / tall, line, **style)


def write_credit(fig: Figure, credit: str, lines: int = 1) -> None:
    """Write the licence of the photos, small, along the lower edge."""
    if not credit:
        return
    wide, tall = fig.get_size_inches()
    text = credit if credit.startswith("Photo") else f"Photo: {credit}"
    shown = wrap_text(text, wide - 2 * MARGIN, SMALLEST, lines)
    for number, line in enumerate(reversed(shown)):
        y = (0.03 + number * line_height(SMALLEST)) / tall
        fig.text(MARGIN / wide, y, line, fontsize=SMALLEST, color=SOFT)


def credit_lines(pairs: Sequence[tuple[str, str]], width: float) -> list[str]:
    """Each photographer once, after what the photo is called, in lines of some inches.

    Args:
        pairs: label, or "", and credit of each photo.
        width: of the lines.
    """
    found = [f"{label}: {credit}" if label else credit for label, credit in pairs]
    found = [text for text, (_, credit) in zip(found, pairs, strict=True) if credit]
    text = f"Photos: {'; '.join(dict.fromkeys(found))}." if found else ""
    # On a screen letters this small come out wider than measured.
    return wrap_text(text, width / 1.04, SMALLEST, lines=99)


def write_lines(fig: Figure, lines: Sequence[str], top: float) -> None:
    """Write what `credit_lines` gave, from `top` inches down."""
    for number, line in enumerate(lines):
        # Already wrapped: the names in it stay as they are.
        style = {"size": SMALLEST, "color": SOFT}
        write_text(fig, line, 0, top + number * line_height(SMALLEST), 99, **style)


def place_photo(
    fig: Figure, left: float, top: float, width: float, ratio: float, photo, **style
) -> Axes:
    """Axes of one shape with a photo in them; see `place_axes` and `show_photo`."""
    axes = place_axes(fig, left, top, width, width / ratio)
    show_photo(axes, photo, ratio, **style)
    return axes


def show_photo(
    axes: Axes, photo, ratio: float, frame: str | None = None, grey: bool = False
) -> None:
    """A photo at the lower left of axes of one shape; coordinates are its pixels.

    `grey` takes its colour away, so that colours over it mean one thing only.
    """
    height, width = check_photo(photo)
    pixels = fit_photo(photo, 720, 720)  # print shows no more, and files stay small
    if grey:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None].repeat(3, axis=2)
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="bilinear")
    wide, tall = max(width, height * ratio), max(height, width / ratio)
    axes.set(xlim=(0, wide), ylim=(height, height - tall))
    axes.axis("off")
    if frame:
        colour, _ = relevance_mark(frame)
        draw_frame(axes, (0, 0, width, height), edgecolor=colour, linewidth=2.2)


def draw_frame(axes: Axes, box, **style) -> None:
    """Draw a rectangle around (x1, y1, x2, y2) in pixels of the photo."""
    x1, y1, x2, y2 = box
    style = {"fill": False, "clip_on": False, "joinstyle": "miter", **style}
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))


def draw_box(axes: Axes, box, shape, color: str, linewidth=1.5, linestyle="-") -> None:
    """A box in pixels, with a pale edge that shows on dark and light photos."""
    box = check_box(box, (shape[1], shape[0]))
    if color != "white":
        draw_frame(axes, box, edgecolor="white", linewidth=linewidth + 1.2)
    style = {"linewidth": linewidth, "linestyle": linestyle}
    draw_frame(axes, box, edgecolor=color, **style)


def draw_heat(axes: Axes, cam, shape, norm: Normalize) -> None:
    """A map over its photo; where it is low the photo shows through."""
    height, width = shape[:2]
    limits = axes.get_xlim(), axes.get_ylim()
    style: Any = {"norm": norm, "cmap": HEAT, "interpolation": "bilinear"}
    style["alpha"] = 0.35 + 0.4 * np.clip(norm(cam), 0, 1)
    axes.imshow(cam, extent=(0, width, height, 0), **style)
    axes.set(xlim=limits[0], ylim=limits[1])
    if cam.max() <= 0:
        style = {"color": "white", "ha": "center", "va": "center", "fontsize": 6.5}
        axes.text(width / 2, height / 2, "no positive value", **style)


def heat_scale(maps: Sequence[np.ndarray]) -> Normalize:
    """One scale for several maps; [0, 1] holds for normalised and for empty maps."""
    low = min(0.0, *(float(cam.min()) for cam in maps))
    high = max(float(cam.max()) for cam in maps)
    return Normalize(low, high if high > 1 else 1.0)


def relevance_mark(name: str) -> tuple[str, str]:
    """Colour and symbol of a relevance; ValueError where it is none of `RELEVANCE`."""
    if name not in RELEVANCE:
        raise ValueError(
            f"Relevance must be one of {', '.join(RELEVANCE)}; got {name!r}"
        )
    return RELEVANCE[name]


def check_photo(photo, name: str = "photo") -> tuple[int, int]:
    """(height, width) of a photo; ValueError where it is not (H, W, 3) uint8."""
    height, width = check_shape(photo, "H W 3", name)[:2]
    if photo.dtype != np.uint8 or not photo.size:
        raise ValueError(
            f"`{name}` must be RGB of type uint8 with at least one pixel; "
            f"got {photo.dtype}, {width}x{height}."
        )
    return height, width


def check_map(array, name: str) -> np.ndarray:
    """A map as (H, W) float64 without NaN."""
    check_shape(array, "H W", name)
    return np.nan_to_num(np.asarray(array, np.float64))


def common_ratio(photos) -> float:
    """Width / height of cells that suit one photo, or most of several."""
    ratios = [width / height for height, width in map(check_photo, photos)]
    low, high = (0.5, 2.5) if len(ratios) == 1 else (0.75, 1.5)
    return float(np.clip(np.median(ratios), low, high))


def fill_list(values, photos, name: str) -> list:
    """The values, or as many empty strings as photos where there are none."""
    if not len(values):
        return [""] * len(photos)
    if len(values) != len(photos):
        raise ValueError(
            f"`{name}` must have one entry for each of the {len(photos)} photos; "
            f"got {len(values)}."
        )
    return list(values)


def fit_photo(
    photo: np.ndarray, width: int, height: int, enlarge: bool = False
) -> np.ndarray:
    """The photo as large as it can be in this space, in pixels.

    Args:
        photo: (H, W, 3) uint8.
        width: of the space.
        height: of the space.
        enlarge: a smaller photo; else it is returned as it is.
    """
    tall, wide = check_photo(photo)
    scale = min(width / wide, height / tall)
    if scale >= 1 and not enlarge:
        return photo
    size = max(1, round(wide * scale)), max(1, round(tall * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(photo, size, interpolation=method)
