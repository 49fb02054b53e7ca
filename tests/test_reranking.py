"""Boxes of CAMs by hand, and the planted region that re-ranking has to find."""

from dataclasses import replace

import numpy as np
import pytest
import reference

from cwr_utils import protocol, whitening
from cwr_utils.aggregation import Aggregator
from cwr_utils.reranking import RegionDescriber, cam_boxes, heat_map, query_cams

CORRECTED = protocol.PRESETS["corrected"]
PAPER = protocol.PRESETS["paper"]


def best_region(query, features, cams, fitted, protocol=CORRECTED, power=1.0):
    """The only match of one photo whose CAM maps are the CAMs, up to their maxima."""
    alone = np.eye(cams.shape[-1], dtype=np.float32)
    describer = RegionDescriber(alone, Aggregator(fitted), power, protocol)
    (match,) = describer.best(query, [(features, cams)], range(len(alone)))
    return match


def cam_with(*parts, shape=(20, 24)):
    """A CAM that is `value` inside each (x1, y1, x2, y2, value)."""
    cam = np.zeros(shape, np.float32)
    for x1, y1, x2, y2, value in parts:
        cam[y1:y2, x1:x2] = value
    return cam


# Boxes


def test_each_threshold_draws_its_own_box():
    cam = cam_with((2, 3, 20, 18, 0.15), (4, 5, 16, 14, 0.3), (6, 7, 12, 13, 1.0))
    boxes = cam_boxes(cam, (0.01, 0.1, 0.2, 0.3, 0.4))
    assert boxes == [(2, 3, 20, 18)] * 2 + [(4, 5, 16, 14)] * 2 + [(6, 7, 12, 13)]


def test_a_threshold_is_a_share_of_the_maximum_and_reaches_it():
    cam = cam_with((2, 3, 12, 13, 2.0), (4, 5, 10, 11, 8.0))
    assert cam_boxes(cam, (0.25, 0.26, 1.0)) == [(2, 3, 12, 13)] + [(4, 5, 10, 11)] * 2


def test_the_largest_element_has_the_most_cells_not_the_largest_outline():
    # A ring one cell thin around 18 x 18 cells has 68 cells (an outline of 289); the
    # solid square has 81.
    ring = cam_with((0, 0, 18, 18, 1.0), (1, 1, 17, 17, 0.0), shape=(18, 40))
    cam = np.maximum(ring, cam_with((25, 2, 34, 11, 1.0), shape=(18, 40)))
    assert cam_boxes(cam, [0.5]) == [(25, 2, 34, 11)]


def test_a_thin_shape_counts_all_its_cells():
    # A diagonal line has no area inside its outline, but more cells than the square.
    cam = cam_with((0, 0, 5, 5, 1.0), shape=(40, 46))
    cam[np.arange(6, 40), np.arange(6, 40) + 6] = 1.0
    assert cam_boxes(cam, [0.5]) == [(12, 6, 46, 40)]


def test_cells_that_touch_at_a_corner_are_connected():
    cam = cam_with((1, 1, 6, 6, 1.0), (6, 6, 11, 11, 1.0), (14, 1, 20, 9, 1.0))
    assert cam_boxes(cam, [0.5]) == [(1, 1, 11, 11)]  # 50 cells against 48


def test_the_whole_grid_can_be_a_box():
    assert cam_boxes(np.ones((6, 7)), [0.01, 0.4]) == [(0, 0, 7, 6)] * 2


@pytest.mark.parametrize(("width", "height", "kept"), [(5, 5, 1), (5, 4, 0), (4, 9, 0)])
def test_boxes_with_a_side_below_five_cells_are_left_out(width, height, kept):
    cam = cam_with((3, 3, 3 + width, 3 + height, 1.0))
    assert len(cam_boxes(cam, [0.5])) == kept
    assert len(cam_boxes(cam, [0.5], min_cells=4)) == 1


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_cam_without_a_positive_value_has_no_box(value):
    assert cam_boxes(np.full((9, 9), value), CORRECTED.rerank_thresholds) == []


def test_a_cam_has_two_axes():
    with pytest.raises(ValueError, match="`cam` must have shape"):
        cam_boxes(np.ones((9, 9, 1)), [0.5])


# CAMs of the query's classes


