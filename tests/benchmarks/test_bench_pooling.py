"""Pooling: against the published loops, bare matrix products, and the forward pass."""

import keras
import numpy as np
import pytest
import reference
import tiny
from keras import ops

from cwr_utils import networks, pooling
from cwr_utils.extraction import Describer, Setup


@pytest.fixture(scope="module")
def maps(full_size):
    """Features, CAM maps and weights as VGG-16-CAM has them at 1024x720."""
    rng = np.random.default_rng(0)
    grid, channels, count, classes = (
        ((45, 64), 512, 1024, 1000) if full_size else ((5, 6), 7, 9, 11)
    )
    features = rng.standard_normal((1, *grid, channels), np.float32)
    cam_maps = rng.standard_normal((1, *grid, count), np.float32)
    weights = rng.standard_normal((count, classes), np.float32)
    return np.maximum(features, 0), np.maximum(cam_maps, 0), weights


@pytest.fixture(scope="module")
def tensors(maps):
    """Features and CAM maps where the network leaves them, on its device."""
    return [ops.convert_to_tensor(array) for array in maps[:2]]


@pytest.fixture(scope="module")
def graph(maps, tensors):
    """The compiled graph from given maps to the vectors of all classes."""
    features, cam_maps = (keras.Input(array.shape[1:]) for array in maps[:2])
    cams = pooling.class_activation_maps(cam_maps, maps[2])
    vectors = pooling.class_vectors(features, pooling.normalize_cams(cams))
    return compiled([features, cam_maps], vectors, tensors)


def compiled(inputs, outputs, example):
    model = keras.Model(inputs, outputs)
    model.compile(**networks.compile_options())
    model.predict_on_batch(example)
    return model


def test_bench_pooling_against_the_published_way(compare, maps, tensors, graph):
    """One multiply-and-sum for each class and channel, channels first."""
    features, cam_maps = (array[0].transpose(2, 0, 1).copy() for array in maps[:2])
    expected = {}

    def published():
        cams = reference.published_maps(cam_maps, maps[2])
        expected["vectors"] = reference.published_vectors(features, cams)

    def error():
        difference = graph.predict_on_batch(tensors)[0] - expected["vectors"]
        norms = np.linalg.norm(expected["vectors"], axis=1)
        return float(np.max(np.linalg.norm(difference, axis=1) / norms))

    compare(
        "CAMs and vectors of 1,000 classes, VGG-16-CAM's maps at 1024x720",
        lambda: graph.predict_on_batch(tensors),
        published,
        rounds=5,
        target="<= 0.01, error <= 1e-5",
        names=("graph", "published way"),
        relative_error=error,
    )
    assert error() < 1e-5


def test_bench_pooling_against_bare_products(compare, maps, tensors, graph):
    weights = maps[2]
    flat = [ops.reshape(array, (1, -1, array.shape[-1])) for array in tensors]
    inputs = [keras.Input(array.shape[1:]) for array in flat]
    products = ops.matmul(
        ops.swapaxes(ops.matmul(inputs[1], ops.convert_to_tensor(weights)), 1, 2),
        inputs[0],
    )
    bare = compiled(inputs, products, flat)
    compare(
        "the same, against the two bare matrix products",
        lambda: graph.predict_on_batch(tensors),
        lambda: bare.predict_on_batch(flat),
        rounds=15,
        target="<= 2",
        names=("graph", "bare products"),
    )
    assert bare.predict_on_batch(flat).shape[1:] == graph.output_shape[1:]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("efficientnet-lite0", "block6a_expand_relu"),
        ("efficientnet-lite0", "block6b_expand_relu"),
        ("vgg16-cam", None),
    ],
)
@pytest.mark.parametrize("what", ["class vectors", "all arrays"])
def test_bench_graph_adds_to_the_forward_pass(compare, full_size, name, layer, what):
    """From a photo: logits alone, and with class vectors, or with the baselines too."""
    if not full_size:
        name, layer = "tiny", tiny.LAYER
    weights = None if name == "vgg16-cam" else "imagenet"  # speed does not depend on it
    network = networks.load(name, weights) if full_size else tiny.network()
    size = (720, 1024) if full_size else (48, 64)
    photo = np.random.default_rng(0).integers(0, 255, (1, *size, 3), np.uint8)
    inputs = keras.Input((*size, 3), dtype="uint8")
    forward = compiled(inputs, network.maps_model(layer)(inputs)["logits"], photo)
    describer = Describer(Setup(network, "cache", layer))
    described = describer(photo)
    graph = describer._graphs[size]
    if what == "class vectors":
        outputs = {key: graph.output[key] for key in ("class_vectors", "logits")}
        graph = compiled(graph.input, outputs, photo)
    compare(
        f"{name}, {describer.setup.layer}: {what} of all classes on top of the "
        "forward pass",
        lambda: graph.predict_on_batch(photo),
        lambda: forward.predict_on_batch(photo),
        rounds=5 if name == "vgg16-cam" else 25,
        target="<= 1.05" if name == "vgg16-cam" else "<= 1.25",
        names=(what, "forward pass"),
    )
    logits = forward.predict_on_batch(photo)
    np.testing.assert_allclose(described["logits"], logits, rtol=1e-3, atol=1e-3)
