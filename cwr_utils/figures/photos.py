"""Figures of photos: contact sheet, class activation maps, feature grid, boxes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from cwr_utils.arrays import check_shape
from cwr_utils.figures.canvas import (
    MARGIN,
    WIDEST,
    canvas,
    check_map,
    check_photo,
    common_ratio,
    credit_lines,
    draw_box,
    draw_frame,
    draw_heat,
    fill_list,
    fit_photo,
    heat_scale,
    place_axes,
    place_photo,
    relevance_mark,
    write_credit,
    write_lines,
    write_text,
)
from cwr_utils.figures.style import (
    BLUE,
    COLOURS,
    COLUMN,
    DASHES,
    HEAT,
    SMALLEST,
    SOFT,
    on_screen,
    two_sizes,
)
from cwr_utils.figures.text import fit_line, line_height, text_width
from cwr_utils.images import Box


def photo_grid(
    photos: Sequence[np.ndarray],
    titles: Sequence[str] = (),
    credits: Sequence[str] = (),
    columns: int = 6,
    frames: Sequence[str] | None = None,
) -> Figure:
    """A contact sheet; photographers and licences stand below it.

    Args:
        photos: (H, W, 3) uint8 each, of any size.
        titles: one below each photo, or none.
        credits: photographer and licence of each photo, or none.
        columns: photos a row.
        frames: one of `RELEVANCE` for each photo, or none.

    Raises:
        ValueError: if there is no photo, or the lists have different lengths.
    """
    if not len(photos):
        raise ValueError("`photos` is empty: a contact sheet needs at least one photo.")
    titles = fill_list(titles, photos, "titles")
    credits = fill_list(credits, photos, "credits")
    frames = fill_list(frames or (), photos, "frames")
    columns = max(1, min(columns, len(photos)))
    ratio, gap = common_ratio(photos), 0.1
    width = (WIDEST - gap * (columns - 1)) / columns
    width = min(width, 2.4, 2.4 * ratio)
    height = width / ratio
    step = height + (0.13 if any(titles) else 0.0) + gap
    rows = -(-len(photos) // columns)
    page = columns * (width + gap) - gap
    # Few photos may be narrower than a line that can be read.
    notes = credit_lines(list(zip(titles, credits, strict=True)), max(page, COLUMN))
    page = max(page, *(text_width(line, SMALLEST) for line in notes), 0)
    fig = canvas(page, rows * step - gap + (len(notes) + 1) * line_height(SMALLEST))
    for number, photo in enumerate(photos):
        left = number % columns * (width + gap)
        top = number // columns * step
        place_photo(fig, left, top, width, ratio, photo, frame=frames[number])
        colour, symbol = relevance_mark(frames[number] or "unknown")
        title = f"{symbol} {titles[number]}" if titles[number] else ""
        top += height + 0.03
        style = {"size": 6 if width > 1 else SMALLEST, "color": colour, "keep": 3}
        write_text(fig, title, left, top, width, **style)
    write_lines(fig, notes, rows * step)
    return fig


def cam_overlays(
    photo: np.ndarray,
    cams: Mapping[str, np.ndarray],
    *,
    box: Box | None = None,
    credit: str = "",
    columns: int = 4,
    probabilities: Mapping[str, float] | Sequence[float] | None = None,
) -> Figure:
    """The photo, then each class activation map over it, on one colour scale.

    Args:
        photo: (H, W, 3) uint8.
        cams: class name -> (h, w) map of the whole photo.
        box: query box in pixels of the photo.
        credit: photographer and licence.
        columns: pictures a row, the photo included.
        probabilities: of the classes, by name or in the order of `cams`.
    """
    check_photo(photo)
    if not cams:
        raise ValueError("`cams` is empty: there is no class map to draw.")
    maps = {name: check_map(cam, name) for name, cam in cams.items()}
    if probabilities is not None and not isinstance(probabilities, Mapping):
        probabilities = dict(zip(maps, probabilities, strict=True))
    norm = heat_scale(list(maps.values()))
    columns = max(1, min(columns, 1 + len(maps)))
    rows = -(-(1 + len(maps)) // columns)
    ratio, gap, above = common_ratio([photo]), 0.1, 0.16
    bar = 0.6
    # Neither wider nor higher than 2.4 inches.
    width = (WIDEST - bar - gap * (columns - 1)) / columns
    width = min(width, 2.4, 2.4 * ratio)
    step = above + width / ratio + gap
    fig = canvas(columns * (width + gap) - gap + bar, rows * step + 0.05)
    for number, name in enumerate(["", *maps]):
        left, top = number % columns * (width + gap), number // columns * step
        title = name or ("Photo and query box" if box is not None else "Photo")
        if name and probabilities is not None:
            title = _with_share(name, probabilities.get(name), width)
        write_text(fig, title, left, top, width, size=7)
        place = (left, top + above, width, ratio)
        axes = place_photo(fig, *place, photo, grey=bool(name))
        if name:
            draw_heat(axes, maps[name], photo.shape, norm)
        if box is not None:
            draw_box(axes, box, photo.shape, BLUE if not name else "white")
    middle = (rows * step - width / ratio) / 2
    axes = place_axes(fig, columns * (width + gap), middle, 0.09, width / ratio)
    axes.grid(False)
    scale = fig.colorbar(ScalarMappable(norm, HEAT), cax=axes)
    scale.set_label("activation", fontsize=6.5)
    scale.ax.tick_params(labelsize=6, length=2)
    scale.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    write_credit(fig, credit)
    return fig


@two_sizes
def grid_overlay(
    photo: np.ndarray, mask: np.ndarray, box: Box | None = None, credit: str = ""
) -> Figure:
    """The feature grid over the photo; cells of the query region are lit.

    Args:
        photo: (H, W, 3) uint8.
        mask: (h, w), above 0 in the cells of the region.
        box: query box in pixels of the photo.
        credit: photographer and licence.
    """
    height, width = check_photo(photo)
    mask = check_map(mask, "mask") > 0
    rows, columns = mask.shape
    ratio = common_ratio([photo])
    wide = (4.6 if on_screen() else COLUMN) - 2 * MARGIN
    size = min(wide, wide * ratio)
    fig = canvas(wide, size / ratio + 0.3)
    title = f"{mask.sum()} of {rows} x {columns} cells are in the region"
    write_text(fig, title, 0, 0, wide, size=7)
    axes = place_photo(fig, 0, 0.16, size, ratio, photo)
    veil = np.zeros((rows, columns, 4))
    veil[~mask] = (0, 0, 0, 0.6)
    axes.imshow(veil, extent=(0, width, height, 0), interpolation="nearest")
    style = {"color": "white", "linewidth": 0.4, "alpha": 0.7}
    axes.vlines(np.linspace(0, width, columns + 1), 0, height, **style)
    axes.hlines(np.linspace(0, height, rows + 1), 0, width, **style)
    if box is not None:
        draw_box(axes, box, photo.shape, BLUE)
    write_credit(fig, credit)
    return fig


def boxes_on_photo(
    photo: np.ndarray,
    boxes: Mapping[str, Box],
    *,
    heat: np.ndarray | None = None,
    best: str | None = None,
    credit: str = "",
) -> Figure:
    """Boxes of several thresholds on a photo, its heat map beside it (Fig. 3).

    Args:
        photo: (H, W, 3) uint8.
        boxes: label -> (x1, y1, x2, y2) in pixels of the photo.
        heat: (h, w), the map that the boxes were cut from.
        best: label of the box that matched best; drawn thick.
        credit: photographer and licence.

    Raises:
        ValueError: if a box is not in the photo or `best` is not a label of `boxes`.
    """
    height, width = check_photo(photo)
    if best is not None and best not in boxes:
        raise ValueError(f"`best` must be one of {', '.join(boxes)}; got {best!r}.")
    styles = {
        label: {
            "color": COLOURS[number % len(COLOURS)],
            "linewidth": 3.4 if label == best else 1.2,
            "linestyle": "-" if label == best else DASHES[number % len(DASHES)],
        }
        for number, label in enumerate(boxes)
    }
    panels = 1 if heat is None else 2
    ratio = common_ratio([photo])
    legend = 1.0
    size = (WIDEST - legend) / 2 - 0.1
    size = min(size, size * ratio)
    fig = canvas(panels * (size + 0.1) + legend, size / ratio + 0.3)
    for panel in range(panels):
        left = panel * (size + 0.1)
        title = "Heat map (mean CAM)" if panel else "Boxes of the thresholds"
        write_text(fig, title, left, 0, size, size=7)
        axes = place_photo(fig, left, 0.16, size, ratio, photo, grey=panel > 0)
        if panel:
            cam = check_map(heat, "heat")
            draw_heat(axes, cam, photo.shape, heat_scale([cam]))
        # The best box first and thick: thin ones on the same cells do not hide it.
        for label in sorted(boxes, key=lambda label: label != best):
            draw_box(axes, boxes[label], (height, width), **styles[label])
    left = panels * (size + 0.1)
    if not boxes:
        write_text(fig, "no box", left, 0.16, legend, size=6.5)
    axes = place_axes(fig, left, 0.16, legend, size / ratio)
    axes.axis("off")
    for label, style in styles.items():
        name = f"{label} (best)" if label == best else label
        axes.plot([], [], label=fit_line(name, legend - 0.4, 6.5), **style)
    if boxes:
        axes.legend(loc="upper left", borderaxespad=0, borderpad=0, fontsize=6.5)
    write_credit(fig, credit)
    return fig


def embedding_map(
    points: np.ndarray,
    photos: Sequence[np.ndarray],
    groups: Sequence[str] = (),
    credits: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Figure:
    """A collection on a map: photos near their neighbours, none upon another.

    Args:
        points: (n, 2), where each photo is; only the order of distances is kept.
        photos: (H, W, 3) uint8 each.
        groups: what each photo shows, "" if that is unknown, or none. Photos of one
            group have frames of one colour and a line that joins them, behind all
            others: a long one is a view that the descriptor misses.
        credits: photographer and licence of each photo, or none.
        names: below the photos, or none.

    Raises:
        ValueError: if there is no photo, or the lists have different lengths.
    """
    number, _ = check_shape(points, "n 2", "points")
    if not number or len(photos) != number:
        raise ValueError(
            f"`photos` must have one for each of the points, at least one; got "
            f"{len(photos)} for {number}."
        )
    groups = fill_list(groups, photos, "groups")
    credits = fill_list(credits, photos, "credits")
    names = fill_list(names, photos, "names")
    # Room for more than there are, so that what is apart stays apart; page-shaped.
    columns = math.ceil(1.25 * math.sqrt(number))
    rows = math.ceil(1.3 * number / columns)
    places = _free_cells(np.asarray(points, np.float64), columns, rows)
    side, gap = WIDEST / columns, 0.07
    wide, tall = side - gap, 0.75 * (side - gap)
    below = 0.13 if any(names) else 0.0
    step = tall + below + gap
    notes = credit_lines([("", credit) for credit in credits], WIDEST)
    fig = canvas(WIDEST, rows * step + len(notes) * line_height(SMALLEST))
    ground = place_axes(fig, 0, 0, WIDEST, rows * step)
    ground.axis("off")
    middles = places * (side, step) + (side / 2, gap / 2 + tall / 2)
    colours = {
        group: COLOURS[place % len(COLOURS)]
        for place, group in enumerate(dict.fromkeys(filter(None, groups)))
    }
    for group, colour in colours.items():
        members = middles[[name == group for name in groups]]
        for last in range(1, len(members)):
            away = np.linalg.norm(members[:last] - members[last], axis=1)
            ends = np.stack([members[last], members[away.argmin()]])
            ground.plot(*ends.T, color=colour, linewidth=1.6, zorder=1)
    for photo, group, name, (x, y) in zip(photos, groups, names, middles, strict=True):
        small = fit_photo(photo, 240, 240)
        height, width = small.shape[:2]
        half = np.array([width, height]) * min(wide / width, tall / height) / 2
        (left, top), (right, bottom) = (x, y) - half, (x, y) + half
        style = {"zorder": 2, "aspect": "auto", "interpolation": "bilinear"}
        ground.imshow(small, extent=(left, right, bottom, top), **style)
        if group:
            style = {"edgecolor": colours[group], "linewidth": 2.2, "zorder": 3}
            draw_frame(ground, (left, top, right, bottom), **style)
        style = {"size": SMALLEST, "color": SOFT, "align": "center", "keep": 2}
        write_text(fig, name, x - side / 2, y + tall / 2 + 0.03, side - 0.02, **style)
    ground.set(xlim=(0, WIDEST), ylim=(rows * step, 0))
    write_lines(fig, notes, rows * step + 0.02)
    return fig


def _free_cells(points: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """(n, 2) cells: each point in turn takes the nearest one that is free."""
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    size = np.array([columns, rows])
    scaled = (points - low) / np.where(span > 0, span, 1) * (size - 1)
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1)
    cells = cells.reshape(-1, 2).astype(np.float64)
    free = np.ones(len(cells), bool)
    places = np.empty_like(scaled)
    for number, point in enumerate(scaled):
        away = np.where(free, np.linalg.norm(cells - point, axis=1), np.inf)
        nearest = int(away.argmin())
        places[number], free[nearest] = cells[nearest], False
    return places


def _with_share(name: str, share: float | None, width: float) -> str:
    """A class name with its probability, which is never cut off."""
    if share is None:
        return name
    end = f" {share:.0%}" if share >= 0.005 else " <1%"
    return fit_line(name, width - text_width(end, 7), 7) + end
