import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import reference_ap
from hypothesis import given
from hypothesis import strategies as st

from cwr_utils import evaluation


@dataclass(frozen=True)
class Query:
    name: str
    image: str
    positives: frozenset = frozenset()
    junk: frozenset = frozenset()
    landmark: str = ""


@st.composite
def searches(draw):
    """A ranking with its positives and junk, some of which it does not contain."""
    names = [f"image{i}" for i in range(draw(st.integers(1, 25)))]
    roles = draw(
        st.lists(
            st.sampled_from(["positive", "junk", "negative"]),
            min_size=len(names),
            max_size=len(names),
        )
    )
    positives = {n for n, role in zip(names, roles, strict=True) if role == "positive"}
    junk = {n for n, role in zip(names, roles, strict=True) if role == "junk"}
    positives = positives or {"absent"}
    ranking = draw(st.permutations(names))
    return ranking[: draw(st.integers(0, len(names)))], positives, junk


def score(ranking, positives, junk=()):
    ranks = evaluation.ranks_without_junk(ranking, set(positives), set(junk))
    return evaluation.average_precision(ranks, len(set(positives)))


# Average precision


@pytest.mark.parametrize(
    ("ranks", "num_positives", "expected"),
    [
        ([0, 2], 2, 0.791667),  # (1 + 1)/2 * 1/2 + (1/2 + 2/3)/2 * 1/2
        ([0], 1, 1.0),
        ([1], 1, 0.25),  # (0 + 1/2)/2
        ([0, 1, 2], 3, 1.0),
        ([0], 2, 0.5),  # one of two was never ranked
        ([3], 2, 0.0625),
        ([], 4, 0.0),
        ([2, 0], 2, 0.791667),  # order does not matter
    ],
)
def test_average_precision_by_hand(ranks, num_positives, expected):
    ap = evaluation.average_precision(ranks, num_positives)
    assert isinstance(ap, float)
    assert ap == pytest.approx(expected, abs=1e-6)


def test_sklearn_defines_another_average_precision():
    from sklearn.metrics import average_precision_score

    assert average_precision_score([1, 0, 1], [3, 2, 1]) == pytest.approx(0.833333)
    assert evaluation.average_precision([0, 2], 2) == pytest.approx(0.791667)


@pytest.mark.parametrize(
    ("ranks", "num_positives", "complaint"),
    [
        ([], 0, "at least 1; got 0"),
        ([0, 1], 1, "2 ranks for 1 positives"),
        ([1, 1], 3, "distinct"),
        ([-1], 3, ">= 0"),
    ],
)
def test_average_precision_refuses(ranks, num_positives, complaint):
    with pytest.raises(ValueError, match=complaint):
        evaluation.average_precision(ranks, num_positives)


@given(searches())
def test_equals_the_walk_down_the_list(search):
    expected = reference_ap.average_precision(*search)
    assert score(*search) == pytest.approx(expected, abs=1e-12)


@given(st.sets(st.integers(0, 200), min_size=1), st.integers(0, 5))
def test_equals_the_revisited_closed_form(ranks, missing):
    total = len(ranks) + missing
    expected = reference_ap.revisited_average_precision(sorted(ranks), total)
    ap = evaluation.average_precision(list(ranks), total)
    assert ap == pytest.approx(expected, abs=1e-12)
    assert 0 < ap <= 1


@given(searches(), st.data())
def test_junk_never_changes_ap(search, data):
    ranking, positives, junk = search
    noisy = list(ranking)
    for i in range(data.draw(st.integers(1, 5))):
        noisy.insert(data.draw(st.integers(0, len(noisy))), f"more junk {i}")
    more = junk | {f"more junk {i}" for i in range(5)}
    assert score(noisy, positives, more) == score(ranking, positives, junk)


@given(st.integers(1, 20), st.integers(0, 20))
def test_only_a_perfect_ranking_scores_one(num_positives, num_others):
    positives = [f"p{i}" for i in range(num_positives)]
    others = [f"n{i}" for i in range(num_others)]
    assert score(positives + others, positives) == pytest.approx(1)
    if others:
        assert score(others + positives, positives) < 1


