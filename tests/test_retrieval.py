"""Retrieval on a planted data set: right answers, honest stores, no shared state."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import tiny

from cwr_utils import aggregation, evaluation, ranking, rerankers, retrieval
from cwr_utils.arrays import l2_normalize
from cwr_utils.extraction import ImageMaps, extract, extract_queries
from cwr_utils.names import GLOBAL_POOLINGS
from cwr_utils.retrieval import Collection, Experiment, Method, rank, tabulate
from cwr_utils.retrieval.asked import Asked
from cwr_utils.store import ArraySpec, DiskStore, JoinedStore, StoreError
from cwr_utils.whitening import WhiteningError

# Boxes of five cells need a grid that is somewhat finer than that of other tests.
SIZE = "96x72"
SETUP = tiny.setup(resize=SIZE)
ONLINE = Method("online", num_classes=4, num_whitening_classes=3, dimensions=12)
OFFLINE = replace(ONLINE, aggregation="offline")
THEME = replace(ONLINE, aggregation="theme")
RAW = Method("sum", dimensions=0)
RERANK = {"rerank": 8, "rerank_classes": 3}
METHODS = [
    RAW,
    Method("gem", dimensions=10),
    Method("rmac_gem", dimensions=10),
    Method("rmac_max", dimensions=0),
    OFFLINE,
    replace(OFFLINE, num_classes=1),
    replace(OFFLINE, num_whitening_classes=2),
    ONLINE,
    replace(ONLINE, num_classes=2, dimensions=9),
    THEME,
    replace(ONLINE, query_expansion=2),
    replace(OFFLINE, **RERANK),
    replace(ONLINE, **RERANK, query_expansion=2),
]
pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("retrieval")


@pytest.fixture(scope="module")
def data(folder):
    """4 places with 3 views each, the last one junk, and 6 distractors."""
    return tiny.dataset(folder / "photos")


@pytest.fixture(scope="module")
def others(folder):
    """Photos to fit the whitening on."""
    return tiny.dataset(folder / "other", "other", 0, 0, 24, first_place=100)


@pytest.fixture(scope="module")
def stores(data, others, folder):
    """Database, queries and training photos."""
    return (
        extract(data, SETUP, folder / "database"),
        extract_queries(data, SETUP, folder / "queries"),
        extract(others, SETUP, folder / "training"),
    )


@pytest.fixture(scope="module")
def maps(data):
    return ImageMaps(data, SETUP, on_disk=False)


@pytest.fixture
def make(data, others, stores, maps):
    """A fresh collection, with flags of the protocol, or of other parts."""

    def make(data=data, stores=stores, training=others, **options):
        names = (
            "training_images",
            "theme",
            "i_know_this_fits_whitening_on_the_test_set",
        )
        chosen = {name: options.pop(name) for name in names if name in options}
        setup = tiny.setup(resize=SIZE, **options)
        experiment = Experiment(data, training, setup, **chosen)
        *first, fitted_on = (*stores, None)[:3]
        return tiny.collection(experiment, *first, fitted_on, maps.under(setup))

    return make


def same(first, second):
    """Whether two results have the same rankings and the same scores, to the bit."""
    return first.rankings == second.rankings and all(
        np.array_equal(first.scores[name], second.scores[name]) for name in first.scores
    )


def in_database_order(result, name, images):
    row = dict(zip(result.rankings[name], result.scores[name], strict=True))
    return np.array([row[image] for image in images])


# Right answers


@pytest.mark.parametrize(
    "method",
    [
        RAW,
        Method("channel_weighted", dimensions=10),
        Method("rmac_gem", dimensions=10),
        ONLINE,
        THEME,
        replace(ONLINE, query_expansion=1),
        replace(ONLINE, **RERANK),
    ],
    ids=lambda method: method.slug,
)
def test_the_views_of_a_place_come_first(make, data, method):
    retrieving = make()
    result = rank(retrieving, method)
    row = retrieval.row(retrieving, result)
    assert row["mAP"] == 1
    assert (row["network"], row["layer"]) == ("tiny", tiny.LAYER)
    assert (row["resize"], row["power"]) == (SIZE, 1.0)
    for query in data.queries:
        assert set(result.rankings[query.name]) == set(data.images)


def expected_scores(method, data, stores, fitted):
    """(Q, N) from the stores, one vector at a time (Secs. 3.2 and 3.3)."""
    database, queries, _ = stores
    if method.aggregation in GLOBAL_POOLINGS:
        column = GLOBAL_POOLINGS.index(method.aggregation)
        q, d = (s.read("globals")[:, column].astype(float) for s in (queries, database))
        q, d = (fitted(x) if fitted else l2_normalize(x) for x in (q, d))
        return q @ d.T
    if method.aggregation.startswith("rmac"):
        column = {"rmac_max": 0, "rmac_gem": 1, "rmac_mean": 2}[method.aggregation]
        q, d = (s.read("regions")[:, column].astype(float) for s in (queries, database))
        q, d = (fitted(x) if fitted else l2_normalize(x) for x in (q, d))
        return l2_normalize(q.sum(axis=1)) @ l2_normalize(d.sum(axis=1)).T
    q, d = (fitted(s.read("class_vectors")) for s in (queries, database))
    scores = np.zeros((len(q), len(d)))
    for i, j in itertools.product(range(len(q)), range(len(d))):
        used = queries.read("top_classes")[i, : method.num_classes]
        own = used
        if method.aggregation == "offline":
            own = database.read("top_classes")[j, : method.num_classes]
        scores[i, j] = l2_normalize(q[i, used].sum(0)) @ l2_normalize(d[j, own].sum(0))
    return scores


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS if not (m.rerank or m.query_expansion or m == THEME)],
    ids=lambda method: method.slug,
)
def test_scores_are_those_of_loops(make, data, stores, method):
    retrieving = make()
    result = rank(retrieving, method)
    expected = expected_scores(
        method, data, stores, retrieving.first.spaces.fitted(method)
    )
    for number, query in enumerate(data.queries):
        got = in_database_order(result, query.name, data.images)
        np.testing.assert_allclose(got, expected[number], atol=2e-3)
        np.testing.assert_array_equal(
            result.rankings[query.name], np.array(data.images)[ranking.order(got)]
        )


def test_theme_uses_one_list_for_queries_and_database(make, data, stores):
    retrieving = make()
    _, queries, training = stores
    top = training.read("top_classes")
    assert retrieving.first.theme == aggregation.theme_classes(top, tiny.CLASSES)
    fixed = make(theme=[3, 1, 0, 5, 2])
    assert fixed.first.theme == [3, 1, 0, 5, 2]
    vector, _ = next(fixed.descriptors(THEME, [2]))
    fitted = fixed.first.spaces.fitted(THEME)
    vectors = queries.read("class_vectors")[2, [3, 1, 0, 5]]
    np.testing.assert_allclose(
        vector, l2_normalize(fitted(vectors).sum(axis=0)), rtol=1e-5, atol=1e-6
    )


def test_whitening_is_fitted_on_the_training_photos_alone(make, stores):
    training = stores[2]
    retrieving = make()
    used = retrieving.first.spaces.fitted(ONLINE)
    top = training.read("top_classes")[:, :3]
    vectors = training.read("class_vectors")[np.arange(24)[:, None], top]
    np.testing.assert_allclose(
        used.mean, l2_normalize(vectors).reshape(-1, 12).mean(axis=0), atol=1e-6
    )
    assert (used.vectors, used.source, used.dimensions) == (72, "other", 12)
    assert retrieving.first.spaces.fitted(Method("sum", dimensions=4)).vectors == 24
    assert retrieving.first.spaces.fitted(RAW) is None
    with pytest.raises(WhiteningError, match="24 vectors .* at most 12"):
        retrieving.first.spaces.fitted(Method("sum", dimensions=13))


# Self-match


def test_dimensions_are_lowered_to_half_of_the_vectors(make, stores):
    chosen = stores[2].names[:10]
    retrieving = make(training_images=chosen)
    one = replace(ONLINE, num_whitening_classes=1, dimensions=512)
    assert retrieving.supported(one).dimensions == 5
    assert retrieving.supported(Method("gem", dimensions=6)).dimensions == 5
    # Three vectors a photo are enough for each of the 12 channels.
    three = replace(one, num_whitening_classes=3)
    assert retrieving.supported(three) == replace(three, dimensions=12)
    few = replace(one, dimensions=4)
    assert retrieving.supported(few) == few
    assert retrieving.supported(RAW) == RAW


def test_the_own_photo_counts_where_the_ground_truth_lists_it(make, data):
    without = tuple(
        replace(q, positives=q.positives - {q.image}, junk=q.junk | {q.image})
        for q in data.queries
    )
    leave_one_out = make(data=replace(data, queries=without))
    result = rank(leave_one_out, RAW)
    own = evaluation.evaluate(
        result.rankings, leave_one_out.data.queries, self_match=True
    )
    rule = evaluation.evaluate(result.rankings, leave_one_out.data.queries)
    np.testing.assert_array_equal(own["positives"], [2] * 4)
    np.testing.assert_array_equal(rule["positives"], [1] * 4)
    row = retrieval.row(leave_one_out, result)
    mean = evaluation.mean_average_precision
    assert row["mAP"] == row["mAP_without_self"] == mean(rule)
    assert row["mAP_with_self"] == mean(own)
    interval = evaluation.bootstrap(rule["ap"], rule["landmark"])
    assert (row["mAP_low"], row["mAP_high"]) == (interval.low, interval.high)
    assert row["landmarks"] == 4


def test_a_row_has_precisions_in_which_the_own_photo_is_no_hit(make, data):
    retrieving = make()  # the ground truth lists the own photo, as Oxford's does
    result = rank(retrieving, RAW)
    # The one other positive comes last: its own photo would be the only hit before.
    for query in data.queries:
        (other,) = query.positives - {query.image}
        ranking = result.rankings[query.name]
        ranking.append(ranking.pop(ranking.index(other)))
    row = retrieval.row(retrieving, result)
    assert [row[f"mP@{k}"] for k in (1, 5, 10)] == [0, 0, 0]
    assert set(
        evaluation.evaluate(result.rankings, retrieving.data.queries)["p@1"]
    ) == {1}
    for query in data.queries:  # now second: behind its own photo alone
        ranking = result.rankings[query.name]
        ranking.insert(1, ranking.pop())
    row = retrieval.row(retrieving, result)
    assert [row[f"mP@{k}"] for k in (1, 5, 10)] == [1, 1, 1]


def test_a_query_without_positives_is_no_landmark_of_the_mean(make, data):
    first, *rest = data.queries
    unknown = replace(first, positives=frozenset(), junk=frozenset())
    fewer = make(data=replace(data, queries=(unknown, *rest)))
    assert retrieval.row(fewer, rank(fewer, RAW))["landmarks"] == 3


def test_a_pooling_without_classes_is_whitened_with_its_own_exponent(make):
    spaces = make().first.spaces
    usual, own = (
        spaces.fitted(Method("gem", dimensions=8, whitening_exponent=exponent))
        for exponent in (0.5, 0.25)
    )
    np.testing.assert_array_equal(own.projection, usual.scaled(0.25).projection)
    assert np.abs(own.projection - usual.projection).max() > 1e-3


def test_the_rule_of_one_query_is_not_that_of_the_others(make, data):
    first, *rest = data.queries
    first = replace(first, positives=first.positives - {first.image})
    mixed = make(data=replace(data, queries=(first, *rest)))
    rule = evaluation.evaluate(rank(mixed, RAW).rankings, mixed.data.queries)
    # Its own photo, which is in none of its lists, comes first and is wrong.
    assert rule["first_false_positive"][0] == 1 and rule["ap"][0] < 1
    np.testing.assert_array_equal(rule["positives"], [1, 2, 2, 2])
    usual = make()
    pair = [
        evaluation.evaluate(rank(c, RAW).rankings, c.data.queries)["ap"]
        for c in (mixed, usual)
    ]
    np.testing.assert_array_equal(pair[0][1:], pair[1][1:])


# Honest whitening


def test_whitening_on_the_data_set_under_test_is_refused(make, data, stores):
    database, queries, _ = stores
    with pytest.raises(WhiteningError, match="18 of the 18 whitening photos"):
        make(stores=(database, queries, database), training=data)


def test_whitening_on_the_photo_of_a_query_is_refused(make, data, others, tmp_path):
    """Revisited sets have query photos that are not in the database."""
    outside = tiny.dataset(tmp_path / "more", "more", 1, 1, 0, first_place=40)
    query = replace(outside.queries[0], positives=data.queries[0].positives)
    asked = replace(
        data, queries=(query,), paths={**data.paths, **outside.paths}, facts={}
    )
    described = (
        extract(asked, SETUP, tmp_path / "d"),
        extract_queries(asked, SETUP, tmp_path / "q"),
    )
    paths = {**others.paths, "other100_5": outside.path(query.image)}
    leaking = replace(others, paths=paths, facts={})
    training = extract(leaking, SETUP, tmp_path / "s")
    with pytest.raises(WhiteningError, match="1 of the 24 whitening photos"):
        make(asked, (*described, training), leaking)
    clean = extract(others, SETUP, tmp_path / "clean")
    rank(make(asked, (*described, clean), others), ONLINE)


def test_its_own_distractors_need_the_long_name_and_are_named(make, data, stores):
    parts = {"stores": (*stores[:2], stores[0]), "training": data}
    parts["training_images"] = data.distractors
    with pytest.raises(WhiteningError, match="6 of the 6 whitening photos"):
        make(**parts)
    own = make(**parts, i_know_this_fits_whitening_on_the_test_set=True)
    assert own.source == "tiny (6 of 18 photos)"
    assert own.first.spaces.fitted(Method("sum", dimensions=3)).vectors == 6


def test_held_out_distractors_leave_the_database(data):
    held_out, distractors = data.hold_out_distractors()
    assert not set(held_out.images) & set(distractors.images)
    assert set(held_out.images) | set(distractors.images) == set(data.images)
    assert distractors.queries == ()
    assert held_out.queries == data.queries


def test_a_copy_of_a_test_photo_is_found_under_any_name(
    make, data, others, stores, tmp_path
):
    paths = {**others.paths, "other100_5": data.path(data.images[0])}
    copied = replace(others, paths=paths, facts={})
    training = extract(copied, SETUP, tmp_path / "s")
    with pytest.raises(WhiteningError, match="1 of the 24 whitening photos"):
        make(stores=(*stores[:2], training), training=copied)


def test_methods_with_whitening_need_training_photos(make, stores):
    plain = make(stores=stores[:2], training=None)
    rank(plain, RAW)
    assert plain.first.spaces.training is None and plain.source == ""
    for method in (ONLINE, THEME, Method("gem", dimensions=3)):
        with pytest.raises(WhiteningError, match="no training photos were given"):
            rank(plain, method)
    with pytest.raises(ValueError, match="1 of the `training_images` are not in"):
        make(training_images=["other100_0", "typo"])


# Stores that do not belong together


def test_stores_of_other_images_or_queries_are_refused(make, data, stores):
    database, queries, training = stores
    with pytest.raises(StoreError, match=r"another images: 18 new .*; 24 gone"):
        make(stores=(training, queries))
    with pytest.raises(StoreError, match='another .*of: "photos" there, "queries"'):
        make(stores=(database, database))
    turned = replace(data, images=data.images[::-1])
    with pytest.raises(StoreError, match="the same ones in another order"):
        make(turned, (database, queries))


def test_a_store_of_photos_in_another_order_is_read_in_the_right_one(data, stores):
    turned = replace(data, images=data.images[::-1])
    got = extract(turned, SETUP, stores[0].path)
    for name in ("class_vectors", "top_classes", "regions"):
        np.testing.assert_array_equal(got.read(name), stores[0].read(name)[::-1])


def test_queries_whose_box_moved_are_refused(make, data):
    moved = replace(data.queries[1], box=(0.0, 0.0, 40.0, 40.0))
    queries = (data.queries[0], moved, *data.queries[2:])
    with pytest.raises(StoreError, match=r"1 changed \(query1\)"):
        make(replace(data, queries=queries))


def test_an_incomplete_store_is_refused(make, data, stores, tmp_path):
    def stop(number):
        raise KeyError("stopped")

    with pytest.raises(KeyError):
        extract(data, SETUP, tmp_path / "s", block=6, on_block=stop)
    with pytest.raises(StoreError, match="lacks . of 3 blocks"):
        make(stores=(DiskStore.open(tmp_path / "s"), *stores[1:]))


@pytest.mark.parametrize(
    ("which", "changes", "field"),
    [
        ("queries", {"layer": "maps"}, "layer"),
        ("queries", {"power": 2.0}, "power"),
        ("queries", {"resize": "64x48"}, "resize"),
        ("queries", {"flip_negative_cams": True}, "flip_negative_cams"),
        ("training", {"layer": "maps"}, "layer"),
        ("training", {"power": 2.0}, "power"),
    ],
)
def test_stores_of_other_settings_are_refused(
    make, data, others, stores, tmp_path, which, changes, field
):
    """Two layers may have the same number of channels: nothing else would notice."""
    database, queries, training = stores
    setup = tiny.setup(**{"resize": SIZE, **changes})
    if which == "queries":
        queries = extract_queries(data, setup, tmp_path / "s")
    else:
        few = replace(others, images=others.images[:1])
        training = extract(few, setup, tmp_path / "s")
    with pytest.raises(StoreError, match=f"another .*{field}: "):
        make(stores=(database, queries, training))


def test_a_training_store_may_keep_fewer_classes(make, others, stores, tmp_path):
    landscape = others.images[::3]  # one size, one graph to compile
    part = replace(others, images=landscape)
    kept = extract(part, tiny.setup(resize=SIZE, classes=3), tmp_path / "s")
    full = make(training_images=landscape)
    few = make(stores=(*stores[:2], kept), training=part)
    for name in ("mean", "projection"):
        first, second = (
            getattr(r.first.spaces.fitted(ONLINE), name) for r in (full, few)
        )
        np.testing.assert_allclose(first, second, rtol=0.05, atol=1e-3)


def test_more_classes_than_the_network_has_are_all_of_them(make):
    retrieving = make()
    for method in (
        ONLINE,
        OFFLINE,
        THEME,
        replace(ONLINE, rerank=3, rerank_classes=tiny.CLASSES),
    ):
        method = replace(method, num_classes=tiny.CLASSES)
        more = replace(method, num_classes=9, rerank_classes=method.rerank_classes + 1)
        assert (
            rank(retrieving, more).scores.keys()
            == rank(retrieving, method).scores.keys()
        )
        for name, scores in rank(retrieving, method).scores.items():
            np.testing.assert_array_equal(rank(retrieving, more).scores[name], scores)


def test_more_classes_than_were_kept_are_refused(make, others, stores, tmp_path):
    """They exist, and are not there: another answer would be silent."""
    kept = extract(others, tiny.setup(resize=SIZE, classes=3), tmp_path / "s")
    few = make(stores=(*stores[:2], kept))
    with pytest.raises(StoreError, match="top 3 classes of each image; 4 were asked"):
        rank(few, replace(ONLINE, num_whitening_classes=4))
    themed = make(theme=(0, 1))
    with pytest.raises(ValueError, match="4 classes were asked for; .* has 2"):
        rank(themed, replace(THEME, num_classes=4))


# Re-ranking


def test_reranking_changes_only_the_order_of_the_first(make, data):
    retrieving = make()
    before = rank(retrieving, OFFLINE)
    after = rank(retrieving, replace(OFFLINE, **RERANK))
    changed = 0
    for query in data.queries:
        old, new = before.rankings[query.name], after.rankings[query.name]
        assert set(old[:8]) == set(new[:8]) == set(after.matches[query.name])
        assert old[8:] == new[8:]
        np.testing.assert_array_equal(
            before.scores[query.name][8:], after.scores[query.name][8:]
        )
        matches = after.matches[query.name]
        assert [matches[n].score for n in new[:8]] == list(
            after.scores[query.name][:8].astype(float)
        )
        assert (np.diff(after.scores[query.name][:8]) <= 0).all()
        changed += old != new
    assert changed


def test_reranking_more_than_all_reranks_all(make, data):
    result = rank(make(), replace(ONLINE, rerank=99, rerank_classes=3))
    assert all(len(found) == len(data.images) for found in result.matches.values())


def test_matches_are_computed_once(make, maps, monkeypatch):
    retrieving = make()
    rank(retrieving, replace(OFFLINE, **RERANK))
    asked = []
    many = maps.many
    monkeypatch.setattr(
        maps, "many", lambda names, *_: asked.append(names) or many(names)
    )
    rank(retrieving, replace(OFFLINE, **RERANK, query_expansion=3))
    assert not any(asked)
    rank(retrieving, replace(OFFLINE, rerank=10, rerank_classes=3))
    assert [len(names) for names in asked if names] == [2] * 4


def reversed_queries(data, path):
    turned = replace(data, queries=data.queries[::-1])
    return turned, extract_queries(turned, SETUP, path)


@pytest.mark.parametrize("moves", ["no", "query", "run"])
@pytest.mark.parametrize("kind", ["offline", "theme", "online"])
def test_only_the_leak_of_a_run_makes_the_order_of_queries_matter(
    make, data, stores, tmp_path, moves, kind
):
    turned, queries = reversed_queries(data, tmp_path / "q")
    method = replace(OFFLINE, aggregation=kind, **RERANK, query_expansion=2)
    forward = rank(make(rerank_moves_index=moves), method)
    backward = rank(
        make(turned, (stores[0], queries, stores[2]), rerank_moves_index=moves), method
    )
    leaks = moves == "run" and kind != "online"
    assert same(forward, backward) != leaks
    first, last = data.queries[0].name, data.queries[-1].name
    alone = rank(make(rerank_moves_index="query"), method)
    if leaks:  # the first query of each order sees a clean index
        for result, name in ((forward, first), (backward, last)):
            np.testing.assert_array_equal(result.scores[name], alone.scores[name])


def test_moved_rows_are_those_that_are_expanded_and_searched(make, data):
    """By hand: the regions' descriptors stand for the re-ranked photos."""
    method = replace(OFFLINE, **RERANK, query_expansion=2)
    for moves in ("no", "query"):
        retrieving = make(rerank_moves_index=moves)
        result = rank(retrieving, method)
        plain = rank(retrieving, replace(method, query_expansion=0))
        for number, query in enumerate(data.queries):
            vector, index = next(retrieving.descriptors(method, [number]))
            index = index.copy()
            if moves == "query":
                for image, match in result.matches[query.name].items():
                    index[data.images.index(image)] = match.descriptor
            best = [data.images.index(n) for n in plain.rankings[query.name][:2]]
            expanded = l2_normalize(vector + index[best].sum(axis=0))
            got = in_database_order(result, query.name, data.images)
            np.testing.assert_allclose(got, index @ expanded, atol=1e-5)


