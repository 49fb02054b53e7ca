"""VGG-16-CAM: every published file gives the network that its library computed."""

import numpy as np
import pytest
from weight_files import write_caffe, write_keras1

from cwr_utils import networks
from cwr_utils.networks import vgg16_cam
from cwr_utils.networks.importers import weights_folder

# TensorFlow's own: its variables do not know NumPy 2's `copy` when they are saved.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

SIZES = vgg16_cam.Sizes(blocks=(4, 5, 6, 8, 8), maps=10, classes=7)
NAMES = [
    f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)
]
IMAGES = np.random.default_rng(1).integers(0, 256, (2, 37, 50, 3), dtype=np.uint8)
MEAN_BGR = np.array([103.939, 116.779, 123.68])


def make_layers(cam_inputs, seed=0):
    """Random kernels (out, in, 3, 3) and biases, then a matrix (out, in) and bias."""
    rng = np.random.default_rng(seed)
    widths = [3, *np.repeat(SIZES.blocks, (2, 2, 3, 3, 3))]
    layers = {}
    for name, inputs, outputs in zip(NAMES, widths[:-1], widths[1:], strict=True):
        kernel = rng.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(4 * inputs)
        layers[name] = [kernel, rng.standard_normal(outputs)]
    shape = (SIZES.maps, cam_inputs, 3, 3)
    layers["CAM_conv"] = [rng.standard_normal(shape), rng.standard_normal(SIZES.maps)]
    shape = (SIZES.classes, SIZES.maps)
    layers["CAM_fc"] = [rng.standard_normal(shape), rng.standard_normal(SIZES.classes)]
    return {
        name: [a.astype(np.float32) for a in arrays] for name, arrays in layers.items()
    }


def correlate(x, kernel):
    """Cross-correlation as Caffe computes it: (C, H, W), padding 1, tap by tap."""
    height, width = x.shape[1:]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    taps = np.ndindex(3, 3)
    return sum(
        np.tensordot(kernel[:, :, i, j], x[:, i : i + height, j : j + width], 1)
        for i, j in taps
    )


def correlate_in_two_groups(x, kernel):
    halves = zip(np.split(x, 2), np.split(kernel, 2), strict=True)
    return np.concatenate([correlate(part, weights) for part, weights in halves])


def convolve(x, kernel):
    """True convolution as Theano computes it, through the convolution theorem."""
    height, width = x.shape[1:]
    size = (height + 2, width + 2)
    spectrum = np.einsum(
        "ihw,oihw->ohw", np.fft.rfft2(x, size), np.fft.rfft2(kernel, size)
    )
    return np.fft.irfft2(spectrum, size)[:, 1:-1, 1:-1]


