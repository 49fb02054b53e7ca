"""What pooling 1,000 classes adds to the forward pass of a 1024x720 photo.

Compare the two rows of the `photo` group: the second is the first plus CAMs, class
vectors of all classes, and every baseline.
"""

import numpy as np
import pytest

from cwr_utils import networks
from cwr_utils.extraction import Describer, ExtractionConf


@pytest.fixture(scope="module")
def network():
    return networks.load("efficientnet-lite0")


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 255, (1, 720, 1024, 3), np.uint8)


@pytest.mark.benchmark(group="photo")
@pytest.mark.parametrize("layer", ["block6a_expand_relu", "block6b_expand_relu"])
def test_forward_pass(benchmark, network, photo, layer):
    """Logits alone leave the device."""
    import keras

    inputs = keras.Input(photo.shape[1:], dtype="uint8")
    outputs = network.maps_model(layer)(inputs)["logits"]
    forward = keras.Model(inputs, outputs)
    forward.compile(**networks.compile_options())
    forward.predict_on_batch(photo)
    assert benchmark(forward.predict_on_batch, photo).shape == (1, 1000)


@pytest.mark.benchmark(group="photo")
@pytest.mark.parametrize("layer", ["block6a_expand_relu", "block6b_expand_relu"])
def test_forward_pass_and_all_class_vectors(benchmark, network, photo, layer):
    describer = Describer(network, ExtractionConf(layer=layer))
    describer(photo)
    vectors = benchmark(describer, photo)["class_vectors"]
    assert vectors.shape == (1, 1000, describer.channels)
