"""Regions times classes: stored vectors and descriptors against naive loops."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import tiny

from cwr_utils import pooling, retrieval, whitening
from cwr_utils.arrays import l2_normalize
from cwr_utils.images import read_image, resize_image
from cwr_utils.retrieval import Collection, Method, rank
from cwr_utils.store import StoreError

CLASSES = 2
METHOD = Method("regional", CLASSES, num_whitening_classes=2, dimensions=10)
pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regional")
    setup = tiny.setup(folder / "cache", region_classes=CLASSES, power=2.0)
    return tiny.described(folder, setup)


@pytest.fixture
def opened(experiment):
    return Collection.open(experiment)


def naive_vectors(features, cams, cells=None):
    """(R, C, K), each region cut out and pooled alone (Eqs. 2 to 4), p = 2."""
    cams = np.stack(
        [
            reference.bilinear(cams[..., c], features.shape[:2])
            for c in range(cams.shape[-1])
        ],
        -1,
    )
    if cells is not None:
        x1, y1, x2, y2 = cells
        features, cams = features[y1:y2, x1:x2], cams[y1:y2, x1:x2]
    rows = []
    for x1, y1, x2, y2 in pooling.rmac_regions(*features.shape[:2]):
        part, maps = features[y1:y2, x1:x2], cams[y1:y2, x1:x2]
        weights = np.asarray(pooling.channel_weights(part))
        row = [
            np.sqrt((part**2 * maps[..., c, None]).sum((0, 1))) * weights
            for c in range(maps.shape[-1])
        ]
        rows.append(l2_normalize(np.array(row)))
    return np.array(rows)


def maps_of(experiment, image):
    """Features and CAMs by the photo's own classes."""
    setup = experiment.setup
    photo = resize_image(read_image(experiment.data.path(image)), setup.policy)
    maps = setup.network.maps(photo[None], setup.layer)
    cams = pooling.class_activation_maps(maps["cam_maps"], setup.network.class_weights)
    cams = np.asarray(pooling.normalize_cams(cams))[0]
    return maps["features"][0], cams, maps["logits"][0]


def test_stored_vectors_are_those_of_each_region_alone(opened, experiment):
    for row, image in enumerate(experiment.data.images[:4]):
        features, cams, logits = maps_of(experiment, image)
        own = np.argsort(-logits)[:CLASSES]
        expected = naive_vectors(features, cams[..., own])
        got = opened.first.database.read("region_vectors", [row])[0].astype("f4")
        np.testing.assert_allclose(got[: len(expected)], expected, atol=2e-3)
        assert not got[len(expected) :].any()


def test_a_query_is_described_by_the_regions_of_its_box(opened, experiment):
    boxed = [n for n, q in enumerate(experiment.data.queries) if q.box is not None]
    assert boxed
    for number in boxed:
        query = experiment.data.queries[number]
        features, cams, _ = maps_of(experiment, query.image)
        size = experiment.data.size(query.image)
        grid = features.shape[1], features.shape[0]
        cells = opened.first.describer.query_cells(query.box, size, grid)
        own = opened.first.asked.top_classes[number][:CLASSES]
        expected = naive_vectors(features, cams[..., own], cells)
        got = opened.first.asked.store.read("region_vectors", [number])[0].astype("f4")
        np.testing.assert_allclose(got[: len(expected)], expected, atol=2e-3)


@pytest.mark.parametrize("weighting", ["equal", "rank", "probability"])
def test_descriptors_are_sums_over_regions_and_classes(opened, weighting):
    method = replace(METHOD, class_weighting=weighting)
    vectors = opened.first.spaces.training.store.read("region_vectors").astype("f4")
    training = vectors.reshape(-1, vectors.shape[-1])
    fitted = whitening.fit(training, "generated").keep(10)
    _, database = next(opened.descriptors(method, [0]))
    for row in range(3):
        own = opened.first.database.read("region_vectors", [row])[0]
        top = opened.first.database.read("top_classes", [row])[0]
        known = opened.first.database.read("probabilities", [row])[0]
        total = np.zeros(10)
        for region in own:
            for place, vector in enumerate(region, start=1):
                weights = {"equal": 1, "rank": 1 / place}
                weights["probability"] = known[top[place - 1]]
                total += weights[weighting] * fitted(vector[None])[0]
        np.testing.assert_allclose(database[row], l2_normalize(total), atol=1e-4)


def test_it_ranks_and_its_own_photo_comes_first(opened):
    result = rank(opened, METHOD)
    first = [result.rankings[q.name][0] == q.image for q in opened.data.queries]
    assert np.mean(first) > 0.7
    assert retrieval.row(opened, result)["method"] == "OfA by regions, 2 classes"


def test_more_classes_than_regions_were_described_by_are_refused(opened):
    with pytest.raises(StoreError, match="by 2 classes; 3 were asked for"):
        rank(opened, replace(METHOD, num_classes=3))


def test_the_number_of_classes_belongs_to_the_identity(experiment):
    setup, data = experiment.setup, experiment.data
    without = replace(setup, region_classes=0)
    assert without.photos_path(data) != setup.photos_path(data)
    assert without.facts != setup.facts
    with pytest.raises(ValueError, match="`region_classes` must be 0 to 6; got 7"):
        replace(setup, region_classes=7)
