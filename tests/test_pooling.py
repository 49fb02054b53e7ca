"""Pooling against the naive loops, by hand and by property."""

import math

import keras
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from cwr_utils import pooling


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def make_features(seed, shape, dead=True):
    """Sparse non-negative activations; the last channel never fires."""
    rng = np.random.default_rng(seed)
    features = np.maximum(rng.normal(size=shape), 0).astype(np.float32)
    if dead:
        features[..., -1] = 0
    return features


def make_cams(seed, shape):
    return np.random.default_rng(seed).random(shape, np.float32)


def test_cams_equal_eq_1():
    rng = np.random.default_rng(0)
    maps = rng.random((4, 5, 7), np.float32)
    weights = rng.normal(size=(7, 3)).astype(np.float32)
    cams = numpy(pooling.class_activation_maps(maps, weights))
    for c in range(3):
        np.testing.assert_allclose(
            cams[..., c],
            reference.class_activation_map(maps, weights[:, c]),
            rtol=1e-5,
            atol=1e-6,
        )


def test_cams_with_classes_chosen_per_image():
    rng = np.random.default_rng(1)
    maps = rng.random((2, 3, 4, 5), np.float32)
    weights = rng.normal(size=(2, 5, 6)).astype(np.float32)
    cams = numpy(pooling.class_activation_maps(maps, weights))
    for b in range(2):
        alone = numpy(pooling.class_activation_maps(maps[b], weights[b]))
        np.testing.assert_allclose(cams[b], alone, rtol=1e-5, atol=1e-6)


def test_cams_are_divided_by_their_maximum_and_clipped():
    cams = np.array([[[4.0, -1.0, 0.0]], [[-2.0, -3.0, 0.0]]], np.float32)
    expected = [[[1, 0, 0]], [[0, 0, 0]]]
    assert numpy(pooling.normalize_cams(cams)).tolist() == expected


def test_authors_sign_flip_of_an_all_negative_map():
    cams = np.array([[[4.0, -1.0, 0.0]], [[-2.0, -3.0, 0.0]]], np.float32)
    flipped = numpy(pooling.normalize_cams(cams, flip_negative=True))
    assert flipped.tolist() == [[[1, 1, 0]], [[0, 3, 0]]]