def test_a_run_leaves_the_shared_descriptors_as_they_were(make):
    for moves in ("query", "run"):
        retrieving = make(rerank_moves_index=moves)
        before = rank(retrieving, OFFLINE)
        index = next(retrieving.descriptors(OFFLINE, [0]))[1].copy()
        rank(retrieving, replace(OFFLINE, **RERANK, query_expansion=2))
        np.testing.assert_array_equal(
            next(retrieving.descriptors(OFFLINE, [0]))[1], index
        )
        assert same(rank(retrieving, OFFLINE), before)


# Search flags


def test_query_replaces_own_row_puts_the_querys_photo_first(make, data, stores):
    """Queries of a corner only: their own photos are not always the nearest."""
    corners = tuple(replace(q, box=(0.0, 0.0, 24.0, 24.0)) for q in data.queries)
    small = replace(data, queries=corners)
    queries = extract_queries(small, SETUP, stores[1].path.with_name("corners"))

    def run(flag):
        return rank(
            make(small, (stores[0], queries), None, query_replaces_own_row=flag), RAW
        )

    usual, replaced = run(False), run(True)
    assert any(usual.rankings[q.name][0] != q.image for q in corners)
    for query in corners:
        first, *rest = replaced.rankings[query.name]
        assert first == query.image and replaced.scores[query.name][0] == 1
        without = [n for n in usual.rankings[query.name] if n != query.image]
        assert rest == without


