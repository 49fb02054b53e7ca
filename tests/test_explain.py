"""What figures are made from: relevance, strips, moved ranks, boxes, the pipeline."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cwr_utils import evaluation, explain, figures, reranking
from cwr_utils.arrays import l2_normalize
from cwr_utils.datasets import Dataset, Query
from cwr_utils.evaluation import average_precision
from cwr_utils.images import read_image
from cwr_utils.retrieval import Method, Result, rank

RAW = Method("sum", dimensions=0)
ONLINE = Method("online", num_classes=4, num_whitening_classes=3, dimensions=12)
RERANK = replace(ONLINE, rerank=8, rerank_classes=3)


@pytest.fixture(scope="module")
def data(planted):
    return planted


@pytest.fixture(scope="module")
def collection(make):
    return make()


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


# Relevance


@pytest.mark.parametrize("own", ["positives", "junk", "neither"])
def test_relevance_has_five_kinds(own):
    """The query's photo is the query's photo, whatever the ground truth calls it."""
    positives, junk = {"right"}, {"unclear"}
    {"positives": positives, "junk": junk, "neither": set()}[own].add("own")
    ok = frozenset({"partly"})
    query = Query("q", "own", None, ok.union(positives), frozenset(junk), ok)
    images = ("own", "right", "partly", "unclear", "wrong")
    kinds = [explain.relevance(query, image) for image in images]
    assert kinds == ["query", "positive", "ok", "junk", "negative"]


# Strips


@pytest.mark.parametrize("method", [RAW, RERANK], ids=lambda method: method.slug)
def test_a_strip_shows_the_first_of_a_ranking(collection, data, method):
    result = rank(collection, method)
    query = data.queries[1]
    strip = explain.strip(collection.data, result, 1, top=5)
    names = result.rankings[query.name][:5]
    assert strip["names"] == names
    np.testing.assert_array_equal(strip["scores"], result.scores[query.name][:5])
    assert (np.diff(strip["scores"]) <= 0).all()
    for name, photo in zip(names, strip["photos"], strict=True):
        np.testing.assert_array_equal(photo, read_image(data.path(name)))
    assert strip["relevance"] == [explain.relevance(query, n) for n in names]


def test_a_strip_may_end_with_the_positives_that_were_missed(collection, data):
    """place1_0 asks; place1_1 is the only other positive and comes sixth."""
    query = data.queries[1]
    ranking = [query.image, *data.distractors[:4], "place1_1", *data.distractors[4:]]
    scores = np.linspace(1, 0, len(ranking))
    result = Result(RAW, {query.name: ranking}, {query.name: scores}, {})
    all_scores = {q.name: ranking for q in data.queries}
    result = replace(result, rankings={**all_scores, query.name: ranking})
    strip = explain.strip(collection.data, result, 1, top=4, missed=2)
    assert strip["names"] == [*ranking[:3], "place1_1"]
    assert strip["ranks"] == [1, 2, 3, 6]
    np.testing.assert_array_equal(strip["scores"], scores[[0, 1, 2, 5]])
    figure = figures.result_strip(**strip)
    assert "6 ✓" in [item.get_text() for item in figure.texts]
    for top, missed in ((4, 0), (6, 2), (20, 3)):
        shown = explain.strip(collection.data, result, 1, top=top, missed=missed)[
            "ranks"
        ]
        assert shown == list(range(1, min(top, len(ranking)) + 1))


def test_a_strip_starts_with_the_query(collection, data):
    query = data.queries[1]
    strip = explain.strip(collection.data, rank(collection, RAW), 1, top=4)
    np.testing.assert_array_equal(
        strip["query_photo"], read_image(data.path(query.image))
    )
    assert strip["query_box"] == query.box
    assert strip["credits"] == [
        data.credit(name) for name in (query.image, *strip["names"])
    ]
    assert strip["credits"][0] == "Who took place1_0"


def test_the_title_names_query_method_and_ap(make, data):
    """The AP is that of the rule of the data set, by hand here."""
    for own in (True, False):
        queries = tuple(
            q
            if own
            else replace(q, positives=q.positives - {q.image}, junk=q.junk | {q.image})
            for q in data.queries
        )
        retrieving = make(replace(data, queries=queries))
        first = queries[2].image, "other0_0", "place2_2", "place2_1"
        rest = [name for name in data.images if name not in first]
        ranking = [*first, *rest]
        names = {query.name: ranking for query in queries}
        scores = {query.name: np.linspace(1, 0, len(ranking)) for query in queries}
        result = Result(RAW, names, scores, {})
        # place2_2 is junk; with self-match positives are at 0 and 2, else at 1.
        ap = average_precision([0, 2], 2) if own else average_precision([1], 1)
        strip = explain.strip(retrieving.data, result, 2)
        assert strip["title"] == f"query2: Raw features, AP {ap:.2f}"
        assert strip["relevance"][:4] == ["query", "negative", "junk", "positive"]


def test_a_strip_is_no_longer_than_the_ranking(collection, data):
    strip = explain.strip(collection.data, rank(collection, RAW), 0, top=99)
    assert len(strip["photos"]) == len(strip["scores"]) == len(data.images)


def test_strips_are_drawn(collection):
    strips = [
        explain.strip(collection.data, rank(collection, RERANK), n, top=4)
        for n in (0, 1)
    ]
    assert figures.result_strip(**strips[0]).axes
    assert figures.result_strips(strips).axes


# Moved ranks


def test_a_diagnosis_joins_scores_and_errors(collection, data):
    before, after = rank(collection, RAW), rank(collection, ONLINE)
    table = explain.diagnose(collection.data, before, after)
    assert set(table["query"]) == {query.name for query in data.queries}
    scores = evaluation.evaluate(after.rankings, collection.data.queries).set_index(
        "query"
    )
    for row in table.itertuples():
        assert row.after == scores["ap"][row.query]
        assert row.first_wrong_rank == scores["first_false_positive"][row.query]
        assert row.difference == row.after - row.before
    assert table["landmark"].nunique() == len(data.queries)


def test_a_diagnosis_names_what_is_missed(collection, data):
    query = data.queries[0]
    right = sorted(query.positives)
    ranking = [right[0], data.distractors[0], right[1], *data.distractors[1:]]
    rankings = {q.name: ranking for q in data.queries}
    result = Result(RAW, rankings, {}, {})
    row = (
        explain.diagnose(collection.data, result, result)
        .set_index("query")
        .loc[query.name]
    )
    assert (row["first_wrong"], row["first_wrong_rank"]) == (data.distractors[0], 2)
    assert row["missed"] == f"{right[1]} (3)"


def test_two_runs_are_drawn_with_their_intervals(collection):
    table = explain.diagnose(
        collection.data, rank(collection, RAW), rank(collection, ONLINE)
    )
    picture = explain.ap_picture(table, "raw", "online")
    wide = picture["per_query"].pivot(index="query", columns="method", values="ap")
    difference = (wide["online"] - wide["raw"])[table["query"]]
    np.testing.assert_array_equal(difference, table["difference"])
    low, high = picture["intervals"]["difference"]
    assert low <= table["difference"].mean() <= high
    assert set(picture["intervals"]) == {"raw", "online", "difference"}
    figures.ap_bars(**picture)


# The map


def test_the_map_repeats_itself_and_keeps_neighbours():
    rng = np.random.default_rng(0)
    centres = l2_normalize(rng.normal(size=(4, 16)))
    near = np.repeat(centres, 10, axis=0) + 0.02 * rng.normal(size=(40, 16))
    points = explain.embedding(l2_normalize(near), seed=1)
    np.testing.assert_array_equal(points, explain.embedding(l2_normalize(near), seed=1))
    away = np.linalg.norm(points[:, None] - points, axis=2) + np.diag([np.inf] * 40)
    assert (away.argmin(axis=1) // 10 == np.arange(40) // 10).all()


@pytest.mark.parametrize("number", [1, 2, 5, 6, 7])
def test_few_photos_have_a_map_too(number):
    points = explain.embedding(np.eye(number, 3))
    assert points.shape == (number, 2) and np.isfinite(points).all()


@pytest.mark.parametrize("most", [150, 12, 4])
def test_the_map_shows_landmarks_first(collection, data, most):
    picture = explain.embedding_picture(
        collection, Method("gem", dimensions=4), most=most
    )
    assert len(picture["photos"]) == len(picture["points"]) <= most
    assert sum(map(bool, picture["groups"])) == min(8, most)
    assert len(picture["photos"]) > 0.6 * min(most, len(data.images))
    figures.embedding_map(**picture)


def test_the_map_needs_one_descriptor_a_photo(collection):
    with pytest.raises(ValueError, match="differ from query to query"):
        explain.embedding_picture(collection, ONLINE)


def test_moved_ranks_by_hand():
    """Ranks from 1 without junk; the largest gain first.

    The query's own photo is what the ground truth says.
    """
    images = tuple("qabcxyz")
    queries = (
        Query("first", "q", None, frozenset("qab"), frozenset("x")),
        Query("second", "c", None, frozenset("y"), frozenset("c")),
        Query("none", "z", None, frozenset(), frozenset()),
    )
    data = Dataset("hand", images, queries, "", {})

    def result(first, second):
        rankings = {"first": list(first), "second": list(second), "none": list("abc")}
        return Result(RAW, rankings, {}, {})

    before = result("qxcayzb", "cabxzyq")
    after = result("qbxcyza", "cyabxzq")
    table = explain.rank_changes(data, before, after)
    expected = [("first", "b", 6, 2, 4), ("second", "y", 5, 1, 4)]
    expected += [("first", "a", 3, 6, -3)]
    columns = ["query", "image", "before", "after", "gain"]
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected, columns=columns))


def test_a_photo_has_one_rank_in_every_table_and_picture(collection, data):
    """Junk out, from 1, the query's own photo as the ground truth says."""
    before, after = (rank(collection, method) for method in (ONLINE, RERANK))
    table = explain.rank_changes(data, before, after)
    wrong = evaluation.errors(after.rankings, data.queries).set_index("query")
    for number, query in enumerate(data.queries):
        (row,) = table[table["query"] == query.name].to_dict("records")
        why = explain.why_moved(collection, before, after, number, row["image"])
        assert (why["rank before"], why["rank after"]) == (row["before"], row["after"])
        strip = explain.strip(collection.data, after, number, top=len(data.images))
        shown = dict(zip(strip["names"], strip["ranks"], strict=True))
        assert shown[row["image"]] == row["after"]
        assert {shown[name] for name in query.junk} == {"-"}
        missed = dict(
            zip(*wrong.loc[query.name, ["missed", "missed_ranks"]], strict=True)
        )
        assert missed.get(row["image"], row["after"]) == row["after"]
    assert figures.result_strip(**strip)