def forward(layers, pixels, convolution, cam_convolution):
    """The whole network in NumPy, for BGR pixels (H, W, 3) less their mean."""

    def layer(x, name, function):
        kernel, bias = (array.astype(np.float64) for array in layers[name])
        return np.maximum(function(x, kernel) + bias[:, None, None], 0)

    x = pixels.astype(np.float64).transpose(2, 0, 1)
    for name in NAMES:
        if name.endswith("_1") and name != "conv1_1":
            channels, height, width = x.shape
            x = x[:, : height // 2 * 2, : width // 2 * 2]
            x = x.reshape(channels, height // 2, 2, width // 2, 2).max(axis=(2, 4))
        x = layer(x, name, convolution)
        if name == "conv5_1":
            features = x
    maps = layer(x, "CAM_conv", cam_convolution)
    matrix, bias = layers["CAM_fc"]
    logits = matrix.astype(np.float64) @ maps.mean(axis=(1, 2)) + bias
    return {
        "features": features.transpose(1, 2, 0),
        "cam_maps": maps.transpose(1, 2, 0),
        "logits": logits,
    }


def check_maps(network, layers, mean, convolution, cam_convolution):
    maps = network.maps(IMAGES)
    for i, image in enumerate(IMAGES):
        pixels = image[..., ::-1] - mean
        expected = forward(layers, pixels, convolution, cam_convolution)
        for name, values in expected.items():
            scale = np.abs(values).max()
            assert values.std() > 0
            np.testing.assert_allclose(
                maps[name][i], values, rtol=1e-4, atol=1e-5 * scale, err_msg=name
            )
    assert maps["features"].shape == (2, 2, 3, 8)  # sides // 16


def keras1_layers(layers):
    """As Keras 1 numbered and the authors named them; a Dense kernel is (in, out)."""
    named = {"zeropadding2d_1": ()}
    for number, (name, (kernel, bias)) in enumerate(layers.items(), 1):
        theirs = {"conv5_1": "relu5_1", "conv5_3": "relu5_3", "CAM_conv": "CAM_relu"}
        name = theirs.get(
            name, "dense_1" if name == "CAM_fc" else f"convolution2d_{number}"
        )
        named[name] = (kernel.T if kernel.ndim == 2 else kernel, bias)
    return named


def load(path, **options):
    return networks.load("vgg16-cam", path, sizes=SIZES, **options)


@pytest.fixture
def theano_file(tmp_path):
    return write_keras1(
        tmp_path / "vgg_cam_weights.h5", keras1_layers(make_layers(cam_inputs=8))
    )


# The published formats


@pytest.mark.parametrize("old", [True, False])
def test_caffe_file_computes_what_caffe_computed(tmp_path, old):
    layers = make_layers(cam_inputs=4)
    path = tmp_path / "zhou.caffemodel"
    network = load(write_caffe(path, layers, {"CAM_conv": 2}, old=old))
    check_maps(network, layers, MEAN_BGR, correlate, correlate_in_two_groups)
    assert network.name == "vgg16-cam" and len(network.weights_sha256) == 64


@pytest.mark.parametrize("mean_order", ["bgr", "swapped"])
def test_theano_file_computes_what_theano_computed(theano_file, mean_order):
    network = load(theano_file, mean_order=mean_order)
    mean = MEAN_BGR if mean_order == "bgr" else MEAN_BGR[::-1]
    check_maps(network, make_layers(cam_inputs=8), mean, convolve, convolve)


def test_our_own_file_keeps_the_network(tmp_path, theano_file):
    network = load(theano_file)
    networks.save_weights(network, tmp_path / "mine.weights.h5")
    again = load(tmp_path / "mine.weights.h5")
    for name, values in network.maps(IMAGES).items():
        np.testing.assert_array_equal(again.maps(IMAGES)[name], values)


def test_mean_orders():
    """The authors subtract red's mean from blue and blue's from red."""
    pixel = np.array([[[[10.0, 20.0, 30.0]]]], np.float32)
    right = networks.load("vgg16-cam", None, sizes=SIZES)
    swapped = networks.load("vgg16-cam", None, sizes=SIZES, mean_order="swapped")
    for network, expected in [
        (right, [30 - 103.939, 20 - 116.779, 10 - 123.68]),
        (swapped, [30 - 123.68, 20 - 116.779, 10 - 103.939]),
    ]:
        found = np.asarray(network.preprocess(pixel))[0, 0, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    # A store tells networks apart by name and weights.
    assert right.name != swapped.name
    with pytest.raises(ValueError, match="`mean_order` must be 'bgr' or 'swapped'"):
        networks.load("vgg16-cam", None, mean_order="rgb")


# Files that do not fit


def test_theano_file_that_does_not_fit_is_named(tmp_path):
    good = keras1_layers(make_layers(cam_inputs=8))
    kernel, bias = good["convolution2d_3"]
    matrix, matrix_bias = good["dense_1"]
    turned = kernel.transpose(2, 3, 1, 0)
    grouped = keras1_layers(make_layers(cam_inputs=4))["CAM_relu"]
    cases = [
        # Channels last: a file of Keras on TensorFlow.
        (
            {"convolution2d_3": (turned, bias)},
            r"convolution2d_3 \(conv2_1 here\) kernel' .*"
            r"\(5, 4, 3, 3\), but has \(3, 3, 4, 5\)",
        ),
        ({"dense_1": (matrix.T, matrix_bias)}, r"\(10, 7\), but has \(7, 10\)"),
        ({"CAM_relu": grouped}, r"CAM_conv here\) kernel'.*\(10, 8, 3, 3\), but has"),
        ({"convolution2d_3": (kernel,)}, r"conv2_1 here\) bias' of shape \(5,\)"),
        ({"dense_1": ()}, r"no 'None \(CAM_fc here\) kernel' of shape \(10, 7\)"),
        ({"dense_2": (matrix,)}, r"1 arrays that vgg16-cam lacks, .*dense_2 \(none"),
        ({"relu5_1": (kernel, bias, bias)}, "conv5_1 here"),
    ]
    for change, message in cases:
        path = write_keras1(tmp_path / "wrong.h5", good | change)
        with pytest.raises(networks.WeightsError, match=message):
            load(path)


def test_caffe_file_that_does_not_fit_is_named(tmp_path):
    good = make_layers(cam_inputs=4)
    kernel, bias = good["conv2_1"]
    plain_vgg = {name: good[name] for name in NAMES}
    cases = [
        (
            good | {"conv2_1": [kernel.transpose(1, 0, 2, 3), bias]},
            2,
            r"'conv2_1 kernel' .*\(5, 4, 3, 3\), but has \(4, 5, 3, 3\)",
        ),
        (good, None, r"'CAM_conv kernel' .*\(10, 8, 3, 3\), but has \(10, 4, 3, 3\)"),
        (plain_vgg, None, r"no 'CAM_conv kernel' of shape \(10, 8, 3, 3\)"),
        (good | {"fc6": [kernel, bias]}, 2, "2 arrays that vgg16-cam lacks, .*fc6"),
    ]
    for layers, group, message in cases:
        path = write_caffe(tmp_path / "wrong.caffemodel", layers, {"CAM_conv": group})
        with pytest.raises(networks.WeightsError, match=message):
            load(path)


def test_our_own_file_that_does_not_fit_is_named(tmp_path):
    wider = vgg16_cam.Sizes((4, 5, 6, 8, 9), maps=10, classes=7)
    path = tmp_path / "wider.weights.h5"
    networks.save_weights(networks.load("vgg16-cam", None, sizes=wider), path)
    message = r"conv5_1[\s\S]*\(3, 3, 8, 8\)[\s\S]*\(3, 3, 8, 9\)"
    with pytest.raises(networks.WeightsError, match=message):
        load(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(networks.WeightsError, match="does not hold the weights of vgg"):
        load(path)


@pytest.mark.parametrize("name", ["a.h5", "a.weights.h5", "a.caffemodel"])
def test_missing_file_is_named(tmp_path, name):
    with pytest.raises(networks.WeightsError, match="there is no weight file"):
        load(tmp_path / name)
    with pytest.raises(networks.WeightsError, match=r"expected a \.caffemodel, \.h5"):
        load(tmp_path / "weights.pth")


# weights="imagenet"


def test_imagenet_weights_are_found_or_explained(tmp_path, monkeypatch, theano_file):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with pytest.raises(networks.WeightsError) as caught:
        networks.load("vgg16-cam")
    for part in (
        *vgg16_cam.FILES,
        vgg16_cam.AUTHORS_URL,
        vgg16_cam.ZHOU_URL,
        "82 MB",
        "72 MB",
        "github.com/imatge-upc/retrieval-2017-cam",
        "github.com/zhoubolei/CAM",
        str(tmp_path / "keras" / "models"),
        "`weights`",
        "check_top5",
    ):
        assert part in str(caught.value)
    weights_folder().mkdir(parents=True)
    theano_file.rename(weights_folder() / theano_file.name)
    network = load("imagenet")
    path = weights_folder() / theano_file.name
    assert network.weights_sha256 == load(path).weights_sha256
    networks.save_weights(network, weights_folder() / vgg16_cam.FILES[2])
    path.unlink()
    logits = load("imagenet").maps(IMAGES)["logits"]
    np.testing.assert_array_equal(logits, network.maps(IMAGES)["logits"])


# The published size


def test_published_network():
    network = networks.load("vgg16-cam", weights=None)
    assert network.default_layer == "conv5_1"
    assert networks.FeatureLayer("conv5_1", 512, 16, True) in network.feature_layers()
    backbone = sum(np.prod(w.shape) for w in network.backbone.weights)
    # VGG-16's convolutions have 14,714,688 parameters; then 512 -> 1024 -> 1000.
    cam, dense = 512 * 1024 * 9 + 1024, 1024 * 1000 + 1000
    assert backbone + dense == 14_714_688 + cam + dense == 20_459_304
    maps = network.maps(IMAGES)
    assert maps["features"].shape == (2, 2, 3, 512)
    assert maps["cam_maps"].shape == (2, 2, 3, 1024)
    cams = maps["cam_maps"].astype(np.float64) @ network.class_weights
    logits = cams.mean(axis=(1, 2)) + network.class_bias
    np.testing.assert_allclose(maps["logits"], logits, rtol=1e-4, atol=1e-3)
    assert "vgg16-cam" in networks.available()


def test_top5_tells_right_weights_from_random_ones():
    right = networks.check_top5(networks.load("efficientnet-lite0"))
    table = right.table
    assert list(table) == ["china.jpg", "flower.jpg", "china.jpg upside down"]
    assert list(table.index) == [1, 2, 3, 4, 5]
    assert table.loc[1, "china.jpg"].startswith("bell cote (")
    assert table.loc[1, "flower.jpg"].startswith("daisy (")
    assert right.right is True
    assert "RIGHT: buildings have 66% of china.jpg, 8% upside down, and" in str(right)
    wrong = networks.check_top5(networks.load("efficientnet-lite0", None))
    assert wrong.right is False and "WRONG" in str(wrong)
    assert "random or of another network" in wrong.verdict


def test_top5_tells_kernels_that_are_turned():
    """Their shapes are right; the upright column and the other change places."""
    network = networks.load("efficientnet-lite0")
    for weight in network.backbone.weights:
        if weight.name.endswith("kernel"):
            weight.assign(np.asarray(weight)[::-1, ::-1])
    check = networks.check_top5(network)
    table = check.table
    assert check.right is False and "turned by 180 degrees" in check.verdict
    assert table.loc[1, "china.jpg upside down"].startswith("bell cote (")
    assert not table["china.jpg"].str.contains("bell cote").any()


def test_a_theano_file_that_was_turned_already_is_seen_upside_down(tmp_path):
    """Exactly so: no error can be raised, all shapes fit."""
    layers = keras1_layers(make_layers(cam_inputs=8))
    right = load(write_keras1(tmp_path / "right.h5", layers))
    for name, arrays in layers.items():
        if arrays and arrays[0].ndim == 4:
            layers[name] = (arrays[0][:, :, ::-1, ::-1], *arrays[1:])
    turned = load(write_keras1(tmp_path / "turned.h5", layers))
    images = IMAGES[:, :32, :48]  # whole cells: pooling drops no border
    found = turned.maps(images[:, ::-1, ::-1])["logits"]
    expected = right.maps(images)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(turned.maps(images)["logits"] - expected).max() > 0.1
