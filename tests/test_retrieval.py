"""Retrieval on a planted data set: right answers, honest stores, no shared state."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tiny

from cwr_utils import aggregation, extraction, protocol, ranking, retrieval
from cwr_utils import evaluation as evaluation_module
from cwr_utils.arrays import l2_normalize
from cwr_utils.extraction import ExtractionConf, ImageMaps
from cwr_utils.pooling import GLOBAL_POOLINGS
from cwr_utils.retrieval import Method, Retrieval
from cwr_utils.store import JoinedStore, StoreError
from cwr_utils.whitening import WhiteningError

# Boxes of five cells need a grid that is somewhat finer than that of other tests.
CONF = ExtractionConf(resize="96x72")
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


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "Describer", tiny.describer)
        yield


@pytest.fixture(scope="module")
def network():
    return tiny.network()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("retrieval")


@pytest.fixture(scope="module")
def data(folder):
    """4 places with 3 views each, the last one junk, and 6 distractors."""
    return tiny.dataset(folder / "photos")


@pytest.fixture(scope="module")
def training_data(folder):
    return tiny.dataset(folder / "other", "other", 0, 0, 24, first_place=100)


@pytest.fixture(scope="module")
def stores(data, training_data, network, folder):
    """Database, queries and training photos."""
    return (
        extraction.extract(data, network, folder / "database", CONF),
        extraction.extract_queries(data, network, folder / "queries", CONF),
        extraction.extract(training_data, network, folder / "training", CONF),
    )


@pytest.fixture(scope="module")
def maps(data, network):
    return ImageMaps(data, network, CONF)


@pytest.fixture
def make(data, stores, maps):
    """A fresh Retrieval, with flags of the protocol."""

    def make(data=data, stores=stores, **flags):
        used = replace(protocol.get("corrected"), **flags)
        return Retrieval(data, *stores, protocol=used, maps=maps)

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
    result = retrieving.run(method)
    row = retrieving.row(result)
    assert row["mAP"] == 1
    assert (row["network"], row["layer"]) == ("tiny", tiny.LAYER)
    assert (row["resize"], row["power"]) == (CONF.resize, 1.0)
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
    result = retrieving.run(method)
    expected = expected_scores(method, data, stores, retrieving.whitening(method))
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
    assert retrieving.theme == aggregation.theme_classes(top, tiny.CLASSES)
    fixed = Retrieval(data, *stores, theme=[3, 1, 0, 5, 2])
    assert fixed.theme == [3, 1, 0, 5, 2]
    vector, _ = fixed.describe(THEME, 2)
    fitted = fixed.whitening(THEME)
    vectors = queries.read("class_vectors")[2, [3, 1, 0, 5]]
    np.testing.assert_allclose(
        vector, l2_normalize(fitted(vectors).sum(axis=0)), rtol=1e-5, atol=1e-6
    )


def test_whitening_is_fitted_on_the_training_photos_alone(make, stores):
    training = stores[2]
    retrieving = make()
    used = retrieving.whitening(ONLINE)
    top = training.read("top_classes")[:, :3]
    vectors = training.read("class_vectors")[np.arange(24)[:, None], top]
    np.testing.assert_allclose(
        used.mean, l2_normalize(vectors).reshape(-1, 12).mean(axis=0), atol=1e-6
    )
    assert (used.vectors, used.source, used.dimensions) == (72, "other", 12)
    assert retrieving.whitening(Method("sum", dimensions=4)).vectors == 24
    assert retrieving.whitening(RAW) is None
    with pytest.raises(WhiteningError, match="24 vectors .* at most 12"):
        retrieving.whitening(Method("sum", dimensions=13))


# Self-match


def test_kept_whitenings_are_shared_and_give_the_same_bits(
    make, data, training_data, network, maps, stores, tmp_path, monkeypatch
):
    training = extraction.extract(training_data, network, tmp_path / "training", CONF)
    fits, fit = [], retrieval.whitening.fit
    monkeypatch.setattr(
        retrieval.whitening, "fit", lambda *given: fits.append(1) or fit(*given)
    )
    methods = [ONLINE, OFFLINE, replace(OFFLINE, num_whitening_classes=2), METHODS[1]]
    plain = make()
    expected = [plain.run(method) for method in methods]
    fits.clear()

    def kept(**options):
        return Retrieval(
            data, *stores[:2], training, maps=maps, keep_whitenings=True, **options
        )

    for _ in range(2):
        retrieving = kept()
        for method, result in zip(methods, expected, strict=True):
            assert same(retrieving.run(method), result)
    assert len(fits) == 3  # ONLINE and OFFLINE have the same
    kept(training_images=training.names[:20]).run(ONLINE)
    assert len(fits) == 4


def test_dimensions_are_lowered_to_half_of_the_vectors(data, stores):
    chosen = stores[2].names[:10]
    retrieving = Retrieval(data, *stores, training_images=chosen)
    one = replace(ONLINE, num_whitening_classes=1, dimensions=512)
    assert retrieving.supported(one).dimensions == 5
    assert retrieving.supported(Method("gem", dimensions=6)).dimensions == 5
    # Three vectors a photo are enough for each of the 12 channels.
    three = replace(one, num_whitening_classes=3)
    assert retrieving.supported(three) == replace(three, dimensions=12)
    few = replace(one, dimensions=4)
    assert retrieving.supported(few) == few
    assert retrieving.supported(RAW) == RAW


def test_forgotten_descriptors_come_back_with_the_same_bits(make):
    retrieving = make()
    methods = [OFFLINE, THEME, ONLINE, Method("gem", dimensions=10)]
    before = [retrieving.run(method) for method in methods]
    held = len(retrieving._memo)
    retrieving.forget_descriptors()
    assert len(retrieving._memo) == held - 3
    for method, result in zip(methods, before, strict=True):
        assert same(retrieving.run(method), result)


def test_self_match_follows_the_ground_truth(make, data, stores):
    assert make().self_match  # every query's photo is one of its positives
    without = tuple(replace(q, positives=q.positives - {q.image}) for q in data.queries)
    leave_one_out = make(data=replace(data, queries=without))
    assert not leave_one_out.self_match
    result = leave_one_out.run(RAW)
    own = leave_one_out.evaluate(result, self_match=True)
    rule = leave_one_out.evaluate(result)
    np.testing.assert_array_equal(own["positives"], [2] * 4)
    np.testing.assert_array_equal(rule["positives"], [1] * 4)
    row = leave_one_out.row(result)
    mean = evaluation_module.mean_average_precision
    assert row["mAP"] == row["mAP_without_self"] == mean(rule)
    assert row["mAP_with_self"] == mean(own)
    interval = evaluation_module.bootstrap(rule["ap"], rule["landmark"])
    assert (row["mAP_low"], row["mAP_high"]) == (interval.low, interval.high)
    assert row["landmarks"] == 4


# Honest whitening


def test_whitening_on_the_data_set_under_test_is_refused(data, stores):
    database, queries, _ = stores
    with pytest.raises(WhiteningError, match="18 of the 18 whitening photos"):
        Retrieval(data, database, queries, database)


def test_its_own_distractors_need_the_long_name_and_are_named(data, stores):
    database, queries, _ = stores
    options = {"training_images": data.distractors}
    with pytest.raises(WhiteningError, match="6 of the 6 whitening photos"):
        Retrieval(data, database, queries, database, **options)
    options["i_know_this_fits_whitening_on_the_test_set"] = True
    own = Retrieval(data, database, queries, database, **options)
    assert own.source == "tiny (6 of 18 photos)"
    assert own.whitening(Method("sum", dimensions=3)).vectors == 6


def test_held_out_distractors_leave_the_database(data):
    held_out, distractors = data.hold_out_distractors()
    assert not set(held_out.images) & set(distractors.images)
    assert set(held_out.images) | set(distractors.images) == set(data.images)
    assert distractors.queries == ()
    assert held_out.queries == data.queries


def test_a_copy_of_a_test_photo_is_found_under_any_name(
    data, training_data, stores, network, tmp_path
):
    paths = {**training_data.paths, "other100_5": data.path(data.images[0])}
    copied = replace(training_data, paths=paths)
    training = extraction.extract(copied, network, tmp_path / "s", CONF)
    with pytest.raises(WhiteningError, match="1 of the 24 whitening photos"):
        Retrieval(data, *stores[:2], training)


def test_methods_with_whitening_need_training_photos(data, stores):
    plain = Retrieval(data, *stores[:2])
    plain.run(RAW)
    for method in (ONLINE, THEME, Method("gem", dimensions=3)):
        with pytest.raises(WhiteningError, match="no training store was given"):
            plain.run(method)
    with pytest.raises(ValueError, match="1 of the `training_images` are not in"):
        Retrieval(data, *stores, training_images=["other100_0", "typo"])


# Stores that do not belong together


def test_stores_of_other_images_or_queries_are_refused(
    data, training_data, stores, network
):
    database, queries, training = stores
    with pytest.raises(StoreError, match="24 image entries .* not those of tiny"):
        Retrieval(data, training, queries)
    with pytest.raises(StoreError, match="18 query entries .* missing: query0"):
        Retrieval(data, database, database)
    turned = replace(data, images=data.images[::-1])
    with pytest.raises(StoreError, match="18 image entries"):
        Retrieval(turned, database, queries)


def test_queries_whose_box_moved_are_refused(data, stores):
    moved = replace(data.queries[1], box=(0.0, 0.0, 40.0, 40.0))
    queries = (data.queries[0], moved, *data.queries[2:])
    with pytest.raises(StoreError, match="query1 .* another box or photo"):
        Retrieval(replace(data, queries=queries), *stores)


def test_an_incomplete_store_is_refused(data, stores, network, tmp_path):
    def stop(number):
        raise KeyError("stopped")

    with pytest.raises(KeyError):
        extraction.extract(data, network, tmp_path / "s", CONF, block=6, on_block=stop)
    half = extraction.Store.open(tmp_path / "s")
    with pytest.raises(StoreError, match="lacks . of 3 blocks"):
        Retrieval(data, half, *stores[1:])


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
    data, training_data, stores, network, tmp_path, which, changes, field
):
    """Two layers may have the same number of channels: nothing else would notice."""
    database, queries, training = stores
    conf = replace(CONF, **changes)
    if which == "queries":
        queries = extraction.extract_queries(data, network, tmp_path / "s", conf)
    else:
        few = replace(training_data, images=training_data.images[:1])
        training = extraction.extract(few, network, tmp_path / "s", conf)
    with pytest.raises(StoreError, match=f"another {field}: "):
        Retrieval(data, database, queries, training)


def test_a_training_store_may_keep_fewer_classes(
    data, training_data, stores, network, tmp_path
):
    landscape = training_data.images[::3]  # one size, one graph to compile
    part = replace(training_data, images=landscape)
    conf = replace(CONF, classes=3)
    kept = extraction.extract(part, network, tmp_path / "s", conf)
    full = Retrieval(data, *stores, training_images=landscape)
    few = Retrieval(data, *stores[:2], kept)
    for name in ("mean", "projection"):
        first, second = (getattr(r.whitening(ONLINE), name) for r in (full, few))
        np.testing.assert_allclose(first, second, rtol=0.05, atol=1e-3)


def test_more_classes_than_are_known_are_refused_everywhere(make):
    retrieving = make()
    many = {"num_classes": tiny.CLASSES + 1}
    for method in (
        replace(ONLINE, **many),
        replace(OFFLINE, **many),
        replace(THEME, **many),
        replace(ONLINE, rerank=3, rerank_classes=7),
    ):
        with pytest.raises((ValueError, StoreError), match="7"):
            retrieving.run(method)


# Re-ranking


def test_reranking_changes_only_the_order_of_the_first(make, data):
    retrieving = make()
    before = retrieving.run(OFFLINE)
    after = retrieving.run(replace(OFFLINE, **RERANK))
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
    result = make().run(replace(ONLINE, rerank=99, rerank_classes=3))
    assert all(len(found) == len(data.images) for found in result.matches.values())


def test_matches_are_computed_once(make, maps, monkeypatch):
    retrieving = make()
    retrieving.run(replace(OFFLINE, **RERANK))
    asked = []
    many = maps.many
    monkeypatch.setattr(
        maps, "many", lambda names, *_: asked.append(names) or many(names)
    )
    retrieving.run(replace(OFFLINE, **RERANK, query_expansion=3))
    assert not any(asked)
    retrieving.run(replace(OFFLINE, rerank=10, rerank_classes=3))
    assert [len(names) for names in asked if names] == [2] * 4


def test_reranking_without_maps_is_refused_before_work(data, stores):
    with pytest.raises(ValueError, match="Re-ranking needs `maps`"):
        Retrieval(data, *stores).run(replace(ONLINE, **RERANK))


def reversed_queries(data, network, path):
    turned = replace(data, queries=data.queries[::-1])
    return turned, extraction.extract_queries(turned, network, path, CONF)


@pytest.mark.parametrize("moves", ["no", "query", "run"])
@pytest.mark.parametrize("kind", ["offline", "theme", "online"])
def test_only_the_leak_of_a_run_makes_the_order_of_queries_matter(
    make, data, stores, network, tmp_path, moves, kind
):
    turned, queries = reversed_queries(data, network, tmp_path / "q")
    method = replace(OFFLINE, aggregation=kind, **RERANK, query_expansion=2)
    forward = make(rerank_moves_index=moves).run(method)
    backward = make(
        turned, (stores[0], queries, stores[2]), rerank_moves_index=moves
    ).run(method)
    leaks = moves == "run" and kind != "online"
    assert same(forward, backward) != leaks
    first, last = data.queries[0].name, data.queries[-1].name
    alone = make(rerank_moves_index="query").run(method)
    if leaks:  # the first query of each order sees a clean index
        for result, name in ((forward, first), (backward, last)):
            np.testing.assert_array_equal(result.scores[name], alone.scores[name])


def test_moved_rows_are_those_that_are_expanded_and_searched(make, data):
    """By hand: the regions' descriptors stand for the re-ranked photos."""
    method = replace(OFFLINE, **RERANK, query_expansion=2)
    for moves in ("no", "query"):
        retrieving = make(rerank_moves_index=moves)
        result = retrieving.run(method)
        plain = retrieving.run(replace(method, query_expansion=0))
        for number, query in enumerate(data.queries):
            vector, index = retrieving.describe(method, number)
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
        before = retrieving.run(OFFLINE)
        index = retrieving.describe(OFFLINE, 0)[1].copy()
        retrieving.run(replace(OFFLINE, **RERANK, query_expansion=2))
        np.testing.assert_array_equal(retrieving.describe(OFFLINE, 0)[1], index)
        assert same(retrieving.run(OFFLINE), before)


