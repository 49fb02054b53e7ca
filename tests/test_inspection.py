"""A score taken apart class by class, and the maps of one photo."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from cwr_utils import extraction, inspection, protocol, reranking
from cwr_utils.extraction import ExtractionConf, ImageMaps
from cwr_utils.images import box_to_cells
from cwr_utils.retrieval import Method, Retrieval
from cwr_utils.store import JoinedStore, StoreError

CONF = ExtractionConf(resize="96x72")
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


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "Describer", tiny.describer)
        yield


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A Retrieval of 12 photos, with flags of the protocol."""
    folder = tmp_path_factory.mktemp("inspection")
    data = tiny.dataset(folder / "photos", distractors=0)
    others = tiny.dataset(folder / "others", "other", 0, 0, 12, first_place=100)
    network = tiny.network()

    def make(conf=CONF, layer=None, **flags):
        conf = replace(conf, layer=layer)
        paths = [
            extraction.store_path(folder, d, network, conf) for d in (data, others)
        ]
        return Retrieval(
            data,
            extraction.extract(data, network, paths[0] / "database", conf),
            extraction.extract_queries(data, network, paths[0] / "queries", conf),
            extraction.extract(others, network, paths[1] / "database", conf),
            protocol=replace(protocol.get("corrected"), **flags),
            maps=ImageMaps(data, network, conf),
        )

    return make


def only(stores, number):
    """The same stores with one of the queries."""
    query = stores.dataset.queries[number]
    row = {query.name: stores.queries.hashes[query.name]}
    return stores.ask([query], JoinedStore([stores.queries], row))


# Contributions


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
    same, rest = inspection.contributions(query, image)
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
    same, rest = inspection.contributions(query, image)
    assert same == pytest.approx(expected)
    size = np.abs([*query.values()]).sum() * np.abs([*image.values()]).sum()
    assert rest == pytest.approx(other, abs=1e-12 * (1 + size))


def test_a_descriptor_without_parts_contributes_nothing():
    assert inspection.contributions({}, parts(0, [1])) == ({}, 0.0)
    assert inspection.contributions(parts(0, [1]), {}) == ({}, 0.0)


@pytest.mark.parametrize(
    "flags",
    [{}, {"rerank_moves_index": "query"}, {"repeat_previous_class": True}],
    ids=lambda flags: "".join(flags) or "corrected",
)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.slug)
def test_they_add_up_to_the_score_of_every_image(make, method, flags):
    """And the descriptors of the parts are those that were compared."""
    stores = only(make(**flags), 1)
    result = stores.run(method)
    (name,) = result.rankings
    for image, score in zip(result.rankings[name], result.scores[name], strict=True):
        table = inspection.class_contributions(stores, result, 0, image)
        assert table["contribution"].sum() == pytest.approx(float(score), abs=1e-6)
        assert table["class"].iloc[-1] == -1
        shown = table["contribution"].iloc[:-1]
        assert shown.is_monotonic_decreasing
        # The last row is what the other pairs give, not whatever is missing: only
        # half precision of the index stands between the two.
        both = inspection._both_parts(stores, result, 0, image)
        rest = inspection.contributions(*both)[1]
        assert table["contribution"].iloc[-1] == pytest.approx(rest, abs=3e-3)


def test_online_shares_all_classes_and_offline_only_some(make):
    stores = only(make(), 1)
    top = stores.top_classes[0].tolist()
    result = stores.run(ONLINE)
    image = result.rankings["query1"][3]
    table = inspection.class_contributions(stores, result, 0, image)
    assert sorted(table["class"][:-1]) == sorted(top[:4])
    assert list(table["name"][:-1]) == [f"class {c}" for c in table["class"][:-1]]

    few = replace(ONLINE, aggregation="offline", num_classes=2)
    result = stores.run(few)
    own = stores.database.read("top_classes")[:, :2]
    for image, classes in zip(stores.dataset.images, own, strict=True):
        table = inspection.class_contributions(stores, result, 0, image)
        assert set(table["class"][:-1]) == set(top[:2]) & set(classes.tolist())


def test_a_store_of_own_classes_only_gives_the_same(make):
    """Offline stores keep top class vectors only: no row may be taken for another."""
    method = replace(ONLINE, aggregation="offline", num_classes=2)
    tables = []
    for conf in (CONF, replace(CONF, classes=3)):
        stores = only(make(conf), 2)
        result = stores.run(method)
        table = [
            inspection.class_contributions(stores, result, 0, image)
            for image in stores.dataset.images
        ]
        tables.append([row for t in table for row in t["contribution"]])
    np.testing.assert_allclose(tables[0], tables[1], atol=2e-3)


