"""Ranking order, ties, and average query expansion by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cwr_utils import ranking

# Few values, so that there are many ties; -inf is an image without a region.
SCORES = st.sampled_from([-np.inf, -1.0, -0.25, -0.0, 0.0, 0.25, 0.5, 1.0])


def test_similarities_are_dot_products():
    got = ranking.similarities([[1, 0], [0.6, 0.8]], np.array([[0, 1], [0.8, 0.6]]))
    np.testing.assert_allclose(got, [[0, 0.8], [0.8, 0.96]])


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"`database` must have shape \(N, 2\)"):
        ranking.similarities(np.ones((1, 2)), np.ones((4, 3)))


def test_ties_keep_the_order_of_the_database():
    assert ranking.order([0.5, 0.9, 0.5, 0.9, 0.1]).tolist() == [1, 3, 0, 2, 4]
    assert ranking.order([0.5, 0.9, 0.5, 0.9, 0.1], 3).tolist() == [1, 3, 0]
    assert ranking.order(np.zeros(5), 2).tolist() == [0, 1]


@given(hnp.arrays(np.float32, st.integers(1, 30), elements=SCORES), st.integers(0, 35))
def test_the_top_is_the_head_of_the_full_order(scores, top):
    full = ranking.order(scores)
    assert sorted(full) == list(range(len(scores)))
    pairs = list(zip(-scores[full], full, strict=True))
    assert pairs == sorted(pairs)
    np.testing.assert_array_equal(ranking.order(scores, top), full[:top])


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=SCORES
    ),
    st.integers(1, 13),
)
def test_rows_are_ordered_each_on_its_own(scores, top):
    got = ranking.order(scores, top)
    for row, expected in zip(scores, got, strict=True):
        np.testing.assert_array_equal(ranking.order(row, top), expected)


DATABASE = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])


@pytest.mark.parametrize(
    ("top", "with_query", "total"),
    [
        (1, True, [0.6, 1.8]),  # (0, 1) + the query (0.6, 0.8)
        (2, True, [1.2, 2.6]),
        (2, False, [0.6, 1.8]),
        (99, False, [1.6, 1.8]),
    ],
)
def test_query_expansion_by_hand(top, with_query, total):
    got = ranking.expand_query([0.6, 0.8], DATABASE, [1, 2, 0], top, with_query)
    np.testing.assert_allclose(got, np.array(total) / np.linalg.norm(total))


def test_no_expansion_gives_the_query_back():
    query = np.array([0.6, 0.8])
    for with_query in (True, False):
        got = ranking.expand_query(query, DATABASE, [1, 2, 0], 0, with_query)
        np.testing.assert_array_equal(got, query)


def test_expansion_changes_neither_query_nor_database():
    query, database = np.array([0.6, 0.8]), DATABASE.copy()
    ranking.expand_query(query, database, np.array([1, 2, 0]), 2)
    np.testing.assert_array_equal(query, [0.6, 0.8])
    np.testing.assert_array_equal(database, DATABASE)
