"""Ranking order, ties, and average query expansion by hand."""

import sys

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


COORDINATES = st.sampled_from([-1.0, -0.25, 0.0, 0.25, 0.5, 1.0])


@given(
    hnp.arrays(np.float32, (3, 2), elements=COORDINATES),
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 30), st.just(2)), elements=COORDINATES
    ),
    st.integers(1, 35),
    st.integers(1, 31),
)
def test_search_is_the_head_of_the_full_order(queries, database, top, rows):
    """With many ties, in chunks of any size."""
    scores = ranking.similarities(queries, database)
    best, found = ranking.search(queries, database, top, rows)
    np.testing.assert_array_equal(found, ranking.order(scores, top))
    np.testing.assert_array_equal(best, np.take_along_axis(scores, found, axis=1))


def test_search_reads_half_precision_from_a_file(tmp_path):
    database = np.random.default_rng(0).random((50, 4)).astype(np.float16)
    np.save(tmp_path / "d.npy", database)
    mapped = np.load(tmp_path / "d.npy", mmap_mode="r")
    best, found = ranking.search(database[:3], mapped, 5, rows=7)
    expected = ranking.search(database[:3].astype(np.float32), database, 5)
    np.testing.assert_array_equal(found, expected[1])
    assert best.dtype == np.float32


def test_search_refuses_other_dimensions_and_no_results():
    with pytest.raises(ValueError, match=r"`database` must have shape \(N, 2\)"):
        ranking.search(np.ones((1, 2)), np.ones((4, 3)), 1)
    with pytest.raises(ValueError, match="`top` must be at least 1; got 0"):
        ranking.search(np.ones((1, 2)), np.ones((4, 2)), 0)


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,Flat"])
def test_an_index_finds_what_exact_search_finds(factory):
    pytest.importorskip("faiss", reason="the `index` extra is not installed")
    rng = np.random.default_rng(0)
    database = rng.standard_normal((300, 8)).astype(np.float32)
    database /= np.linalg.norm(database, axis=1, keepdims=True)
    best, exact = ranking.search(database[:20], database, 5)
    scores, found = ranking.faiss_index(database, factory).search(database[:20], 5)
    if factory == "Flat":
        np.testing.assert_array_equal(found, exact)
        np.testing.assert_allclose(scores, best, rtol=1e-5)
    # A quarter of the cells is visited where there are cells.
    assert ranking.recall(found, exact) > (0.4 if "IVF" in factory else 0.99)
    assert (found[:, 0] == np.arange(20)).all()


def test_an_index_without_faiss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"cwr-workbook\[index\]"):
        ranking.faiss_index(np.ones((2, 2)))


def test_recall_by_hand():
    assert ranking.recall([[3, 1], [5, 6]], [[1, 2], [6, 5]]) == 0.75
    with pytest.raises(ValueError, match="`found` must have shape"):
        ranking.recall([[1]], [[1], [2]])


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_precision_is_searched_in_float32(dtype):
    faiss = pytest.importorskip("faiss", reason="the `index` extra is not installed")
    database = np.eye(6, dtype=dtype)
    scores, found = ranking.search(database[:2], database, 1)
    assert scores.dtype == np.float32
    index = ranking.faiss_index(database, "Flat")
    assert isinstance(index, faiss.IndexFlat)
    assert (
        found.tolist() == index.search(np.eye(6, dtype=np.float32)[:2], 1)[1].tolist()
    )