@pytest.mark.parametrize("name", rerankers.RERANKERS)
def test_its_own_row_stays_first_whatever_scores_above_one(make, data, name):
    found = rank(make(query_replaces_own_row=True), replace(OFFLINE, refine=name))
    for query in data.queries:
        assert found.rankings[query.name][0] == query.image


@pytest.mark.parametrize("with_query", [True, False])
def test_expansion_sums_the_first_rows_and_perhaps_the_query(make, data, with_query):
    retrieving = make(expand_with_query=with_query)
    base = rank(retrieving, ONLINE)
    result = rank(retrieving, replace(ONLINE, query_expansion=3))
    for number, query in enumerate(data.queries):
        vector, index = next(retrieving.descriptors(ONLINE, [number]))
        best = [data.images.index(n) for n in base.rankings[query.name][:3]]
        expanded = index[best].sum(axis=0) + (vector if with_query else 0)
        got = in_database_order(result, query.name, data.images)
        np.testing.assert_allclose(got, index @ l2_normalize(expanded), atol=1e-5)


# Nothing leaks between methods


def test_methods_give_the_same_bits_in_any_company_and_order(make):
    forward, backward = make(), make()
    first = {m.slug: rank(forward, m) for m in METHODS}
    second = {m.slug: rank(backward, m) for m in reversed(METHODS)}
    assert len(first) == len(METHODS)
    for method in METHODS:
        assert same(first[method.slug], second[method.slug]), method.slug
        assert same(first[method.slug], rank(make(), method)), method.slug


