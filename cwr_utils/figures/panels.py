"""Pictures for the explorers, painted with Pillow in about 0.01 seconds.

A click draws two of them; a matplotlib Figure of the same takes about 0.2 seconds.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import matplotlib
import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from cwr_utils.figures.canvas import (
    check_map,
    check_photo,
    credit_lines,
    fit_photo,
    relevance_mark,
)
from cwr_utils.figures.style import (
    BLACK,
    BLUE,
    COLOURS,
    GREY,
    HEAT,
    SMALLEST,
    SOFT,
    VERMILLION,
)
from cwr_utils.figures.text import FONT, plain_text, shorten
from cwr_utils.images import Box

# Even in lightness and readable by colour-blind people; grey for print.
COLOUR_MAPS = (HEAT, "cividis", "magma", "gray")

WIDTH = 840
_GAP, _LINE, _SMALL = 12, 18, 14
_SMALLEST_PIXELS = 9
_COLUMNS = 5
_BOX_COLOURS = tuple(colour for colour in COLOURS if colour != BLUE)

Area = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels, what they show in words, and the places of their parts.

    Attributes:
        pixels: (H, W, 3) uint8.
        text: what is to be seen, for those who cannot.
        areas: (x1, y1, x2, y2) of each result.
        labels: what each area shows.
    """

    pixels: np.ndarray
    text: str
    areas: tuple[Area, ...] = ()
    labels: tuple[str, ...] = ()

    def jpeg(self) -> bytes:
        """The picture as a file."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


def cam_panels(
    photo: np.ndarray,
    maps: Mapping[str, np.ndarray],
    *,
    opacity: float = 0.6,
    colours: str = HEAT,
    boxes: Mapping[str, Box] | None = None,
    box: Box | None = None,
    mask: np.ndarray | None = None,
    credit: str = "",
) -> Picture:
    """The photo with its query region, and class activation maps over it.

    All maps are on one colour scale, from 0 (or the lowest value, if that is below) to
    the highest.

    Args:
        photo: (H, W, 3) uint8.
        maps: title -> (h, w).
        opacity: of the colours over the grey photo, 0 to 1.
        colours: one of `COLOUR_MAPS`.
        boxes: threshold -> box in pixels, drawn on the last map.
        box: the query box in pixels.
        mask: (h, w), above 0 in the cells of the query region; shows the grid.
        credit: photographer and licence.
    """
    check_photo(photo)
    maps = {title: check_map(values, title) for title, values in maps.items()}
    low = min([0.0, *(float(values.min()) for values in maps.values())])
    high = max([low, *(float(values.max()) for values in maps.values())])
    # Upright photos stand in one row.
    upright = photo.shape[0] > photo.shape[1]
    columns = max(2, 1 + len(maps)) if upright else 2
    side = (WIDTH + _GAP) // columns - _GAP
    small = fit_photo(photo, side, WIDTH // 2, enlarge=True)
    height, width = small.shape[:2]
    rows = -(-(1 + len(maps)) // columns)
    step = _LINE + height + _GAP
    sheet = _Sheet(rows * step + _LINE + (_SMALL if credit else 0))
    grey = cv2.cvtColor(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    for number, title in enumerate(["", *maps]):
        left, top = number % columns * (side + _GAP), number // columns * step
        if not title:
            title = "photo"
            if mask is not None:
                title += f", {(mask > 0).sum()} of {mask.size} cells in the region"
            sheet.photo(_with_grid(small, mask), left, top + _LINE)
        else:
            values = (maps[title] - low) / ((high - low) or 1.0)
            heat = _coloured(values, (width, height), colours)
            mixed = cv2.addWeighted(heat, opacity, grey, 1 - opacity, 0)
            sheet.photo(mixed, left, top + _LINE)
        sheet.text(left, top, title, side, bold=True)
        if number == len(maps):
            for place, (label, edges) in enumerate((boxes or {}).items()):
                colour = _BOX_COLOURS[place % len(_BOX_COLOURS)]
                area = _scaled(edges, photo, small, left, top + _LINE)
                sheet.box(area, colour, label=label, place=place)
        if box is not None:
            area = _scaled(box, photo, small, left, top + _LINE)
            sheet.box(area, BLUE, 3, "query", -1)
    bottom = rows * step
    sheet.colour_bar(colours, low, high, bottom)
    sheet.note(0, bottom + _LINE, credit)
    words = ", ".join(maps)
    return Picture(sheet.pixels, f"Class activation maps over the photo: {words}.")


def result_panels(
    query: np.ndarray,
    photos: Sequence[np.ndarray],
    captions: Sequence[Mapping],
    *,
    box: Box | None = None,
    title: str = "",
    chosen: int = 0,
    credits: Sequence[tuple[str, str]] = (),
) -> Picture:
    """The query and its best results, each with rank, score and frame of relevance.

    Args:
        query: (H, W, 3) uint8.
        photos: of the results, best first.
        captions: `name`, `score` and `relevance` (of `RELEVANCE`) of each result.
        box: the query box in its pixels.
        title: above all.
        chosen: rank of the result that is marked; 0 is none.
        credits: name and credit of each photo.
    """
    lines = max(1, -(-len(photos) // _COLUMNS))
    wide = (WIDTH - (_COLUMNS + 1) * _GAP) // (_COLUMNS + 2)
    tall, caption = wide * 3 // 4, _LINE + _SMALL
    step = tall + caption + _GAP
    notes = credit_lines(credits, WIDTH / _SMALLEST_PIXELS * SMALLEST / 72)
    bottom = _LINE + max(lines, 2) * step
    sheet = _Sheet(bottom + len(notes) * _SMALL)
    sheet.text(0, 0, title, WIDTH, bold=True)
    big = fit_photo(query, 2 * wide, 2 * tall, enlarge=True)
    sheet.photo(big, 0, _LINE)
    if box is not None:
        sheet.box(_scaled(box, query, big, 0, _LINE), BLUE, 3)
    sheet.text(0, _LINE + big.shape[0] + 2, "query", 2 * wide, colour=BLUE, bold=True)
    areas, labels = [], []
    rows = zip(photos, captions, strict=True)
    for number, (photo, words) in enumerate(rows):
        left = 2 * wide + 2 * _GAP + number % _COLUMNS * (wide + _GAP)
        top = _LINE + number // _COLUMNS * step
        colour, symbol = relevance_mark(words["relevance"])
        small = fit_photo(photo, wide, tall, enlarge=True)
        x, y = left + (wide - small.shape[1]) // 2, top + (tall - small.shape[0]) // 2
        sheet.photo(small, x, y)
        frame = (x, y, x + small.shape[1], y + small.shape[0])
        sheet.frame(frame, colour, 4)
        if number + 1 == chosen:
            sheet.frame((left - 4, top - 4, left + wide + 4, top + tall + 4), BLACK, 2)
        below = top + tall + 3
        rank, score = f"{number + 1} {symbol}", f"{words['score']:.3f}"
        sheet.text(left, below, rank, wide, colour=colour, bold=True)
        sheet.text(left, below, score, wide, colour=SOFT, right=True)
        sheet.note(left, below + _LINE - 2, words["name"], wide, SOFT)
        areas.append((left, top, left + wide, top + tall + caption))
        label = f"rank {number + 1}, {words['name']}, {words['relevance']}"
        labels.append(f"{label}, score {score}")
    for number, line in enumerate(notes):
        sheet.note(0, bottom + number * _SMALL, line, 2 * WIDTH)
    text = f"{title}. Results: {'; '.join(labels)}."
    return Picture(sheet.pixels, text, tuple(areas), tuple(labels))


def match_panels(
    query: np.ndarray,
    photo: np.ndarray,
    shares: Sequence[tuple[str, float]],
    *,
    query_box: Box | None = None,
    box: Box | None = None,
    title: str = "",
    credit: str = "",
) -> Picture:
    """A query and a result side by side, and what each class adds to the score.

    Args:
        query: (H, W, 3) uint8.
        photo: (H, W, 3) uint8, the result.
        shares: name and contribution of each class, in the order to show.
        query_box: in pixels of the query.
        box: region of the result that matched best, in its pixels; None is all of it.
        title: above all.
        credit: photographers and licences.
    """
    wide, tall, row = 260, 280, 20
    shown = shares[:10]
    small = [fit_photo(pixels, wide, tall, enlarge=True) for pixels in (query, photo)]
    below = max(pixels.shape[0] for pixels in small) + _LINE
    height = _LINE + max(below, row * (1 + len(shown))) + _GAP
    sheet = _Sheet(height + (_SMALL if credit else 0))
    sheet.text(0, 0, title, WIDTH, bold=True)
    pairs = (("query", query, query_box), ("result", photo, box))
    for number, (name, pixels, edges) in enumerate(pairs):
        left = number * (wide + _GAP)
        sheet.photo(small[number], left, _LINE)
        if edges is not None:
            sheet.box(_scaled(edges, pixels, small[number], left, _LINE), BLUE, 3)
            name += ", its region in blue" if number == 0 else ", the box that won"
        sheet.text(left, _LINE + small[number].shape[0] + 2, name, wide, colour=SOFT)
    left = 2 * (wide + _GAP)
    sheet.text(left, _LINE, "what adds up to the score", WIDTH - left, colour=SOFT)
    most = max([1e-9, *(abs(value) for _, value in shown)])
    zero, longest = left + 165, WIDTH - left - 165 - 50
    for number, (name, value) in enumerate(shown, start=1):
        top = _LINE + number * row
        sheet.text(left, top, name, 160)
        length = round(longest * abs(value) / most)
        colour = BLUE if value >= 0 else VERMILLION
        sheet.bar((zero, top + 2, zero + max(length, 1), top + row - 5), colour)
        sheet.text(zero + length + 4, top, f"{value:+.3f}", 60)
    sheet.note(0, height, credit)
    words = ", ".join(f"{name} {value:+.3f}" for name, value in shares)
    return Picture(sheet.pixels, f"{title}. Contributions: {words}.")


def stack(pictures: Sequence[Picture]) -> Picture:
    """Pictures of one width, one below the other."""
    text = " ".join(picture.text for picture in pictures)
    return Picture(np.concatenate([picture.pixels for picture in pictures]), text)


class _Sheet:
    """White paper of `WIDTH` pixels."""

    def __init__(self, height: int):
        self._image = Image.new("RGB", (WIDTH, height), "white")
        self._draw = ImageDraw.Draw(self._image)

    @property
    def pixels(self) -> np.ndarray:
        return np.asarray(self._image)

    def photo(self, pixels: np.ndarray, left: int, top: int) -> None:
        self._image.paste(Image.fromarray(pixels), (left, top))

    def text(
        self, left, top, text, width, size=12, colour=BLACK, bold=False, right=False
    ) -> None:
        font = _font(size, bold)
        text = shorten(plain_text(text).replace(r"\$", "$"), width, font.getlength)
        x = left + (width - font.getlength(text) if right else 0)
        self._draw.text((x, top), text, colour, font)

    def note(self, left, top, text, width=WIDTH, colour=GREY) -> None:
        self.text(left, top, text, width, _SMALLEST_PIXELS, colour)

    def frame(self, area, colour, thickness=2) -> None:
        x1, y1, x2, y2 = area
        self._draw.rectangle((x1, y1, x2 - 1, y2 - 1), None, colour, thickness)

    def bar(self, area, colour) -> None:
        self._draw.rectangle(area, colour)

    def box(self, area, colour, thickness=2, label="", place=0) -> None:
        """A box that shows on any photo: with a white rim, and its label on it."""
        x1, y1, x2, y2 = area
        self.frame((x1 - 1, y1 - 1, x2 + 1, y2 + 1), "white", thickness + 2)
        self.frame(area, colour, thickness)
        if label:
            font = _font(11, True)
            # Boxes often share a corner: their labels stand side by side.
            x = min(x1 + 2 + max(place, 0) * 38, max(x2 - 36, x1 + 2))
            y = y1 + 2 if place >= 0 else y2 - 18
            self._draw.rectangle(self._draw.textbbox((x, y), label, font), "white")
            self._draw.text((x, y), label, colour, font)

    def colour_bar(self, colours, low, high, top) -> None:
        ramp = np.tile(np.linspace(0, 1, 200), (10, 1))
        self.text(0, top, f"{low:.3g}", 60)
        self.photo(_coloured(ramp, (200, 10), colours), 60, top + 3)
        self.text(266, top, f"{high:.3g}", 60)


def _coloured(values: np.ndarray, size: tuple[int, int], colours: str) -> np.ndarray:
    """(height, width, 3) uint8 of values in [0, 1] on a coarser grid."""
    index = cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return _table(colours)[np.clip(index * 255 + 0.5, 0, 255).astype(np.uint8)]


@lru_cache
def _table(colours: str) -> np.ndarray:
    if colours not in COLOUR_MAPS:
        raise ValueError(
            f"`colours` must be one of {', '.join(COLOUR_MAPS)}; got {colours!r}."
        )
    table = matplotlib.colormaps[colours](np.arange(256), bytes=True)
    return np.asarray(table)[:, :3]


def _with_grid(photo: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Cells outside the region are dark, and lines show the grid."""
    if mask is None:
        return photo
    height, width = photo.shape[:2]
    veil = cv2.resize(
        (mask > 0).astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST
    )
    shown = (photo * (0.4 + 0.6 * veil[..., None])).astype(np.uint8)
    rows, columns = mask.shape
    ys = np.linspace(0, height, rows + 1)[1:-1].astype(int)
    xs = np.linspace(0, width, columns + 1)[1:-1].astype(int)
    shown[ys] = shown[ys] // 2 + 100
    shown[:, xs] = shown[:, xs] // 2 + 100
    return shown


def _scaled(box: Box, photo: np.ndarray, small: np.ndarray, left, top) -> Area:
    """A box of the photo on its smaller copy, whose corner is at left and top."""
    scale = np.divide(small.shape[1::-1], photo.shape[1::-1])
    corners = np.rint(np.reshape(box, (2, 2)) * scale).astype(int)
    x1, y1, x2, y2 = corners.ravel().tolist()
    return left + x1, top + y1, left + x2, top + y2


@lru_cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    weight = "bold" if bold else "normal"
    path = findfont(FontProperties(family=FONT, weight=weight))
    return ImageFont.truetype(path, size)