def test_the_own_row_that_the_query_replaces_scores_one(make):
    stores = only(make(query_replaces_own_row=True), 0)
    result = stores.run(ONLINE)
    image = stores.dataset.queries[0].image
    table = inspection.class_contributions(stores, result, 0, image)
    assert table["contribution"].sum() == pytest.approx(1)
    ours, theirs = inspection._both_parts(stores, result, 0, image)
    assert all((ours[c] == theirs[c]).all() for c in ours)


def test_without_classes_there_is_only_the_score(make):
    stores = only(make(), 0)
    result = stores.run(Method("sum", dimensions=0))
    image = result.rankings["query0"][2]
    table = inspection.class_contributions(stores, result, 0, image)
    assert table["class"].tolist() == [-1]
    assert table["contribution"][0] == pytest.approx(result.scores["query0"][2])


# Other layers


def test_other_layers_are_those_with_stores_of_the_same_settings(make):
    stores = make()
    assert stores.other_layers() == []
    expected = make(layer="maps")
    assert stores.other_layers() == ["maps"]
    other = stores.at_layer("maps")
    assert other.conf == replace(CONF, layer="maps")
    method = replace(ONLINE, dimensions=6)
    for name, scores in other.run(method).scores.items():
        np.testing.assert_array_equal(scores, expected.run(method).scores[name])
    with pytest.raises(StoreError, match="run the extraction"):
        stores.at_layer("linear")


# The maps of one photo


def test_one_pass_gives_the_maps_of_all_classes():
    network, photo = tiny.network(), tiny.view(1, 0)
    cams = inspection.look(network, photo, resize="96x72")
    maps = network.maps(inspection.resize_image(photo, _policy("96x72"))[None])
    exponentials = np.exp(maps["logits"][0])
    np.testing.assert_allclose(
        cams.probabilities, exponentials / exponentials.sum(), rtol=1e-5
    )
    assert cams.top(3) == np.argsort(-cams.probabilities)[:3].tolist()
    assert len(cams.top(99)) == tiny.CLASSES
    naive = sum(
        maps["cam_maps"][0, ..., m, None] * network.class_weights[m]
        for m in range(network.class_weights.shape[0])
    )
    np.testing.assert_allclose(
        cams.maps([2, 0], raw=True), naive[..., [2, 0]], rtol=1e-4, atol=1e-5
    )
    scaled = cams.maps(cams.top(1))
    assert scaled.min() >= 0
    assert scaled.max() == pytest.approx(1)


def _policy(text):
    return inspection.ResizePolicy.parse(text)


def test_boxes_are_those_of_re_ranking_in_pixels():
    photo = tiny.view(2, 1)
    cams = inspection.look(tiny.network(), photo, resize="96x72")
    classes = cams.top(2)
    heat = reranking.heat_map(cams.maps(classes), cams.grid[::-1])
    thresholds = protocol.get("corrected").rerank_thresholds
    found = cams.boxes(classes)
    assert found
    assert set(found) <= {"1%", "10%", "20%", "30%", "40%"}
    for threshold in thresholds:
        cells = reranking.cam_boxes(heat, [threshold])
        assert bool(cells) == (f"{threshold:.0%}" in found)
        if cells:
            box = found[f"{threshold:.0%}"]
            assert box_to_cells(box, cams.size, cams.grid) == cells[0]


def test_cells_are_those_that_the_box_touches():
    cams = inspection.look(tiny.network(), tiny.view(0, 0), resize="96x72")  # 96 x 72
    columns, rows = cams.grid
    mask = cams.cells((0.0, 0.0, 96 / columns, 72 / rows))
    assert mask.shape == (rows, columns)
    assert mask.sum() == mask[0, 0] == 1
    assert cams.cells(None).all()


def test_a_photo_has_three_axes():
    with pytest.raises(ValueError, match="photo"):
        inspection.look(tiny.network(), np.zeros((8, 8), np.uint8))


def test_unit_parts_have_a_sum_of_length_one():
    scaled = inspection._unit({1: np.array([3.0, 0.0]), 2: np.array([0.0, 4.0])})
    np.testing.assert_allclose(sum(scaled.values()), [0.6, 0.8])
    empty = {1: np.zeros(2)}
    assert inspection._unit(empty) == empty
    assert inspection._unit({}) == {}
