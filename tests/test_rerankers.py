"""Re-rankers against loops from their papers, by hand, and by their properties."""

from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import reference_rerankers as reference
from hypothesis import given
from hypothesis import strategies as st

from cwr_utils import ranking
from cwr_utils.arrays import l2_normalize
from cwr_utils.rerankers import (
    RERANKERS,
    AlphaQE,
    Chain,
    DatabaseAugmentation,
    Diffusion,
    ExactIndex,
    KReciprocal,
    SuperGlobal,
    rerank,
)
from cwr_utils.rerankers import base as shared

SEEDS = st.integers(0, 2**32 - 1)


def collection(seed, count=40, groups=5, dimensions=6, queries=4):
    """Queries and photos in groups; the last query is a photo of the database."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, dimensions))

    def around(rows):
        noise = 0.6 * rng.standard_normal((len(rows), dimensions))
        return l2_normalize(centres[rows] + noise).astype(np.float32)

    database = around(rng.integers(0, groups, count))
    asked = around(np.arange(queries) % groups)
    asked[-1] = database[count // 2]
    return asked, database


def ranked(scores):
    return ranking.order(scores).tolist()


# The papers' equations, as loops


CASES = [
    *(
        (AlphaQE(k, alpha), partial(reference.alpha_qe, k=k, alpha=alpha))
        for k, alpha in [(1, 0), (5, 3), (10, 0.5), (99, 1)]
    ),
    *(
        (KReciprocal(k1, k2, weight), partial(reference.k_reciprocal, **names))
        for k1, k2, weight in [
            (20, 6, 0.3),
            (5, 1, 0),
            (4, 3, 0.5),
            (1, 2, 0.1),
            (60, 60, 0),
        ]
        for names in [{"k1": k1, "k2": k2, "weight": weight}]
    ),
    *(
        (
            Diffusion(k, start, alpha, exponent, degree, truncation, 1000),
            partial(
                reference.diffusion,
                k=k,
                query_k=start,
                alpha=alpha,
                exponent=exponent,
                degree=degree,
                truncation=truncation,
            ),
        )
        for k, start, alpha, exponent, truncation in [
            (50, 10, 0.9, 3, 1000),
            (5, 3, 0.8, 3, 1000),
            (2, 1, 0.99, 1, 1000),
            (5, 3, 0.9, 2, 15),
            (5, 10, 0.9, 3, 4),
        ]
        for degree in (0, 0.5)
    ),
    *(
        (
            SuperGlobal(top, k, beta),
            partial(reference.super_global, top=top, k=k, beta=beta),
        )
        for top, k, beta in [(400, 9, 0.15), (15, 3, 1), (10, 20, 0.5), (6, 0, 0.15)]
    ),
]


@pytest.mark.parametrize(("how", "loop"), CASES, ids=[str(how) for how, _ in CASES])
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_loops(how, loop, seed):
    queries, database = collection(seed)
    database[1] = 0  # a photo without any class
    got = rerank(how, queries, database)
    assert got.shape == (len(queries), len(database)) and got.dtype == np.float32
    for query, scores in zip(queries, got, strict=True):
        expected = loop(query, database)
        ahead = expected > -5  # the loops mark what only follows
        moved = scores[ahead] - expected[ahead]
        if isinstance(how, SuperGlobal) and not ahead.all():
            moved -= moved[0]  # lifted above the others, all by the same
        np.testing.assert_allclose(moved, 0, atol=2e-5 * max(1, expected.max()))
        behind = np.flatnonzero(~ahead)
        assert not len(behind) or scores[ahead].min() > scores[behind].max()
        cosines = (database @ query)[behind]
        assert ranked(scores[behind]) == ranked(cosines)


@pytest.mark.parametrize(("photos", "alpha"), [(1, 0), (3, 1), (10, 3), (99, 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_augmented_photos_are_those_of_the_loop(photos, alpha, seed):
    queries, database = collection(seed)
    before = database.copy()
    prepared = DatabaseAugmentation(photos, alpha).prepare(database)
    expected = reference.augmented(before, photos, alpha)
    np.testing.assert_allclose(prepared.database, expected, atol=1e-6)
    np.testing.assert_array_equal(database, before)
    np.testing.assert_allclose(
        prepared.scores(queries), queries @ expected.T, atol=1e-6
    )


# By hand


def test_expansion_by_hand():
    database = np.array([[0.6, 0.8], [0, 1], [-1, 0]])
    query = np.array([[1.0, 0.0]])
    # The last photo is on the other side and weighs nothing.
    expected = np.array([1 + 0.6 * 0.6, 0.6 * 0.8])
    got = AlphaQE(3, 1).prepare(database).expand(query.astype(np.float32))
    np.testing.assert_allclose(got[0], expected / np.linalg.norm(expected), rtol=1e-6)
    # Photo 0 and, 0.8 times, its nearest; photo 2 has no neighbour on its side.
    got = DatabaseAugmentation(1, 1).prepare(database).database
    expected = np.array([0.6, 1.6]) / np.hypot(0.6, 1.6)
    np.testing.assert_allclose(got[0], expected, rtol=1e-6)
    np.testing.assert_allclose(got[2], [-1, 0])


def test_reciprocal_sets_by_hand():
    """Two photos that have each other, and one that is nobody's nearest."""
    angles = np.radians([0, 10, 40])
    database = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    query = database[:1]
    got = rerank(KReciprocal(1, 1, 0), query, database)[0]
    # The query has photo 0 alone: k1 / 2 = 0 neighbours add nothing. Photos 0 and 1
    # have each other: themselves weigh 1, the other exp(cos 10 - 1), of the sum.
    near = np.exp(np.cos(angles[1]) - 1)
    own, other = np.array([1, near]) / (1 + near)
    np.testing.assert_allclose(
        got, [own / (1 + other), other / (1 + own), 0], rtol=1e-5
    )


