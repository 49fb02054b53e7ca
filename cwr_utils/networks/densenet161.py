"""DenseNet-161 (Huang et al. 2017), with weights from torchvision.

Layers have torchvision's names without the leading `features.`. The network ends in
BatchNorm, ReLU, GAP and one linear layer, so that its CAMs are exact.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from keras import layers, ops

from cwr_utils.networks.cam_network import CamNetwork, randomize
from cwr_utils.networks.imagenet import DEVIATION_RGB, MEAN_RGB, class_names
from cwr_utils.networks.importers import (
    NamedArrays,
    WeightsError,
    downloading,
    keras_file,
    weights_folder,
)
from cwr_utils.networks.importers.torch_state_dict import read_state_dict

NAME = "densenet161"
# PyTorch puts the first 8 digits of a file's SHA-256 into its name.
FILE = "densenet161-8d451a50.pth"
URL = f"https://download.pytorch.org/models/{FILE}"

_EPSILON = 1e-5  # of BatchNorm: PyTorch's, not Keras's 1e-3
_BOTTLENECK = 4  # a dense layer's first convolution has 4 * growth channels


@dataclass(frozen=True)
class Sizes:
    """How deep and wide the network is; published weights need the default.

    Attributes:
        stem: channels of the first convolution.
        growth: channels that a dense layer adds.
        blocks: dense layers in each block.
        classes: outputs.
    """

    stem: int = 96
    growth: int = 48
    blocks: tuple[int, ...] = (6, 12, 36, 24)
    classes: int = 1000


PUBLISHED = Sizes()


def load(
    weights: str | os.PathLike | None = "imagenet",
    seed: int = 0,
    sizes: Sizes = PUBLISHED,
) -> CamNetwork:
    """Load DenseNet-161.

    The default layer is the last one, 2,208 channels with stride 32, which the
    authors pooled: features and CAM maps are then the same tensor.

    Args:
        weights: "imagenet" for torchvision's (downloaded once into Keras's folder
            for weights), None for random ones, or a path: ``.pth`` of torchvision,
            ``.weights.h5`` or ``.keras`` our own (`save_weights`).
        seed: of the random weights.
        sizes: for networks that are not the published one.

    Raises:
        WeightsError: if the file is missing, damaged, malicious, or of another
            network; it names the array, the expected and the found shape.
    """
    if weights == "imagenet":
        weights = _fetch()
    model = keras_file.with_classifier(_build(sizes), sizes.classes)
    if weights is None:
        weights_id = randomize(model, seed)
    elif Path(weights).suffix in (".h5", ".keras"):
        weights_id = keras_file.load_weights(model, weights, NAME)
    else:
        weights_id = _load_state_dict(model, Path(weights))
    class_weights, class_bias = model.layers[-1].get_weights()
    return CamNetwork(
        name=NAME,
        backbone=keras.Model(model.input, model.get_layer("relu5").output),
        class_weights=class_weights,
        class_bias=class_bias,
        class_names=class_names()[: sizes.classes],
        preprocess=preprocess,
        weights_sha256=weights_id,
        default_layer="relu5",
    )


def preprocess(images: Any) -> Any:
    """Standardise float RGB images (..., 3) from 0..255, each channel on its own.

    The authors' code hands 0..255 to torchvision, which divided it by 255 in 2017;
    today's would not, so that a literal port is wrong.
    """
    mean, deviation = (
        ops.convert_to_tensor(v, images.dtype) for v in (MEAN_RGB, DEVIATION_RGB)
    )
    return (images / 255.0 - mean) / deviation


def _build(sizes: Sizes) -> keras.Model:
    """Build the network up to the GAP."""

    def norm_relu(x, prefix, number=""):
        x = layers.BatchNormalization(epsilon=_EPSILON, name=f"{prefix}norm{number}")(x)
        return layers.ReLU(name=f"{prefix}relu{number}")(x)

    def conv(x, filters, size, name, **options):
        return layers.Conv2D(filters, size, use_bias=False, name=name, **options)(x)

    inputs = keras.Input((None, None, 3), name="input")
    # PyTorch pads both sides alike, Keras's "same" the right and bottom first.
    x = layers.ZeroPadding2D(3, name="pad0")(inputs)
    x = norm_relu(conv(x, sizes.stem, 7, "conv0", strides=2), "", "0")
    # No value is below 0 here, so that padding with 0 cannot change a maximum.
    x = layers.MaxPooling2D(3, 2, name="pool0")(layers.ZeroPadding2D(1, name="pad1")(x))
    for block, count in enumerate(sizes.blocks, 1):
        for i in range(1, count + 1):
            name = f"denseblock{block}.denselayer{i}."
            new = norm_relu(x, name, "1")
            new = conv(new, _BOTTLENECK * sizes.growth, 1, f"{name}conv1")
            new = norm_relu(new, name, "2")
            new = conv(new, sizes.growth, 3, f"{name}conv2", padding="same")
            x = layers.Concatenate(name=f"{name}concat")([x, new])
        if block < len(sizes.blocks):
            name = f"transition{block}."
            x = conv(norm_relu(x, name), x.shape[-1] // 2, 1, f"{name}conv")
            x = layers.AveragePooling2D(2, name=f"{name}pool")(x)
    return keras.Model(inputs, norm_relu(x, "", "5"), name=NAME)


def _fetch() -> Path:
    path = weights_folder() / FILE
    if not path.is_file():
        with downloading(NAME, URL):
            return Path(keras.utils.get_file(FILE, URL, cache_subdir="models"))
    return path


def _load_state_dict(model: keras.Model, path: Path) -> str:
    """Copy a state dict into the layers; return the file's SHA-256."""
    state = read_state_dict(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    stated = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if stated and not digest.startswith(stated[1]):
        raise WeightsError(
            f"{path} is damaged: its SHA-256 should start with {stated[1]}, but is "
            f"{digest}; fetch it again"
        )
    arrays = NamedArrays(
        {
            # Up to torchvision 0.2 a dense layer's parts had a dot: `norm.1`.
            re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): value
            for key, value in state.items()
            if not key.endswith("num_batches_tracked")
        },
        path,
        NAME,
    )
    for layer in model.layers:
        key = f"features.{layer.name}"
        if isinstance(layer, layers.Conv2D):
            height, width, inputs, outputs = layer.kernel.shape
            kernel = arrays.take(f"{key}.weight", (outputs, inputs, height, width))
            layer.set_weights([kernel.transpose(2, 3, 1, 0)])
        elif isinstance(layer, layers.BatchNormalization):
            parts = ("weight", "bias", "running_mean", "running_var")
            shape = layer.gamma.shape
            layer.set_weights([arrays.take(f"{key}.{part}", shape) for part in parts])
        elif isinstance(layer, layers.Dense):
            inputs, outputs = layer.kernel.shape
            kernel = arrays.take("classifier.weight", (outputs, inputs))
            layer.set_weights([kernel.T, arrays.take("classifier.bias", (outputs,))])
    arrays.check_all_taken()
    return digest