@given(searches())
def test_a_missing_positive_counts_in_the_denominator(search):
    ranking, positives, junk = search
    more = positives | {"never ranked"}
    expected = score(*search) * len(positives) / len(more)
    assert score(ranking, more, junk) == pytest.approx(expected, abs=1e-12)


# Ranks and curves


def test_ranks_close_up_over_junk():
    ranking = ["j1", "p1", "n1", "j2", "j3", "p2"]
    ranks = evaluation.ranks_without_junk(
        ranking, {"p1", "p2", "p3"}, {"j1", "j2", "j3"}
    )
    assert ranks.tolist() == [0, 2]


def test_ranks_refuse_contradictions():
    with pytest.raises(ValueError, match=r"more than once: \['a'\]"):
        evaluation.ranks_without_junk(["a", "b", "a"], {"b"}, set())
    with pytest.raises(ValueError, match=r"both positive and junk: \['a'\]"):
        evaluation.ranks_without_junk(["a"], {"a"}, {"a"})


@given(searches())
def test_area_under_the_curve_is_the_ap(search):
    recall, precision = evaluation.precision_recall(*search)
    assert (recall[0], precision[0]) == (0, 1)
    assert np.all(np.diff(recall) >= 0)
    area = np.trapezoid(precision, recall)
    assert area == pytest.approx(score(*search), abs=1e-12)


# Tables


QUERY = Query("q", "own", frozenset({"p1", "p2"}), frozenset({"j"}))
RANKING = ["own", "j", "p1", "n1", "p2", "n2"]


@pytest.mark.parametrize("ground_truth", ["neither", "positive", "junk"])
@pytest.mark.parametrize("self_match", [True, False])
def test_the_own_image_is_a_positive_or_junk(ground_truth, self_match):
    query = QUERY
    if ground_truth == "positive":
        query = replace(query, positives=query.positives | {"own"})
    if ground_truth == "junk":
        query = replace(query, junk=query.junk | {"own"})
    (row,) = evaluation.evaluate({"q": RANKING}, [query], self_match).to_dict("records")
    if self_match:  # own p1 n1 p2 n2
        ranks, first_false, last = [0, 1, 3], 3, 4
    else:  # p1 n1 p2 n2
        ranks, first_false, last = [0, 2], 2, 3
    assert row == {
        "query": "q",
        "ap": evaluation.average_precision(ranks, len(ranks)),
        **{f"p@{k}": evaluation.precision_at(ranks, len(ranks), k) for k in (1, 5, 10)},
        "positives": len(ranks),
        "first_false_positive": first_false,
        "last_positive": last,
        "landmark": "q",
    }


def test_a_query_without_positives_is_left_out_of_the_mean():
    lonely = Query("lonely", "own")
    table = evaluation.evaluate({"q": RANKING, "lonely": ["a"]}, [lonely, QUERY], False)
    assert list(table["query"]) == ["lonely", "q"]
    assert math.isnan(table["ap"][0])
    assert table["positives"].tolist() == [0, 2]
    assert math.isnan(table["last_positive"][0])
    assert evaluation.mean_average_precision(table) == table["ap"][1]


def test_mean_of_no_queries_is_nan():
    table = evaluation.evaluate({}, [], self_match=True)
    assert tuple(table.columns) == evaluation.COLUMNS
    assert math.isnan(evaluation.mean_average_precision(table))


def test_ranks_that_do_not_exist_are_nan():
    complete = Query("complete", "x", frozenset({"a", "b"}))
    truncated = Query("truncated", "x", frozenset({"a", "b"}))
    rankings = {"complete": ["a", "b"], "truncated": ["a", "c"]}
    table = evaluation.evaluate(rankings, [complete, truncated], self_match=False)
    np.testing.assert_array_equal(table["first_false_positive"], [np.nan, 2])
    np.testing.assert_array_equal(table["last_positive"], [2, np.nan])
    np.testing.assert_allclose(table["ap"], [1, 0.5])


def test_a_missing_ranking_is_an_error_before_any_work():
    with pytest.raises(ValueError, match=r"no ranking for 1 of 2 queries: \['other'\]"):
        evaluation.evaluate({"q": RANKING}, [QUERY, Query("other", "o")], False)


def test_a_bad_ranking_names_its_query():
    with pytest.raises(ValueError, match="query q: ranked more than once"):
        evaluation.evaluate({"q": ["p1", "p1"]}, [QUERY], False)


