"""Text that fits: measured in inches, wrapped, shortened, never read as a formula."""

from collections.abc import Callable
from functools import cache, lru_cache, partial

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextToPath

FONT = "DejaVu Sans"  # comes with matplotlib: the same on every machine
# Symbols of the paper that a title may use.
SYMBOLS = ("$N_C$", "$N_{pca}$", "$D$")
# Renderers round letters to pixels: a line may come out a little wider than measured.
_ROUNDING = 1.03


def plain_text(text: object) -> str:
    """Text as it is: no formula but those of `SYMBOLS`, ``?`` for unknown letters."""
    known = (letter if _has_letter(letter) else "?" for letter in str(text))
    # Unescaped first, so that twice is the same as once.
    plain = "".join(known).replace(r"\$", "$").replace("$", r"\$")
    for symbol in SYMBOLS:
        plain = plain.replace(symbol.replace("$", r"\$"), symbol)
    return plain


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches of a line in the project's font at `size` points."""
    font = FontProperties(family=FONT, size=size, weight=weight)
    text = text.replace(r"\$", "$")
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, False)
    return _ROUNDING * width / 72


def line_height(size: float) -> float:
    """Inches from one line to the next."""
    return 1.25 * size / 72


def fit_line(
    text: object, width: float, size: float, keep: int = 0, weight: str = "normal"
) -> str:
    """Plain text, shortened where it is wider than `width` inches.

    Args:
        text: one line; see `plain_text`.
        width: inches.
        size: points.
        keep: letters of the end that stay, as names often differ there only.
        weight: of the font.
    """
    measure = partial(text_width, size=size, weight=weight)
    return shorten(plain_text(text), width, measure, keep)


def shorten(
    text: str, width: float, measure: Callable[[str], float], keep: int = 0
) -> str:
    """The text, with an ellipsis before its last `keep` letters if it is too wide."""
    if measure(text) <= width:
        return text
    start, end = text[: len(text) - keep], text[len(text) - keep :]
    while start and measure(f"{start}…{end}") > width:
        start = start[:-1]
    return start.rstrip(" \\,;-_") + "…" + end


def wrap_text(
    text: object,
    width: float,
    size: float,
    lines: int = 1,
    keep: int = 0,
    weight: str = "normal",
) -> list[str]:
    """Plain text in `lines` lines at most; see `fit_line`."""
    done: list[str] = []
    words = plain_text(text).split()
    while words and len(done) < lines - 1:
        taken = 1
        while taken < len(words) and (
            text_width(" ".join(words[: taken + 1]), size, weight) <= width
        ):
            taken += 1
        done.append(" ".join(words[:taken]))
        words = words[taken:]
    done.append(" ".join(words))
    return [fit_line(line, width, size, keep, weight) for line in done if line]


@cache
def _has_letter(letter: str) -> bool:
    font = get_font(findfont(FontProperties(family=FONT)))
    return letter == "\n" or font.get_char_index(ord(letter)) > 0
