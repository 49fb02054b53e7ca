"""Offline, online and theme descriptors against naive sums."""

import numpy as np
import pytest

from cwr_utils import aggregation, whitening
from cwr_utils.aggregation import (
    Aggregator,
    OnlineIndex,
    aggregate,
    theme_classes,
)
from cwr_utils.names import CLASS_WEIGHTINGS
from cwr_utils.store import ArraySpec, DiskStore, StoreError

IMAGES, CLASSES, CHANNELS, DIMENSIONS = 10, 9, 7, 5


def unit(vector):
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else vector


def probabilities(count):
    """(count, C) probabilities of all classes."""
    return np.random.default_rng(7).dirichlet(np.ones(CLASSES), count).astype("f4")


def store_of(path, vectors, top, classes=None):
    """A complete store with these class vectors, in blocks of four images."""
    arrays = {
        "top_classes": ArraySpec(top.shape[1:], "int32"),
        "probabilities": ArraySpec((CLASSES,), "float32"),
        "class_vectors": ArraySpec(vectors.shape[1:], "float16", by_row=True),
    }
    images = {f"photo{i}": str(i) for i in range(len(vectors))}
    store = DiskStore.create(path, {"classes": classes}, images, arrays, block=4)
    for number, rows in enumerate(store.blocks):
        take = slice(rows.start, rows.stop)
        block = {"top_classes": top[take], "class_vectors": vectors[take]}
        block["probabilities"] = probabilities(len(vectors))[take]
        store.write_block(number, block)
    return store


@pytest.fixture(scope="module")
def fitted():
    training = np.random.default_rng(1).random((40, CHANNELS))
    return whitening.fit(training, "generated").keep(DIMENSIONS)


@pytest.fixture(scope="module")
def vectors():
    """(N, C, K) class vectors; two images have an empty class."""
    values = np.random.default_rng(0).random((IMAGES, CLASSES, CHANNELS))
    values[3, 2] = values[9, :4] = 0
    return values.astype(np.float16)


@pytest.fixture(scope="module")
def top():
    """(N, C) each image's classes, most probable first."""
    rng = np.random.default_rng(2)
    return np.stack([rng.permutation(CLASSES) for _ in range(IMAGES)])


@pytest.fixture(scope="module")
def store(vectors, top, tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("stores") / "all", vectors, top)


def naive(vectors, classes, fitted, weights=None):
    """l2, whiten, l2, sum over the classes, l2; one vector at a time (Sec. 3.2)."""
    total = np.zeros(fitted.dimensions)
    for number, c in enumerate(classes):
        vector = unit(vectors[c].astype(float))
        if vector.any():
            whitened = unit((vector - fitted.mean) @ fitted.projection)
            total += whitened * (1 if weights is None else weights[number])
    return unit(total)


def naive_weights(weighting, probabilities):
    """How much each of a list of classes counts, written out."""
    if weighting == "probability":
        return list(probabilities)
    if weighting == "rank":
        return [1 / rank for rank in range(1, len(probabilities) + 1)]
    return [1.0 for _ in probabilities]


# Weights of classes


