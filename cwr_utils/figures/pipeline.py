"""The method in one picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from cwr_utils.arrays import check_shape
from cwr_utils.figures.canvas import (
    WIDEST,
    canvas,
    check_map,
    check_photo,
    common_ratio,
    credit_lines,
    draw_box,
    draw_heat,
    heat_scale,
    place_axes,
    place_photo,
    relevance_mark,
    write_lines,
    write_text,
)
from cwr_utils.figures.style import BLACK, BLUE, SMALLEST, SOFT
from cwr_utils.figures.text import line_height
from cwr_utils.images import Box

# Inches: the band that the drawings of all columns share.
TOP, TALL = 0.52, 2.1
# Left, width of the drawing and of the words, heading and explanation of each column.
COLUMNS = (
    (0.0, 1.4, 1.45, "1. Query", "What to look for is in the box."),
    (1.6, 0.9, 1.2, "2. Where is what?", "Class activation maps (CAMs)"),
    (2.85, 1.1, 1.3, "3. A vector per class", "Features weighted by its map, pooled"),
    (4.22, 1.0, 1.15, "4. One descriptor", "Class vectors whitened and added up"),
    (5.4, 1.4, 1.4, "5. Most similar photos", "✓ same place,  ✗ another place"),
)


def pipeline(
    photo: np.ndarray,
    box: Box | None,
    heat: Mapping[str, np.ndarray],
    vectors: np.ndarray,
    descriptor: np.ndarray,
    results: Sequence[tuple[np.ndarray, str]],
    class_names: Sequence[str],
    credit: str = "",
) -> Figure:
    """The whole method in one picture, from a photo to its ranking.

    Args:
        photo: (H, W, 3) uint8, the query.
        box: query box in pixels, or None.
        heat: class name -> (h, w) map; the first three are drawn.
        vectors: (C, K), one vector for each of `class_names`.
        descriptor: (D,), the sum of the whitened class vectors.
        results: photo and relevance of the best results, at most six are drawn.
        class_names: names of the rows of `vectors`.
        credit: photographers and licences.

    Raises:
        ValueError: if shapes or names disagree.
    """
    check_photo(photo)
    check_shape(vectors, f"{len(class_names)} K", "vectors")
    check_shape(descriptor, "D", "descriptor")
    shown = list(heat)[:3]
    missing = [name for name in shown if name not in list(class_names)]
    if missing or not shown:
        raise ValueError(
            "`heat` must hold maps of classes in `class_names` "
            f"({', '.join(class_names)}); got {', '.join(heat) or 'none'}."
        )
    maps = [check_map(heat[name], name) for name in shown]
    rows = [vectors[list(class_names).index(name)] for name in shown]

    notes = credit_lines([("", credit)], WIDEST)
    fig = canvas(WIDEST, TOP + TALL + 0.2 + len(notes) * line_height(SMALLEST))
    for left, _, width, head, text in COLUMNS:
        if head.startswith("1") and box is None:
            text = "A photo of what to look for."
        write_text(fig, head, left, 0, width, size=7.5, weight="bold")
        write_text(fig, text, left, 0.15, width, size=6.5, lines=2, color=SOFT)
    (query_left, query_width), (cam_left, cam_width), (row_left, row_width) = [
        column[:2] for column in COLUMNS[:3]
    ]
    sum_left = COLUMNS[3][0]
    found_left, found_width = COLUMNS[4][:2]

    ratio = common_ratio([photo])
    width = min(query_width, TALL * ratio)
    top = TOP + (TALL - width / ratio) / 2
    query = place_photo(fig, query_left, top, width, ratio, photo)
    if box is not None:
        draw_box(query, box, photo.shape, BLUE, 2.0)

    descriptor_axes = place_axes(fig, sum_left + 0.25, TOP, 0.4, TALL)
    _bars(descriptor_axes, _shorten(descriptor, 32), upright=True)
    scale = heat_scale(maps)
    step = TALL / max(len(maps), 2)
    cell = step - 0.18
    width = min(cam_width, cell * ratio)
    for number, (name, cam, row) in enumerate(zip(shown, maps, rows, strict=True)):
        top = TOP + (TALL - step * len(maps)) / 2 + number * step
        axes = place_photo(fig, cam_left, top, width, ratio, photo, grey=True)
        draw_heat(axes, cam, photo.shape, scale)
        below = top + width / ratio + 0.03
        write_text(fig, name, cam_left, below, cam_width, size=6.5)
        vector = place_axes(fig, row_left, top, row_width, width / ratio)
        _bars(vector, _shorten(row, 28))
        _arrow(fig, query, axes)
        _arrow(fig, axes, vector)
        _arrow(fig, vector, descriptor_axes)
    style = {"size": 6.5, "color": SOFT}
    more = len(class_names) - len(shown)
    if more > 0:
        text = f"and {more} more class{'es' if more > 1 else ''}"
        write_text(fig, text, row_left, TOP + TALL + 0.02, row_width, **style)
    text = f"{len(descriptor)} numbers"
    write_text(fig, text, sum_left, TOP + TALL + 0.02, 0.9, align="center", **style)

    chosen = list(results)[:6]
    if chosen:
        ratio = common_ratio([found for found, _ in chosen])
        gap = 0.1
        width = min((found_width - gap) / 2, (TALL - 2 * gap) / 3 * ratio)
        lines = -(-len(chosen) // 2)
        start = TOP + (TALL - lines * (width / ratio + gap) + gap) / 2
        for number, (found, relevance) in enumerate(chosen):
            left = found_left + number % 2 * (width + gap)
            top = start + number // 2 * (width / ratio + gap)
            axes = place_photo(fig, left, top, width, ratio, found, frame=relevance)
            _badge(axes, number + 1, relevance)
        target = place_axes(fig, found_left, TOP, 0.01, TALL)
        target.axis("off")
        _arrow(fig, descriptor_axes, target)
    write_lines(fig, notes, TOP + TALL + 0.2)
    return fig


def _bars(axes: Axes, values: np.ndarray, upright: bool = False) -> None:
    """A vector as bare bars."""
    places, ends = range(len(values)), (-0.6, len(values) - 0.4)
    if upright:
        axes.barh(places, values, 0.75, color=BLUE)
        axes.axvline(0, color=BLACK, linewidth=0.5)
        axes.set_ylim(*ends[::-1])
    else:
        axes.bar(places, values, 0.75, color=BLUE)
        axes.axhline(0, color=BLACK, linewidth=0.5)
        axes.set_xlim(*ends)
    axes.axis("off")


def _shorten(vector: np.ndarray, count: int) -> np.ndarray:
    """The strongest value of each of `count` equal parts, so that bars can be seen."""
    vector = np.nan_to_num(np.asarray(vector, np.float64))
    parts = np.array_split(vector, min(count, len(vector)))
    return np.array([part[np.argmax(np.abs(part))] for part in parts])


def _arrow(fig: Figure, start: Axes, end: Axes) -> None:
    style: Any = {"coordsA": "axes fraction", "coordsB": "axes fraction"}
    style |= {"arrowstyle": "-|>", "mutation_scale": 7, "shrinkA": 2, "shrinkB": 2}
    style |= {"color": "#666666", "linewidth": 0.8, "axesA": start, "axesB": end}
    fig.add_artist(ConnectionPatch((1.02, 0.5), (-0.02, 0.5), **style))


def _badge(axes: Axes, rank: int, relevance: str) -> None:
    """Rank and symbol on a photo's corner."""
    colour, symbol = relevance_mark(relevance)
    style: Any = {"fontsize": 6, "fontweight": "bold", "color": "white", "va": "top"}
    style["bbox"] = {"facecolor": colour, "edgecolor": colour, "pad": 1.5}
    text = f"{rank} {symbol}".strip()
    axes.annotate(text, (0, 0), (3, -3), textcoords="offset points", **style)