def test_nothing_moves_where_nothing_changed(collection, data):
    result = rank(collection, RAW)
    table = explain.rank_changes(data, result, result)
    assert len(table) == 4 and (table["gain"] == 0).all()
    assert set(table["image"]) == {f"place{place}_1" for place in range(4)}


def test_no_positive_no_row():
    data = Dataset("empty", ("q",), (Query("q", "q"),), "", {})
    result = Result(RAW, {"q": ["q"]}, {}, {})
    table = explain.rank_changes(data, result, result)
    assert list(table) == ["query", "image", "before", "after", "gain"]
    assert table.empty


def test_frequent_classes_by_hand(collection, monkeypatch):
    top = np.array([[2, 0, 1], [2, 1, 0], [3, 2, 0]])
    monkeypatch.setattr(collection.first.asked, "top_classes", top)
    names, shares = explain.frequent_classes(collection, 2)
    assert names == ["class 2", "class 3"]  # 3 stands higher in its list than 0 and 1
    np.testing.assert_allclose(shares, [1, 1 / 3])


# Boxes


def pairs(data):
    return [(n, image) for n in range(len(data.queries)) for image in data.images[::3]]


def best_cells(picture, grid):
    """The best box in cells of the grid."""
    height, width = picture["photo"].shape[:2]
    scale = np.array([grid[1] / width, grid[0] / height] * 2)
    return np.array(picture["boxes"][picture["best"]]) * scale