@pytest.mark.parametrize("weighting", CLASS_WEIGHTINGS)
def test_weighted_offline_is_the_naive_loop(store, vectors, top, fitted, weighting):
    got = aggregation.offline(store, Aggregator(fitted, weighting=weighting), [2, 5])
    known = probabilities(IMAGES)
    for count, descriptors in got.items():
        for i in range(IMAGES):
            own = top[i, :count]
            weights = naive_weights(weighting, known[i, own])
            expected = naive(vectors[i], own, fitted, weights)
            np.testing.assert_allclose(descriptors[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("repeat_empty", [False, True])
@pytest.mark.parametrize("weighting", CLASS_WEIGHTINGS)
def test_weighted_online_is_the_sum_of_the_weighted_parts(
    store, vectors, fitted, weighting, repeat_empty
):
    lists = [[5, 0, 8], [0, 2], [2, 3, 5, 1]]
    aggregator = Aggregator(fitted, repeat_empty, weighting)
    known = [probabilities(1)[0][part] for part in lists]
    weights = [aggregator.weights(part) for part in known]
    got = OnlineIndex(store, fitted).many(lists, repeat_empty, weights)
    for part, given, descriptors in zip(lists, known, got, strict=True):
        expected = aggregator(vectors[:, part], given)
        np.testing.assert_allclose(descriptors, expected, rtol=1e-4, atol=1e-5)
        if not repeat_empty:
            shares = naive_weights(weighting, given)
            slow = naive(vectors[0], part, fitted, shares)
            np.testing.assert_allclose(descriptors[0], slow, rtol=1e-4, atol=1e-5)


# Offline


@pytest.mark.parametrize("count", [1, 3, CLASSES])
def test_offline_is_the_naive_loop(store, vectors, top, fitted, count):
    got = aggregation.offline(store, Aggregator(fitted), [count])[count]
    expected = [naive(vectors[i], top[i, :count], fitted) for i in range(IMAGES)]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_several_numbers_of_classes_equal_separate_calls(store, fitted):
    together = aggregation.offline(store, Aggregator(fitted), [4, 1, 8, 4])
    assert sorted(together) == [1, 4, 8]
    for count, descriptors in together.items():
        alone = aggregation.offline(store, Aggregator(fitted), [count])[count]
        np.testing.assert_allclose(descriptors, alone, rtol=1e-5, atol=1e-6)


def test_a_store_of_top_classes_serves_offline_alike(
    store, vectors, top, fitted, tmp_path
):
    own = np.take_along_axis(vectors, top[:, :4, None], axis=1)
    kept = store_of(tmp_path / "top", own, top[:, :4], classes=4)
    expected = aggregation.offline(store, Aggregator(fitted), [1, 4])
    got = aggregation.offline(kept, Aggregator(fitted), [1, 4])
    for count in (1, 4):
        np.testing.assert_array_equal(got[count], expected[count])
    with pytest.raises(StoreError, match="top 4 classes"):
        aggregation.offline(kept, Aggregator(fitted), [5])
    with pytest.raises(StoreError, match="online and theme aggregation need all"):
        OnlineIndex(kept, fitted).descriptors([0])


@pytest.mark.parametrize("count", [0, -1, CLASSES + 1])
def test_a_number_of_classes_that_is_not_there_is_refused(count):
    with pytest.raises(ValueError, match=f"must be in 1..{CLASSES}; got .{count}"):
        aggregate(np.ones((2, CLASSES, 3)), [1, count])


def test_an_image_without_any_class_vector_has_a_zero_descriptor():
    descriptors = aggregate(np.zeros((1, 3, 4)), [1, 3])
    assert not descriptors[1].any() and not descriptors[3].any()


# Online


def test_online_is_the_naive_loop(store, vectors, fitted):
    classes = [5, 0, 8]
    got = OnlineIndex(store, fitted).descriptors(classes)
    assert list(got) == [3]
    expected = [naive(vectors[i], classes, fitted) for i in range(IMAGES)]
    np.testing.assert_allclose(got[3], expected, rtol=1e-4, atol=1e-5)


def test_online_with_an_images_own_classes_is_offline(store, top, fitted):
    offline = aggregation.offline(store, Aggregator(fitted), [2, 6])
    index = OnlineIndex(store, fitted)
    for image in range(IMAGES):
        online = index.descriptors(top[image].tolist(), [2, 6])
        for count in (2, 6):
            expected = offline[count][image]
            np.testing.assert_allclose(
                online[count][image], expected, rtol=1e-4, atol=1e-5
            )


def test_descriptors_have_unit_length_and_the_order_of_the_numbers_is_free(
    store, fitted
):
    got = OnlineIndex(store, fitted).descriptors([5, 0, 8], [3, 1])
    assert list(got) == [1, 3]
    norms = np.linalg.norm(got[1][:9], axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    assert not OnlineIndex(store, fitted).descriptors([0])[1][9].any()


@pytest.mark.parametrize("kept", [1, 2, 100])
def test_an_empty_class_is_described_by_the_one_before_it(
    store, vectors, fitted, kept, monkeypatch
):
    """Across the groups that a small cache reads, and the counts of a curve."""
    monkeypatch.setattr(aggregation, "BLOCK_IMAGES", 3)
    index = OnlineIndex(store, fitted, cache_bytes=kept * 2 * IMAGES * CHANNELS)
    for classes in ([5, 2, 0, 1, 3, 8], [2, 4], [3, 1, 0, 6]):
        got = index.descriptors(classes, [1, 3, 6][: len(classes) // 2], True)
        for count, descriptors in got.items():
            for image, descriptor in enumerate(descriptors):
                filled = []
                for class_id in classes[:count]:
                    empty = not vectors[image, class_id].any()
                    filled.append(filled[-1] if empty and filled else class_id)
                expected = naive(vectors[image], filled, fitted)
                np.testing.assert_allclose(descriptor, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [0, 1, 2, 4])
def test_a_small_cache_gives_the_bits_of_a_large_one(store, fitted, kept, monkeypatch):
    """More classes than fit, repeats, and classes that go while others come."""
    monkeypatch.setattr(aggregation, "BLOCK_IMAGES", 3)
    per_class = 2 * IMAGES * CHANNELS
    small = OnlineIndex(store, fitted, cache_bytes=kept * per_class)
    large = OnlineIndex(store, fitted)
    rng = np.random.default_rng(3)
    for _ in range(12):
        classes = rng.permutation(CLASSES)[: rng.integers(1, CLASSES + 1)].tolist()
        numbers = [1, len(classes)]
        expected = large.descriptors(classes, numbers)
        for count, descriptors in small.descriptors(classes, numbers).items():
            np.testing.assert_array_equal(descriptors, expected[count])
        assert len(small._vectors) <= max(kept, 1)


@pytest.mark.parametrize("together", [0, 1, 2, 100])
@pytest.mark.parametrize("repeat_empty", [False, True])
def test_many_queries_together_give_the_bits_of_single_ones(
    store, fitted, monkeypatch, together, repeat_empty
):
    """Lists that share classes, in groups of every size, also one class at a time."""
    monkeypatch.setattr(aggregation, "BLOCK_IMAGES", 3)
    monkeypatch.setattr(aggregation, "SUMS_BYTES", together * 4 * IMAGES * CHANNELS)
    rng = np.random.default_rng(4)
    lists = [rng.permutation(CLASSES)[:n].tolist() for n in (3, 1, 7, 2, 9)]
    index = OnlineIndex(store, fitted, cache_bytes=3 * 2 * IMAGES * CHANNELS)
    found = list(index.many(lists, repeat_empty))
    for classes, descriptors in zip(lists, found, strict=True):
        alone = OnlineIndex(store, fitted).descriptors(classes, None, repeat_empty)
        np.testing.assert_array_equal(descriptors, alone[len(classes)])


def test_queries_together_read_and_whiten_a_class_once(store, fitted, monkeypatch):
    reads, original = [], store.start_class
    monkeypatch.setattr(store, "start_class", lambda c: reads.append(c) or original(c))
    index = OnlineIndex(store, fitted, cache_bytes=0)
    assert len(list(index.many([[4, 2], [2, 7], [4, 7, 1]]))) == 3
    assert sorted(reads) == [1, 2, 4, 7]


def test_the_least_recently_used_class_goes_first(store, fitted, monkeypatch):
    index = OnlineIndex(store, fitted, cache_bytes=3 * 2 * IMAGES * CHANNELS)
    reads = []
    original = store.start_class
    monkeypatch.setattr(store, "start_class", lambda c: reads.append(c) or original(c))
    index.descriptors([0, 1, 2])
    index.descriptors([0])
    index.descriptors([3])  # class 1 goes
    index.descriptors([0, 2, 3])
    assert reads == [0, 1, 2, 3]
    index.descriptors([1])
    assert reads == [0, 1, 2, 3, 1]


def test_a_class_is_whitened_once_even_if_it_is_read_again(store, fitted, monkeypatch):
    whitened = []
    original = type(fitted).scales
    monkeypatch.setattr(
        type(fitted), "scales", lambda w, x: whitened.append(len(x)) or original(w, x)
    )
    index = OnlineIndex(store, fitted, cache_bytes=0)
    first = index.descriptors([4, 2, 4])[3]
    assert sum(whitened) == 2 * IMAGES
    np.testing.assert_array_equal(index.descriptors([4, 2, 4])[3], first)
    index.descriptors([7, 2])
    assert sum(whitened) == 3 * IMAGES


def test_more_classes_than_were_given_are_refused(store, fitted):
    with pytest.raises(
        ValueError, match="must be in 1..2, the number of `classes` given; got .3"
    ):
        OnlineIndex(store, fitted).descriptors([1, 2], [1, 3])


@pytest.mark.parametrize("numbers", [[0], [0, 1], [-1]])
def test_less_than_one_class_is_refused(store, fitted, numbers):
    with pytest.raises(ValueError, match="`num_classes`"):
        OnlineIndex(store, fitted).descriptors([1, 2], numbers)
    with pytest.raises(ValueError, match="`num_classes`"):
        OnlineIndex(store, fitted).descriptors([])


# Theme


def test_theme_classes_by_hand():
    # 4 is in three lists; 7 and 2 in two, 2 higher up; then 9, 1, 5 in one each, by
    # their place in it.
    top = [[4, 2, 7], [2, 4, 9], [7, 1, 4], [3, 8, 5]]
    assert theme_classes(top, 3) == [4, 2, 7]
    assert theme_classes(top, 8) == [4, 2, 7, 3, 1, 8, 5, 9]
    assert theme_classes(np.array(top), 99) == theme_classes(top, 8)


def test_theme_ties_at_the_same_place_go_to_the_lower_number():
    assert theme_classes([[6, 1], [3, 0], [5, 4]], 6) == [3, 5, 6, 0, 1, 4]


def test_class_frequencies_by_hand():
    top = [[4, 2], [2, 4], [7, 4]]
    np.testing.assert_allclose(
        aggregation.class_frequencies(top, [4, 2, 7, 0]), [1, 2 / 3, 1 / 3, 0]
    )


# Regions


def test_regions_are_whitened_summed_and_normalised(vectors, fitted):
    got = aggregation.regions(vectors, fitted)
    expected = [naive(vectors[i], range(CLASSES), fitted) for i in range(IMAGES)]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whitened", [True, False])
def test_padding_changes_nothing(vectors, fitted, whitened):
    used = fitted if whitened else None
    padded = np.pad(vectors, ((0, 0), (0, 5), (0, 0)))
    np.testing.assert_allclose(
        aggregation.regions(padded, used),
        aggregation.regions(vectors, used),
        rtol=1e-5,
        atol=1e-6,
    )


def test_regions_without_whitening_are_sums_of_unit_vectors():
    got = aggregation.regions(np.array([[[3.0, 0.0], [0.0, 0.5], [0, 0]]]), None)
    np.testing.assert_allclose(got, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)