def test_methods_of_one_curve_are_described_in_one_pass(make, monkeypatch):
    passes, offline = [], aggregation.offline

    def counting(store, aggregator, counts):
        passes.append(sorted(counts))
        return offline(store, aggregator, counts)

    monkeypatch.setattr(aggregation, "offline", counting)
    curve = [replace(OFFLINE, num_classes=count) for count in (3, 1)]
    other = [replace(method, class_weighting="rank") for method in curve]
    table, _, _ = tabulate(make(), [curve[0], ONLINE, *other, curve[1]])
    assert passes == [[1, 3], [1, 3]]
    assert table["num_classes"].tolist() == [3, ONLINE.num_classes, 3, 1, 1]


def test_an_offline_curve_gives_what_single_runs_give(make):
    counts = [1, 2, 4]
    together = make()
    together.offline_curve(OFFLINE, counts)
    for count in counts:
        method = replace(OFFLINE, num_classes=count)
        alone, shared = rank(make(), method), rank(together, method)
        assert alone.rankings == shared.rankings
        for name in alone.scores:
            np.testing.assert_allclose(
                alone.scores[name], shared.scores[name], atol=1e-6
            )


# Methods and tables


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aggregation": "onlin"}, "`aggregation` must be one of sum, .* got 'onlin'"),
        ({"num_classes": 0}, "`num_classes` must be at least 1"),
        ({"num_whitening_classes": 0}, "`num_whitening_classes` must be at least 1"),
        ({"rerank_classes": 0}, "`rerank_classes` must be at least 1"),
        ({"groups": 0}, "`groups` must be at least 1"),
        ({"bits": 5}, "`bits` must be one of 4, 8, 16; got 5"),
        ({"query_expansion": -1}, "`query_expansion` must be at least 0"),
        ({"rerank": -1}, "`rerank` must be at least 0"),
        ({"dimensions": 0}, "`dimensions` must be above 0"),
        ({"aggregation": "gem", "rerank": 5}, "Re-ranking describes regions by class"),
    ],
)
def test_impossible_methods_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Method(**fields)


