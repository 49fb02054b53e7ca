"""Presets, and what each flag that concerns extraction does to the numbers."""

from dataclasses import fields, replace

import numpy as np
import pytest
import tiny

from cwr_utils import extraction, protocol
from cwr_utils.extraction import Describer, ExtractionConf, extract
from cwr_utils.images import ResizePolicy, read_image, resize_image
from cwr_utils.protocol import PRESETS

CONF = ExtractionConf(resize=tiny.RESIZE)


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "Describer", tiny.describer)
        yield


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


def test_what_the_presets_say():
    corrected, paper, code = (
        protocol.get(name) for name in ("corrected", "paper", "authors_code")
    )
    assert corrected == protocol.Protocol("corrected")
    differences = {
        field.name
        for field in fields(paper)
        if getattr(paper, field.name) != getattr(corrected, field.name)
    }
    assert differences == {
        "name",
        "rerank_fallback",
        "expand_with_query",
        "rerank_moves_index",
    }
    assert paper.rerank_thresholds == (0.01, 0.1, 0.2, 0.3, 0.4)
    assert code.rerank_thresholds == (0.01, 0.1, 0.2, 0.3)  # the fifth is not scored
    assert code.flip_negative_cams and code.stretch_query_images
    assert code.query_replaces_own_row and not code.scale_query_box
    assert code.rerank_moves_index == "run"


def test_flip_negative_cams_turns_an_all_negative_map_upside_down(
    data, network, tmp_path
):
    """The last class of the network has no positive value anywhere."""
    usual = extract(data, network, tmp_path / "usual", CONF)
    flipped = extract(
        data, network, tmp_path / "flipped", replace(CONF, flip_negative_cams=True)
    )
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

    monkeypatch.setattr(extraction, "read_image", faint)
    usual = extract(data, network, tmp_path / "usual", CONF, batch=1)
    conf = replace(CONF, stretch_query_images=True)
    stretched = extract(data, network, tmp_path / "stretched", conf, batch=1)
    before, after = (s.read("class_vectors") for s in (usual, stretched))
    queries = {query.image for query in data.queries}
    for row, name in enumerate(data.images):
        assert (name in queries) != np.array_equal(before[row], after[row])
    row = data.images.index(data.queries[0].image)
    photo = faint(data.path(data.queries[0].image)).astype(float)
    photo = (photo - photo.min()) * 255 / (photo.max() - photo.min())
    photo = resize_image(
        np.rint(photo).astype(np.uint8), ResizePolicy.parse(CONF.resize)
    )
    expected = Describer(network, conf)(photo[None])["class_vectors"][0]
    np.testing.assert_allclose(after[row], expected, rtol=1e-2, atol=1e-3)


def test_a_photo_of_one_colour_survives_the_stretch():
    flat = np.full((4, 5, 3), 77, np.uint8)
    assert not extraction._stretch_contrast(flat).any()
    wide = np.array([[[0, 128, 255]]], np.uint8)
    np.testing.assert_array_equal(extraction._stretch_contrast(wide), wide)


def test_the_search_reads_query_photos_as_they_are(data, network, tmp_path):
    stores = [
        extraction.extract_queries(
            data,
            network,
            tmp_path / str(flag),
            replace(CONF, stretch_query_images=flag),
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
    describer = Describer(network, CONF)
    assert describer.query_cells(box, size, grid) == scaled
    describer = Describer(network, replace(CONF, scale_query_box=False))
    assert describer.query_cells(box, size, grid) == unscaled


def test_an_unscaled_box_describes_another_part_of_the_photo(network):
    photo = tiny.scene(3)[:96, :128]
    usual = Describer(network, CONF)
    code = Describer(network, replace(CONF, scale_query_box=False))
    got = code.describe_query(photo, (16, 16, 48, 40))
    same = usual.describe_query(photo, (32, 32, 96, 80))
    np.testing.assert_array_equal(got["class_vectors"], same["class_vectors"])
    assert not np.array_equal(got["logits"], same["logits"])  # the crop is the box


def test_unscaled_boxes_that_leave_the_resized_photo_are_extracted(
    data, network, tmp_path
):
    conf = replace(CONF, scale_query_box=False)
    for query in data.queries:
        assert max(query.box) > 64
    store = extraction.extract_queries(data, network, tmp_path / "q", conf)
    assert np.isfinite(store.read("class_vectors")).all()
    assert store.read("class_vectors").any(axis=(1, 2)).all()