# The revisited protocol


@pytest.mark.parametrize(
    ("difficulty", "positives", "junk"),
    [
        ("easy", {"e"}, {"h", "u"}),
        ("medium", {"e", "h"}, {"u"}),
        ("hard", {"h"}, {"e", "u"}),
    ],
)
def test_revisited_difficulties(difficulty, positives, junk):
    sets = evaluation.revisited_ground_truth({"e"}, {"h"}, {"u"}, difficulty)
    assert sets == (positives, junk)


def test_an_unknown_difficulty_names_the_known():
    with pytest.raises(ValueError, match=r"\('easy', 'medium', 'hard'\); got 'exp"):
        evaluation.revisited_ground_truth(set(), set(), set(), "expert")


@pytest.mark.parametrize(
    ("ranks", "num_positives", "expected"),  # P@1, P@5, P@10
    [
        ([0], 1, [1, 1, 1]),
        ([1], 1, [0, 1 / 2, 1 / 2]),
        ([9], 1, [0, 0, 1 / 10]),
        ([10], 1, [0, 0, 0]),
        ([0, 2], 2, [1, 2 / 3, 2 / 3]),
        ([0, 1, 2, 8], 4, [1, 3 / 5, 4 / 9]),
        ([8, 2, 0, 1], 4, [1, 3 / 5, 4 / 9]),  # order does not matter
        (range(12), 12, [1, 1, 1]),
        ([0, 2], 3, [1, 2 / 5, 2 / 10]),  # the third was never ranked: k stays k
        ([], 3, [0, 0, 0]),
    ],
)
def test_precision_at_k_by_hand(ranks, num_positives, expected):
    found = [evaluation.precision_at(ranks, num_positives, k) for k in (1, 5, 10)]
    assert found == expected


def test_precision_at_k_refuses_what_ap_refuses():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        evaluation.precision_at([0], 1, 0)
    with pytest.raises(ValueError, match="leave such a query out"):
        evaluation.precision_at([], 0, 1)
    with pytest.raises(ValueError, match="distinct"):
        evaluation.precision_at([1, 1], 2, 1)


@given(searches())
def test_precision_in_the_table_equals_the_walk(search):
    ranking, positives, junk = search
    ranking = list(ranking) + sorted(positives - set(ranking))
    query = Query("q", "own", frozenset(positives), frozenset(junk))
    table = evaluation.evaluate({"q": ranking}, [query], self_match=False)
    for k in evaluation.DEPTHS:
        expected = reference_ap.precision_at(ranking, positives, junk, k)
        assert table[f"p@{k}"][0] == expected
        assert evaluation.mean_precision_at(table, k) == expected


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(0, 5), st.integers(1, 70))
def test_precision_is_that_of_the_last_positive_from_there_on(ranks, missing, k):
    total = len(ranks) + missing
    precision = evaluation.precision_at(list(ranks), total, k)
    assert 0 <= precision <= 1
    last = max(ranks) + 1
    if not missing and k >= last:
        assert precision == total / last
    else:
        assert precision == len(ranks & set(range(k))) / k
    # A positive that moves up never costs.
    up = {rank - 1 if rank and rank - 1 not in ranks else rank for rank in ranks}
    if len(up) == len(ranks):
        assert evaluation.precision_at(list(up), total, k) >= precision


def test_means_leave_out_queries_without_positives_and_list_them():
    queries, rankings = [QUERY, Query("none", "x")], {"q": RANKING, "none": ["x"]}
    table = evaluation.evaluate(rankings, queries, self_match=False)
    assert table["query"].tolist() == ["q", "none"]
    assert table.loc[1, ["ap", "p@1", "p@5", "p@10"]].isna().all()
    alone = evaluation.evaluate(rankings, queries[:1], self_match=False)
    for k in evaluation.DEPTHS:
        mean = evaluation.mean_precision_at(table, k)
        assert mean == evaluation.mean_precision_at(alone, k) == alone[f"p@{k}"][0]
    with pytest.raises(ValueError, match=r"one of \(1, 5, 10\), the depths.*got 3"):
        evaluation.mean_precision_at(table, 3)


