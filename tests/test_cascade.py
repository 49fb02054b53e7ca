"""Offline aggregation chooses, online aggregation ranks: against naive loops."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

from cwr_utils import retrieval
from cwr_utils.aggregation import OnlineIndex
from cwr_utils.contributions import cell_contributions, class_contributions
from cwr_utils.names import CLASS_WEIGHTINGS
from cwr_utils.rerankers import Chain
from cwr_utils.retrieval import BY_QUERY, Collection, Method, rank, space
from cwr_utils.store import Store

ONLINE = Method("online", num_classes=4, num_whitening_classes=3, dimensions=9)
GROUPED = replace(ONLINE, aggregation="grouped", groups=3, bits=16)
pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cascade")
    cache = folder / "cache"
    second = tiny.setup(cache, tiny.network(1, "second"))
    return tiny.described(folder, tiny.setup(cache, power=2.0), second)


@pytest.fixture
def alone(experiment):
    return Collection.open(replace(experiment, also=()))


@pytest.fixture
def both(experiment):
    return Collection.open(experiment)


def both_stages(collection, method, number):
    """Cosines of all photos with a query, offline and by its own classes."""
    everything = replace(method, cascade=0, refine=None, rerank=0, query_expansion=0)
    vector, first = next(
        collection.descriptors(replace(everything, aggregation="offline"), [number])
    )
    _, second = next(collection.descriptors(everything, [number]))
    return vector, first, second


def expected_ranking(collection, method, number):
    """Names, best first, and the scores of the first ones."""
    vector, offline, online = both_stages(collection, method, number)
    first = Chain.parse(method.refine or "").prepare(offline).scores(vector[None])[0]
    rows = sorted(range(len(first)), key=lambda row: -first[row])
    scores = {row: float(online[row] @ vector) for row in rows[: method.cascade]}
    if method.refine:
        scores = {row: (s + first[row]) / 2 for row, s in scores.items()}
    best = sorted(scores, key=lambda row: -scores[row])
    names = [collection.data.images[row] for row in best + rows[method.cascade :]]
    return names, [scores[row] for row in best]


@pytest.mark.parametrize("refine", [None, "dba:photos=2", "diffusion"])
@pytest.mark.parametrize("method", [ONLINE, GROUPED], ids=lambda m: m.aggregation)
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("members", ["alone", "both"])
def test_the_first_are_ranked_by_the_query_and_the_rest_stays_behind(
    request, members, depth, method, refine
):
    collection = request.getfixturevalue(members)
    method = replace(method, cascade=depth, refine=refine)
    result = rank(collection, method)
    for number, query in enumerate(collection.data.queries):
        names, scores = expected_ranking(collection, method, number)
        assert result.rankings[query.name] == names
        found = result.scores[query.name]
        np.testing.assert_allclose(found[:depth], scores, atol=1e-5)
        assert (np.diff(found) <= 0).all() and found[depth] < found[depth - 1]


@pytest.mark.parametrize("method", [ONLINE, GROUPED], ids=lambda m: m.aggregation)
def test_a_cascade_of_all_photos_is_the_method_without(both, method):
    without = rank(both, method)
    result = rank(both, replace(method, cascade=1000))
    for query, scores in without.scores.items():
        assert result.rankings[query] == without.rankings[query]
        np.testing.assert_allclose(result.scores[query], scores, atol=1e-5)


def test_it_describes_no_photo_behind_the_first_ones(alone, monkeypatch):
    rows, describe = [], OnlineIndex.describe
    monkeypatch.setattr(
        OnlineIndex,
        "describe",
        lambda self, some, *rest: rows.append(some) or describe(self, some, *rest),
    )
    monkeypatch.setattr(OnlineIndex, "many", None)
    method = replace(ONLINE, cascade=3, query_expansion=2)
    result = rank(alone, method)
    # To rank, to expand the query, and to rank again.
    assert [len(some) for some in rows] == [3, 2, 3] * len(alone.data.queries)
    assert len(result.averaged[alone.data.queries[0].name]) == 2


@pytest.mark.parametrize("with_query", [True, False])
def test_a_query_is_expanded_by_what_its_classes_say_of_photos(alone, with_query):
    protocol = replace(alone.first.setup.protocol, expand_with_query=with_query)
    collection = alone.under(protocol)
    method = replace(ONLINE, cascade=4, query_expansion=3)
    result = rank(collection, method)
    for number, query in enumerate(collection.data.queries):
        vector, offline, online = both_stages(collection, method, number)
        names, _ = expected_ranking(collection, method, number)
        assert result.averaged[query.name] == names[:3]
        rows = [collection.first.rows[name] for name in names[:3]]
        total = online[rows].sum(axis=0) + vector * with_query
        vector = total / np.linalg.norm(total)
        first = np.argsort(-(offline @ vector), kind="stable")
        best = first[:4][np.argsort(-(online[first[:4]] @ vector), kind="stable")]
        expected = [collection.data.images[row] for row in [*best, *first[4:]]]
        assert result.rankings[query.name] == expected


def test_the_best_regions_of_the_first_are_looked_for_last(alone):
    method = replace(ONLINE, cascade=5, rerank=3, rerank_classes=3)
    result = rank(alone, method)
    for number, query in enumerate(alone.data.queries):
        names, _ = expected_ranking(alone, method, number)
        found = result.matches[query.name]
        assert set(found) == set(names[:3])
        best = sorted(names[:3], key=lambda name: -found[name].score)
        assert result.rankings[query.name] == best + names[3:]


@pytest.mark.parametrize("repeat", [False, True])
def test_some_photos_are_described_as_all_are(alone, repeat):
    """In any order, twice, with a class that none has a vector of."""
    index = alone.first.spaces.online_index(alone.first.spaces.fitted(ONLINE))
    classes, weights = [2, 5, 0], [1.0, 0.5, 2.0]
    every = index.descriptors(classes, repeat_empty=repeat, weights=weights)[3]
    rows = [7, 0, 3, 0]
    found = index.describe(rows, classes, weights, repeat)
    np.testing.assert_allclose(found, every[rows], atol=1e-5)
    equal = index.describe(rows, classes)
    np.testing.assert_allclose(equal, index.descriptors(classes)[3][rows], atol=1e-5)
    assert index.describe([], classes).shape == (0, 9)


@pytest.mark.parametrize("method", [ONLINE, GROUPED], ids=lambda m: m.aggregation)
@pytest.mark.parametrize("expansion", [0, 2])
def test_scores_come_apart_where_photos_were_described_by_the_query(
    both, method, expansion
):
    method = replace(method, cascade=4, query_expansion=expansion)
    (query, *_), first = both.data.queries, slice(0, 4)
    result = rank(both, method)
    for image, score in list(
        zip(result.rankings[query.name], result.scores[query.name], strict=True)
    )[first]:
        cells = cell_contributions(both, result, 0, image)
        assert cells.sum() == pytest.approx(float(score), abs=4e-3)
    for image, score in zip(
        result.rankings[query.name], result.scores[query.name], strict=True
    ):
        table = class_contributions(both, result, 0, image)
        assert table["contribution"].sum() == pytest.approx(float(score), abs=1e-5)


def test_a_photo_behind_shares_its_own_classes_with_the_query(alone):
    method = replace(ONLINE, num_classes=2, cascade=2)
    result, name = rank(alone, method), alone.data.queries[0].name
    top = alone.first.database.read("top_classes")[:, :2]
    own = set(alone.first.asked.top_classes[0][:2].tolist())
    for place, image in enumerate(result.rankings[name]):
        table = class_contributions(alone, result, 0, image)
        theirs = set(top[alone.first.rows[image]].tolist())
        assert set(table["class"][:-1]) == (own & theirs if place >= 2 else own)


def test_it_has_a_name_an_identity_and_keeps_both_stages(alone):
    method = replace(GROUPED, cascade=1000)
    assert method.label == "OnA, 4 classes, 3 groups of 16 bits, first 1,000 of OfA"
    assert method.slug == "grouped-nc4-npca3-g3-b16-l1000-d9"
    assert "cascade" not in GROUPED.settings and method.settings["cascade"] == 1000
    rows = [
        retrieval.row(alone, rank(alone, replace(GROUPED, cascade=n)))
        for n in (0, 2, 3)
    ]
    assert len({row["identity"] for row in rows}) == 3
    assert len({row["setting"] for row in rows}) == 1
    assert alone.photo_bytes(method) == alone.photo_bytes(GROUPED) + 4 * 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cascade": -1}, "`cascade` must be at least 0"),
        ({"cascade": 5, "aggregation": "offline"}, "one of the aggregations online, g"),
        ({"cascade": 5, "rerank": 6}, r"`cascade` is 5: .* \(`rerank` is 6\)"),
        ({"cascade": 5, "query_expansion": 6}, r"expands the query \(6\)"),
    ],
)
def test_impossible_cascades_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Method(**fields)


def test_descriptors_that_re_ranking_would_change_are_refused(alone):
    moving = replace(alone.first.setup.protocol, rerank_moves_index="query")
    with pytest.raises(ValueError, match="`cascade` ranks by the descriptors as they"):
        rank(alone.under(moving), replace(ONLINE, cascade=4, rerank=2))


@pytest.mark.parametrize("weighting", CLASS_WEIGHTINGS)
def test_a_large_collection_keeps_its_first_stage_on_disk(
    experiment, monkeypatch, weighting
):
    method = replace(ONLINE, aggregation="offline", class_weighting=weighting)
    expected = rank(Collection.open(experiment), method)
    monkeypatch.setattr(space, "LARGE", 5)
    found = rank(Collection.open(experiment), method)
    for query, scores in expected.scores.items():
        assert found.rankings[query] == expected.rankings[query]
        np.testing.assert_allclose(found.scores[query], scores, atol=1e-6)


def test_a_first_stage_on_disk_is_known_by_its_settings(alone, monkeypatch):
    monkeypatch.setattr(space, "LARGE", 5)
    offline = replace(ONLINE, aggregation="offline")
    stores = [
        alone.first.space(method).keep_offline(method.num_classes)
        for method in (
            offline,
            replace(offline, num_classes=3),
            replace(offline, class_weighting="rank"),
            replace(offline, dimensions=8),
            replace(offline, whitening_exponent=0.3),
        )
    ]
    stores.append(alone.first.spaces.of(offline, repeat_empty=True).keep_offline(4))
    assert len({store.path for store in stores}) == len(stores)
    reading = []
    monkeypatch.setattr(Store, "top_class_vectors", lambda *_: reading.append(1))
    again = alone.first.space(offline).keep_offline(4)
    assert again.path == stores[0].path and not reading
    vectors = alone.first.space(offline).offline([4])[4]
    np.testing.assert_array_equal(vectors, again.read("descriptors"))
    assert vectors.dtype == np.float32


def test_every_way_to_describe_by_the_query_can_be_the_second_stage():
    for name in BY_QUERY:
        first = replace(GROUPED, aggregation=name, cascade=9).first_stage
        assert first == replace(GROUPED, aggregation="offline")
