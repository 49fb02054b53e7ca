"""Pictures: decoding, resize policies, and query boxes on the feature grid.

Boxes are ``(x1, y1, x2, y2)`` in pixels of the original image, floats, exclusive
end. Sizes are ``(width, height)``, as in the files; arrays are (H, W, 3).
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

READS_HEIF = False  # which iPhones write
with suppress(ImportError):
    from pillow_heif import register_heif_opener

    register_heif_opener()
    READS_HEIF = True

Box = tuple[float, float, float, float]
Cells = tuple[int, int, int, int]
Size = tuple[int, int]

# Every new input shape costs a compilation of the graph: sides that keep the aspect
# ratio are rounded, so that few shapes occur. 16 is also the stride of most layers.
SIDE_MULTIPLE = 16
MIN_SIDE = 32

# Official Oxford boxes stick out of their image by a fraction of a pixel.
BOX_TOLERANCE = 1.0

# Far below a pixel, far above the rounding error of a division: a box that ends
# exactly on the border of a cell does not touch the next cell.
_CELL_EPSILON = 1e-9

# A phone takes 200 million pixels; decoded, these are 0.8 GB.
MAX_PIXELS = 2**28
MAX_RESIZED = 2**26

_PILLOW = threading.Lock()
_ORIENTATION_TAG = 0x0112
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_END = b"IEND\xaeB`\x82"
# What libjpeg says of damaged data. It grumbles at odd headers too, which OpenCV may
# read, and at a few bytes of padding (damage leaves more bytes over, or none).
_DAMAGE = re.compile(
    r"Corrupt JPEG data(?!: \d extraneous bytes before marker 0xd9)"
    "|Premature end of JPEG|Inconsistent progression"
)


class ImageError(ValueError):
    """An image file is missing, empty, truncated, damaged, or no image at all."""


class Facts(NamedTuple):
    """What is known of a photo without decoding it.

    Attributes:
        size: (width, height), as `read_image` returns it.
        sha256: of the file.
    """

    size: Size
    sha256: str


def read_image(path: str | Path) -> np.ndarray:
    """Decode a picture, upright (EXIF orientation applied). Opens the file once.

    A damaged file is an error as far as its format can tell: of a JPEG nearly always, a
    PNG always; not of lossy WebP, nor of what is stored without a check or a code to
    break (BMP, GIF, many TIFF files, single bits of a JPEG).

    Returns:
        (H, W, 3) uint8, RGB. Grey pictures are repeated, transparency is dropped, of
        several pictures the first is taken.

    Raises:
        ImageError: if the file is missing, empty, truncated, damaged or no image.
    """
    return decode(_read_bytes(path), path)


def decode(data: bytes, name: str | Path) -> np.ndarray:
    """Decode the bytes of a picture, as `read_image` does.

    Args:
        data: a whole file.
        name: of the picture, for the message.
    """
    image, orientation = _inspect(data, name)
    try:
        pixels = _pixels(data, image)
    except Exception as error:  # each decoder has its own ones for damaged files
        reason = getattr(error, "err", error)
        raise ImageError(f"{name}: damaged, or unknown inside ({reason}).") from error
    # One reader of the EXIF tag for pixels and sizes, so that they always agree.
    return _upright(pixels, orientation)


def check_image(path: str | Path) -> Facts:
    """Check a file cheaply: header, and the end-of-file marker of its format.

    JPEG, PNG, WebP and BMP files that stop early are found without decoding them.
    Damage in the middle of the data is found by `read_image` only. Opens the file once.

    Raises:
        ImageError: what is wrong with the file.
    """
    data = _read_bytes(path)
    image, orientation = _inspect(data, path)
    width, height = image.size
    size = (height, width) if orientation >= 5 else (width, height)
    return Facts(size, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class ResizePolicy:
    """To which size an image is brought before the network sees it.

    `mode` "fixed": `sides` = (longer, shorter), and the aspect ratio is given up, as
    in the authors' code (1024x720); the longer side goes to the width of landscape
    and square images (height <= width), to the height of portrait ones. "shorter" or
    "longer": that side becomes `sides[0]` and the aspect ratio stays. "native": the
    original size. All but "fixed" round each side to a multiple of 16, at least 32.
    With `squares_upright` "fixed" takes squares for portraits.

    Write and read policies as text: "1024x720", "shorter:720", "longer:1024",
    "native" (`parse` and `str`).
    """

    mode: str = "fixed"
    sides: tuple[int, ...] = (1024, 720)
    squares_upright: bool = False

    def __post_init__(self) -> None:
        """Refuse policies that cannot be applied."""
        numbers = {"fixed": 2, "shorter": 1, "longer": 1, "native": 0}
        descending = all(a >= b for a, b in pairwise((*self.sides, MIN_SIDE)))
        if len(self.sides) != numbers.get(self.mode) or not descending:
            raise ValueError(
                "A policy is 'fixed' with `sides` (longer, shorter), 'shorter' or "
                f"'longer' with one, or 'native' with none, each side >= {MIN_SIDE}; "
                f"got {self.mode!r}, {self.sides}."
            )

    @classmethod
    def parse(cls, text: str) -> ResizePolicy:
        """Read a policy: "1024x720", "shorter:720", "longer:1024" or "native".

        Raises:
            ValueError: if `text` is none of these.
        """
        if text == "native":
            return cls("native", ())
        if match := re.fullmatch(r"(\d+)x(\d+)", text):
            sides = sorted((int(number) for number in match.groups()), reverse=True)
            return cls("fixed", tuple(sides))
        if match := re.fullmatch(r"(shorter|longer):(\d+)", text):
            return cls(match[1], (int(match[2]),))
        raise ValueError(
            "A resize policy is '1024x720', 'shorter:720', 'longer:1024' or 'native'; "
            f"got {text!r}."
        )

    def __str__(self) -> str:
        """The text that `parse` reads."""
        if self.mode == "native":
            return "native"
        if self.mode == "fixed":
            return "x".join(str(side) for side in self.sides)
        return f"{self.mode}:{self.sides[0]}"

    def target_size(self, width: int, height: int) -> Size:
        """(width, height) that an image of this size is brought to.

        Raises:
            ImageError: if that is more than a network can be given (2 x 600 pixels
                would become 720 x 216,000 under "shorter:720").
        """
        if width < 1 or height < 1:
            raise ValueError(f"An image has at least 1x1 pixels; got {width}x{height}.")
        if self.mode == "fixed":
            longer, shorter = self.sides
            upright = height > width or (self.squares_upright and height == width)
            return (shorter, longer) if upright else (longer, shorter)
        scale = 1.0
        if self.mode == "shorter":
            scale = self.sides[0] / min(width, height)
        elif self.mode == "longer":
            scale = self.sides[0] / max(width, height)
        size = _round_side(width * scale), _round_side(height * scale)
        if size[0] * size[1] > MAX_RESIZED:
            raise ImageError(
                f"{width}x{height} pixels become {size[0]}x{size[1]} under {self}, "
                f"more than {MAX_RESIZED:,} in all; crop it or leave it out."
            )
        return size


def resize_image(image: np.ndarray, policy: ResizePolicy) -> np.ndarray:
    """`scale_image` to the size that `policy` gives."""
    height, width = image.shape[:2]
    return scale_image(image, policy.target_size(width, height))


def scale_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Bring an image, or a part of one, to a size.

    Args:
        image: (H, W, 3) uint8.
        size: (width, height).

    Returns:
        (height, width, 3) uint8; averaged over areas when it has fewer pixels than
        `image`, bilinear when more; `image` itself when it has that size.
    """
    height, width = image.shape[:2]
    if size == (width, height):
        return image
    shrinks = size[0] * size[1] < width * height
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=method)