@pytest.mark.parametrize("degree", [0, 0.5])
def test_diffusion_by_hand(degree):
    """A pair and a photo alone: f = (1, alpha) y / (1 - alpha ** 2)."""
    database = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])
    how = Diffusion(1, 1, 0.5, 2, degree)
    got = rerank(how, np.array([[0.8, 0, 0.6]]), database)[0]
    np.testing.assert_allclose(got[:2], 0.64 * np.array([4 / 3, 2 / 3]), rtol=1e-6)
    assert 0 < got[2] < 1e-15


def test_super_global_by_hand():
    database = np.array([[1, 0], [0.6, 0.8], [-0.6, 0.8]])
    got = rerank(SuperGlobal(2, 1, 0.5), np.array([[1.0, 0.0]]), database)[0]
    # Weights of the other of the first two: 0.5 * 0.6.
    refined = np.array([[1 + 0.18, 0.24], [0.6 + 0.3, 0.8]]) / 1.3
    largest = np.array([1.18, 0.8]) / 1.3
    expected = (refined[:, 0] + refined @ largest) / 2
    np.testing.assert_allclose(got, [*expected, -0.6], rtol=1e-6)


def test_a_large_landmark_does_not_come_first_for_every_query():
    """What diffusion with symmetric normalisation does where all is one component."""
    ways = [Diffusion(degree=0), Chain(), Diffusion()]
    right = np.zeros(3)
    for seed in range(4):
        noise = 0.25 * np.random.default_rng(seed).standard_normal((46, 40))
        places = np.repeat(np.eye(2, 40), [6, 40], axis=0)
        database = l2_normalize(places + noise).astype(np.float32)
        for way, how in enumerate(ways):  # queries: the six photos of the small place
            scores = rerank(how, database[:6], database)
            right[way] += (ranking.order(scores, 6) < 6).mean() / 4
    assert right[0] < 0.6 < right[1] < 0.9 < right[2]


# Properties


EVERY = [
    AlphaQE(5),
    DatabaseAugmentation(3),
    KReciprocal(6, 3),
    Diffusion(5, 3, truncation=25),
    Diffusion(5, 3),
    SuperGlobal(15, 3),
    Chain.parse("dba:photos=3+alpha_qe:photos=2+k_reciprocal:k1=6,k2=2"),
]
every = pytest.mark.parametrize("how", EVERY, ids=str)


@every
@given(SEEDS)
def test_the_order_of_the_database_does_not_matter(how, seed):
    queries, database = collection(seed, 30, 4)
    order = np.random.default_rng(seed).permutation(len(database))
    scores = rerank(how, queries, database)
    moved = rerank(how, queries, database[order])
    np.testing.assert_allclose(moved, scores[:, order], rtol=1e-3, atol=1e-5)


@every
def test_a_query_changes_nothing_for_another_one(how):
    queries, database = collection(1)
    prepared = how.prepare(database)
    scores = prepared.scores(queries)
    for query, row in zip(queries, scores, strict=True):
        np.testing.assert_allclose(prepared.scores(query[None])[0], row, atol=1e-5)
    np.testing.assert_array_equal(prepared.scores(queries), scores)
    assert prepared.scores(queries[:0]).shape == (0, len(database))


@every
def test_neither_queries_nor_database_are_changed(how):
    queries, database = collection(2)
    kept = queries.copy(), database.copy()
    rerank(how, queries, database)
    np.testing.assert_array_equal(queries, kept[0])
    np.testing.assert_array_equal(database, kept[1])


