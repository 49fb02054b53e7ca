"""Text that fits: measured in inches, wrapped, shortened, never read as a formula."""

from functools import cache, lru_cache

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
    text: str, width: float, size: float, keep: int = 0, weight: str = "normal"
) -> str:
    """The text, shortened where it is wider than `width` inches.

    Args:
        text: one line.
        width: inches.
        size: points.
        keep: letters of the end that stay, as names often differ there only.
        weight: of the font.
    """
    if text_width(text, size, weight) <= width:
        return text
    end = text[len(text) - keep :]
    start = text[: len(text) - keep]
    while start and text_width(f"{start}…{end}", size, weight) > width:
        start = start[:-1]
    return start.rstrip(" \\,;-_") + "…" + end


def wrap_text(
    text: str,
    width: float,
    size: float,
    lines: int = 1,
    keep: int = 0,
    weight: str = "normal",
) -> list[str]:
    """Words in at most `lines` lines of `width` inches; the last may be shortened."""
    done: list[str] = []
    words = text.split()
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