def test_query_cams_are_eq_1_of_these_classes_in_their_order():
    rng = np.random.default_rng(0)
    maps, weights = rng.random((4, 5, 3)), rng.standard_normal((3, 6))
    weights[:, 2] = -1  # never positive
    got = np.asarray(query_cams(maps.astype(np.float32), weights, [4, 2, 1]))
    for column, c in enumerate([4, 2, 1]):
        cam = reference.class_activation_map(maps, weights[:, c])
        expected = np.maximum(cam / cam.max(), 0) if cam.max() > 0 else 0 * cam
        np.testing.assert_allclose(got[..., column], expected, rtol=1e-4, atol=1e-5)


def test_query_cams_flip_like_the_authors_code_only_when_asked():
    maps = np.array([[[1.0], [4.0]]], np.float32)
    weights = np.array([[-1.0]], np.float32)
    assert not np.asarray(query_cams(maps, weights, [0])).any()
    flipped = np.asarray(query_cams(maps, weights, [0], flip_negative=True))
    np.testing.assert_allclose(flipped[0, :, 0], [1, 4])


def test_the_heat_map_is_the_mean_of_the_first_two_on_the_feature_grid():
    cams = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    expected = reference.bilinear(cams[..., :2].mean(axis=-1), (6, 8))
    np.testing.assert_allclose(heat_map(cams, (6, 8)), expected, rtol=1e-5)
    one = heat_map(cams[..., :1], (3, 4))
    np.testing.assert_allclose(one, cams[..., 0], rtol=1e-6)


# Regions

CHANNELS = 8


@pytest.fixture(scope="module")
def fitted():
    training = np.random.default_rng(0).random((60, CHANNELS))
    return whitening.fit(training, "generated").keep(6)


def planted(box=(3, 2, 10, 9), clutter=20.0):
    """Features of clutter with a pattern in a box; two CAMs that point at the box.

    The CAMs shine faintly (at 5 % of their maximum) over the clutter around it.
    """
    rng = np.random.default_rng(1)
    pattern = np.where(rng.random((7, 7, CHANNELS)) < 0.7, rng.random(CHANNELS), 0)
    features = clutter * rng.random((14, 18, CHANNELS))
    cams = np.full((14, 18, 2), 0.05)
    x1, y1, x2, y2 = box
    features[y1:y2, x1:x2] = pattern
    cams[y1:y2, x1:x2] = 1
    return pattern, features.astype(np.float32), cams.astype(np.float32)


def naive(features, cams, fitted):
    """Eq. 4 as loops, whitened and summed."""
    whitened = fitted(reference.class_vectors(features, cams))
    total = whitened.sum(axis=0)
    return total / np.linalg.norm(total)


def test_the_planted_region_is_found_and_described(fitted):
    pattern, features, cams = planted()
    query = naive(pattern, np.ones((7, 7, 2)), fitted)
    match = best_region(query, features, cams, fitted)
    assert match.box == (3, 2, 10, 9)
    assert match.score == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(match.descriptor, query, atol=1e-3)
    whole = naive(features, cams, fitted) @ query
    assert match.score > whole + 0.1


def test_every_box_is_described_and_the_best_is_kept(fitted):
    """Against a query that likes the wide box better than the narrow one."""
    _, features, cams = planted()
    cams[1:13, 1:16] = np.maximum(cams[1:13, 1:16], 0.15)
    wide = features[1:13, 1:16], cams[1:13, 1:16]
    match = best_region(naive(*wide, fitted), features, cams, fitted)
    assert match.box == (1, 1, 16, 13)
    assert match.score == pytest.approx(1, abs=1e-4)


def test_cams_may_stay_on_their_coarser_grid(fitted):
    _, features, _ = planted()
    coarse = np.random.default_rng(2).random((7, 9, 3)).astype(np.float32)
    coarse /= coarse.max(axis=(0, 1))
    fine = [reference.bilinear(coarse[..., c], (14, 18)) for c in range(3)]
    fine = np.stack(fine, axis=-1)
    box = cam_boxes(fine[..., :2].mean(axis=-1), [0.4])[0]
    x1, y1, x2, y2 = box
    expected = naive(features[y1:y2, x1:x2], fine[y1:y2, x1:x2], fitted)
    only = replace(PAPER, rerank_thresholds=(0.4,))
    match = best_region(np.ones(6) / 6**0.5, features, coarse, fitted, only)
    assert match.box == box
    np.testing.assert_allclose(match.descriptor, expected, atol=1e-4)
    assert match.score == pytest.approx(expected.sum() / 6**0.5, abs=1e-4)


