"""DenseNet-161: a torchvision file gives the network that PyTorch computes."""

import re

import keras
import numpy as np
import pytest
from weight_files import write_torch_old, write_torch_zip

from cwr_utils import networks
from cwr_utils.networks import densenet161
from cwr_utils.networks.importers import weights_folder

# TensorFlow's own: its variables do not know NumPy 2's `copy` when they are saved.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

SIZES = densenet161.Sizes(stem=6, growth=3, blocks=(2, 1, 2), classes=5)
IMAGES = np.random.default_rng(1).integers(0, 256, (2, 37, 51, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def state():
    """Torchvision's names; positive scales, so that ReLUs pass something on."""
    rng = np.random.default_rng(0)
    state = {}

    def conv(name, outputs, inputs, size):
        shape = (outputs, inputs, size, size)
        state[f"features.{name}.weight"] = rng.standard_normal(shape) / size

    def norm(name, channels):
        for part in ("weight", "running_var"):
            state[f"features.{name}.{part}"] = rng.uniform(0.5, 2.0, channels)
        for part in ("bias", "running_mean"):
            state[f"features.{name}.{part}"] = rng.standard_normal(channels)

    conv("conv0", SIZES.stem, 3, 7)
    norm("norm0", SIZES.stem)
    channels, growth = SIZES.stem, SIZES.growth
    for block, count in enumerate(SIZES.blocks, 1):
        for i in range(1, count + 1):
            name = f"denseblock{block}.denselayer{i}"
            norm(f"{name}.norm1", channels)
            conv(f"{name}.conv1", 4 * growth, channels, 1)
            norm(f"{name}.norm2", 4 * growth)
            conv(f"{name}.conv2", growth, 4 * growth, 3)
            channels += growth
        if block < len(SIZES.blocks):
            norm(f"transition{block}.norm", channels)
            conv(f"transition{block}.conv", channels // 2, channels, 1)
            channels //= 2
    norm("norm5", channels)
    state["classifier.weight"] = rng.standard_normal((SIZES.classes, channels))
    state["classifier.bias"] = rng.standard_normal(SIZES.classes)
    return {name: array.astype(np.float32) for name, array in state.items()}


def old_names(state):
    """Torchvision up to 0.2: `denselayer1.norm.1`."""
    return {
        re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", name)
        if "denselayer" in name
        else name: array
        for name, array in state.items()
    }


def load(path):
    return networks.load("densenet161", path, sizes=SIZES)


# PyTorch's arithmetic in NumPy


def convolve(x, kernel, stride=1):
    """Cross-correlate (C, H, W) with symmetric padding of (size - 1) / 2."""
    size = kernel.shape[-1]
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows[:, ::stride, ::stride], kernel)


def max_pool(x):
    """3x3, stride 2, padding 1 that never wins."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return windows[:, ::2, ::2].max(axis=(3, 4))


def mean_pool(x):
    """2x2, stride 2; an odd last row or column is dropped."""
    channels, height, width = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(channels, height // 2, 2, width // 2, 2).mean(axis=(2, 4))


def forward(state, image):
    state = {name: array.astype(np.float64) for name, array in state.items()}

    def norm_relu(x, name):
        gamma, beta, mean, variance = (
            state[f"features.{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return np.maximum((x - mean) / np.sqrt(variance + 1e-5) * gamma + beta, 0)

    def conv(x, name, stride=1):
        return convolve(x, state[f"features.{name}.weight"], stride)

    x = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = norm_relu(conv(x.transpose(2, 0, 1), "conv0", 2), "norm0")
    x = max_pool(x)
    for block, count in enumerate(SIZES.blocks, 1):
        for i in range(1, count + 1):
            name = f"denseblock{block}.denselayer{i}"
            new = conv(norm_relu(x, f"{name}.norm1"), f"{name}.conv1")
            new = conv(norm_relu(new, f"{name}.norm2"), f"{name}.conv2")
            x = np.concatenate([x, new])
        if block < len(SIZES.blocks):
            name = f"transition{block}"
            x = mean_pool(conv(norm_relu(x, f"{name}.norm"), f"{name}.conv"))
    x = norm_relu(x, "norm5")
    logits = state["classifier.weight"] @ x.mean(axis=(1, 2)) + state["classifier.bias"]
    return x.transpose(1, 2, 0), logits


@pytest.mark.parametrize("write", [write_torch_zip, write_torch_old])
@pytest.mark.parametrize("names", [dict, old_names])
def test_state_dict_computes_what_pytorch_computes(tmp_path, state, write, names):
    network = load(write(tmp_path / "net.pth", names(state)))
    maps = network.maps(IMAGES)
    for i, image in enumerate(IMAGES):
        features, logits = forward(state, image)
        for found, values in [
            (maps["features"][i], features),
            (maps["cam_maps"][i], features),
            (maps["logits"][i], logits),
        ]:
            assert values.std() > 0
            scale = np.abs(values).max()
            np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_our_own_file_keeps_the_network(tmp_path, state, order):
    network = load(write_torch_zip(tmp_path / "net.pth", state))
    try:
        keras.config.set_image_data_format(order)  # as a person's keras.json may do
        networks.save_weights(network, tmp_path / "mine.weights.h5")
    finally:
        keras.config.set_image_data_format("channels_last")
    again = load(tmp_path / "mine.weights.h5")
    np.testing.assert_array_equal(
        again.maps(IMAGES)["logits"], network.maps(IMAGES)["logits"]
    )


def test_batch_counters_are_left_aside(tmp_path, state):
    counted = state | {"features.norm0.num_batches_tracked": np.zeros(1)}
    load(write_torch_zip(tmp_path / "net.pth", counted))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classifier.bias", None, r"no 'classifier\.bias' of shape \(5,\)"),
        ("extra", np.zeros(1), "1 arrays that densenet161 lacks, the first 'extra'"),
        (
            "features.conv0.weight",
            np.zeros((7, 7, 3, 6)),
            r"'features\.conv0\.weight' .*\(6, 3, 7, 7\), but has \(7, 7, 3, 6\)",
        ),
        (
            "features.denseblock1.denselayer2.norm1.weight",
            np.zeros(6),
            r"denselayer2\.norm1\.weight' .* \(9,\), but has \(6,\)",
        ),
    ],
)
def test_state_dict_that_does_not_fit_is_named(tmp_path, state, key, value, message):
    state = {k: v for k, v in (state | {key: value}).items() if v is not None}
    path = write_torch_zip(tmp_path / "net.pth", state)
    with pytest.raises(networks.WeightsError, match=message):
        load(path)


def test_malicious_file_is_refused(tmp_path):
    evil = b"\x80\x02cos\nsystem\n(S'false'\ntR."
    path = write_torch_zip(tmp_path / "net.pth", {}, evil)
    with pytest.raises(networks.WeightsError, match="Nothing was run"):
        load(path)


# weights="imagenet"


def test_published_file_is_checked_against_its_name(tmp_path, monkeypatch, state):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    weights_folder().mkdir()
    path = write_torch_zip(weights_folder() / densenet161.FILE, state)
    message = "SHA-256 should start with 8d451a50"
    with pytest.raises(networks.WeightsError, match=message):
        load("imagenet")
    digest = load(path.rename(tmp_path / "any.pth")).weights_sha256
    path = (tmp_path / "any.pth").rename(tmp_path / f"net-{digest[:8]}.pth")
    assert load(path).weights_sha256 == digest


def test_download_that_fails_says_what_to_fetch(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(densenet161.keras.utils, "get_file", offline)
    with pytest.raises(networks.WeightsError) as caught:
        networks.load("densenet161")
    for part in (densenet161.URL, str(tmp_path), "`weights`", "offline"):
        assert part in str(caught.value)


# The published size


def test_published_network():
    network = networks.load("densenet161", weights=None)
    assert network.default_layer == "relu5"
    layer = networks.FeatureLayer("relu5", 2208, 32, True)
    assert network.feature_layers()[-1] == layer
    trainable = sum(np.prod(w.shape) for w in network.backbone.trainable_weights)
    assert trainable + 2208 * 1000 + 1000 == 28_681_000
    assert "densenet161" in networks.available()