# Search flags


def test_query_replaces_own_row_puts_the_querys_photo_first(data, stores, network):
    """Queries of a corner only: their own photos are not always the nearest."""
    corners = tuple(replace(q, box=(0.0, 0.0, 24.0, 24.0)) for q in data.queries)
    small = replace(data, queries=corners)
    path = stores[1].path.with_name("corners")
    queries = extraction.extract_queries(small, network, path, CONF)

    def run(flag):
        flags = replace(protocol.get("corrected"), query_replaces_own_row=flag)
        return Retrieval(small, stores[0], queries, protocol=flags).run(RAW)

    usual, replaced = run(False), run(True)
    assert any(usual.rankings[q.name][0] != q.image for q in corners)
    for query in corners:
        first, *rest = replaced.rankings[query.name]
        assert first == query.image and replaced.scores[query.name][0] == 1
        without = [n for n in usual.rankings[query.name] if n != query.image]
        assert rest == without


@pytest.mark.parametrize("with_query", [True, False])
def test_expansion_sums_the_first_rows_and_perhaps_the_query(make, data, with_query):
    retrieving = make(expand_with_query=with_query)
    base = retrieving.run(ONLINE)
    result = retrieving.run(replace(ONLINE, query_expansion=3))
    for number, query in enumerate(data.queries):
        vector, index = retrieving.describe(ONLINE, number)
        best = [data.images.index(n) for n in base.rankings[query.name][:3]]
        expanded = index[best].sum(axis=0) + (vector if with_query else 0)
        got = in_database_order(result, query.name, data.images)
        np.testing.assert_allclose(got, index @ l2_normalize(expanded), atol=1e-5)