def test_the_own_photo_is_a_free_hit_at_rank_1():
    queries = [Query("q", "own", frozenset({"p"}))]
    rankings = {"q": ["own", "n", "p"]}
    without, own = (evaluation.evaluate(rankings, queries, r) for r in (False, True))
    assert (without["p@1"][0], own["p@1"][0]) == (0, 1)
    assert (without["p@5"][0], own["p@5"][0]) == (1 / 2, 2 / 3)


# Ranking files


def test_ranking_files_have_unix_ends_and_folders(tmp_path):
    rankings = {"all_souls_1": ["b", "a\u2028 name", "ü.jpg"], "my/query.v2": ["c"]}
    evaluation.write_rankings(rankings, tmp_path)
    whole = (tmp_path / "all_souls_1.txt").read_bytes()
    assert whole == "b\na\u2028 name\nü.jpg\n".encode()
    assert (tmp_path / "my" / "query.v2.txt").read_bytes() == b"c\n"


@pytest.mark.parametrize("name", ["", "a\nb", "a\r"])
def test_names_that_would_break_the_file_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="q: names with line breaks or empty"):
        evaluation.write_rankings({"q": ["a", name]}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_query_name_cannot_leave_the_folder(tmp_path):
    with pytest.raises(ValueError, match="leads out of"):
        evaluation.write_rankings({"../q": ["a"]}, tmp_path / "rankings")


def test_scores_survive_a_table_on_disk(tmp_path):
    table = evaluation.evaluate({"q": RANKING}, [QUERY], self_match=True)
    table.to_csv(tmp_path / "per_query.csv", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "per_query.csv"), table)


# Landmarks, intervals, differences


def test_landmarks_are_those_that_the_queries_name():
    # Both show both: as in Oxford, where a photo of the one has the other in it.
    shared = frozenset({"a1", "r1", "x"})
    queries = [
        Query("all_souls_1", "a1", shared, landmark="all_souls"),
        Query("radcliffe_1", "r1", shared, landmark="radcliffe"),
        Query("all_souls_2", "a2", landmark="all_souls"),
        Query("unnamed", "x", shared),
    ]
    expected = ["all_souls", "radcliffe", "all_souls", "unnamed"]
    assert list(evaluation.landmarks(queries).values()) == expected
    table = evaluation.evaluate({q.name: ["a1", "x"] for q in queries}, queries, False)
    assert table["landmark"].tolist() == expected
    assert evaluation.landmarks([]) == {}


def test_queries_without_landmarks_are_joined_by_photos_and_say_so():
    queries = [
        Query("all_souls_1", "a1", frozenset({"a1", "a2", "a3"})),
        Query("IMG_7", "x", frozenset({"y"})),
        Query("all_souls_2", "a2", frozenset({"a2", "a1"})),
        Query("IMG_8", "z"),
        Query("other", "b", frozenset({"c"}), junk=frozenset({"a1"})),
    ]
    assert evaluation.landmarks(queries) == {
        "all_souls_1": "all_souls_1 (shares photos)",
        "IMG_7": "IMG_7",
        "all_souls_2": "all_souls_1 (shares photos)",
        "IMG_8": "IMG_8",
        "other": "other",
    }


def test_a_query_may_join_two_groups():
    queries = [Query("b", "1"), Query("d", "2"), Query("c", "3", frozenset({"1", "2"}))]
    assert set(evaluation.landmarks(queries).values()) == {"b (shares photos)"}


def test_queries_without_positives_are_scored_as_nothing():
    queries = [Query("q", "a", junk=frozenset({"a"}))]
    rankings = {"q": ["a", "b", "c"]}
    table = evaluation.evaluate(rankings, queries, self_match=False)
    assert np.isnan(table["ap"][0]) and table["positives"][0] == 0
    assert np.isnan(evaluation.mean_average_precision(table))
    assert np.isnan(evaluation.mean_precision_at(table, 1))
    assert np.isnan(evaluation.bootstrap(table["ap"], table["landmark"]).mean)
    assert np.isnan(evaluation.compare(table, table)["difference"][0])
    (error,) = evaluation.errors(rankings, queries, False).to_dict("records")
    assert (error["first_wrong"], error["missed"]) == ("b", [])
    recall, precision = evaluation.precision_recall(["a", "b", "c"], set(), {"a"})
    assert np.isnan(recall).all() and precision.tolist() == [1, 0, 0]


