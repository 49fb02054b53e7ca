"""What the explorers show: photos with words beside them.

A `Board` holds photos without letters, and the words as text. A notebook shows it as
HTML, whose text is as large as the reader's; `Board.picture` paints it with Pillow, in
about 0.01 seconds, for where no kernel runs.
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

WIDTH = 840  # of a painted picture
LARGE, SMALL = 560, 240  # pixels of the longer side of a photo on a card
MOST_BARS = 10
_GAP, _LINE, _NOTE = 12, 18, 14
_SMALLEST_PIXELS = 9
_BOX_COLOURS = tuple(colour for colour in COLOURS if colour != BLUE)


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels, and what they show in words.

    Attributes:
        pixels: (H, W, 3) uint8.
        text: what is to be seen, for those who cannot.
    """

    pixels: np.ndarray
    text: str

    def jpeg(self) -> bytes:
        """The picture as a file."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


@dataclass(frozen=True)
class Mark:
    """A box on a photo.

    Attributes:
        edges: x1, y1, x2, y2 in shares of the photo.
        colour: of its line.
        label: at its corner.
    """

    edges: Box
    colour: str
    label: str = ""


@dataclass(frozen=True, eq=False)
class Card:
    """A photo and the words below it.

    Attributes:
        pixels: (H, W, 3) uint8, without letters.
        title: first line.
        aside: at its end.
        note: second line.
        text: all that is to be seen, for those who cannot.
        relevance: one of `RELEVANCE`: colour of the frame, and the symbol.
        marks: boxes.
        credit: photographer and licence.
    """

    pixels: np.ndarray
    title: str
    aside: str = ""
    note: str = ""
    text: str = ""
    relevance: str = "unknown"
    marks: tuple[Mark, ...] = ()
    credit: str = ""


@dataclass(frozen=True, eq=False)
class Board:
    """Cards under a title.

    Attributes:
        title: above all.
        cards: in order.
        columns: cards a row of the painted picture; HTML takes as many as fit.
        summary: a sentence below the cards.
        bars: names and values, drawn as bars after the cards.
        scale: lowest and highest value of the colours on the cards, and their map.
    """

    title: str
    cards: tuple[Card, ...]
    columns: int = 2
    summary: str = ""
    bars: tuple[tuple[str, float], ...] = ()
    scale: tuple[float, float, str] | None = None

    @property
    def text(self) -> str:
        """What is to be seen, in words."""
        seen = "; ".join(card.text or card.title for card in self.cards)
        bars = ", ".join(f"{name} {value:+.3f}" for name, value in self.bars)
        return f"{self.title}. {seen}. {self.summary} {bars}".strip()

    def picture(self, chosen: int = 0) -> Picture:
        """The board on white paper of `WIDTH` pixels.

        Args:
            chosen: number of the card that is marked, from 1; 0 is none.
        """
        side = (WIDTH + _GAP) // self.columns - _GAP
        small = [fit_photo(c.pixels, side, side * 3 // 4, True) for c in self.cards]
        tall = max((pixels.shape[0] for pixels in small), default=0)
        notes = any(card.note for card in self.cards)
        step = tall + _LINE + _NOTE * notes + _GAP
        rows = -(-(len(self.cards) + bool(self.bars)) // self.columns)
        last = (
            (len(self.bars) + 1) * _LINE if len(self.cards) % self.columns == 0 else 0
        )
        bottom = _LINE + rows * step + max(0, last - step) * bool(self.bars)
        pairs = [(card.note, card.credit) for card in self.cards]
        credits = credit_lines(pairs, WIDTH / _SMALLEST_PIXELS * SMALLEST / 72)
        extra = _LINE * (bool(self.summary) + bool(self.scale))
        sheet = _Sheet(bottom + extra + len(credits) * _NOTE)
        sheet.text(0, 0, self.title, WIDTH, bold=True)
        places = [
            (
                number % self.columns * (side + _GAP),
                _LINE + number // self.columns * step,
            )
            for number in range(len(self.cards) + 1)
        ]
        rows = zip(self.cards, small, places, strict=False)
        for number, (card, pixels, (left, top)) in enumerate(rows, start=1):
            x = left + (side - pixels.shape[1]) // 2
            sheet.card(card, pixels, x, top)
            if number == chosen:
                sheet.frame((left - 4, top - 4, left + side + 4, top + step - 8), BLACK)
            sheet.words(card, left, top + tall + 3, side)
        if self.bars:
            sheet.bars(self.bars, *places[-1], side)
        if self.scale:
            sheet.colour_bar(*self.scale, bottom)
            bottom += _LINE
        if self.summary:
            sheet.text(0, bottom, self.summary, WIDTH, colour=SOFT)
            bottom += _LINE
        for number, line in enumerate(credits):
            sheet.note(0, bottom + number * _NOTE, line, 2 * WIDTH)
        return Picture(sheet.pixels, self.text)


def cam_board(
    photo: np.ndarray,
    maps: Mapping[str, np.ndarray],
    *,
    title: str = "",
    opacity: float = 0.6,
    colours: str = HEAT,
    boxes: Mapping[str, Box] | None = None,
    box: Box | None = None,
    mask: np.ndarray | None = None,
    credit: str = "",
) -> Board:
    """The photo with its query region, and class activation maps over it.

    All maps are on one colour scale, from 0 (or the lowest value, if that is below) to
    the highest.

    Args:
        photo: (H, W, 3) uint8.
        maps: title -> (h, w).
        title: above all.
        opacity: of the colours over the grey photo, 0 to 1.
        colours: one of `COLOUR_MAPS`.
        boxes: threshold -> box in pixels, drawn on the last map.
        box: the query box in pixels.
        mask: (h, w), above 0 in the cells of the query region; shows the grid.
        credit: photographer and licence.
    """
    check_photo(photo)
    maps = {name: check_map(values, name) for name, values in maps.items()}
    low = min([0.0, *(float(values.min()) for values in maps.values())])
    high = max([low, *(float(values.max()) for values in maps.values())])
    small = fit_photo(photo, LARGE, LARGE)
    query = () if box is None else (_mark(box, photo, BLUE, "query"),)
    seen = "photo"
    if mask is not None:
        seen += f", {(mask > 0).sum()} of {mask.size} cells in the region"
    cards = [Card(_with_grid(small, mask), seen, marks=query, credit=credit)]
    thresholds = tuple(
        _mark(edges, photo, _BOX_COLOURS[place % len(_BOX_COLOURS)], label)
        for place, (label, edges) in enumerate((boxes or {}).items())
    )
    for number, (name, values) in enumerate(maps.items(), start=1):
        shares = (values - low) / ((high - low) or 1.0)
        heat = overlay(small, shares, colours, opacity)
        marks = thresholds + query if number == len(maps) else query
        cards.append(Card(heat, name, text=f"map of {name}", marks=marks))
    # Upright photos stand in one row.
    columns = len(cards) if photo.shape[0] > photo.shape[1] else 2
    return Board(title, tuple(cards), columns, scale=(low, high, colours))


def result_board(
    title: str,
    photos: Sequence[np.ndarray],
    captions: Sequence[Mapping],
    credits: Sequence[str],
) -> Board:
    """Results, each with rank, score and frame of relevance.

    Args:
        title: above all.
        photos: of the results, best first.
        captions: `rank` (from 1; None where the photo does not count), `name`, `score`
            and `relevance` (of `RELEVANCE`) of each result.
        credits: photographer and licence of each photo.
    """
    cards = []
    for photo, words, credit in zip(photos, captions, credits, strict=True):
        kind, rank = words["relevance"], words["rank"]
        name, score = words["name"], f"{words['score']:.3f}"
        uncounted = "the query itself" if kind == "query" else kind
        place = uncounted if rank is None else f"rank {rank}"
        known = "" if rank is None else f", {kind}"
        cards.append(
            Card(
                fit_photo(photo, SMALL, SMALL),
                place if rank is None else str(rank),
                score,
                name,
                f"{place}, {name}{known}, score {score}",
                kind,
                credit=credit,
            )
        )
    return Board(title, tuple(cards), 5)


def match_board(
    query: np.ndarray,
    photo: np.ndarray,
    shares: Sequence[tuple[str, float]],
    *,
    heat: np.ndarray | None = None,
    query_box: Box | None = None,
    box: Box | None = None,
    title: str = "",
    credits: tuple[str, str] = ("", ""),
) -> Board:
    """A query and a result side by side, and what adds up to the score.

    Args:
        query: (H, W, 3) uint8.
        photo: (H, W, 3) uint8, the result.
        shares: name and contribution of each class, the largest first, and last what
            no class has by itself.
        heat: (h, w), what each cell of the result adds.
        query_box: in pixels of the query.
        box: region of the result that matched best, in its pixels; None is all of it.
        title: above all.
        credits: photographers and licences of the two.
    """
    blue = () if query_box is None else (_mark(query_box, query, BLUE),)
    won = () if box is None else (_mark(box, photo, BLUE),)
    small = [fit_photo(pixels, LARGE, LARGE) for pixels in (query, photo)]
    asked = "query" if query_box is None else "query, its region in blue"
    found = "result" if box is None else "result, the box that won in blue"
    cards = [
        Card(small[0], asked, marks=blue, credit=credits[0]),
        Card(small[1], found, marks=won, credit=credits[1]),
    ]
    scale, summary = None, ""
    if heat is not None:
        high = max(float(check_map(heat, "heat").max()), 1e-9)
        values = np.clip(heat / high, 0, 1)
        cards.append(Card(overlay(small[1], values, HEAT, None), "where it matches"))
        scale = 0.0, high, HEAT
        summary = (
            f"Cells that add to the score: {heat[heat > 0].sum():.3f}; that take away: "
            f"{-heat[heat < 0].sum():.3f}; all together: {heat.sum():.3f}."
        )
    return Board(title, tuple(cards), 2, summary, _few(shares), scale)


def _few(shares: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """At most `MOST_BARS` of them: small ones before the last together."""
    if len(shares) <= MOST_BARS:
        return tuple(shares)
    rest = shares[MOST_BARS - 2 : -1]
    together = f"{len(rest)} other classes", sum(value for _, value in rest)
    return *shares[: MOST_BARS - 2], together, shares[-1]


def stack(pictures: Sequence[Picture]) -> Picture:
    """Pictures of one width, one below the other."""
    text = " ".join(picture.text for picture in pictures)
    return Picture(np.concatenate([picture.pixels for picture in pictures]), text)


def overlay(
    photo: np.ndarray, values: np.ndarray, colours: str, opacity: float | None
) -> np.ndarray:
    """A map in colours over the grey photo.

    Args:
        photo: (H, W, 3) uint8.
        values: (h, w) in [0, 1].
        colours: one of `COLOUR_MAPS`.
        opacity: of the colours, 0 to 1; None makes it grow with the value, so that the
            photo is seen where little is.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = photo.shape[:2]
    grown = cv2.resize(
        values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR
    )
    heat = _table(colours)[np.clip(grown * 255 + 0.5, 0, 255).astype(np.uint8)]
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None]
    share = 0.85 * np.sqrt(grown[..., None]) if opacity is None else opacity
    return np.rint(share * heat + (1 - share) * grey).astype(np.uint8)