@pytest.mark.parametrize("classes", [1, 3])
def test_the_best_box_is_the_region_that_matched(collection, data, classes):
    """Also where one class makes the heat map."""
    method = replace(RERANK, rerank_classes=classes)
    labels = set()
    for number, image in pairs(data):
        picture = explain.box_picture(collection, method, number, image)
        assert picture["best"] in picture["boxes"]
        grid = picture["heat"].shape
        expected = collection.match(method, number, [image])[image].box
        np.testing.assert_allclose(
            best_cells(picture, grid), expected or (0, 0, grid[1], grid[0]), atol=1e-6
        )
        assert (expected is None) == (picture["best"] == "whole photo")
        labels.add(picture["best"])
    assert len(labels) > 1


def test_boxes_lie_in_the_photo_and_shrink_with_the_threshold(collection, data):
    several = 0
    for number, image in pairs(data):
        picture = explain.box_picture(collection, RERANK, number, image)
        photo, boxes = picture["photo"], picture["boxes"]
        np.testing.assert_array_equal(photo, read_image(data.path(image)))
        assert picture["credit"] == data.credit(image)
        assert {*boxes} <= {"1%", "10%", "20%", "30%", "40%", "whole photo"}
        height, width = photo.shape[:2]
        for x1, y1, x2, y2 in boxes.values():
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        several += len(boxes) > 1
    assert several