def test_the_bootstrap_draws_whole_landmarks():
    # Two landmarks: the mean is 0, 1/4 (4 queries of the one, 4 of the other) or 1/2.
    one = evaluation.bootstrap([0.0, 0.0, 0.5, 0.5], list("aabb"))
    assert one == (0.25, 0.0, 0.5, 2)
    # 1 query against 3: a draw of both has mean 3/4, and its chance is 1/2.
    values, groups = [0.0, 1.0, 1.0, 1.0], list("abbb")
    half = evaluation.bootstrap(values, groups, level=0.4)
    assert half == (0.75, 0.75, 0.75, 2)


def test_the_bootstrap_agrees_with_a_naive_loop():
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 8, 40)
    values = rng.random(40) + groups / 8
    draws = []
    for _ in range(4000):
        rows = [np.flatnonzero(groups == g) for g in rng.integers(0, 8, 8)]
        draws.append(values[np.concatenate(rows)].mean())
    expected = np.quantile(draws, [0.025, 0.975])
    found = evaluation.bootstrap(values, groups)
    assert found.mean == pytest.approx(values.mean())
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.015)
    # Queries that go together tell less than as many that do not.
    alone = evaluation.bootstrap(values, np.arange(40))
    assert alone.high - alone.low < 0.8 * (found.high - found.low)


def test_the_bootstrap_repeats_itself_and_leaves_nan_out():
    values, groups = [0.1, np.nan, 0.9, 0.4], list("abcd")
    first = evaluation.bootstrap(values, groups)
    assert first == evaluation.bootstrap(values, groups)
    assert first == evaluation.bootstrap([0.1, 0.9, 0.4], list("acd"))
    assert first.groups == 3


@pytest.mark.parametrize(("values", "mean"), [([], np.nan), ([0.2, 0.4], 0.3)])
def test_one_landmark_has_no_interval(values, mean):
    found = evaluation.bootstrap(values, ["a"] * len(values))
    assert found.mean == pytest.approx(mean, nan_ok=True)
    assert math.isnan(found.low) and math.isnan(found.high)


def test_two_runs_are_compared_query_by_query():
    queries = ["keble_1", "keble_2", "louvre_1"]
    before = pd.DataFrame({"query": queries, "ap": [0.5, 1.0, 0.2]})
    after = pd.DataFrame({"query": queries[::-1], "ap": [0.9, 0.75, 0.5]})
    table = evaluation.compare(before, after)
    assert table["query"].tolist() == ["louvre_1", "keble_1", "keble_2"]
    assert table["landmark"].tolist() == ["louvre", "keble", "keble"]
    np.testing.assert_allclose(table["difference"], [0.7, 0.0, -0.25])
    np.testing.assert_allclose(table["after"], [0.9, 0.5, 0.75])
    named = evaluation.compare(before.assign(landmark=list("aba")), after)
    assert named["landmark"].tolist() == ["a", "a", "b"]


def test_only_the_same_queries_can_be_compared():
    one = pd.DataFrame({"query": ["a", "b"], "ap": [1.0, 1.0]})
    with pytest.raises(ValueError, match=r"in one of them only: \['b'\]"):
        evaluation.compare(one, one.head(1))
    with pytest.raises(ValueError, match="several rows for one query"):
        evaluation.compare(one, pd.concat([one, one]))


def test_errors_are_listed_without_junk():
    query = Query("q", "own", frozenset({"a", "b", "c"}), frozenset({"junk"}))
    perfect = Query("p", "own", frozenset({"a"}))
    rankings = {"q": ["own", "a", "junk", "wrong", "x", "b"], "p": ["own", "a"]}
    table = evaluation.errors(rankings, [query, perfect], self_match=False)
    assert table["first_wrong"].tolist() == ["wrong", ""]
    np.testing.assert_array_equal(table["first_wrong_rank"], [2, np.nan])
    assert table["missed"].tolist() == [["b", "c"], []]
    assert table["missed_ranks"][0][0] == 4
    assert math.isnan(table["missed_ranks"][0][1])
    # The rank is the one that `evaluate` gives.
    scores = evaluation.evaluate(rankings, [query, perfect], self_match=False)
    np.testing.assert_array_equal(
        table["first_wrong_rank"], scores["first_false_positive"]
    )