def test_slugs_differ_where_settings_that_matter_do():
    base = Method("online", rerank=10, query_expansion=5)
    changed = [
        replace(base, **{name: value})
        for name, value in {
            "aggregation": "offline",
            "num_classes": 3,
            "num_whitening_classes": 3,
            "dimensions": 3,
            "query_expansion": 3,
            "rerank": 3,
            "rerank_classes": 3,
            "whitening_exponent": 0.35,
            "shrinkage": 0.1,
            "class_weighting": "rank",
            "refine": "dba",
            "cascade": 10,
        }.items()
    ]
    grouped = [
        replace(base, aggregation="grouped", **{name: value})
        for name, value in {"refine": None, "groups": 3, "bits": 16}.items()
    ]
    changed += grouped
    assert {f.name for f in fields(Method)} == {
        name for m in changed for name, v in vars(m).items() if v != getattr(base, name)
    }
    assert len({method.slug for method in [base, *changed]}) == len(changed) + 1
    # Without re-ranking, its classes do not matter.
    plain = replace(base, rerank=0)
    assert plain.slug == replace(plain, rerank_classes=3).slug
    for method in changed:
        assert set(method.slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")


def test_labels_read_well():
    assert Method("sum", dimensions=0).label == "Raw features"
    assert Method("gem", dimensions=64).label == "GeM + PCA"
    assert Method("offline", 1).label == "OfA, 1 class"
    full = Method("online", 8, rerank=100, query_expansion=10)
    assert full.label == "OnA, 8 classes + R100 + QE10"


def test_the_ladder_climbs_once_to_each_method():
    base = Method(rerank=5, query_expansion=2, whitening_exponent=0.3)
    methods = retrieval.ladder(base, 100, (1, 8))
    assert len({method.slug for method in methods}) == len(methods) == 19
    assert methods[0].slug == RAW.slug
    few = {m.dimensions for m in methods if m.aggregation in GLOBAL_POOLINGS}
    assert few == {0, 50}  # one vector a photo cannot support more
    assert {m.dimensions for m in methods if m.by_class} == {512}
    assert {(m.rerank, m.query_expansion) for m in methods} == {(0, 0)}
    assert {m.whitening_exponent for m in methods} == {0.3}


def test_compare_makes_a_row_a_method_and_a_row_a_query(make, data):
    methods = [RAW, ONLINE, replace(ONLINE, **RERANK)]
    retrieving = make()
    table, per_query, results = tabulate(retrieving, methods)
    assert table["slug"].tolist() == [m.slug for m in methods] == list(results)
    assert table["whitening"].tolist() == ["", "other", "other"]
    assert table["whitening_vectors"].tolist() == [0, 72, 72]
    assert set(table["images"]) == {18} and set(table["queries"]) == {4}
    assert set(table["note"]) == {data.note}
    assert len(per_query) == 12
    means = per_query.groupby("slug", sort=False)["ap"].mean()
    np.testing.assert_allclose(means, table["mAP"])


def test_stores_are_opened_where_the_extraction_put_them(data, others, tmp_path):
    few = replace(others, images=others.images[:5])
    experiment = Experiment(data, few, tiny.setup(tmp_path, protocol="paper"))
    with pytest.raises(StoreError, match="run the extraction first"):
        Collection.open(experiment)
    experiment.extract()
    opened = Collection.open(experiment)
    assert opened.first.setup.protocol.name == "paper" and opened.source == "other"
    rank(opened, Method("online", 2, 2, 4, rerank=2, rerank_classes=2))


def test_queries_asked_one_by_one_are_not_taken_for_each_other(make, stores):
    together = make()
    expected = rank(together, ONLINE)
    for query in together.data.queries:
        row = {query.name: stores[1].hashes[query.name]}
        asked = together.ask([query], JoinedStore([stores[1]], row))
        assert rank(asked, ONLINE).rankings[query.name] == expected.rankings[query.name]


# Re-rankers by neighbours


REFINED = [
    Method("gem", dimensions=10, refine="dba:photos=3"),
    replace(OFFLINE, refine="dba:photos=2+alpha_qe:photos=3"),
    replace(ONLINE, refine="dba:photos=3"),
    replace(OFFLINE, refine="diffusion"),
]


@pytest.mark.parametrize("method", REFINED, ids=lambda m: m.slug)
def test_refined_scores_are_those_of_the_re_ranker(make, method):
    retrieving = make()
    result = rank(retrieving, method)
    for number, query in enumerate(retrieving.data.queries):
        vector, database = next(retrieving.descriptors(method, [number]))
        expected = rerankers.rerank(method.refine, vector[None], database)[0]
        got = in_database_order(result, query.name, retrieving.data.images)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_expansion_and_boxes_work_on_augmented_descriptors(make):
    retrieving = make()
    method = replace(OFFLINE, **RERANK, query_expansion=2, refine="dba:photos=3")
    result = rank(retrieving, method)
    for number, query in enumerate(retrieving.data.queries):
        vector, database = next(retrieving.descriptors(method, [number]))
        index = rerankers.Chain.parse("dba:photos=3").prepare(database).database
        first = ranking.order(index @ vector)[: RERANK["rerank"]]
        assert set(result.matches[query.name]) == {
            retrieving.data.images[r] for r in first
        }
        averaged = [retrieving.first.rows[name] for name in result.averaged[query.name]]
        expanded = l2_normalize(vector + index[averaged].sum(axis=0))
        got = in_database_order(result, query.name, retrieving.data.images)
        np.testing.assert_allclose(got, index @ expanded, atol=1e-5)


def test_one_text_for_one_re_ranker(make):
    first, second = (replace(OFFLINE, refine=text) for text in ("dba", "dba:photos=10"))
    assert first == second and first.slug == second.slug
    assert replace(OFFLINE, refine="") == OFFLINE == replace(OFFLINE, refine=None)
    assert first.label == OFFLINE.label + " + DBA"
    retrieving = make()
    rows = [retrieval.row(retrieving, rank(retrieving, m)) for m in (OFFLINE, first)]
    assert rows[0]["identity"] != rows[1]["identity"]


def test_a_moved_index_and_a_re_ranker_exclude_each_other(make):
    method = replace(OFFLINE, **RERANK, refine="dba:photos=3")
    with pytest.raises(ValueError, match="choose one of the two"):
        rank(make(rerank_moves_index="query"), method)


def test_an_unknown_re_ranker_is_refused():
    with pytest.raises(ValueError, match="did you mean dba"):
        Method(refine="bda")


def test_online_descriptors_are_kept_for_their_classes_and_weights(make):
    """The last ones only, and other probabilities of the same classes are others."""
    space = make().first.space(replace(ONLINE, class_weighting="probability"))
    lists, weighing = [[2, 0]], [np.float32([0.7, 0.1])]
    (first,) = space.online(lists, weighing)
    (again,) = space.online(lists, weighing)
    assert again is first
    (other,) = space.online(lists, [np.float32([0.1, 0.7])])
    assert not np.allclose(other, first)
    (back,) = space.online(lists, weighing)
    assert back is not first
    np.testing.assert_array_equal(back, first)


def test_vectors_of_queries_beyond_the_first_block(tmp_path):
    specs = {"class_vectors": ArraySpec((3, 4), "float16", by_row=True)}
    names = {f"query{number}": str(number) for number in range(5)}
    store = DiskStore.create(
        tmp_path / "queries", {"classes": None}, names, specs, block=2
    )
    vectors = np.random.default_rng(0).random((5, 3, 4)).astype(np.float16)
    for number, rows in enumerate(store.blocks):
        store.write_block(number, {"class_vectors": vectors[rows.start : rows.stop]})
    asked = Asked([], store)
    for number in (4, 0, 3):
        found = asked.vectors(number, [2, 0])
        np.testing.assert_array_equal(found, vectors[number][[2, 0]])