def test_channel_weights_by_hand():
    # Q = (1, 1/2, 0): sum 3/2, so log 1.5, log 3 and 0 for the dead channel.
    features = np.array([[[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]], np.float32)
    weights = numpy(pooling.channel_weights(features))
    np.testing.assert_allclose(weights, [math.log(1.5), math.log(3), 0], rtol=1e-6)


def test_class_vectors_equal_eqs_2_to_4():
    features, cams = make_features(0, (4, 5, 6)), make_cams(1, (4, 5, 3))
    np.testing.assert_allclose(
        numpy(pooling.class_vectors(features, cams)),
        reference.class_vectors(features, cams),
        rtol=2e-6,
    )


def test_resize_equals_naive_bilinear_and_opencv():
    import cv2

    cams = make_cams(2, (4, 6, 2))
    resized = numpy(pooling.resize_maps(cams, (7, 11)))
    for c in range(2):
        expected = reference.bilinear(cams[..., c], (7, 11))
        np.testing.assert_allclose(resized[..., c], expected, rtol=1e-5)
    np.testing.assert_allclose(resized, cv2.resize(cams, (11, 7)), rtol=1e-4)


@pytest.mark.parametrize("grid", [(3, 4), (1, 1), (2, 9)])
def test_coarse_cams_give_the_same_vectors_as_resized_cams(grid):
    features, cams = make_features(3, (6, 9, 5)), make_cams(4, (*grid, 7))
    coarse = numpy(pooling.class_vectors(features, cams))
    fine = numpy(pooling.class_vectors(features, pooling.resize_maps(cams, (6, 9))))
    np.testing.assert_allclose(coarse, fine, rtol=1e-5)


def test_a_region_is_the_same_as_its_crop():
    """Channel weights, class vectors and baselines look inside the region only."""
    features, cams = make_features(5, (2, 6, 8, 5)), make_cams(6, (2, 6, 8, 3))
    masks = np.zeros((2, 2, 6, 8), np.float32)
    masks[:, 0, 1:4, 2:7] = 1
    masks[:, 1] = 1
    crop, cams_crop = features[:, 1:4, 2:7], cams[:, 1:4, 2:7]
    pools = [
        pooling.channel_weights,
        pooling.sum_pool,
        pooling.max_pool,
        pooling.gem_pool,
        pooling.crow_pool,
    ]
    for pool in pools:
        pooled = numpy(pool(features, masks))
        np.testing.assert_allclose(pooled[:, 0], numpy(pool(crop)), rtol=2e-5)
        np.testing.assert_allclose(pooled[:, 1], numpy(pool(features)), rtol=2e-5)
    vectors = numpy(pooling.class_vectors(features, cams, masks))
    expected = numpy(pooling.class_vectors(crop, cams_crop))
    np.testing.assert_allclose(vectors[:, 0], expected, rtol=1e-5)


def test_describe_of_a_box_equals_reference_on_the_crop():
    features, maps = make_features(7, (6, 8, 5)), make_cams(8, (3, 4, 3))
    cams = np.stack([reference.bilinear(maps[..., c], (6, 8)) for c in range(3)], -1)
    expected = reference.class_vectors(features[1:5, 2:8], cams[1:5, 2:8])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    described = pooling.pool(features, maps, box=(2, 1, 8, 5))
    np.testing.assert_allclose(numpy(described["class_vectors"]), expected, rtol=1e-5)


def test_describe_counts_maps_without_positive_value_and_has_no_nan():
    features = make_features(9, (4, 4, 3))
    cams = np.zeros((2, 2, 2), np.float32)
    cams[..., 0] = 1
    described = {k: numpy(v) for k, v in pooling.pool(features, cams).items()}
    assert described["empty_cams"] == 1
    assert not described["class_vectors"][1].any()
    assert all(np.isfinite(value).all() for value in described.values())
    blank = pooling.pool(np.zeros((4, 4, 3), np.float32), cams)
    assert all(np.isfinite(numpy(value)).all() for value in blank.values())


def test_empty_maps_are_those_of_the_photo_not_of_the_box():
    cams = np.zeros((4, 4, 3), np.float32)
    cams[0, 0, 0] = cams[3, 3, 1] = 1  # outside the box, inside it, nowhere
    described = pooling.pool(make_features(9, (4, 4, 3)), cams, box=(2, 2, 4, 4))
    assert numpy(described["empty_cams"]) == 1


def test_power_two_by_hand():
    # One cell of weight 1: (x^2)^(1/2) = x; two cells 3 and 4: 5.
    features = np.array([[[3.0, 1.0], [4.0, 0.0]]], np.float32)
    cams = np.ones((1, 2, 1), np.float32)
    vectors = numpy(pooling.class_vectors(features, cams, power=2.0))
    np.testing.assert_allclose(vectors, [[5 * math.log(1.5), math.log(3)]], rtol=1e-6)


@given(st.integers(0, 2**16), st.floats(0.01, 100))
@settings(max_examples=25, deadline=None)
def test_scaling_and_permuting(seed, scale):
    features, cams = make_features(seed, (3, 4, 5)), make_cams(seed, (3, 4, 2))
    vectors = numpy(pooling.class_vectors(features, cams))
    scaled = numpy(pooling.class_vectors(features * np.float32(scale), cams))
    np.testing.assert_allclose(scaled, vectors * scale, rtol=1e-4)
    order = np.random.default_rng(seed).permutation(5)
    permuted = numpy(pooling.class_vectors(features[..., order], cams))
    np.testing.assert_allclose(permuted, vectors[:, order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("grid", "count"), [((10, 10), 14), ((45, 64), 20), ((64, 45), 20)]
)
def test_rmac_has_the_regions_of_tolias_et_al(grid, count):
    """A square has 1 + 4 + 9 regions, a 4:3 photo 2 + 6 + 12."""
    boxes = pooling.rmac_regions(*grid)
    assert len(boxes) == count
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= grid[1]).all()
    assert (boxes[:, 3] <= grid[0]).all()
    covered = np.zeros(grid, bool)
    for x1, y1, x2, y2 in boxes:
        covered[y1:y2, x1:x2] = True
    assert covered.all()


def test_rmac_regions_of_a_16_to_9_photo_by_hand():
    """Tolias et al., Sec. 3.2: sides of 2 min(W, H) / (l + 1), an overlap near 40 %.

    Two regions of 9 cells on 16 overlap by 1 - 7 / 9 = 22 %, three by
    1 - 3.5 / 9 = 61 %: 22 is nearer to 40, so that m is 2 and level l has l x (l + 1)
    regions. Sides are 9, 6 and 4 (4.5); places are rounded down: 5 / 2 is 2.
    """
    places = {9: ([0], [0, 7]), 6: ([0, 3], [0, 5, 10]), 4: ([0, 2, 5], [0, 4, 8, 12])}
    landscape = [
        (x, y, x + side, y + side)
        for side, (rows, columns) in places.items()
        for y in rows
        for x in columns
    ]
    assert pooling.rmac_regions(9, 16).tolist() == list(map(list, landscape))
    portrait = {(y1, x1, y2, x2) for x1, y1, x2, y2 in landscape}
    assert set(map(tuple, pooling.rmac_regions(16, 9).tolist())) == portrait


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_rmac_regions_are_never_empty_nor_outside(height, width):
    boxes = pooling.rmac_regions(height, width)
    assert (boxes[:, 2] > boxes[:, 0]).all()
    assert (boxes[:, 3] > boxes[:, 1]).all()
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= width
    assert boxes[:, 3].max() <= height


def test_pool_regions_is_pooling_of_crops():
    features = make_features(10, (2, 5, 7, 3))
    boxes = pooling.rmac_regions(5, 7)
    pooled = numpy(pooling.pool_regions(features, boxes, pooling.max_pool))
    for r, (x1, y1, x2, y2) in enumerate(boxes):
        expected = features[:, y1:y2, x1:x2].max((1, 2))
        np.testing.assert_array_equal(pooled[:, r], expected)


def test_gem_and_crow_by_hand():
    features = np.array([[[1.0], [2.0]]], np.float32)
    gem = numpy(pooling.gem_pool(features))
    np.testing.assert_allclose(gem, [(9 / 2) ** (1 / 3)], rtol=1e-6)
    features = np.array([[[3.0, 0.0], [0.0, 4.0]]], np.float32)
    # S = (3, 4), norm 5; both channels fire in one of two cells: weight log 2.
    crow = numpy(pooling.crow_pool(features))
    expected = [3 * math.sqrt(0.6) * math.log(2), 4 * math.sqrt(0.8) * math.log(2)]
    np.testing.assert_allclose(crow, expected, rtol=1e-6)


def test_graph_and_eager_agree():
    class Describe(keras.layers.Layer):
        def call(self, features, cams):
            return pooling.pool(features, cams)

    features = keras.Input((6, 8, 4))
    cams = keras.Input((3, 4, 5))
    model = keras.Model([features, cams], Describe()(features, cams))
    model.compile(jit_compile=False)
    arrays = [make_features(11, (2, 6, 8, 4)), make_cams(12, (2, 3, 4, 5))]
    graph = model.predict_on_batch(arrays)
    for name, eager in pooling.pool(*arrays).items():
        np.testing.assert_allclose(graph[name], numpy(eager), rtol=1e-5, err_msg=name)


def test_wrong_shapes_say_what_was_expected():
    with pytest.raises(ValueError, match=r"`features` must have shape"):
        pooling.class_vectors(np.zeros((3, 4)), np.zeros((3, 4, 2)))
    with pytest.raises(ValueError, match=r"`masks` must have shape"):
        pooling.channel_weights(np.zeros((3, 4, 2)), np.zeros((1, 2, 2)))


def test_the_published_way_is_the_loops():
    """The slow side of the benchmarks computes the right thing."""
    features = make_features(20, (4, 5, 6))
    cam_maps = make_features(21, (4, 5, 3))
    weights = np.random.default_rng(22).standard_normal((3, 4))
    got = reference.published_maps(cam_maps.transpose(2, 0, 1), weights)
    for c in range(4):
        cam = reference.class_activation_map(cam_maps, weights[:, c])
        cam = np.maximum(cam / cam.max(), 0) if cam.max() > 0 else 0 * cam
        np.testing.assert_allclose(got[c], cam, rtol=1e-4, atol=1e-5)
    vectors = reference.published_vectors(features.transpose(2, 0, 1), got)
    expected = reference.class_vectors(features, got.transpose(1, 2, 0))
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