# Nothing leaks between methods


def test_methods_give_the_same_bits_in_any_company_and_order(make):
    forward, backward = make(), make()
    first = {m.slug: forward.run(m) for m in METHODS}
    second = {m.slug: backward.run(m) for m in reversed(METHODS)}
    assert len(first) == len(METHODS)
    for method in METHODS:
        assert same(first[method.slug], second[method.slug]), method.slug
        assert same(first[method.slug], make().run(method)), method.slug


def test_an_offline_curve_gives_what_single_runs_give(make):
    counts = [1, 2, 4]
    together = make()
    together.offline_curve(OFFLINE, counts)
    for count in counts:
        method = replace(OFFLINE, num_classes=count)
        alone, shared = make().run(method), together.run(method)
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
        }.items()
    ]
    assert len({method.slug for method in [base, *changed]}) == 8
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
    methods = retrieval.ladder(100, 512, (1, 8), 16)
    assert len({method.slug for method in methods}) == len(methods) == 19
    assert methods[0] == RAW
    few = {m.dimensions for m in methods if m.aggregation in GLOBAL_POOLINGS}
    assert few == {0, 50}  # one vector a photo cannot support more
    assert {m.dimensions for m in methods if m.by_class} == {512}


def test_compare_makes_a_row_a_method_and_a_row_a_query(make, data):
    methods = [RAW, ONLINE, replace(ONLINE, **RERANK)]
    retrieving = make()
    table, per_query, results = retrieving.compare(methods)
    assert table["slug"].tolist() == [m.slug for m in methods] == list(results)
    assert table["whitening"].tolist() == ["", "other", "other"]
    assert table["whitening_vectors"].tolist() == [0, 72, 72]
    assert set(table["images"]) == {18} and set(table["queries"]) == {4}
    assert set(table["note"]) == {data.note}
    assert len(per_query) == 12
    means = per_query.groupby("slug", sort=False)["ap"].mean()
    np.testing.assert_allclose(means, table["mAP"])


def test_stores_are_opened_where_the_extraction_put_them(
    data, training_data, network, tmp_path
):
    with pytest.raises(StoreError, match="run the extraction first"):
        retrieval.open_retrieval(data, None, network, CONF, tmp_path)
    few = replace(training_data, images=training_data.images[:5])
    for part in (data, few):
        folder = extraction.store_path(tmp_path, part, network, CONF)
        extraction.extract(part, network, folder / "database", CONF)
    folder = extraction.store_path(tmp_path, data, network, CONF)
    extraction.extract_queries(data, network, folder / "queries", CONF)
    paper = protocol.get("paper")
    opened = retrieval.open_retrieval(data, few, network, CONF, tmp_path, paper)
    assert opened.protocol is paper and opened.source == "other"
    opened.run(Method("online", 2, 2, 4, rerank=2, rerank_classes=2))


def test_queries_asked_one_by_one_are_not_taken_for_each_other(make, stores):
    together = make()
    expected = together.run(ONLINE)
    for query in together.dataset.queries:
        row = {query.name: stores[1].hashes[query.name]}
        asked = together.ask([query], JoinedStore([stores[1]], row))
        assert asked.run(ONLINE).rankings[query.name] == expected.rankings[query.name]