class _Sheet:
    """White paper of `WIDTH` pixels."""

    def __init__(self, height: int):
        self._image = Image.new("RGB", (WIDTH, height), "white")
        self._draw = ImageDraw.Draw(self._image)

    @property
    def pixels(self) -> np.ndarray:
        return np.asarray(self._image)

    def card(self, card: Card, pixels: np.ndarray, left: int, top: int) -> None:
        """A photo with its frame and boxes."""
        height, width = pixels.shape[:2]
        self._image.paste(Image.fromarray(pixels), (left, top))
        if card.relevance != "unknown":
            colour, _ = relevance_mark(card.relevance)
            self.frame((left, top, left + width, top + height), colour, 4)
        for place, mark in enumerate(card.marks):
            corners = np.reshape(mark.edges, (2, 2)) * (width, height) + (left, top)
            area = np.rint(corners).astype(int).ravel().tolist()
            self.box(area, mark.colour, mark.label, place)

    def words(self, card: Card, left: int, top: int, width: int) -> None:
        """The lines below a photo."""
        colour, symbol = relevance_mark(card.relevance)
        title = f"{card.title} {symbol}".strip()
        self.text(left, top, title, width, colour=colour, bold=True)
        self.text(left, top, card.aside, width, colour=SOFT, right=True)
        self.note(left, top + _LINE - 2, card.note, width, SOFT)

    def bars(self, bars, left: int, top: int, width: int) -> None:
        """Names and values, a bar each."""
        self.text(left, top, "what adds up to the score", width, colour=SOFT)
        most = max([1e-9, *(abs(value) for _, value in bars)])
        zero, longest = left + 165, width - 165 - 55
        for number, (name, value) in enumerate(bars, start=1):
            y = top + number * _LINE
            self.text(left, y, name, 160)
            length = max(1, round(longest * abs(value) / most))
            colour = BLUE if value >= 0 else VERMILLION
            self._draw.rectangle((zero, y + 2, zero + length, y + _LINE - 5), colour)
            self.text(zero + length + 4, y, f"{value:+.3f}", 60)

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

    def box(self, area, colour, label="", place=0) -> None:
        """A box that shows on any photo: with a white rim, and its label on it."""
        x1, y1, x2, y2 = area
        self.frame((x1 - 1, y1 - 1, x2 + 1, y2 + 1), "white", 5)
        self.frame(area, colour, 3)
        if label:
            font = _font(11, True)
            # Boxes often share a corner: their labels stand side by side.
            x, y = min(x1 + 2 + place * 38, max(x2 - 36, x1 + 2)), y1 + 2
            self._draw.rectangle(self._draw.textbbox((x, y), label, font), "white")
            self._draw.text((x, y), label, colour, font)

    def colour_bar(self, low, high, colours, top) -> None:
        ramp = np.tile(
            _table(colours)[np.linspace(0, 255, 200).astype(int)], (10, 1, 1)
        )
        self.text(0, top, f"{low:.3g}", 60)
        self._image.paste(Image.fromarray(ramp), (60, top + 3))
        self.text(266, top, f"{high:.3g}", 60)


def colour_stops(colours: str, count: int = 9) -> list[str]:
    """Colours of a map from its low to its high end, as HTML writes them."""
    rows = _table(colours)[np.linspace(0, 255, count).astype(int)]
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in rows.tolist()]


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


def _mark(box: Box, photo: np.ndarray, colour: str, label: str = "") -> Mark:
    """A box in pixels of a photo."""
    height, width = photo.shape[:2]
    x1, y1, x2, y2 = map(float, box)
    return Mark((x1 / width, y1 / height, x2 / width, y2 / height), colour, label)


@lru_cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    weight = "bold" if bold else "normal"
    path = findfont(FontProperties(family=FONT, weight=weight))
    return ImageFont.truetype(path, size)
