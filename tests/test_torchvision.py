"""torchvision's networks: its file gives the network that PyTorch computes."""

import json
import math
import re
import struct
from dataclasses import replace

import keras
import numpy as np
import pytest
from weight_files import write_safetensors, write_torch_old, write_torch_zip

from cwr_utils import networks
from cwr_utils.networks import densenet161, resnet, torchvision, vgg16
from cwr_utils.networks.importers import weights_folder

# TensorFlow's own: its variables do not know NumPy 2's `copy` when they are saved.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

SIZES = {
    "densenet161": densenet161.Sizes(stem=6, growth=3, blocks=(2, 1, 2), classes=5),
    "resnet50": resnet.Sizes((2, 1, 2, 3), width=3, classes=5),
    "vgg16": vgg16.Sizes((2, 3, 4, 5, 6), hidden=7, classes=5),
}
RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (2, 37, 51, 3), dtype=np.uint8)
WINDOW = RNG.integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)


class State(dict):
    """A state dict with torchvision's names, of random values."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)

    def put(self, name, *shape):
        scale = 1 / math.sqrt(math.prod(shape[1:]))
        values = self.rng.standard_normal(shape) * scale * 2
        self[name] = values.astype(np.float32)

    def linear(self, name, outputs, *rest):
        self.put(f"{name}.weight", outputs, *rest)
        self.put(f"{name}.bias", outputs)

    def norm(self, name, channels):
        """Positive scales, so that ReLUs pass something on."""
        for part in ("weight", "running_var"):
            values = self.rng.uniform(0.5, 2.0, channels)
            self[f"{name}.{part}"] = values.astype(np.float32)
        for part in ("bias", "running_mean"):
            self.put(f"{name}.{part}", channels)


def densenet_state(sizes):
    state = State()
    state.put("features.conv0.weight", sizes.stem, 3, 7, 7)
    state.norm("features.norm0", sizes.stem)
    channels, growth = sizes.stem, sizes.growth
    for block, count in enumerate(sizes.blocks, 1):
        for i in range(1, count + 1):
            name = f"features.denseblock{block}.denselayer{i}"
            state.norm(f"{name}.norm1", channels)
            state.put(f"{name}.conv1.weight", 4 * growth, channels, 1, 1)
            state.norm(f"{name}.norm2", 4 * growth)
            state.put(f"{name}.conv2.weight", growth, 4 * growth, 3, 3)
            channels += growth
        if block < len(sizes.blocks):
            name = f"features.transition{block}"
            state.norm(f"{name}.norm", channels)
            state.put(f"{name}.conv.weight", channels // 2, channels, 1, 1)
            channels //= 2
    state.norm("features.norm5", channels)
    state.linear("classifier", sizes.classes, channels)
    return state


def resnet_state(sizes):
    state, channels = State(), sizes.width
    state.put("conv1.weight", channels, 3, 7, 7)
    state.norm("bn1", channels)
    for number, count in enumerate(sizes.blocks):
        width = sizes.width * 2**number
        for block in range(count):
            name = f"layer{number + 1}.{block}"
            shapes = [(width, channels, 1), (width, width, 3), (4 * width, width, 1)]
            for i, (outputs, inputs, size) in enumerate(shapes, 1):
                state.put(f"{name}.conv{i}.weight", outputs, inputs, size, size)
                state.norm(f"{name}.bn{i}", outputs)
            if block == 0:
                state.put(f"{name}.downsample.0.weight", 4 * width, channels, 1, 1)
                state.norm(f"{name}.downsample.1", 4 * width)
            channels = 4 * width
    state.linear("fc", sizes.classes, channels)
    return state


def vgg_state(sizes):
    state, channels, index = State(), 3, 0
    for count, width in zip((2, 2, 3, 3, 3), sizes.blocks, strict=True):
        for _ in range(count):
            state.linear(f"features.{index}", width, channels, 3, 3)
            channels, index = width, index + 2  # a ReLU stands between
        index += 1  # the pooling
    state.linear("classifier.0", sizes.hidden, channels * 49)
    state.linear("classifier.3", sizes.hidden, sizes.hidden)
    state.linear("classifier.6", sizes.classes, sizes.hidden)
    return state


MAKE = {"densenet161": densenet_state, "resnet50": resnet_state, "vgg16": vgg_state}
STATES = {name: make(SIZES[name]) for name, make in MAKE.items()}


def old_names(state):
    """Torchvision up to 0.2: `denselayer1.norm.1`."""
    return {
        re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", name)
        if "denselayer" in name
        else name: array
        for name, array in state.items()
    }


def load(path, name="densenet161"):
    return networks.load(name, path, sizes=SIZES[name])


# PyTorch's arithmetic in NumPy


def convolve(x, kernel, stride=1, bias=None):
    """Cross-correlate (C, H, W) with symmetric padding of (size - 1) / 2."""
    size = kernel.shape[-1]
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    x = np.einsum("chwij,ocij->ohw", windows[:, ::stride, ::stride], kernel)
    return x if bias is None else x + bias[:, None, None]


def max_pool(x, size=3):
    """Stride 2; 3x3 has padding 1 that never wins, 2x2 drops an odd last row."""
    pad = size // 2 if size == 3 else 0
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return windows[:, ::2, ::2].max(axis=(3, 4))


def mean_pool(x):
    """2x2, stride 2; an odd last row or column is dropped."""
    channels, height, width = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(channels, height // 2, 2, width // 2, 2).mean(axis=(2, 4))


class Torch:
    """A forward pass over one image with a state dict."""

    def __init__(self, state, prefix=""):
        self.state = {name: array.astype(float) for name, array in state.items()}
        self.prefix = prefix

    def of(self, name):
        return self.state[self.prefix + name]

    def norm(self, x, name):
        gamma, beta, mean, variance = (
            self.of(f"{name}.{part}")[:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def norm_relu(self, x, name):
        return np.maximum(self.norm(x, name), 0)

    def conv(self, x, name, stride=1):
        return convolve(x, self.of(f"{name}.weight"), stride)

    def linear(self, x, name):
        return self.state[f"{name}.weight"] @ x + self.state[f"{name}.bias"]


def colours(image):
    x = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return x.transpose(2, 0, 1)


def densenet(state, image):
    net, sizes = Torch(state, "features."), SIZES["densenet161"]
    x = max_pool(net.norm_relu(net.conv(colours(image), "conv0", 2), "norm0"))
    for block, count in enumerate(sizes.blocks, 1):
        for i in range(1, count + 1):
            name = f"denseblock{block}.denselayer{i}"
            new = net.conv(net.norm_relu(x, f"{name}.norm1"), f"{name}.conv1")
            new = net.conv(net.norm_relu(new, f"{name}.norm2"), f"{name}.conv2")
            x = np.concatenate([x, new])
        if block < len(sizes.blocks):
            name = f"transition{block}"
            x = mean_pool(net.conv(net.norm_relu(x, f"{name}.norm"), f"{name}.conv"))
    x = net.norm_relu(x, "norm5")
    return x, x, net.linear(x.mean(axis=(1, 2)), "classifier")


def resnet50(state, image):
    net, sizes = Torch(state), SIZES["resnet50"]
    x = max_pool(net.norm_relu(net.conv(colours(image), "conv1", 2), "bn1"))
    for number, count in enumerate(sizes.blocks, 1):
        for block in range(count):
            name = f"layer{number}.{block}"
            stride = 2 if number > 1 and block == 0 else 1
            y = net.norm_relu(net.conv(x, f"{name}.conv1"), f"{name}.bn1")
            y = net.norm_relu(net.conv(y, f"{name}.conv2", stride), f"{name}.bn2")
            y = net.norm(net.conv(y, f"{name}.conv3"), f"{name}.bn3")
            if block == 0:
                x = net.conv(x, f"{name}.downsample.0", stride)
                x = net.norm(x, f"{name}.downsample.1")
            x = np.maximum(x + y, 0)
    return x, x, net.linear(x.mean(axis=(1, 2)), "fc")


def vgg(state, image):
    net, x, index = Torch(state), colours(image), 0
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            name = f"features.{index}"
            bias = net.of(f"{name}.bias")
            x = np.maximum(convolve(x, net.of(f"{name}.weight"), 1, bias), 0)
            index += 2
        x, index = max_pool(x, 2), index + 1
    rows, columns = x.shape[1] - 6, x.shape[2] - 6
    hidden = np.empty((net.of("classifier.0.bias").size, rows, columns))
    for row in range(rows):
        for column in range(columns):
            window = x[:, row : row + 7, column : column + 7].ravel()
            y = np.maximum(net.linear(window, "classifier.0"), 0)
            hidden[:, row, column] = np.maximum(net.linear(y, "classifier.3"), 0)
    return x, hidden, net.linear(hidden.mean(axis=(1, 2)), "classifier.6")


FORWARD = {"densenet161": densenet, "resnet50": resnet50, "vgg16": vgg}


@pytest.mark.parametrize("write", [write_torch_zip, write_torch_old, write_safetensors])
@pytest.mark.parametrize("name", FORWARD)
def test_a_file_computes_what_pytorch_computes(tmp_path, name, write):
    ending = "safetensors" if write is write_safetensors else "pth"
    network = load(write(tmp_path / f"net.{ending}", STATES[name]), name)
    check(network, FORWARD[name], STATES[name], WINDOW if name == "vgg16" else IMAGES)


def check(network, forward, state, images):
    maps = network.maps(images)
    for i, image in enumerate(images):
        features, before, logits = forward(state, image)
        for found, values in [
            (maps["features"][i], features.transpose(1, 2, 0)),
            (maps["cam_maps"][i], before.transpose(1, 2, 0)),
            (maps["logits"][i], logits),
        ]:
            assert values.shape == found.shape and np.ptp(values) > 0
            scale = np.abs(values).max()
            np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5 * scale)


def test_old_names_of_densenet(tmp_path):
    state = STATES["densenet161"]
    network = load(write_torch_zip(tmp_path / "net.pth", old_names(state)))
    check(network, densenet, state, IMAGES)


def test_vgg_slides_over_larger_photos(tmp_path):
    """One window at 224 pixels; six of them here, whose scores are averaged."""
    network = load(write_torch_zip(tmp_path / "net.pth", STATES["vgg16"]), "vgg16")
    photo = RNG.integers(0, 256, (1, 256, 300, 3), dtype=np.uint8)
    check(network, vgg, STATES["vgg16"], photo)
    assert network.maps(photo)["cam_maps"].shape == (1, 2, 3, 7)
    assert network.smallest_input == 224
    assert [layer.name for layer in network.feature_layers()][-4:] == [
        "conv5_3",
        "pool5",
        "fc6",
        "fc7",
    ]


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_our_own_file_keeps_the_network(tmp_path, name, order):
    network = load(write_torch_zip(tmp_path / "net.pth", STATES[name]), name)
    try:
        keras.config.set_image_data_format(order)  # as a person's keras.json may do
        networks.save_weights(network, tmp_path / "mine.weights.h5")
    finally:
        keras.config.set_image_data_format("channels_last")
    again = load(tmp_path / "mine.weights.h5", name)
    for values, other in zip(
        network.backbone.get_weights(), again.backbone.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(values, other)
    np.testing.assert_array_equal(network.class_weights, again.class_weights)


def test_batch_counters_are_left_aside(tmp_path):
    counted = STATES["resnet50"] | {"bn1.num_batches_tracked": np.zeros(1)}
    load(write_torch_zip(tmp_path / "net.pth", counted), "resnet50")


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        (
            "densenet161",
            "classifier.bias",
            None,
            r"no 'classifier\.bias' of shape \(5,",
        ),
        (
            "densenet161",
            "extra",
            np.zeros(1),
            "1 arrays that densenet161 lacks, the first 'extra'",
        ),
        (
            "densenet161",
            "features.conv0.weight",
            np.zeros((7, 7, 3, 6)),
            r"'features\.conv0\.weight' .*\(6, 3, 7, 7\), but has \(7, 7, 3, 6\)",
        ),
        (
            "densenet161",
            "features.denseblock1.denselayer2.norm1.weight",
            np.zeros(6),
            r"denselayer2\.norm1\.weight' .* \(9,\), but has \(6,\)",
        ),
        (
            "resnet50",
            "layer2.0.downsample.1.running_var",
            None,
            r"no 'layer2\.0\.downsample\.1\.running_var' of shape \(24,\)",
        ),
        (
            "resnet50",
            "layer4.9.conv1.weight",
            np.zeros(1),
            "arrays that resnet50 lacks",
        ),
        (
            "vgg16",
            "classifier.0.weight",
            np.zeros((7, 6, 7, 7)),
            r"\(7, 294\), but has \(7, 6, 7, 7\)",
        ),
        ("vgg16", "features.28.bias", None, r"no 'features\.28\.bias' of shape \(6,\)"),
    ],
)
def test_state_dict_that_does_not_fit_is_named(tmp_path, name, key, value, message):
    state = {k: v for k, v in (STATES[name] | {key: value}).items() if v is not None}
    path = write_torch_zip(tmp_path / "net.pth", state)
    with pytest.raises(networks.WeightsError, match=message):
        load(path, name)


def test_malicious_file_is_refused(tmp_path):
    evil = b"\x80\x02cos\nsystem\n(S'false'\ntR."
    path = write_torch_zip(tmp_path / "net.pth", {}, evil)
    with pytest.raises(networks.WeightsError, match="Nothing was run"):
        load(path)


# weights="imagenet"


@pytest.mark.parametrize("name", ["densenet161", "vgg16"])
def test_published_file_is_checked_against_its_name(tmp_path, monkeypatch, name):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    weights_folder().mkdir()
    file = torchvision.ARCHITECTURES[name].file
    path = write_torch_zip(weights_folder() / file, STATES[name])
    message = f"SHA-256 should start with {file[-12:-4]}"
    with pytest.raises(networks.WeightsError, match=message):
        load("imagenet", name)
    digest = load(path.rename(tmp_path / "any.pth"), name).weights_sha256
    path = (tmp_path / "any.pth").rename(tmp_path / f"net-{digest[:8]}.pth")
    assert load(path, name).weights_sha256 == digest


def test_download_that_fails_says_what_to_fetch(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(torchvision.keras.utils, "get_file", offline)
    for name, architecture in torchvision.ARCHITECTURES.items():
        with pytest.raises(networks.WeightsError) as caught:
            networks.load(name, sizes=SIZES.get(name))
        url = torchvision.URL + architecture.file
        for part in (url, str(tmp_path), "`weights`", "offline", name):
            assert part in str(caught.value)


# The published sizes


@pytest.mark.parametrize(
    ("name", "layer", "parameters"),
    [
        ("densenet161", networks.FeatureLayer("relu5", 2208, 32, True), 28_681_000),
        (
            "resnet50",
            networks.FeatureLayer("layer4.2.relu", 2048, 32, True),
            25_557_032,
        ),
    ],
)
def test_published_network(name, layer, parameters):
    network = networks.load(name, weights=None)
    assert network.default_layer == layer.name
    assert network.feature_layers()[-1] == layer
    trainable = sum(np.prod(w.shape) for w in network.backbone.trainable_weights)
    assert trainable + layer.channels * 1000 + 1000 == parameters
    assert name in networks.available()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "parameters"),
    [("resnet101", "layer4.2.relu", 44_549_160), ("vgg16", "pool5", 138_357_544)],
)
def test_large_published_networks(name, layer, parameters):
    network = networks.load(name, weights=None)
    assert network.default_layer == layer
    trainable = sum(np.prod(w.shape) for w in network.backbone.trainable_weights)
    head = network.class_weights.size + network.class_bias.size
    assert trainable + head == parameters


# safetensors


def header_of(content, length=None):
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def test_safetensors_of_every_type(tmp_path):
    values = np.array([[1.5, -2.0], [0.25, 65504.0]])
    half = values.astype("<f4").view("<u4") >> 16  # bfloat16: the upper half of a float
    kinds = {
        "F64": values.astype("<f8"),
        "F32": values.astype("<f4"),
        "F16": values.astype("<f2"),
        "BF16": half.astype("<u2"),
        "I64": values.astype("<i8"),
    }
    path = write_safetensors(tmp_path / "w.safetensors", kinds, kinds=list(kinds))
    from cwr_utils.networks.importers.torch_state_dict import read_state_dict

    found = read_state_dict(path)
    assert list(found) == list(kinds)
    for kind, array in found.items():
        expected = values.astype("<i8") if kind == "I64" else values
        rtol = 1e-2 if kind == "BF16" else 0
        np.testing.assert_allclose(array.astype(float), expected, rtol=rtol)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "cut": (header_of({"a": F32})[:-4], "truncated"),
    "too long a header": (header_of({"a": F32}, 2**40), "truncated"),
    "no data": (header_of({"a": F32}), "has 0 bytes of values"),
    "beyond the end": (
        header_of({"a": {**F32, "data_offsets": [8, 16]}}) + bytes(8),
        "a",
    ),
    "other size": (header_of({"a": {**F32, "shape": [3]}}) + bytes(8), "'a'"),
    "negative": (header_of({"a": {**F32, "shape": [-1, -2]}}) + bytes(8), "'a'"),
    "overlap": (
        header_of({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}) + bytes(12),
        "'b'",
    ),
    "unknown type": (
        header_of({"a": {**F32, "dtype": "F8_E4M3"}}) + bytes(8),
        "F8_E4M3",
    ),
    "no mapping": (header_of({"a": 3}), "'a'"),
    "left over": (header_of({"a": F32}) + bytes(9), "has 9 bytes of values"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_safetensors_are_refused(tmp_path, case):
    data, message = DAMAGED[case]
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(networks.WeightsError, match=message):
        load(path)


def test_sizes_of_tests_are_no_published_ones():
    for name, sizes in SIZES.items():
        assert replace(sizes, classes=1000) != torchvision.ARCHITECTURES[name].sizes