@every
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_photos_equal_ones_and_empty_ones(how, count):
    database = np.zeros((count, 3), np.float16)
    database[: count - 1, 0] = 1  # equal to each other and to the query; the last empty
    scores = rerank(how, np.eye(2, 3), database)
    assert scores.shape == (2, count) and np.isfinite(scores).all()
    assert scores.dtype == np.float32
    assert ranked(scores[0]) == list(range(count))


SAME = [Chain(), AlphaQE(0), DatabaseAugmentation(0), KReciprocal(weight=1)]
SAME += [SuperGlobal(0), Chain.parse("dba:photos=0+alpha_qe:photos=0")]


@pytest.mark.parametrize("how", SAME, ids=repr)
def test_settings_that_change_nothing(how):
    queries, database = collection(3)
    np.testing.assert_array_equal(
        rerank(how, queries, database), ranking.similarities(queries, database)
    )


@given(SEEDS)
def test_diffusion_that_passes_nothing_on_keeps_the_order(seed):
    queries, database = collection(seed)
    scores = rerank(Diffusion(alpha=0, query_neighbours=4), queries, database)
    cosines = ranking.similarities(queries, database)
    np.testing.assert_array_equal(ranking.order(scores), ranking.order(cosines))


def test_what_is_not_solved_yet_puts_no_photo_behind_those_out_of_reach():
    """Conjugate gradients go below 0 on their way."""
    for seed in range(20):
        queries, database = collection(seed)
        scores = rerank(Diffusion(5, 3, iterations=3), queries, database)
        assert scores.min() > -1e-15


@given(SEEDS, st.integers(1, 50))
def test_alpha_0_is_average_query_expansion(seed, photos):
    queries, database = collection(seed)
    got = AlphaQE(photos, 0).prepare(database).expand(queries)
    for query, expanded in zip(queries, got, strict=True):
        order = ranking.order(database @ query)
        expected = ranking.expand_query(query, database, order, photos)
        np.testing.assert_allclose(expanded, expected, atol=1e-6)


def test_a_large_alpha_adds_only_what_is_the_query():
    queries, database = collection(4)
    got = AlphaQE(5, 1e4).prepare(database).expand(queries[:-1])
    np.testing.assert_allclose(got, queries[:-1], atol=1e-6)


def test_steps_work_on_what_the_step_before_made():
    queries, database = collection(5)
    augmented = reference.augmented(database, 3, 1)
    text = "dba:photos=3+alpha_qe:photos=4,alpha=2"
    prepared = Chain.parse(text).prepare(database)
    np.testing.assert_allclose(prepared.database, augmented, atol=1e-6)
    for query, scores in zip(queries, prepared.scores(queries), strict=True):
        expected = reference.alpha_qe(query, augmented, 4, 2)
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    last = Chain.parse(f"{text}+diffusion:neighbours=5").prepare(database)
    np.testing.assert_allclose(last.database, augmented, atol=1e-6)
    expected = rerank(
        Diffusion(5), prepared.expand(queries), augmented.astype(np.float32)
    )
    np.testing.assert_allclose(last.scores(queries), expected, atol=1e-4)


# Neighbours


def test_equals_do_not_take_the_place_of_a_photo_itself():
    scores, rows = shared.neighbours(np.ones((4, 1), np.float32), 2)
    assert scores.tolist() == [[1, 1]] * 4
    assert [sorted(row) for row in rows.tolist()] == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_blocks_of_queries_change_nothing(monkeypatch):
    queries, database = collection(6)
    whole = ExactIndex(database).search(database, 7)
    monkeypatch.setattr(shared, "QUERY_ROWS", 9)
    for got, expected in zip(
        ExactIndex(database).search(database, 7), whole, strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    monkeypatch.setattr("cwr_utils.rerankers.reciprocal.PAIRS", 5)
    expected = [reference.k_reciprocal(query, database, 6, 3, 0) for query in queries]
    got = rerank(KReciprocal(6, 3, 0), queries, database)
    np.testing.assert_allclose(got, expected, atol=1e-5)


class Counting(ExactIndex):
    searches = 0

    def search(self, queries, top):
        Counting.searches += 1
        return super().search(queries, top)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alpha_qe", 0),
        ("dba", 1),
        ("k_reciprocal", 1),
        ("diffusion:truncation=9", 1),
        ("super_global", 0),
        ("dba+alpha_qe+diffusion", 2),
    ],
)
def test_neighbours_of_photos_are_searched_once_for_all_queries(text, expected):
    queries, database = collection(7)
    Counting.searches = 0
    prepared = Chain.parse(text).prepare(database, Counting)
    prepared.scores(queries)
    prepared.scores(queries)
    assert Counting.searches == expected


