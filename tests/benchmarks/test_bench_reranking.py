"""Re-ranking 100 photos for one query: forward passes, stored maps, and the rest."""

import numpy as np
import pytest
import tiny
from conftest import seconds
from test_bench_extraction import photos

from cwr_utils import networks, whitening
from cwr_utils.aggregation import Aggregator
from cwr_utils.extraction import ImageMaps, Setup
from cwr_utils.images import read_image, resize_image
from cwr_utils.reranking import RegionDescriber

PHOTOS, CLASSES = 100, [497, 663, 832, 442, 668, 839]


@pytest.fixture(scope="module")
def setting(full_size, tmp_path_factory):
    """Photos, their maps in memory and on disk, a whitening and a query."""
    folder = tmp_path_factory.mktemp("reranking")
    if full_size:
        network, size, count = networks.load("efficientnet-lite0"), (1024, 768), PHOTOS
        setup = Setup(network, folder, "block6b_expand_relu", "1024x720")
        classes = CLASSES
    else:
        setup, size, count, classes = tiny.setup(folder), (96, 72), 3, [0, 1, 2]
    data = photos(folder / "photos", count, size)
    computed = ImageMaps(data, setup, cache_bytes=0, on_disk=False)
    stored = ImageMaps(data, setup, cache_bytes=0)
    channels = [features for features, _ in stored.many(data.images)][0].shape[-1]
    training = np.random.default_rng(0).random((4 * channels, channels), np.float32)
    fitted = whitening.fit(training, "generated").keep(min(512, channels))
    query = fitted(training[:1])[0]
    describer = RegionDescriber(setup.network.class_weights, Aggregator(fitted))
    return data, setup, computed, stored, describer, query, classes


@pytest.mark.parametrize("source", ["forward passes", "stored maps"])
def test_bench_reranking(compare, setting, source):
    data, setup, computed, stored, describer, query, classes = setting
    resized = [
        resize_image(read_image(data.path(n)), setup.policy) for n in data.images
    ]

    def rerank(maps):
        return describer.best(query, maps.many(data.images), classes)

    def forward():
        for photo in resized:
            setup.network.maps(photo[None], setup.layer)

    chosen = computed if source == "forward passes" else stored
    found = []
    compare(
        f"Re-ranking {len(resized)} photos, maps from {source}, against bare forward "
        "passes",
        lambda: found.append(rerank(chosen)),
        forward,
        rounds=3,
        target="near 1, or near the reading of maps",
        names=("re-ranking", "forward passes"),
        reading_stored_maps_alone_s=lambda: seconds(
            lambda: [None for _ in stored.many(data.images)]
        ),
        bytes_of_maps_a_photo=sum(array.nbytes for array in stored(data.images[0])),
    )
    expected = rerank(stored)
    for ours, other in zip(found[-1], expected, strict=True):
        assert ours.box == other.box
        np.testing.assert_allclose(ours.score, other.score, atol=1e-6)