def test_the_heat_map_is_the_mean_cam_of_two_classes(collection):
    picture = explain.box_picture(collection, RERANK, 0, "place0_1")
    classes = collection.first.asked.top_classes[0][:2].tolist()
    features, cam_maps = collection.first.maps("place0_1")
    cams = reranking.query_cams(
        cam_maps, collection.first.setup.network.class_weights, classes
    )
    expected = reranking.heat_map(cams, features.shape[:2])
    np.testing.assert_allclose(picture["heat"], expected, atol=1e-6)
    assert picture["heat"].shape == features.shape[:2]


def without_boxes(collection, monkeypatch):
    monkeypatch.setattr(reranking, "cam_boxes", lambda *_, **__: [])
    return explain.box_picture(collection, RERANK, 0, "place1_1")


def test_the_whole_photo_stands_in_where_there_is_no_box(make, data, monkeypatch):
    picture = without_boxes(make(), monkeypatch)
    height, width = picture["photo"].shape[:2]
    assert picture["boxes"] == {"whole photo": (0, 0, width, height)}
    assert picture["best"] == "whole photo" and picture["credit"] == ""
    assert figures.boxes_on_photo(**picture).axes


def test_no_region_is_best_where_the_protocol_has_no_fallback(make, monkeypatch):
    picture = without_boxes(make(rerank_fallback=False), monkeypatch)
    assert picture["boxes"] == {} and picture["best"] is None
    assert figures.boxes_on_photo(**picture).axes


