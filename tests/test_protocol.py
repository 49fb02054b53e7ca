"""Presets, and what each flag that concerns extraction does to the numbers."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from cwr_utils import networks, protocol
from cwr_utils.extraction import (
    Describer,
    ImageMaps,
    Setup,
    extract,
    extract_queries,
    photos,
)
from cwr_utils.images import ResizePolicy, read_image, resize_image
from cwr_utils.networks import vgg16_cam
from cwr_utils.protocol import PRESETS

SETUP = tiny.setup()
pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def network():
    return tiny.network()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    return tiny.dataset(folder, places=3, views=1, distractors=2)


def test_presets_go_by_their_names():
    for name, preset in PRESETS.items():
        assert preset.name == name and protocol.get(name) is preset
    with pytest.raises(ValueError, match="one of .*'authors_code', 'corrected', 'pap"):
        protocol.get("autors_code")


def test_the_docstring_shows_the_table():
    rows = [
        line.split(maxsplit=2)
        for line in protocol.__doc__.splitlines()
        if line.startswith("    E")
    ]
    shown = [(point, flag, re.split(r"  +", values)) for point, flag, values in rows]
    assert shown == [
        (row["point"], row["flag"], [row[name] for name in PRESETS])
        for row in protocol.table()
    ]


def test_the_authors_value_of_every_flag_is_not_the_corrected_one():
    corrected, code = PRESETS["corrected"], PRESETS["authors_code"]
    assert corrected == protocol.Protocol("corrected")
    for flag in protocol.FLAGS:
        assert getattr(code, flag) != getattr(corrected, flag), flag
    # Where only the two disagree, the paper has one of both.
    other = {"query_classes": "same pass", "rerank_moves_index": "query"}
    for flag, facts in protocol.FLAGS.items():
        assert facts["stage"] in protocol.STAGES
        values = (getattr(corrected, flag), getattr(code, flag), other.get(flag))
        assert getattr(PRESETS["paper"], flag) in values


@pytest.mark.parametrize("preset", PRESETS)
def test_variants_switch_one_flag_each(preset):
    base = PRESETS[preset]
    found = dict(protocol.variants(base))
    assert list(found) == list(protocol.FLAGS)
    for flag, variant in found.items():
        assert variant.name == f"{preset}, {flag}"
        back = {flag: getattr(base, flag), "name": base.name}
        assert variant != replace(variant, **back) == base
        authors = getattr(PRESETS["authors_code"], flag)
        assert authors in (getattr(base, flag), getattr(variant, flag))


@pytest.mark.parametrize("flag", ["mean_order", "query_classes", "rerank_moves_index"])
def test_unknown_values_are_refused(flag):
    with pytest.raises(ValueError, match=f"`{flag}` must be one of .*; got 'typo'"):
        protocol.Protocol("mine", **{flag: "typo"})


def test_flip_negative_cams_turns_an_all_negative_map_upside_down(
    data, network, tmp_path
):
    """The last class of the network has no positive value anywhere."""
    usual = extract(data, SETUP, tmp_path / "usual")
    setup = tiny.setup(flip_negative_cams=True)
    flipped = extract(data, setup, tmp_path / "flipped")
    before, after = (s.read("class_vectors") for s in (usual, flipped))
    empty, still_empty = ~before.any(axis=-1), ~after.any(axis=-1)
    assert empty[:, -1].all()
    # A map whose maximum is exactly 0 cannot be divided by it and stays empty.
    assert still_empty.sum() < empty.sum()
    np.testing.assert_array_equal(usual.read("empty_cams"), empty.sum(axis=1))
    np.testing.assert_array_equal(flipped.read("empty_cams"), still_empty.sum(axis=1))
    np.testing.assert_array_equal(after[~empty], before[~empty])


def test_stretch_query_images_changes_the_photos_of_queries_only(
    data, network, tmp_path, monkeypatch
):
    """They have values 60..160, as a faint photo does."""

    def faint(path):
        return (60 + read_image(path) // 2.55).astype(np.uint8)

    monkeypatch.setattr(photos, "read_image", faint)
    usual = extract(data, SETUP, tmp_path / "usual", batch=1)
    setup = tiny.setup(stretch_query_images=True)
    stretched = extract(data, setup, tmp_path / "stretched", batch=1)
    before, after = (s.read("class_vectors") for s in (usual, stretched))
    queries = {query.image for query in data.queries}
    for row, name in enumerate(data.images):
        assert (name in queries) != np.array_equal(before[row], after[row])
    row = data.images.index(data.queries[0].image)
    photo = faint(data.path(data.queries[0].image)).astype(float)
    photo = (photo - photo.min()) * 255 / (photo.max() - photo.min())
    photo = resize_image(np.rint(photo).astype(np.uint8), SETUP.policy)
    expected = Describer(setup)(photo[None])["class_vectors"][0]
    np.testing.assert_allclose(after[row], expected, rtol=1e-2, atol=1e-3)


def test_a_photo_of_one_colour_survives_the_stretch():
    flat = np.full((4, 5, 3), 77, np.uint8)
    assert not photos._stretch_contrast(flat).any()
    wide = np.array([[[0, 128, 255]]], np.uint8)
    np.testing.assert_array_equal(photos._stretch_contrast(wide), wide)


def test_the_search_reads_query_photos_as_they_are(data, network, tmp_path):
    stores = [
        extract_queries(
            data, tiny.setup(stretch_query_images=flag), tmp_path / str(flag)
        )
        for flag in (False, True)
    ]
    first, second = (store.read("class_vectors") for store in stores)
    np.testing.assert_array_equal(first, second)


# scale_query_box: a 128x96 photo at 64x48 has a grid of 16x12 cells, 8 pixels each.


@pytest.mark.parametrize(
    ("box", "scaled", "unscaled"),
    [
        ((16, 16, 48, 40), (2, 2, 6, 5), (4, 4, 12, 10)),
        ((0, 0, 128, 96), (0, 0, 16, 12), (0, 0, 16, 12)),
        ((32, 16, 120, 90), (4, 2, 15, 12), (8, 4, 16, 12)),  # cut at the border
        ((100, 80, 120, 90), (12, 10, 15, 12), (15, 11, 16, 12)),  # beyond it: a cell
    ],
)
def test_scale_query_box_maps_the_box_to_the_resized_photo(
    network, box, scaled, unscaled
):
    size, grid = (128, 96), (16, 12)
    describer = Describer(SETUP)
    assert describer.query_cells(box, size, grid) == scaled
    describer = Describer(tiny.setup(scale_query_box=False))
    assert describer.query_cells(box, size, grid) == unscaled


def test_an_unscaled_box_describes_another_part_of_the_photo(network):
    photo = tiny.scene(3)[:96, :128]
    usual = Describer(SETUP)
    code = Describer(tiny.setup(scale_query_box=False))
    got = code.describe_query(photo, (16, 16, 48, 40))
    same = usual.describe_query(photo, (32, 32, 96, 80))
    np.testing.assert_array_equal(got["class_vectors"], same["class_vectors"])
    assert not np.array_equal(got["logits"], same["logits"])  # the crop is the box


def test_unscaled_boxes_that_leave_the_resized_photo_are_extracted(
    data, network, tmp_path
):
    setup = tiny.setup(scale_query_box=False)
    for query in data.queries:
        assert max(query.box) > 64
    store = extract_queries(data, setup, tmp_path / "q")
    assert np.isfinite(store.read("class_vectors")).all()
    assert store.read("class_vectors").any(axis=(1, 2)).all()


# query_classes: 128x96 at 64x48, a box of 40x56 pixels

BOX = (16.0, 8.0, 56.0, 64.0)


def query_logits(photo, **flags):
    return Describer(tiny.setup(**flags)).describe_query(photo, BOX)


def test_query_classes_come_from_one_of_three_passes(network):
    photo = tiny.scene(3)[:96, :128]
    crop = photo[8:64, 16:56]
    scaled, native, same = (
        query_logits(photo, query_classes=source)
        for source in ("scaled crop", "native crop", "same pass")
    )
    # 20x28 pixels would be the scale of the photo: both sides go to 32, the least.
    expected = cv2.resize(crop, (32, 32), interpolation=cv2.INTER_AREA)
    expected = network.maps(expected[None], tiny.LAYER)["logits"][0]
    np.testing.assert_allclose(scaled["logits"], expected, rtol=1e-5)
    # 40x56 pixels, cut to multiples of 16.
    expected = cv2.resize(crop, (32, 48), interpolation=cv2.INTER_AREA)
    expected = network.maps(expected[None], tiny.LAYER)["logits"][0]
    np.testing.assert_allclose(native["logits"], expected, rtol=1e-5)
    # On the CAM grid of 8x6 cells, 16 pixels of the photo each.
    whole = resize_image(photo, SETUP.policy)
    maps = network.maps(whole[None], tiny.LAYER)["cam_maps"][0, 0:4, 1:4]
    mean = sum(maps[y, x] for y in range(4) for x in range(3)) / 12
    expected = mean @ network.class_weights + network.class_bias
    np.testing.assert_allclose(same["logits"], expected, rtol=1e-4, atol=1e-5)
    for other in (native, same):
        assert not np.allclose(other["logits"], scaled["logits"], rtol=1e-3)
        np.testing.assert_array_equal(other["class_vectors"], scaled["class_vectors"])


def test_a_crop_is_scaled_as_its_photo_is_in_width_and_in_height():
    """128x64 at 64x48: a half in width, three quarters in height."""
    photo = tiny.scene(3)[:64, :128]
    got = Describer(SETUP).describe_query(photo, (2.0, 2.0, 122.0, 62.0))["logits"]
    # 60 and 45 pixels, to multiples of 16.
    expected = cv2.resize(photo[2:62, 2:122], (64, 48), interpolation=cv2.INTER_AREA)
    expected = SETUP.network.maps(expected[None], tiny.LAYER)["logits"][0]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_box_around_the_whole_photo_is_no_box():
    """Enlarged or shrunk, whatever multiple of 16 the size is not."""
    for size, resize in (((40, 30), "100x72"), ((160, 120), "100x72")):
        photo = cv2.resize(tiny.scene(3), size)
        describer = Describer(tiny.setup(resize=resize, dtype="float32"))
        whole = describer.describe_query(photo, (0.0, 0.0, *map(float, size)))
        for name, value in describer.describe_query(photo, None).items():
            np.testing.assert_allclose(whole[name], value, rtol=1e-4, atol=1e-5)


def test_a_crop_that_is_enlarged_is_enlarged_as_a_photo_is():
    photo = tiny.scene(3)[:24, :32]
    got = Describer(SETUP).describe_query(photo, (0.0, 0.0, 24.0, 24.0))["logits"]
    expected = cv2.resize(photo[:, :24], (48, 48), interpolation=cv2.INTER_LINEAR)
    expected = SETUP.network.maps(expected[None], tiny.LAYER)["logits"][0]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_same_pass_over_the_whole_photo_has_its_own_logits(network):
    photo = tiny.scene(3)[:96, :128]
    describer = Describer(tiny.setup(query_classes="same pass"))
    whole = describer.describe_query(photo, (0, 0, 128, 96))["logits"]
    np.testing.assert_allclose(
        whole, describer.describe_query(photo, None)["logits"], rtol=1e-4, atol=1e-5
    )


# keep_partial_cells and scale_query_box together: slices of unscaled pixels


@pytest.mark.parametrize(
    ("box", "kept", "dropped"),
    [
        ((17, 16, 47, 31), (2, 2, 6, 4), (2, 2, 5, 3)),
        ((16, 16, 48, 40), (2, 2, 6, 5), (2, 2, 6, 5)),  # on borders of cells
        ((17, 17, 23, 23), (2, 2, 3, 3), (2, 2, 3, 3)),  # no whole cell: the first
    ],
)
def test_keep_partial_cells_rounds_the_far_border_outwards(network, box, kept, dropped):
    size, grid = (128, 96), (16, 12)
    assert Describer(SETUP).query_cells(box, size, grid) == kept
    describer = Describer(tiny.setup(keep_partial_cells=False))
    assert describer.query_cells(box, size, grid) == dropped


@given(st.data())
def test_the_authors_box_is_a_slice_of_original_pixels(data):
    """1024x768 photos at 1024x720: 45 rows of cells, the last three are lost."""
    width, height = data.draw(st.sampled_from([(1024, 768), (768, 1024)]))
    x1 = data.draw(st.floats(0, width - 80))
    y1 = data.draw(st.floats(0, height - 120))
    x2 = data.draw(st.floats(x1 + 40, width))
    y2 = data.draw(st.floats(y1 + 40, height))
    columns, rows = (64, 45) if width > height else (45, 64)
    cells = np.arange(rows * columns).reshape(rows, columns)
    expected = cells[int(y1) // 16 : int(y2) // 16, int(x1) // 16 : int(x2) // 16]
    setup = tiny.setup(resize=None, protocol="authors_code")
    assert setup.resize == "1024x720"
    describer = Describer(setup)
    got = describer.query_cells((x1, y1, x2, y2), (width, height), (columns, rows))
    if expected.size:  # an empty slice gave no number at all
        np.testing.assert_array_equal(cells[got[1] : got[3], got[0] : got[2]], expected)


def test_flags_of_queries_share_the_store_of_the_photos(data, network, tmp_path):
    paths, folders = set(), set()
    for flags in (
        {},
        {"scale_query_box": False},
        {"keep_partial_cells": False},
        {"query_classes": "same pass"},
        {"query_classes": "native crop"},
    ):
        setup = tiny.setup(tmp_path, **flags)
        paths.add(extract(data, setup).path)  # the same, or an error
        queries = extract_queries(data, setup)
        folders.add(queries.path)
        assert {name: queries.config[name] for name in flags} == flags
    assert len(paths) == 1 and len(folders) == 5


def test_what_is_stretched_is_no_matter_of_photos_without_queries(data, network):
    stretched = tiny.setup(stretch_query_images=True)
    for queries, parts in ((data.queries, 2), ((), 1)):
        part = replace(data, queries=queries)
        paths = {setup.photos_path(part) for setup in (SETUP, stretched)}
        assert len(paths) == parts


# mean_order


def test_mean_order_is_part_of_vgg16_cam_and_of_its_stores(data):
    sizes = vgg16_cam.Sizes((1, 1, 1, 2, 2), 2, 3)
    usual = networks.load("vgg16-cam", None, sizes=sizes)
    swapped = networks.under(usual, PRESETS["authors_code"])
    pixel = np.array([[[[100.0, 50.0, 10.0]]]], np.float32)  # R, G, B
    means = {"bgr": (103.939, 116.779, 123.68), "swapped": (123.68, 116.779, 103.939)}
    for network, order in ((usual, "bgr"), (swapped, "swapped")):
        expected = np.array([10, 50, 100]) - means[order]
        got = np.asarray(network.preprocess(pixel))[0, 0, 0]
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    images = tiny.view(0, 0)[None]
    assert not np.allclose(usual.maps(images)["logits"], swapped.maps(images)["logits"])
    back = networks.under(swapped, PRESETS["corrected"])
    np.testing.assert_array_equal(
        usual.maps(images)["logits"], back.maps(images)["logits"]
    )
    assert usual.name == back.name == "vgg16-cam"
    assert swapped.name == "vgg16-cam:swapped-mean"
    usual.recipe = networks.load, ("vgg16-cam", None, 0, "float32", ())
    setups = [
        Setup(usual, "c", protocol=replace(PRESETS["corrected"], mean_order=order))
        for order in ("bgr", "swapped")
    ]
    assert setups[0].network is usual
    assert setups[1].network.name == swapped.name
    assert len({setup.photos_path(data) for setup in setups}) == 2
    # In another process it is made with that order.
    make, (*_, settings) = setups[1].network.recipe
    assert make is networks.load and settings == (("mean_order", "swapped"),)


def test_other_networks_have_no_mean_order(network):
    assert networks.under(network, PRESETS["authors_code"]) is network


# resize and squares


def test_the_protocol_says_the_size_where_the_run_does_not():
    for name, size in (("authors_code", "1024x720"), ("paper", "shorter:720")):
        assert tiny.setup(resize=None, protocol=name).resize == size
        assert tiny.setup(resize="640x480", protocol=name).resize == "640x480"


def test_a_fixed_size_distorts_and_a_shorter_side_does_not():
    for name, size in (("authors_code", (1024, 720)), ("paper", (960, 720))):
        policy = ResizePolicy.parse(PRESETS[name].resize)
        assert policy.target_size(1024, 768) == size


@pytest.mark.parametrize(
    ("size", "indexed", "reranked"),
    [
        ((80, 80), (64, 48), (48, 64)),
        ((80, 79), (64, 48), (64, 48)),
        ((79, 80), (48, 64), (48, 64)),
    ],
)
def test_only_squares_are_turned_when_reranked(size, indexed, reranked):
    policy = SETUP.policy
    upright = replace(policy, squares_upright=True)
    assert policy.target_size(*size) == indexed
    assert upright.target_size(*size) == reranked
    kept = ResizePolicy.parse("shorter:64")
    turned = replace(kept, squares_upright=True)
    assert kept.target_size(*size) == turned.target_size(*size)


def test_maps_of_squares_stand_upright_when_reranked(data, network):
    maps = ImageMaps(data, SETUP, on_disk=False)
    upright = maps.under(tiny.setup(rerank_squares_upright=True))
    square = data.images[2]
    usual, turned = maps(square)[0], upright(square)[0]
    assert usual.shape[:2] == (12, 16) and turned.shape[:2] == (16, 12)
    photo = cv2.resize(
        read_image(data.path(square)), (48, 64), interpolation=cv2.INTER_AREA
    )
    expected = network.maps(photo[None], tiny.LAYER)["features"][0]
    np.testing.assert_allclose(turned, expected, rtol=1e-2, atol=1e-3)
    for name in data.images[:2]:
        np.testing.assert_array_equal(maps(name)[0], upright(name)[0])