def check_box(box: Box, image_size: Size) -> Box:
    """Check a query box against its image.

    Args:
        box: (x1, y1, x2, y2) in pixels of the original image, exclusive end.
        image_size: (width, height) of the original image.

    Returns:
        The box as floats; what sticks out by one pixel or less is clipped.

    Raises:
        ValueError: if the box is empty, upside down, outside its image or not finite.
    """
    try:
        x1, y1, x2, y2 = (float(number) for number in box)
    except (TypeError, ValueError) as error:
        message = f"A box is four numbers (x1, y1, x2, y2); got {box}."
        raise ValueError(message) from error
    width, height = image_size
    shown = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if not all(math.isfinite(number) for number in (x1, y1, x2, y2)):
        raise ValueError(f"Box {shown} must have finite numbers.")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(
            f"Box {shown} is empty or upside down; expected x1 < x2 and y1 < y2."
        )
    outside = max(-x1, -y1, x2 - width, y2 - height)
    x1, y1 = max(x1, 0.0), max(y1, 0.0)
    x2, y2 = min(x2, float(width)), min(y2, float(height))
    if outside > BOX_TOLERANCE or x2 <= x1 or y2 <= y1:
        raise ValueError(
            f"Box {shown} is outside its image, which has {width}x{height} pixels."
        )
    return x1, y1, x2, y2