def test_why_an_image_moved(collection, data):
    """By hand from the results."""
    before, after = (rank(collection, method) for method in (ONLINE, RERANK))
    number, image = 1, after.rankings["query1"][3]
    why = explain.why_moved(collection, before, after, number, image)
    assert (why["query"], why["image"]) == ("query1", image)
    _, junk = evaluation.ground_truth(data.queries[number])
    assert image not in junk
    for when, result in (("before", before), ("after", after)):
        counted = [name for name in result.rankings["query1"] if name not in junk]
        assert why[f"rank {when}"] == counted.index(image) + 1
    score = before.scores["query1"][before.rankings["query1"].index(image)]
    assert why["score before"] == pytest.approx(score, abs=6e-4)
    match = after.matches["query1"][image]
    assert why["score after"] == pytest.approx(match.score, abs=6e-4)
    picture = explain.box_picture(collection, RERANK, number, image)
    assert why["region"] == picture["best"]
    np.testing.assert_allclose(why["box"], picture["boxes"][why["region"]], atol=0.51)
    classes = collection.first.asked.top_classes[number][:3]
    assert why["classes"] == ", ".join(f"class {c}" for c in classes)


def test_why_an_image_without_a_region_moved(make, monkeypatch):
    collection = make(rerank_fallback=False)
    monkeypatch.setattr(reranking, "cam_boxes", lambda *_, **__: [])
    before, after = (rank(collection, method) for method in (ONLINE, RERANK))
    image = after.rankings["query0"][0]
    why = explain.why_moved(collection, before, after, 0, image)
    assert why["region"] == "none" and "box" not in why
    assert why["score after"] == -np.inf


def test_boxes_are_drawn(collection):
    picture = explain.box_picture(collection, RERANK, 2, "place2_1")
    assert figures.boxes_on_photo(**picture).axes


# Pipeline


@pytest.mark.parametrize(
    "method",
    [
        ONLINE,
        replace(ONLINE, num_classes=1),
        replace(ONLINE, aggregation="offline", num_classes=2),
        replace(ONLINE, aggregation="theme", num_classes=5),
    ],
    ids=lambda method: method.slug,
)
def test_the_pipeline_shows_the_classes_that_make_the_descriptor(
    collection, data, method
):
    picture = explain.pipeline_picture(collection, method, 3)
    theme = method.aggregation == "theme"
    classes = (
        collection.first.theme if theme else collection.first.asked.top_classes[3]
    )[: method.num_classes]
    names = [f"class {c}" for c in classes]
    assert picture["class_names"] == names
    assert list(picture["heat"]) == names[:3]
    for heat in picture["heat"].values():
        assert heat.ndim == 2 and 0 <= heat.min() <= heat.max() <= 1
    assert picture["vectors"].shape == (method.num_classes, 12)
    fitted = collection.first.spaces.fitted(method)
    np.testing.assert_allclose(
        picture["descriptor"],
        l2_normalize(fitted(picture["vectors"]).sum(axis=0)),
        atol=1e-5,
    )
    assert figures.pipeline(**picture).axes


def test_the_pipeline_shows_the_query_and_what_it_found(collection, data):
    picture = explain.pipeline_picture(collection, ONLINE, 1)
    query = data.queries[1]
    np.testing.assert_array_equal(picture["photo"], read_image(data.path(query.image)))
    assert picture["box"] == query.box
    ranking = rank(collection, ONLINE).rankings[query.name]
    others = [name for name in ranking if name != query.image][:6]
    assert [kind for _, kind in picture["results"]] == [
        explain.relevance(query, name) for name in others
    ]
    for name, (photo, _) in zip(others, picture["results"], strict=True):
        np.testing.assert_array_equal(photo, read_image(data.path(name)))
    credits = [data.credit(name) for name in (query.image, *others)]
    assert picture["credit"] == "; ".join(filter(None, credits))
    assert "" in credits  # who asks for no credit leaves no empty place


def test_a_photographer_is_named_once(make, data):
    same = make(replace(data, credits=dict.fromkeys(data.images, "One, CC0")))
    assert explain.pipeline_picture(same, ONLINE, 0)["credit"] == "One, CC0"
