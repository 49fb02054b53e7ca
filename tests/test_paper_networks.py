"""The paper's three networks from photos to mAP: extraction, whitening, search, boxes.

Random weights; the authors' code got neither ResNet-50 nor DenseNet-161 through online
aggregation and re-ranking.
"""

from dataclasses import replace

import numpy as np
import pytest
import tiny

from cwr_utils import evaluation, networks
from cwr_utils.datasets import Dataset, Query
from cwr_utils.networks import densenet161, vgg16_cam
from cwr_utils.protocol import FLAGS, PRESETS
from cwr_utils.reranking import MIN_CELLS
from cwr_utils.retrieval import (
    CLASS_AGGREGATIONS,
    Collection,
    Experiment,
    Method,
    rank,
)

SIZE = "224x160"
NARROW = {
    "vgg16-cam": vgg16_cam.Sizes((4, 6, 8, 12, 16), maps=12, classes=30),
    "densenet161": densenet161.Sizes(12, 4, (2, 2, 2, 2), classes=30),
}
# Network -> K and the grid (H, W) of its default layer at 224x160.
NETWORKS = {
    ("vgg16-cam", "narrow"): (16, (10, 14)),
    ("densenet161", "narrow"): (16, (5, 7)),
    ("keras:ResNet50", "full"): (2048, (5, 7)),
    ("vgg16-cam", "full"): (512, (10, 14)),
    ("densenet161", "full"): (2208, (5, 7)),
}
SLOW = [("vgg16-cam", "full"), ("densenet161", "full")]


def photos(folder, first, places, views=3):
    """Landscape photos of generated places; the first of each is a query."""
    folder.mkdir()
    paths, queries = {}, []
    for place in range(first, first + places):
        names = [f"place{place}_{view}" for view in range(views)]
        for view, name in enumerate(names):
            paths[name] = folder / f"{name}.png"
            tiny.write(paths[name], tiny.view(place, len(tiny.SIZES) * view))
        box = (8.0, 8.0, 90.0, 66.0)
        queries.append(Query(names[0], names[0], box, frozenset(names)))
    return Dataset(folder.name, tuple(paths), tuple(queries), "", paths)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(key, id="-".join(key), marks=[pytest.mark.slow] * (key in SLOW))
        for key in NETWORKS
    ],
)
def searched(request, tmp_path_factory):
    """The experiment, described, and what `NETWORKS` says of the network."""
    name, width = request.param
    sizes = {"sizes": NARROW[name]} if width == "narrow" else {}
    network = networks.load(name, None, seed=1, **sizes)
    folder = tmp_path_factory.mktemp("photos")
    data = photos(folder / "data", 0, 4)
    other = photos(folder / "other", 100, 4)
    setup = tiny.setup(folder / "cache", network, SIZE, region_classes=4)
    experiment = Experiment(data, other, setup)
    experiment.extract()
    return experiment, NETWORKS[request.param]


def test_stores_hold_finite_vectors_and_count_empty_maps(searched):
    experiment, (channels, _) = searched
    collection = Collection.open(experiment)
    database = collection.first.database
    for store in (
        database,
        collection.first.asked.store,
        collection.first.spaces.training.store,
    ):
        vectors = store.read("class_vectors").astype(np.float32)
        assert vectors.shape[-1] == channels
        norms = np.linalg.norm(vectors, axis=-1)
        np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-2)
        assert np.isfinite(store.read("globals")).all()
        assert np.isfinite(store.read("regions")).all()
    vectors = database.read("class_vectors").astype(np.float32)
    empty = (np.linalg.norm(vectors, axis=-1) == 0).sum(axis=1)
    np.testing.assert_array_equal(database.read("empty_cams"), empty)


@pytest.mark.parametrize("aggregation", CLASS_AGGREGATIONS)
@pytest.mark.parametrize("preset", ["corrected", "paper", "authors_code"])
def test_photos_to_map(searched, preset, aggregation):
    experiment, (_, (rows, columns)) = searched
    search = [flag for flag in FLAGS if FLAGS[flag]["stage"] == "search"]
    flags = {flag: getattr(PRESETS[preset], flag) for flag in search}
    experiment = experiment.under(replace(experiment.setup.protocol, **flags))
    collection, data = Collection.open(experiment), experiment.data
    plain = Method(aggregation, 4, 2, dimensions=8)
    boxes = replace(plain, rerank=6)
    for method in (plain, boxes, replace(boxes, query_expansion=2)):
        result = rank(collection, method)
        for query in data.queries:
            assert set(result.rankings[query.name]) == set(data.images)
            scores = result.scores[query.name]
            assert np.isfinite(scores).all() and np.abs(scores).max() < 1.001
        # Views of one place differ in noise and a few pixels.
        ap = evaluation.mean_average_precision(
            evaluation.evaluate(result.rankings, data.queries)
        )
        assert ap > 0.7
    found = [m for q in result.matches.values() for m in q.values()]
    assert len(found) == 6 * len(data.queries)
    for match in found:
        x1, y1, x2, y2 = match.box or (0, 0, columns, rows)
        assert 0 <= x1 <= x2 - MIN_CELLS and x2 <= columns
        assert 0 <= y1 <= y2 - MIN_CELLS and y2 <= rows
        assert np.linalg.norm(match.descriptor) == pytest.approx(1, abs=1e-5)


def test_maps_that_half_precision_cannot_hold_stay_whole(searched):
    """Without BatchNorm statistics a ResNet doubles its values in every block."""
    experiment, (channels, _) = searched
    maps = Collection.open(experiment).first.maps
    features, cam_maps = maps(experiment.data.images[0])
    assert np.isfinite(features).all() and np.isfinite(cam_maps).all()
    resnet = maps.setup.network.name == "keras:ResNet50"
    assert features.dtype == (np.float32 if resnet else np.float16)
    assert features.shape[-1] == channels