def test_the_power_of_the_class_vectors_is_used(fitted):
    _, features, cams = planted()
    no_boxes = replace(CORRECTED, rerank_thresholds=())
    sums = np.einsum("hwk,hwc->ck", features**3.0, cams) ** (1 / 3)
    expected = fitted(sums * reference.channel_weights(features)).sum(axis=0)
    expected /= np.linalg.norm(expected)
    match = best_region(expected, features, cams, fitted, no_boxes, power=3.0)
    np.testing.assert_allclose(match.descriptor, expected, atol=1e-4)


def test_with_the_fallback_the_whole_photo_is_a_region_too(fitted):
    _, features, cams = planted()
    query = naive(features, cams, fitted)
    no_boxes = replace(CORRECTED, rerank_thresholds=())
    match = best_region(query, features, cams, fitted, no_boxes)
    assert match.box is None
    assert match.score == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(match.descriptor, query, atol=1e-4)


@pytest.mark.parametrize("cause", ["no positive value", "too small"])
def test_a_photo_without_a_box_scores_minus_infinity(fitted, cause):
    _, features, cams = planted()
    if cause == "too small":
        cams = np.zeros_like(cams)
        cams[3:7, 3:7] = 1
    else:
        cams = np.zeros_like(cams)
    match = best_region(np.ones(6) / 6**0.5, features, cams, fitted, PAPER)
    assert (match.score, match.box) == (-np.inf, None)
    assert match.descriptor.shape == (6,) and not match.descriptor.any()
    fallback = best_region(np.ones(6) / 6**0.5, features, cams, fitted, CORRECTED)
    assert fallback.box is None and np.isfinite(fallback.score)


def test_half_precision_maps_are_computed_in_single(fitted):
    pattern, features, cams = planted()
    query = naive(pattern, np.ones((7, 7, 2)), fitted)
    match = best_region(query, features.astype(np.float16), cams, fitted)
    assert match.box == (3, 2, 10, 9)
    assert match.descriptor.dtype == np.float32
    assert match.score == pytest.approx(1, abs=1e-3)


def test_the_authors_code_never_scores_its_fifth_box():
    assert PAPER.rerank_thresholds == (0.01, 0.1, 0.2, 0.3, 0.4)
    assert protocol.get("authors_code").rerank_thresholds == (0.01, 0.1, 0.2, 0.3)


def test_photos_of_any_shapes_are_matched_as_if_alone(monkeypatch):
    """Batches, padding to the most boxes, and a change of grid change nothing."""
    rng = np.random.default_rng(3)
    shapes = [(12, 9), (12, 9), (12, 9), (8, 14), (12, 9)]
    maps = [
        (
            np.maximum(rng.normal(size=(*shape, 6)), 0).astype(np.float32),
            rng.random((*shape, 2)).astype(np.float32) ** 4,
        )
        for shape in shapes
    ]
    fitted = whitening.fit(rng.random((40, 6)), "generated").keep(4)
    query = np.full(4, 0.5, np.float32)
    weights = rng.standard_normal((2, 3)).astype(np.float32)
    describer, classes = RegionDescriber(weights, Aggregator(fitted)), [0, 1, 2]
    alone = [describer.best(query, [pair], classes)[0] for pair in maps]
    monkeypatch.setattr("cwr_utils.reranking.BATCH", 2)
    together = describer.best(query, maps, classes)
    for match, expected in zip(together, alone, strict=True):
        assert match.box == expected.box
        assert match.score == pytest.approx(expected.score, rel=1e-5)
        np.testing.assert_allclose(match.descriptor, expected.descriptor, rtol=1e-4)


@pytest.mark.parametrize("box", [(3, 2, 10, 9), None])
def test_the_parts_of_a_region_are_what_its_descriptor_sums(fitted, box):
    _, features, cams = planted()
    describer = RegionDescriber(np.eye(2, dtype=np.float32), Aggregator(fitted))
    parts = describer.parts((features, cams), [0, 1], box)
    x1, y1, x2, y2 = box or (0, 0, 18, 14)
    expected = fitted(
        reference.class_vectors(features[y1:y2, x1:x2], cams[y1:y2, x1:x2])
    )
    np.testing.assert_allclose(parts, expected, atol=1e-4)
