"""Result strips: a query and what was found for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cwr_utils.figures.canvas import (
    WIDEST,
    canvas,
    check_photo,
    common_ratio,
    credit_lines,
    draw_box,
    fill_list,
    place_photo,
    relevance_mark,
    write_lines,
    write_text,
)
from cwr_utils.figures.style import BLUE, SMALLEST, SOFT
from cwr_utils.figures.text import line_height
from cwr_utils.images import Box


@dataclass
class _Strip:
    """A row of results; where it is made, every list becomes as long as `photos`."""

    query_photo: np.ndarray
    photos: Sequence[np.ndarray]
    relevance: Sequence[str]
    scores: Any = None
    names: Sequence[str] = ()
    credits: Sequence[str] = ()
    query_box: Box | None = None
    title: str = ""
    ranks: Sequence[int | str] = ()
    query_credit: str = ""

    def __post_init__(self):
        check_photo(self.query_photo, "query_photo")
        for number, photo in enumerate(self.photos):
            check_photo(photo, f"photos[{number}]")
        if len(self.credits) == len(self.photos) + 1:
            self.query_credit, *self.credits = self.credits
        self.scores = () if self.scores is None else self.scores
        self.ranks = self.ranks or range(1, len(self.photos) + 1)
        for name in ("relevance", "scores", "names", "credits", "ranks"):
            setattr(self, name, fill_list(getattr(self, name), self.photos, name))
        for kind in self.relevance:
            relevance_mark(kind)


def result_strip(
    query_photo: np.ndarray,
    photos: Sequence[np.ndarray],
    relevance: Sequence[str],
    scores: Sequence[float] | None,
    names: Sequence[str] = (),
    credits: Sequence[str] = (),
    query_box: Box | None = None,
    title: str = "",
    ranks: Sequence[int | str] = (),
) -> Figure:
    """The query and its best results, framed by relevance, with rank and score.

    Args:
        query_photo: (H, W, 3) uint8.
        photos: results, best first, (H, W, 3) uint8 each.
        relevance: one of `RELEVANCE` for each result.
        scores: one for each result, or None.
        names: of the results, or none.
        credits: of the results, or of the query and the results, or none.
        query_box: in pixels of the query photo.
        title: above the strip.
        ranks: of the results where these are not the first ones; 1, 2, ... else.

    Raises:
        ValueError: if the lists have different lengths or a relevance is unknown.
    """
    row = (query_photo, photos, relevance, scores, names, credits)
    return _strips([_Strip(*row, query_box, title, ranks)], columns=5)


def result_strips(rows: Sequence[Mapping]) -> Figure:
    """Several strips, one below the other, all pictures of one size.

    Args:
        rows: keywords of `result_strip`, one mapping a row.
    """
    if not rows:
        raise ValueError("`rows` is empty: there is no result strip to draw.")
    checked = [_Strip(**row) for row in rows]
    most = max(len(row.photos) for row in checked)
    return _strips(checked, columns=min(max(most, 1), 10))


def _strips(rows: Sequence[_Strip], columns: int) -> Figure:
    """Strips of checked rows; more results than `columns` go on to the next line."""
    ratio = common_ratio(
        [photo for row in rows for photo in (row.query_photo, *row.photos)]
    )
    lines = max(1, *(-(-len(row.photos) // columns) for row in rows))
    big = min(lines, 2)  # the query is as high as two lines of results
    gap, apart = 0.07, 0.15
    width = min(1.3, (WIDEST - apart - gap * (columns + big - 2)) / (columns + big))
    height = width / ratio
    query_width = big * (width + gap) - gap
    page = query_width + apart + columns * (width + gap) - gap
    caption = 0.25 if any(any(row.names) for row in rows) else 0.14
    step = height + caption + gap
    query_step = query_width / ratio + caption + gap
    strip = max(lines * step, query_step)
    heads = [0.17 if row.title else 0.0 for row in rows]
    notes = credit_lines(_credits(rows), page)
    note_height = line_height(SMALLEST)
    fig = canvas(page, sum(heads) + len(rows) * strip + len(notes) * note_height)

    top = 0.0
    for row, head in zip(rows, heads, strict=True):
        write_text(fig, row.title, 0, top, page, size=8, weight="bold")
        top += head
        place = (0, top, query_width, ratio)
        axes = place_photo(fig, *place, row.query_photo, frame="query")
        if row.query_box is not None:
            draw_box(axes, row.query_box, row.query_photo.shape, BLUE)
        style = {"size": 6, "color": BLUE, "weight": "bold"}
        below = top + query_width / ratio + 0.04
        write_text(fig, "query", 0, below, query_width, **style)
        for number, photo in enumerate(row.photos):
            left = query_width + apart + number % columns * (width + gap)
            above = top + number // columns * step
            kind, score = row.relevance[number], row.scores[number]
            place_photo(fig, left, above, width, ratio, photo, frame=kind)
            colour, symbol = relevance_mark(kind)
            rank, below = f"{row.ranks[number]} {symbol}", above + height + 0.04
            style = {"size": 6, "color": colour, "weight": "bold"}
            write_text(fig, rank, left, below, width, **style)
            if score not in ("", None) and np.isfinite(score):
                style = {"size": 6, "color": SOFT, "align": "right"}
                write_text(fig, f"{score:.2f}", left, below, width, **style)
            style = {"size": SMALLEST, "color": SOFT, "keep": 3}
            write_text(fig, row.names[number], left, below + 0.1, width, **style)
        top += strip
    write_lines(fig, notes, top)
    return fig


def _credits(rows: Sequence[_Strip]) -> list[tuple[str, str]]:
    """What each photo is called, or its rank, and its credit."""
    found: list[tuple[str, str]] = []
    for row in rows:
        found.append(("query", row.query_credit))
        ranks = map(str, row.ranks) if len(rows) == 1 else [""] * len(row.photos)
        names = [name or rank for name, rank in zip(row.names, ranks, strict=True)]
        found += zip(names, row.credits, strict=True)
    return found
