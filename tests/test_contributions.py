"""A score taken apart class by class."""

from dataclasses import replace

import numpy as np
import pytest
import reference_search
from hypothesis import given
from hypothesis import strategies as st

from cwr_utils import contributions, pooling, whitening
from cwr_utils.aggregation import Aggregator
from cwr_utils.contributions import (
    cell_contributions,
    class_contributions,
    similarity_map,
)
from cwr_utils.names import CLASS_WEIGHTINGS
from cwr_utils.retrieval import Method, rank
from cwr_utils.store import JoinedStore

ONLINE = Method("online", num_classes=4, num_whitening_classes=3, dimensions=12)
METHODS = [
    ONLINE,
    replace(ONLINE, num_classes=6),  # one of them without a positive CAM
    replace(ONLINE, aggregation="theme"),
    replace(ONLINE, aggregation="offline", num_classes=2),
    replace(ONLINE, query_expansion=3),
    replace(ONLINE, aggregation="offline", query_expansion=2),
    replace(ONLINE, rerank=6, rerank_classes=3),
    replace(ONLINE, rerank=6, rerank_classes=3, query_expansion=2),
    replace(ONLINE, class_weighting="rank", rerank=3, rerank_classes=2),
    replace(ONLINE, aggregation="offline", class_weighting="probability"),
    replace(ONLINE, aggregation="theme", class_weighting="rank"),
    replace(ONLINE, aggregation="grouped", groups=2, bits=16, query_expansion=1),
    replace(ONLINE, aggregation="grouped", groups=3, bits=16, class_weighting="rank"),
    replace(ONLINE, aggregation="grouped", groups=2, bits=16, rerank=3),
]
EXPANDED = METHODS[6], METHODS[7]  # the same without and with


def only(collection, number):
    """The collection with one of the queries."""
    query = collection.data.queries[number]
    row = {query.name: collection.first.asked.store.hashes[query.name]}
    return collection.ask([query], JoinedStore([collection.first.asked.store], row))


def both(collection, result, image):
    """Parts of the only query and of an image."""
    (query,) = collection.data.queries
    assert list(result.rankings) == [query.name]
    return contributions._Pair.of(collection.first, result, 0).parts(image)


