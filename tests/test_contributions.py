"""A score taken apart class by class."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwr_utils import contributions
from cwr_utils.contributions import class_contributions
from cwr_utils.retrieval import Method
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
]


def only(collection, number):
    """The collection with one of the queries."""
    query = collection.data.queries[number]
    row = {query.name: collection.queries.hashes[query.name]}
    return collection.ask([query], JoinedStore([collection.queries], row))


def both(collection, result, image):
    """Parts of the only query and of an image."""
    (query,) = collection.data.queries
    found = result.matches[query.name], result.averaged[query.name]
    pair = contributions._Pair(collection, result.method, 0, *found)
    return pair.parts(image)


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
    result = collection.run(method)
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
    plain = collection.run(METHODS[-2]).rankings["query1"]
    result = collection.run(METHODS[-1])
    assert result.averaged == {"query1": plain[:2]}
    assert collection.run(ONLINE).averaged == {"query1": []}
    monkeypatch.setattr(collection, "run", None)
    for image in result.rankings["query1"][:3]:
        assert len(class_contributions(collection, result, 0, image)) > 1


def test_online_shares_all_classes_and_offline_only_some(make):
    collection = only(make(), 1)
    top = collection.top_classes[0].tolist()
    result = collection.run(ONLINE)
    image = result.rankings["query1"][3]
    table = class_contributions(collection, result, 0, image)
    assert sorted(table["class"][:-1]) == sorted(top[:4])
    assert list(table["name"][:-1]) == [f"class {c}" for c in table["class"][:-1]]

    few = replace(ONLINE, aggregation="offline", num_classes=2)
    result = collection.run(few)
    own = collection.database.read("top_classes")[:, :2]
    for image, classes in zip(collection.data.images, own, strict=True):
        table = class_contributions(collection, result, 0, image)
        assert set(table["class"][:-1]) == set(top[:2]) & set(classes.tolist())


def test_a_store_of_own_classes_only_gives_the_same(make):
    """Offline stores keep top class vectors only: no row may be taken for another."""
    method = replace(ONLINE, aggregation="offline", num_classes=2)
    tables = []
    for classes in (None, 3):
        collection = only(make(classes=classes), 2)
        result = collection.run(method)
        table = [
            class_contributions(collection, result, 0, image)
            for image in collection.data.images
        ]
        tables.append([row for t in table for row in t["contribution"]])
    np.testing.assert_allclose(tables[0], tables[1], atol=2e-3)


def test_the_own_row_that_the_query_replaces_scores_one(make):
    collection = only(make(query_replaces_own_row=True), 0)
    result = collection.run(ONLINE)
    image = collection.data.queries[0].image
    table = class_contributions(collection, result, 0, image)
    assert table["contribution"].sum() == pytest.approx(1)
    ours, theirs = both(collection, result, image)
    assert all((ours[c] == theirs[c]).all() for c in ours)


def test_without_classes_there_is_only_the_score(make):
    collection = only(make(), 0)
    result = collection.run(Method("sum", dimensions=0))
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