def check_region(box: Box) -> Box:
    """Check that a query box is large enough to be described.

    Args:
        box: (x1, y1, x2, y2) in pixels of the original image; see `check_box`.

    Returns:
        The box.

    Raises:
        ValueError: if a side is below `MIN_SIDE` pixels.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"The box has {width:g}x{height:g} pixels, too few to describe: take at "
            f"least {MIN_SIDE}x{MIN_SIDE}."
        )
    return box


def box_to_cells(
    box: Box, image_size: Size, grid_size: Size, partial: bool = True
) -> Cells:
    """Cells of the feature grid that a box touches, rounded outwards.

    The grid is taken to span the whole image evenly. So the answer depends neither on
    the resize policy nor on the stride: pixels of the original image map to cells in
    one step. (Deviation: the authors' code does not; see `Protocol.scale_query_box` and
    `keep_partial_cells`.)

    Args:
        box: (x1, y1, x2, y2) in original pixels; see `check_box`.
        image_size: (width, height) of the ORIGINAL image.
        grid_size: (width, height) of the feature grid.
        partial: False drops the last row and column if they are covered in part.

    Returns:
        (x1, y1, x2, y2) in cells, exclusive end; never empty, never outside the grid.
    """
    x1, y1, x2, y2 = check_box(box, image_size)
    left, right = _span(x1, x2, image_size[0], grid_size[0], partial)
    top, bottom = _span(y1, y2, image_size[1], grid_size[1], partial)
    return left, top, right, bottom


def cells_to_box(cells: Cells, image_size: Size, grid_size: Size) -> Box:
    """The box in original pixels that these cells cover: `box_to_cells` backwards."""
    scale_x = image_size[0] / grid_size[0]
    scale_y = image_size[1] / grid_size[1]
    x1, y1, x2, y2 = cells
    return x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y


def cell_mask(box: Box | None, image_size: Size, grid_size: Size) -> np.ndarray:
    """The box as a mask on the feature grid; None is the whole image.

    Returns:
        (H, W) float32, 1 in the cells of `box_to_cells` and 0 elsewhere.
    """
    mask = np.zeros((grid_size[1], grid_size[0]), dtype=np.float32)
    if box is None:
        box = (0, 0, *image_size)
    x1, y1, x2, y2 = box_to_cells(box, image_size, grid_size)
    mask[y1:y2, x1:x2] = 1
    return mask


def crop_image(image: np.ndarray, box: Box) -> np.ndarray:
    """Pixels inside a box, rounded outwards to whole pixels.

    Args:
        image: (H, W, 3).
        box: (x1, y1, x2, y2) in pixels of this image; see `check_box`.

    Returns:
        (h, w, 3), a view into `image`.
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = box_to_cells(box, (width, height), (width, height))
    return image[y1:y2, x1:x2]


def _span(
    start: float, end: float, pixels: int, cells: int, partial: bool
) -> tuple[int, int]:
    first = math.floor(start * cells / pixels + _CELL_EPSILON)
    last = math.floor(end * cells / pixels + _CELL_EPSILON)
    if partial:
        last = math.ceil(end * cells / pixels - _CELL_EPSILON)
    first = min(max(first, 0), cells - 1)
    return first, min(max(last, first + 1), cells)


def _round_side(side: float) -> int:
    return max(MIN_SIDE, SIDE_MULTIPLE * math.floor(side / SIDE_MULTIPLE + 0.5))


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file.") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}).") from error


def _inspect(data: bytes, name: str | Path) -> tuple[ImageFile.ImageFile, int]:
    """The picture, not decoded yet, and its EXIF orientation 1..8 (1 = upright).

    Raises:
        ImageError: if it is no image, too large, or its end is missing.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty.")
    file = io.BytesIO(data)
    try:
        image = _open(file)
        scan = file.tell()  # of a JPEG: Pillow has read up to there
        # The method of PNG files decodes all pixels, to find a tag behind them; the
        # standard has it before them.
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
        whole = _is_complete(data, image, scan)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image that can be read.") from error
    except Exception as error:  # each format has its own ones for damaged files
        raise ImageError(f"{name}: its header cannot be read ({error}).") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width}x{height} pixels are more than the {MAX_PIXELS:,} that "
            "are read; make it smaller."
        )
    if not whole:
        raise ImageError(
            f"{name}: the file is truncated ({len(data)} bytes, its end is missing); "
            "copy or download it again."
        )
    # Pillow and OpenCV turn TIFF files themselves.
    known = orientation in range(1, 9) and image.format != "TIFF"
    return image, orientation if known else 1


def _open(file: io.BytesIO) -> ImageFile.ImageFile:
    """The header, whatever Pillow's own limit, which is for all of this process."""
    with _PILLOW:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _is_complete(data: bytes, image: ImageFile.ImageFile, scan: int) -> bool:
    """Whether the end of a JPEG, PNG, WebP or BMP file is there; True for others."""
    if data.startswith(_JPEG):
        return data.find(_JPEG_END, scan) > 0  # a thumbnail in front of it has one too
    if image.format == "PNG":
        return _PNG_END in data
    if image.format == "WEBP":
        return len(data) >= struct.unpack("<I", data[4:8])[0] + 8
    if image.format == "BMP":  # some writers get the size in its header wrong
        decoder, _, start, how = image.tile[0]
        row = how[1] if decoder == "raw" and isinstance(how, tuple) else 0
        return len(data) >= start + row * image.height
    return True


def _pixels(data: bytes, image: ImageFile.ImageFile) -> np.ndarray:
    """(H, W, 3) uint8, RGB, as stored."""
    if data.startswith(_JPEG):
        try:  # OpenCV and Pillow mend what they can, without a word
            return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError as error:
            if _DAMAGE.search(str(error)):
                raise
    # Pillow does not check PNG data, and cuts 16 bits off instead of scaling them.
    elif image.format not in ("PNG", "WEBP", "BMP") and image.mode[0] not in "IF":
        return np.array(image.convert("RGB"))
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise ValueError("OpenCV cannot read its data")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels upright (EXIF 2.3, tag 0x0112)."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
