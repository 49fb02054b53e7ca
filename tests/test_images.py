import io
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from sklearn.datasets import load_sample_image

from cwr_utils.images import (
    ImageError,
    ResizePolicy,
    box_to_cells,
    cell_mask,
    cells_to_box,
    check_box,
    check_image,
    check_region,
    crop_image,
    decode,
    read_image,
    resize_image,
    scale_image,
)

POLICIES = ("1024x720", "shorter:480", "longer:1024", "native", "500x333")
FORMATS = ("jpg", "png", "webp", "bmp")


@pytest.fixture(scope="module")
def china():
    return load_sample_image("china.jpg")  # (427, 640, 3)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def pixels():
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return cv2.resize(noise, (120, 80))


# --- decoding -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_read_image_returns_rgb_as_stored(tmp_path, pixels, suffix):
    path = save(tmp_path / f"a.{suffix}", pixels)
    np.testing.assert_array_equal(read_image(path), pixels)


def test_bytes_are_decoded_like_their_file(tmp_path, pixels):
    path = save(tmp_path / "a.jpg", pixels)
    np.testing.assert_array_equal(decode(path.read_bytes(), "a"), read_image(path))
    with pytest.raises(ImageError, match="an upload: not an image"):
        decode(b"text", "an upload")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_read_image_always_returns_three_uint8_channels(tmp_path, pixels, mode):
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.shape == (80, 120, 3)
    assert read.dtype == np.uint8


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_pixels_and_size_alike(
    tmp_path, pixels, orientation, suffix
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", pixels, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    read = read_image(path)
    assert read.shape == expected.shape
    assert np.abs(read.astype(int) - expected).mean() < 2
    assert check_image(path).size == (read.shape[1], read.shape[0])


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_size_comes_from_the_header(tmp_path, pixels, suffix, monkeypatch):
    path = save(tmp_path / f"a.{suffix}", pixels)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # what decodes
    assert check_image(path).size == (120, 80)


def test_nonsense_exif_orientation_is_upright(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 77
    path = save(tmp_path / "a.jpg", pixels, exif=exif)
    assert check_image(path).size == (120, 80)
    assert read_image(path).shape == (80, 120, 3)


@pytest.mark.parametrize("function", [read_image, check_image])
def test_missing_empty_and_foreign_files_are_named_errors(tmp_path, function):
    with pytest.raises(ImageError, match=r"nowhere\.jpg: no such file"):
        function(tmp_path / "nowhere.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match=r"empty\.jpg: the file is empty"):
        function(tmp_path / "empty.jpg")
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(ImageError, match=r"text\.jpg: not an image"):
        function(tmp_path / "text.jpg")
    with pytest.raises(ImageError):
        function(tmp_path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_a_file_cut_anywhere_is_an_error(tmp_path, pixels, suffix, share):
    path = save(tmp_path / f"a.{suffix}", pixels)
    check_image(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ImageError):
        check_image(path)
    with pytest.raises(ImageError):
        read_image(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_even_the_last_byte_is_missed(tmp_path, pixels, suffix):
    path = save(tmp_path / f"a.{suffix}", pixels)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImageError):
        check_image(path)


def jpeg(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    "trailer",
    [b"\0" * 5000, b"camera notes", b"\xff\xd8 second \xff\xda picture, cut"],
)
def test_a_jpeg_with_more_behind_its_end_is_whole(
    tmp_path, pixels, progressive, trailer
):
    path = Path(tmp_path / "a.jpg")
    path.write_bytes(jpeg(pixels, progressive=progressive) + trailer)
    check_image(path)
    assert read_image(path).shape == (80, 120, 3)


def test_the_end_of_a_thumbnail_does_not_hide_a_cut(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x9286] = b"ASCII\0\0\0" + jpeg(pixels[:16, :16])  # a JPEG inside the header
    data = jpeg(pixels, exif=exif.tobytes())
    assert data.count(b"\xff\xd9") >= 2
    path = Path(tmp_path / "a.jpg")
    path.write_bytes(data)
    check_image(path)
    path.write_bytes(data[:-2])
    with pytest.raises(ImageError, match="truncated"):
        check_image(path)


DAMAGE = {
    "a sector of zeros": lambda data, at: data[:at] + bytes(512) + data[at + 512 :],
    "a lost piece": lambda data, at: data[:at] + data[at + 512 :],
    "cut and closed": lambda data, at: data[:at] + b"\xff\xd9",
}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_jpeg_damaged_in_the_middle_is_an_error(tmp_path, china, damage, progressive):
    data = jpeg(china, quality=90, progressive=progressive)
    path = tmp_path / "a.jpg"
    path.write_bytes(DAMAGE[damage](data, len(data) // 3))
    check_image(path)  # it does not look at the pixels
    with pytest.raises(ImageError, match=r"a\.jpg: damaged"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_pixels_are_those_of_opencv(china, mode, options):
    buffer = io.BytesIO()
    Image.fromarray(china).convert(mode).save(buffer, "jpeg", **options)
    stored = np.frombuffer(buffer.getvalue(), np.uint8)
    expected = cv2.cvtColor(cv2.imdecode(stored, 1), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(decode(buffer.getvalue(), "a"), expected)


def test_what_libjpeg_grumbles_at_in_whole_photos_is_read(china):
    data = jpeg(china)
    expected = decode(data, "a")
    start = data.index(b"\xff\xda")  # of the scan, with its three parameters
    start += 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]
    for odd in (
        data.replace(b"JFIF\0\1", b"JFIF\0\3", 1),
        data[: start - 3] + bytes(3) + data[start:],
        data[:-2] + b"\x12\x34\x56\x78" + data[-2:],  # padding of a camera
    ):
        with pytest.raises(ValueError, match="unknown JFIF|Invalid SOS|extraneous"):
            simplejpeg.decode_jpeg(odd)
        np.testing.assert_array_equal(decode(odd, "a"), expected)


def test_a_jpeg_of_rare_subsampling_is_read():
    grey = np.full((8, 16, 3), 128, np.uint8)  # all blocks are coded alike
    data = bytearray(jpeg(grey, keep_rgb=True))
    start = data.index(b"\xff\xc0")  # of the frame; its components are from byte 10 on
    data[start + 14] = 0x21  # green twice as wide as red and blue
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg(bytes(data))
    np.testing.assert_array_equal(decode(bytes(data), "a"), grey)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_other_damage_in_the_middle_is_an_error(tmp_path, china, kind):
    path = save(tmp_path / f"a.{kind}", china, lossless=True)
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(2048) + data[half + 2048 :])
    with pytest.raises(ImageError, match=r"a\.\w+: damaged"):
        read_image(path)


def test_whatever_a_decoder_raises_names_the_file(tmp_path, pixels, monkeypatch):
    path = save(tmp_path / "a.avif", pixels)
    data = bytearray(path.read_bytes())
    length = data.index(b"iloc") + 22  # of what is coded: nothing
    data[length : length + 4] = bytes(4)
    path.write_bytes(data)
    for function in (check_image, read_image):
        with pytest.raises(ImageError, match=r"a\.avif: its header .*(Failed|empty)"):
            function(path)
    path = save(tmp_path / "b.gif", pixels)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: 1 / 0)
    with pytest.raises(ImageError, match=r"b\.gif: damaged.*division by zero"):
        read_image(path)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["tiff", "avif"])
def test_formats_that_turn_themselves_are_turned_once(
    tmp_path, pixels, kind, orientation
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{kind}", pixels, exif=exif)
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    expected = np.rot90(pixels, turns)
    assert check_image(path).size == expected.shape[1::-1]
    assert np.abs(read_image(path).astype(int) - expected).mean() < 10


@pytest.mark.parametrize(
    "kind", ["gif", "jpeg2000", "tiff", "avif", "ppm", "tga", "heif"]
)
def test_other_formats_are_read(tmp_path, pixels, kind):
    if kind == "heif":
        pytest.importorskip("pillow_heif")
    path = tmp_path / "a.jpg"  # contents count, not the name
    Image.fromarray(pixels).save(path, kind)
    assert check_image(path).size == (120, 80)
    read = read_image(path)
    assert read.shape == pixels.shape
    assert read.flags.writeable
    assert np.abs(read.astype(int) - pixels).mean() < 20


def test_sixteen_bits_are_scaled(tmp_path, pixels):
    grey = pixels[..., 0]
    for kind in ("png", "tiff", "jp2"):
        path = tmp_path / f"a.{kind}"
        cv2.imwrite(str(path), grey.astype(np.uint16) * 257)
        assert np.abs(read_image(path)[..., 1].astype(int) - grey).max() <= 1


def test_pictures_with_more_behind_their_end_are_whole(tmp_path, pixels):
    path = save(tmp_path / "a.png", pixels)
    path.write_bytes(path.read_bytes() + b"x" * 100_000)
    np.testing.assert_array_equal(read_image(path), pixels)
    path = save(tmp_path / "a.bmp", pixels)
    data = path.read_bytes()
    path.write_bytes(data[:2] + struct.pack("<I", len(data) + 999) + data[6:])
    np.testing.assert_array_equal(read_image(path), pixels)


def test_a_photo_of_200_megapixels_is_no_attack(tmp_path, recwarn):
    def claim(width, height):
        data = bytearray(jpeg(np.zeros((16, 16, 3), np.uint8)))
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
        (tmp_path / "a.jpg").write_bytes(data)
        return check_image(tmp_path / "a.jpg").size

    assert claim(16320, 12240) == (16320, 12240)
    with pytest.raises(ImageError, match=r"a\.jpg: 20000x20000 pixels are more than"):
        claim(20000, 20000)
    assert not recwarn.list
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # the limit of others stays


# --- resize policies ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size", "target"),
    [
        ("1024x720", (640, 480), (1024, 720)),
        ("1024x720", (480, 640), (720, 1024)),
        ("1024x720", (500, 500), (1024, 720)),  # square counts as landscape
        ("720x1024", (640, 480), (1024, 720)),  # the same policy
        ("shorter:720", (1024, 768), (960, 720)),
        ("shorter:720", (768, 1024), (720, 960)),
        ("longer:1024", (4000, 3000), (1024, 768)),
        ("longer:1024", (3000, 4000), (768, 1024)),
        ("longer:1024", (5000, 50), (1024, 32)),  # never below 32
        ("native", (640, 427), (640, 432)),  # 26.7 cells of 16
        ("native", (10, 2000), (32, 2000)),
    ],
)
def test_target_size(text, size, target):
    assert ResizePolicy.parse(text).target_size(*size) == target


@pytest.mark.parametrize("text", ["1024x720", "shorter:720", "longer:33", "native"])
def test_policies_round_trip_as_text(text):
    assert str(ResizePolicy.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "1024", "1024x", "x720", "0x0", "16x16", "shorter", "shorter:0", "longer:-5",
     "longest:720", "1024x720x3", "native:1", " 1024x720"],
)  # fmt: skip
def test_bad_policies_are_refused(text):
    with pytest.raises(ValueError, match=r"policy|Sides"):
        ResizePolicy.parse(text)


def test_policies_built_by_hand_are_checked_too():
    with pytest.raises(ValueError, match="longer, shorter"):
        ResizePolicy("fixed", (720, 1024))
    with pytest.raises(ValueError, match=r"'shorter', \(1, 2\)"):
        ResizePolicy("shorter", (1, 2))
    with pytest.raises(ValueError, match="'crop'"):
        ResizePolicy("crop", ())
    with pytest.raises(ValueError, match="1x1"):
        ResizePolicy().target_size(0, 5)


@given(
    st.integers(64, 5000),
    st.integers(64, 5000),
    st.sampled_from(["shorter:480", "longer:800", "native"]),
)
def test_policies_that_keep_the_aspect_do_so_to_half_a_step(width, height, text):
    policy = ResizePolicy.parse(text)
    new_width, new_height = policy.target_size(width, height)
    assert new_width % 16 == new_height % 16 == 0
    scale = {
        "shorter:480": 480 / min(width, height),
        "longer:800": 800 / max(width, height),
        "native": 1,
    }[text]
    for new, old in ((new_width, width), (new_height, height)):
        assert new == 32 or abs(new - old * scale) <= 8 + 1e-6


def test_resize_averages_when_shrinking_and_keeps_the_right_size_as_it_is():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    small = resize_image(stripes, ResizePolicy.parse("longer:32"))
    np.testing.assert_array_equal(small, np.full((32, 32, 3), 100))
    assert resize_image(stripes, ResizePolicy.parse("native")) is stripes


def test_resize_is_smooth_when_enlarging():
    edge = np.zeros((2, 2, 3), np.uint8)
    edge[:, 1] = 200
    large = scale_image(edge, (8, 2))  # blocks would have two values
    np.testing.assert_array_equal(large[0, :, 0], [0, 0, 25, 75, 125, 175, 200, 200])
    assert large.shape == (2, 8, 3)
    assert large.dtype == np.uint8


def test_a_part_is_scaled_like_the_whole(china):
    policy = ResizePolicy.parse("1024x720")
    whole = crop_image(china, (0, 0, 640, 427))
    np.testing.assert_array_equal(
        scale_image(whole, (1024, 720)), resize_image(china, policy)
    )


def test_a_thin_picture_does_not_become_too_large_for_any_network():
    policy = ResizePolicy.parse("shorter:720")
    with pytest.raises(ImageError, match="2x600 pixels become 720x216000 under short"):
        policy.target_size(2, 600)
    assert policy.target_size(20_000, 2_000) == (7200, 720)  # a panorama
    assert ResizePolicy.parse("longer:720").target_size(2, 600) == (32, 720)
    assert ResizePolicy.parse("native").target_size(8192, 8192) == (8192, 8192)
    with pytest.raises(ImageError, match="under native"):
        ResizePolicy.parse("native").target_size(8192, 8208)


def test_squares_stand_where_the_policy_says_so():
    policy = ResizePolicy.parse("64x48")
    upright = replace(policy, squares_upright=True)
    sizes = [(50, 50), (51, 50), (50, 51)]
    assert [policy.target_size(*s) for s in sizes] == [(64, 48), (64, 48), (48, 64)]
    assert [upright.target_size(*s) for s in sizes] == [(48, 64), (64, 48), (48, 64)]
    free = ResizePolicy("longer", (64,), squares_upright=True)
    assert free.target_size(50, 50) == (64, 64)
    assert resize_image(np.zeros((9, 9, 3), np.uint8), upright).shape == (64, 48, 3)


# --- boxes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "why"),
    [
        ((10, 10, 10, 50), "empty or upside down"),
        ((50, 10, 10, 50), "empty or upside down"),
        ((10, 50, 50, 10), "empty or upside down"),
        ((-2, 0, 50, 50), "outside"),
        ((0, 0, 101.5, 50), "outside"),
        ((0, 0, 50, 82), "outside"),
        ((100.2, 0, 100.9, 50), "outside"),  # within the tolerance, but nothing left
        ((-5, -5, -1, -1), "outside"),
        ((0, 0, float("nan"), 5), "finite"),
        ((0, 0, float("inf"), 5), "finite"),
        ((1, 2, 3), "four numbers"),
        (("a", 0, 1, 1), "four numbers"),
        (None, "four numbers"),
    ],
)
def test_bad_boxes_are_refused(box, why):
    with pytest.raises(ValueError, match=why):
        check_box(box, (100, 80))


def test_boxes_that_stick_out_by_a_pixel_are_clipped():
    assert check_box((-0.9, -1, 101, 80.4), (100, 80)) == (0, 0, 100, 80)
    assert check_box((1, 2, 3, 4), (100, 80)) == (1.0, 2.0, 3.0, 4.0)


def test_a_region_has_32_pixels_on_each_side_or_is_refused():
    assert check_region((8, 8, 40, 40)) == (8, 8, 40, 40)
    for box, size in (((8, 8, 39.5, 90), "31.5x82"), ((8, 8, 90, 39), "82x31")):
        with pytest.raises(ValueError, match=f"has {size} pixels.*at least 32x32"):
            check_region(box)


def test_box_to_cells_by_hand():
    # 1024x768 pixels on 64x45 cells: a cell is 16 x 17.07 pixels.
    assert box_to_cells((0, 0, 1024, 768), (1024, 768), (64, 45)) == (0, 0, 64, 45)
    assert box_to_cells((16, 0, 32, 17), (1024, 768), (64, 45)) == (1, 0, 2, 1)
    assert box_to_cells((15.9, 0, 32.1, 18), (1024, 768), (64, 45)) == (0, 0, 3, 2)
    assert box_to_cells((1023, 767, 1024, 768), (1024, 768), (64, 45)) == (
        63, 44, 64, 45,
    )  # fmt: skip
    assert box_to_cells((5, 5, 5.1, 5.1), (1024, 768), (64, 45)) == (0, 0, 1, 1)


@st.composite
def geometry(draw):
    """Image size, grid size and a box inside the image."""
    size = draw(st.tuples(st.integers(1, 4000), st.integers(1, 4000)))
    grid = draw(st.tuples(st.integers(1, 130), st.integers(1, 130)))
    spans = []
    for pixels in size:
        start = draw(st.floats(0, pixels * 0.999))
        end = draw(st.floats(start, pixels))
        spans.append((start, end if end > start else float(pixels)))
    (x1, x2), (y1, y2) = spans
    return size, grid, (x1, y1, x2, y2)


@given(geometry())
def test_cells_are_never_empty_never_outside_and_cover_the_box(case):
    size, grid, box = case
    x1, y1, x2, y2 = box_to_cells(box, size, grid)
    assert 0 <= x1 < x2 <= grid[0]
    assert 0 <= y1 < y2 <= grid[1]
    covered = cells_to_box((x1, y1, x2, y2), size, grid)
    slack = 1e-6 * max(size)
    assert covered[0] <= box[0] + slack
    assert covered[1] <= box[1] + slack
    assert covered[2] >= box[2] - slack
    assert covered[3] >= box[3] - slack
    mask = cell_mask(box, size, grid)
    assert mask.shape == (grid[1], grid[0])
    assert mask.dtype == np.float32
    assert mask.sum() == (x2 - x1) * (y2 - y1)


@given(st.data())
def test_whole_cells_map_back_to_themselves(data):
    size = data.draw(st.tuples(st.integers(200, 4000), st.integers(200, 4000)))
    grid = data.draw(st.tuples(st.integers(1, 64), st.integers(1, 64)))
    x1 = data.draw(st.integers(0, grid[0] - 1))
    y1 = data.draw(st.integers(0, grid[1] - 1))
    x2 = data.draw(st.integers(x1 + 1, grid[0]))
    y2 = data.draw(st.integers(y1 + 1, grid[1]))
    box = cells_to_box((x1, y1, x2, y2), size, grid)
    assert box_to_cells(box, size, grid) == (x1, y1, x2, y2)


def test_no_box_is_the_whole_grid():
    np.testing.assert_array_equal(cell_mask(None, (640, 427), (7, 5)), np.ones((5, 7)))


BOXES = {
    "inside": (100, 120, 300, 260),
    "one pixel": (320, 200, 321, 201),
    "top left corner": (0, 0, 3, 3),
    "bottom right corner": (637, 424, 640, 427),
    "bottom border": (200, 415, 420, 427),
    "right border": (600, 50, 640, 400),
    "whole photo": (0, 0, 640, 427),
}


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize("portrait", [False, True])
@pytest.mark.parametrize("which", BOXES)
def test_a_rectangle_in_a_photo_is_found_again_in_the_grid(
    china, which, portrait, text, stride
):
    x1, y1, x2, y2 = BOXES[which]
    photo = china // 2  # dark, so that the rectangle can add the same everywhere
    if portrait:
        photo, (x1, y1, x2, y2) = photo.transpose(1, 0, 2), (y1, x1, y2, x2)
    height, width = photo.shape[:2]
    drawn = photo.copy()
    drawn[y1:y2, x1:x2] += 128

    policy = ResizePolicy.parse(text)
    before = resize_image(photo, policy).astype(np.float32)
    after = resize_image(drawn, policy).astype(np.float32)
    changed = (after - before).mean(axis=2) / 128
    # SAME padding: a network of this stride has ceil(side / stride) cells.
    grid = (-(-changed.shape[1] // stride), -(-changed.shape[0] // stride))
    share = cv2.resize(changed, grid, interpolation=cv2.INTER_AREA)

    x1, y1, x2, y2 = (float(number) for number in (x1, y1, x2, y2))
    cells = box_to_cells((x1, y1, x2, y2), (width, height), grid)
    mask = cell_mask((x1, y1, x2, y2), (width, height), grid) > 0
    # Interpolation smears at most one resized pixel over the border of the box.
    smear = 1 / min(before.shape[0] / grid[1], before.shape[1] / grid[0])
    assert mask.any()
    assert not (share[~mask] > smear).any(), "a touched cell was lost"
    # Every cell of the mask shows as much of the rectangle as geometry says.
    for row in range(cells[1], cells[3]):
        for column in range(cells[0], cells[2]):
            left, top, right, bottom = cells_to_box(
                (column, row, column + 1, row + 1), (width, height), grid
            )
            overlap = (min(right, x2) - max(left, x1)) * (
                min(bottom, y2) - max(top, y1)
            )
            expected = overlap / ((right - left) * (bottom - top))
            assert share[row, column] == pytest.approx(expected, abs=2 * smear)


def test_crop_is_rounded_outwards(china):
    crop = crop_image(china, (10.6, 20.0, 12.2, 21.0))
    np.testing.assert_array_equal(crop, china[20:21, 10:13])
    np.testing.assert_array_equal(crop_image(china, (0, 0, 640, 427.9)), china)
    with pytest.raises(ValueError, match="outside"):
        crop_image(china, (0, 0, 700, 100))