@every
def test_neighbours_may_come_from_faiss(how):
    pytest.importorskip("faiss", reason="the `index` extra is not installed")
    queries, database = collection(8)
    index = partial(ranking.faiss_index, factory="Flat")
    np.testing.assert_allclose(
        rerank(how, queries, database, index),
        rerank(how, queries, database),
        atol=1e-4,
    )


def test_an_index_that_finds_too_few_is_refused():
    class Poor(ExactIndex):
        def search(self, queries, top):
            scores, rows = super().search(queries, top)
            rows[3, -1] = -1
            return scores, rows

    with pytest.raises(ValueError, match="fewer than 6 neighbours of some photos"):
        DatabaseAugmentation(5).prepare(collection(0)[1], Poor)


@every
def test_other_shapes_are_refused(how):
    with pytest.raises(ValueError, match="There are no photos to rank"):
        how.prepare(np.ones((0, 3)))
    with pytest.raises(ValueError, match=r"must have shape \(n, D\); got \(3\)"):
        how.prepare(np.ones(3))
    with pytest.raises(ValueError, match="must have shape"):
        rerank(how, np.ones((1, 2)), np.ones((4, 3)))


# Texts


NUMBERS = st.floats(0, 1e30, allow_nan=False)
SPECIAL = {
    KReciprocal: {"weight": st.floats(0, 1)},
    Diffusion: {"alpha": st.floats(0, 0.999), "degree": st.floats(0, 0.5)},
}
STEPS = st.one_of(
    *(
        st.builds(
            kind,
            **{
                field.name: st.integers(1, 10**6) if field.type is int else NUMBERS
                for field in fields(kind)
            }
            | SPECIAL.get(kind, {}),
        )
        for kind in RERANKERS.values()
    )
)


@given(st.lists(STEPS, max_size=4))
def test_a_text_is_read_back(steps):
    last = [step for step in steps if step.is_last][:1]
    chain = Chain((*(step for step in steps if not step.is_last), *last))
    assert Chain.parse(str(chain)) == chain
    assert str(Chain.parse(str(chain))) == str(chain)


def test_texts():
    assert Chain.parse("") == Chain.parse(" ") == Chain()
    assert str(Chain()) == Chain().label == ""
    chain = Chain.parse(" dba : photos = 5 + alpha_qe ")
    assert chain == Chain((DatabaseAugmentation(photos=5), AlphaQE()))
    assert str(chain) == "dba:photos=5,alpha=1+alpha_qe:photos=10,alpha=3"
    assert chain.label == "DBA (photos 5) + alpha-QE"
    assert str(AlphaQE(5, 3)) == str(AlphaQE(np.int64(5), 3.0))
    assert AlphaQE(alpha=1e20) == Chain.parse("alpha_qe:alpha=1e20").steps[0]
    for kind in RERANKERS.values():
        assert Chain.parse(kind.name) == Chain((kind(),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alfa_qe", "Unknown re-ranker 'alfa_qe': did you mean alpha_qe?"),
        ("x", "known: alpha_qe, dba, k_reciprocal, diffusion, super_global."),
        ("dba+", "Unknown re-ranker ''"),
        ("dba:photo=3", "Unknown setting of dba 'photo': did you mean photos?"),
        ("dba:", "Unknown setting of dba '': known: photos, alpha."),
        ("dba:photos", "`photos` of dba must be a whole number, as in dba:photos=10"),
        ("dba:photos=2.5", "must be a whole number, as in dba:photos=10,alpha=1; got"),
        ("dba:alpha=x", "`alpha` of dba must be a number, as in"),
        ("dba:photos=1,photos=2", "gives `photos` twice"),
        ("dba:photos=-1", "`photos` of dba must be a whole number, at least 0; got -1"),
        ("dba:alpha=nan", "`alpha` of dba must be a number, at least 0; got nan"),
        ("alpha_qe:alpha=inf", "got inf"),
        ("k_reciprocal:k1=0", "`k1` of k_reciprocal must be at least 1; got 0"),
        ("k_reciprocal:weight=1.5", "must be between 0 and 1; got 1.5"),
        ("diffusion:alpha=1", "`alpha` of diffusion must be below 1; got 1.0"),
        ("diffusion:degree=1", "must be between 0 and 0.5; got 1.0"),
        ("diffusion:iterations=0", "`iterations` of diffusion must be at least 1"),
        ("diffusion+dba", "diffusion gives scores and no descriptors"),
        ("k_reciprocal+super_global", "got super_global after it. Put it last."),
    ],
)
def test_texts_that_are_refused(text, message):
    with pytest.raises(ValueError) as error:
        Chain.parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize("value", [True, "3", None, 2.0])
def test_settings_of_another_kind_are_refused(value):
    with pytest.raises(ValueError, match="must be a whole number, at least 0; got"):
        AlphaQE(value)