def parts(seed, classes, dimensions=5):
    """Random parts of a descriptor of length 1."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((len(classes), dimensions))
    vectors /= np.linalg.norm(vectors.sum(axis=0))
    return dict(zip(classes, vectors, strict=True))


def test_by_hand():
    """(3, 4) / 5 from two classes, against (1, 0) from one of them."""
    query = {7: np.array([0.6, 0.0]), 2: np.array([0.0, 0.8])}
    image = {2: np.array([0.5, 0.5]), 9: np.array([0.5, -0.5])}
    same, rest = contributions.contributions(query, image)
    assert same == {2: pytest.approx(0.4)}
    # 7 with 2, 7 with 9, 2 with 9: 0.3 + 0.3 - 0.4
    assert rest == pytest.approx(0.2)
    assert sum(same.values()) + rest == pytest.approx(0.6)


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 9), min_size=1, unique=True),
    st.lists(st.integers(0, 9), min_size=1, unique=True),
)
def test_same_and_different_classes_are_the_naive_double_loop(seed, ours, theirs):
    query, image = parts(seed, ours), parts(seed + 1, theirs)
    expected, other = {}, 0.0
    for a in ours:
        for b in theirs:
            product = sum(x * y for x, y in zip(query[a], image[b], strict=True))
            if a == b:
                expected[a] = product
            else:
                other += product
    same, rest = contributions.contributions(query, image)
    assert same == pytest.approx(expected)
    size = np.abs([*query.values()]).sum() * np.abs([*image.values()]).sum()
    assert rest == pytest.approx(other, abs=1e-12 * (1 + size))


def test_a_descriptor_without_parts_contributes_nothing():
    assert contributions.contributions({}, parts(0, [1])) == ({}, 0.0)
    assert contributions.contributions(parts(0, [1]), {}) == ({}, 0.0)


@pytest.mark.parametrize(
    "flags",
    [{}, {"rerank_moves_index": "query"}, {"repeat_previous_class": True}],
    ids=lambda flags: "".join(flags) or "corrected",
)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.slug)
def test_they_add_up_to_the_score_of_every_image(make, method, flags):
    """And the descriptors of the parts are those that were compared."""
    collection = only(make(**flags), 1)
    result = rank(collection, method)
    (name,) = result.rankings
    for image, score in zip(result.rankings[name], result.scores[name], strict=True):
        table = class_contributions(collection, result, 0, image)
        assert table["contribution"].sum() == pytest.approx(float(score), abs=1e-6)
        assert table["class"].iloc[-1] == -1
        shown = table["contribution"].iloc[:-1]
        assert shown.is_monotonic_decreasing
        # The last row is what the other pairs give, not whatever is missing: only
        # half precision of the index stands between the two.
        _, rest = contributions.contributions(*both(collection, result, image))
        assert table["contribution"].iloc[-1] == pytest.approx(rest, abs=3e-3)


def test_a_result_is_explained_without_another_search(make, monkeypatch):
    """Of an expanded query too: what was averaged is part of the result."""
    collection = only(make(), 1)
    plain = rank(collection, EXPANDED[0]).rankings["query1"]
    result = rank(collection, EXPANDED[1])
    assert result.averaged == {"query1": plain[:2]}
    assert rank(collection, ONLINE).averaged == {"query1": []}
    monkeypatch.setattr(type(collection), "descriptors", None)
    for image in result.rankings["query1"][:3]:
        assert len(class_contributions(collection, result, 0, image)) > 1


def test_online_shares_all_classes_and_offline_only_some(make):
    collection = only(make(), 1)
    top = collection.first.asked.top_classes[0].tolist()
    result = rank(collection, ONLINE)
    image = result.rankings["query1"][3]
    table = class_contributions(collection, result, 0, image)
    assert sorted(table["class"][:-1]) == sorted(top[:4])
    assert list(table["name"][:-1]) == [f"class {c}" for c in table["class"][:-1]]

    few = replace(ONLINE, aggregation="offline", num_classes=2)
    result = rank(collection, few)
    own = collection.first.database.read("top_classes")[:, :2]
    for image, classes in zip(collection.data.images, own, strict=True):
        table = class_contributions(collection, result, 0, image)
        assert set(table["class"][:-1]) == set(top[:2]) & set(classes.tolist())


def test_a_store_of_own_classes_only_gives_the_same(make):
    """Offline stores keep top class vectors only: no row may be taken for another."""
    method = replace(ONLINE, aggregation="offline", num_classes=2)
    tables = []
    for classes in (None, 3):
        collection = only(make(classes=classes), 2)
        result = rank(collection, method)
        table = [
            class_contributions(collection, result, 0, image)
            for image in collection.data.images
        ]
        tables.append([row for t in table for row in t["contribution"]])
    np.testing.assert_allclose(tables[0], tables[1], atol=2e-3)


def test_the_own_row_that_the_query_replaces_scores_one(make):
    collection = only(make(query_replaces_own_row=True), 0)
    result = rank(collection, ONLINE)
    image = collection.data.queries[0].image
    table = class_contributions(collection, result, 0, image)
    assert table["contribution"].sum() == pytest.approx(1)
    ours, theirs = both(collection, result, image)
    assert all((ours[c] == theirs[c]).all() for c in ours)


def test_without_classes_there_is_only_the_score(make):
    collection = only(make(), 0)
    result = rank(collection, Method("sum", dimensions=0))
    image = result.rankings["query0"][2]
    table = class_contributions(collection, result, 0, image)
    assert table["class"].tolist() == [-1]
    assert table["contribution"][0] == pytest.approx(result.scores["query0"][2])


def test_unit_parts_have_a_sum_of_length_one():
    scaled = contributions._unit({1: np.array([3.0, 0.0]), 2: np.array([0.0, 4.0])})
    np.testing.assert_allclose(sum(scaled.values()), [0.6, 0.8])
    empty = {1: np.zeros(2)}
    assert contributions._unit(empty) == empty
    assert contributions._unit({}) == {}


# The heat map of a match


@given(st.integers(0, 10**6), *[st.tuples(st.integers(1, 9), st.integers(1, 9))] * 2)
def test_cells_on_another_grid_have_the_same_sum(seed, old, new):
    cells = np.random.default_rng(seed).standard_normal(old).astype(np.float32)
    shared = contributions._share_out(cells, new)
    assert shared.shape == new
    assert shared.sum() == pytest.approx(float(cells.sum()), abs=1e-5)
    np.testing.assert_allclose(contributions._share_out(cells, old), cells, rtol=1e-6)


def test_cells_are_shared_out_by_area():
    """By hand: two cells of 6 on three are 4 each; a row of three on two halves one."""
    two = np.full((2, 1), 6, np.float32)
    np.testing.assert_allclose(contributions._share_out(two, (3, 1)), [[4], [4], [4]])
    three = np.array([[2, 4, 8]], np.float32)
    np.testing.assert_allclose(contributions._share_out(three, (1, 2)), [[4, 10]])


def whitened(seed, channels, dimensions):
    vectors = np.random.default_rng(seed).random((40, channels))
    return whitening.fit(vectors, "random vectors").keep(dimensions)


def scene(seed, dead=()):
    """Features (5, 6, 7), CAMs (3, 4, 4) of which some are empty, and a query (5,)."""
    rng = np.random.default_rng(seed)
    features = np.maximum(rng.standard_normal((5, 6, 7)), 0).astype(np.float32)
    features[..., 3] = 0  # a channel that never fires
    cams = rng.random((3, 4, 4)).astype(np.float32)
    cams[..., list(dead)] = 0
    query = rng.standard_normal(5)
    return features, cams, (query / np.linalg.norm(query)).astype(np.float32)


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("dead", [(), (2,), (0, 1), (3,)], ids=str)
@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_the_map_is_the_naive_loop_over_cells(power, dead, repeat):
    features, cams, query = scene(5, dead)
    fitted = whitened(1, 7, 5)
    found = similarity_map(query, features, cams, Aggregator(fitted, repeat), power)
    grown = np.asarray(pooling.resize_maps(cams, (5, 6)), np.float64)
    expected = reference_search.similarity_map(
        query, features.astype(np.float64), grown, fitted, power, repeat
    )
    np.testing.assert_allclose(found, expected, atol=2e-6)


@given(
    st.integers(0, 10**6),
    st.sampled_from([1.0, 2.0, 3.0]),
    st.sets(st.integers(0, 3), max_size=4),
    st.booleans(),
    st.sampled_from([None, (0, 0, 6, 5), (1, 2, 5, 4), (5, 4, 6, 5)]),
    st.sampled_from(CLASS_WEIGHTINGS),
)
def test_the_map_adds_up_to_the_similarity(seed, power, dead, repeat, box, weighting):
    """With the descriptor that `pooling` and `Aggregator` make of the region."""
    features, cams, query = scene(seed, dead)
    aggregator = Aggregator(whitened(1, 7, 5), repeat, weighting)
    likely = np.array([0.5, 0.3, 0.15, 0.05])
    found = similarity_map(query, features, cams, aggregator, power, box, likely)
    mask = np.ones((1, 5, 6), np.float32)
    if box:
        x1, y1, x2, y2 = box
        mask[:] = 0
        mask[0, y1:y2, x1:x2] = 1
    vectors = pooling.class_vectors(features, cams, mask, power)
    descriptor = aggregator(np.asarray(vectors)[0], likely)
    assert found.sum() == pytest.approx(float(query @ descriptor), abs=1e-5)
    assert not found[mask[0] == 0].any()


def test_the_map_lights_up_where_the_query_is():
    """Two halves with other channels: the one like the query adds, the other does not.

    The first whitening axis is from one to the other, so by hand a query on it is
    liked by one half as much as it is disliked by the other.
    """
    features = np.zeros((2, 4, 2), np.float32)
    features[:, :2, 0] = features[:, 2:, 1] = 1
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]] * 3)
    fitted = whitening.fit(vectors, "two kinds")
    (query,) = fitted(np.array([[1.0, 0.0]]))
    cams = np.ones((2, 4, 1), np.float32)
    cams[:, 2:] = 0.5  # the descriptor leans to the left half
    cells = similarity_map(query, features, cams, Aggregator(fitted), 1.0)
    assert (cells[:, :2] > 0).all() and (cells[:, 2:] < 0).all()
    assert cells.sum() == pytest.approx(1)
    np.testing.assert_allclose(cells[:, :2], cells[0, 0], rtol=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"rerank_moves_index": "query"},
        {"repeat_previous_class": True},
        {"query_replaces_own_row": True},
    ],
    ids=lambda flags: "".join(flags) or "corrected",
)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.slug)
def test_the_cells_add_up_to_the_score_of_every_image(make, method, flags):
    """But for half precision, of the index and of the maps."""
    collection = only(make(power=2.0, **flags), 1)
    result = rank(collection, method)
    (name,) = result.rankings
    for image, score in zip(result.rankings[name], result.scores[name], strict=True):
        cells = cell_contributions(collection, result, 0, image)
        assert cells.sum() == pytest.approx(float(score), abs=4e-3)
        match = result.matches[name].get(image)
        if match and match.box and not result.averaged[name]:
            x1, y1, x2, y2 = match.box
            inside = cells[y1:y2, x1:x2].copy()
            cells[y1:y2, x1:x2] = 0
            assert inside.any() and not cells.any()


def test_cells_are_told_apart_for_class_aggregations_only(make):
    collection = only(make(), 0)
    result = rank(collection, Method("sum", dimensions=0))
    with pytest.raises(ValueError, match="Raw features"):
        cell_contributions(collection, result, 0, "place0_0")


def test_a_weight_counts_for_the_class_and_for_what_repeats_it():
    present = np.array([False, True, False, False, True])
    weights = np.array([1.0, 0.5, 0.25, 0.125, 2.0])
    times = contributions._times_summed(present, False, weights)
    assert times.tolist() == [0, 0.5, 0, 0, 2]
    times = contributions._times_summed(present, True, weights)
    assert times.tolist() == [0, 0.875, 0, 0, 2]
