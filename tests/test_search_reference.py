"""The search against loops, one image and box at a time, under every preset."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import reference_search
import tiny

from cwr_utils import reranking, whitening
from cwr_utils.aggregation import Aggregator
from cwr_utils.protocol import PRESETS
from cwr_utils.retrieval import Collection, Experiment, Method, rank

# Boxes of five cells need a grid that is somewhat finer than that of other tests.
SIZE = "96x72"
CORRECTED = PRESETS["corrected"]
EXPANSION = 3
RERANK = 7


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Opens 16 photos, and 24 others to fit on, under flags of a protocol."""
    folder = tmp_path_factory.mktemp("search")
    data = tiny.dataset(folder / "photos", places=4, views=3, distractors=4)
    others = tiny.dataset(folder / "other", "other", 0, 0, 24, first_place=100)

    def open_collection(flags=CORRECTED, theme=None):
        setup = tiny.setup(folder / "cache", resize=SIZE, protocol=flags)
        experiment = Experiment(data, others, setup, theme=theme)
        with tiny.compile_once():
            experiment.extract()
        return Collection.open(experiment)

    return open_collection


def naive_search(collection, method):
    """`retrieval.rank` in loops: rankings and scores of all queries."""
    data, maps, flags = (
        collection.data,
        collection.first.maps,
        collection.first.setup.protocol,
    )
    database, queries = collection.first.database, collection.first.asked.store
    fitted = collection.first.spaces.fitted(method)
    vectors = [
        store.read("class_vectors").astype(float) for store in (database, queries)
    ]
    top = [store.read("top_classes").tolist() for store in (database, queries)]
    weights = collection.first.setup.network.class_weights
    repeat = flags.repeat_previous_class

    def describe(vectors, classes):
        return reference_search.descriptor(vectors[classes], fitted, repeat)

    def query_vector(number, count):
        return describe(vectors[1][number], top[1][number][:count])

    def rows_for(number):
        if method.aggregation == "online":
            chosen = [top[1][number][: method.num_classes]] * len(data.images)
        else:
            chosen = [classes[: method.num_classes] for classes in top[0]]
        return [describe(*pair) for pair in zip(vectors[0], chosen, strict=True)]

    def match(number, row):
        features, cam_maps = maps(data.images[row])
        count = method.rerank_classes
        return reference_search.best_region(
            query_vector(number, count),
            features.astype(float),
            cam_maps.astype(float),
            weights[:, top[1][number][: max(count, 2)]],
            count,
            fitted,
            flags,
        )

    numbers = range(len(data.queries))
    shared = rows_for(0)
    online = method.aggregation == "online"
    return reference_search.search(
        [query_vector(number, method.num_classes) for number in numbers],
        [rows_for(number) if online else shared for number in numbers],
        [data.images.index(query.image) for query in data.queries],
        match,
        method.rerank,
        method.query_expansion,
        flags,
    )


@pytest.mark.parametrize("aggregation", ["offline", "online"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("rerank", "classes", "expansion"),
    [(RERANK, 3, EXPANSION), (RERANK, 1, 0), (0, 3, EXPANSION)],
)
def test_a_run_does_what_loops_do(
    world, preset, aggregation, rerank, classes, expansion
):
    method = Method(aggregation, 4, 3, 12, expansion, rerank, classes)
    collection = world(PRESETS[preset])
    data, result = collection.data, rank(collection, method)
    expected = naive_search(collection, method)
    for query, (order, scores) in zip(data.queries, expected, strict=True):
        assert result.rankings[query.name] == [data.images[row] for row in order]
        np.testing.assert_allclose(result.scores[query.name], scores, atol=2e-3)


def test_the_order_of_queries_matters_under_the_authors_code_only(world):
    """What the loops say of the leak, before they are believed."""
    method = Method("offline", 4, 3, 12, EXPANSION, RERANK, 3)
    found = {
        moves: naive_search(world(replace(CORRECTED, rerank_moves_index=moves)), method)
        for moves in ("query", "run")
    }
    same = [
        np.array_equal(one[1], other[1])
        for one, other in zip(found["query"], found["run"], strict=True)
    ]
    assert same[0] and not all(same)


# One flag at a time, on small cases


def regions(heat, **flags):
    found = reranking._region_boxes(heat, replace(CORRECTED, **flags))
    return [box for box in found if box]


def test_the_fifth_threshold_has_a_box_of_its_own():
    heat = np.zeros((20, 20), np.float32)
    heat[2:18, 2:18], heat[5:12, 6:14] = 0.35, 1.0
    code = PRESETS["authors_code"].rerank_thresholds
    assert regions(heat) == [(2, 2, 18, 18), (6, 5, 14, 12)]
    assert regions(heat, rerank_thresholds=code) == [(2, 2, 18, 18)]


def test_the_largest_element_by_its_contour_counts_holes_and_no_thin_shapes():
    heat = np.zeros((20, 60), np.float32)
    heat[0:18, 0:18], heat[1:17, 1:17] = 1.0, 0.0  # a ring: 68 cells, 17 * 17 inside
    heat[2:11, 20:29] = 1.0  # a square: 81 cells, 8 * 8 inside its contour
    assert regions(heat) == [(20, 2, 29, 11)]
    assert regions(heat, rerank_largest="contour") == [(0, 0, 18, 18)]
    heat[:] = 0
    heat[:, 30] = heat[19, 30:50] = 1.0  # an L: 39 cells, nothing inside
    heat[2:8, 40:46] = 1.0  # a square: 36 cells
    assert regions(heat) == [(30, 0, 50, 20)]
    assert regions(heat, rerank_largest="contour") == [(40, 2, 46, 8)]


@pytest.mark.parametrize("largest", ["cells", "contour"])
def test_boxes_are_those_of_loops(largest):
    rng, compared = np.random.default_rng(0), 0
    for _ in range(60):
        heat = rng.random((3, 4)) ** 2
        heat = reference_search.reference.bilinear(heat, (13, 17))
        heat *= rng.random(heat.shape) > 0.1
        heat = heat.astype(np.float32)
        for threshold in (0.3, 0.5, 0.7):
            flags = replace(
                CORRECTED,
                rerank_thresholds=(threshold,),
                rerank_largest=largest,
                rerank_fallback=False,
            )
            found = reference_search.elements(heat >= threshold * heat.max())
            areas = [reference_search.contour_area(e, heat.shape) for e in found]
            sizes = sorted(areas if largest == "contour" else map(len, found))
            if len(sizes) > 1 and sizes[-1] == sizes[-2]:
                continue  # which of equals comes first is nobody's rule
            expected = reference_search.boxes(heat, flags)
            assert reranking._region_boxes(heat, flags) == expected
            compared += len(expected)
    assert compared > 60


def test_an_empty_class_adds_nothing_or_the_class_before_it(world):
    fitted = whitening.fit(np.random.default_rng(0).random((30, 12)), "generated")
    # The last class of the network is empty on every photo.
    vectors = world().first.database.read("class_vectors")[0]
    a, empty = vectors[0], vectors[tiny.CLASSES - 1]
    assert a.any() and not empty.any()
    classes, total = [0, tiny.CLASSES - 1, 1], fitted(vectors[[0, 1]]).sum(axis=0)
    for repeat, expected in ((False, total), (True, total + fitted(a))):
        got = reference_search.descriptor(vectors[classes], fitted, repeat)
        np.testing.assert_allclose(got, expected / np.linalg.norm(expected), atol=1e-5)
        theme = world(replace(CORRECTED, repeat_previous_class=repeat), classes)
        method = Method("theme", 3, 3, 12)
        row = next(theme.descriptors(method, [0]))[1][0]
        naive = reference_search.descriptor(
            vectors[classes], theme.first.spaces.fitted(method), repeat
        )
        np.testing.assert_allclose(row, naive, atol=2e-3)


# Memory


def test_photos_to_rerank_are_streamed():
    """However many there are, few are held at a time."""
    rng = np.random.default_rng(0)
    fitted = whitening.fit(rng.random((30, 6)), "generated").keep(4)
    alive, most = [], 0

    def maps():
        nonlocal most
        for number in range(150):
            shape = [(9, 7), (7, 9), (8, 8)][number % 3]
            photo = rng.random((*shape, 6)).astype(np.float32)
            alive.append(weakref.ref(photo))
            most = max(most, sum(ref() is not None for ref in alive))
            yield photo, rng.random((*shape, 2)).astype(np.float32)

    query = np.full(4, 0.5, np.float32)
    describer = reranking.RegionDescriber(np.eye(2, dtype="f4"), Aggregator(fitted))
    found = describer.best(query, maps(), [0, 1])
    assert len(found) == 150
    assert reranking.BATCH < most <= reranking.MOST_WAITING + 2
