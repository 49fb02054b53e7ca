"""The networks of `keras.applications` whose class activation maps are exact.

All of them but MobileNetV3, which has a nonlinearity between its GAP and its classes,
and NASNet, which Keras builds for one input size. VGG-16 and VGG-19 flatten their maps,
so that they slide over the photo (`heads.slide_windows`).
"""

import difflib
import os
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from cwr_utils.networks import heads
from cwr_utils.networks.cam_network import CamNetwork, hash_arrays, randomize
from cwr_utils.networks.imagenet import DEVIATION_RGB, class_names
from cwr_utils.networks.importers import downloading, keras_file

PREFIX = "keras:"
# `load` looks at the network itself, not at this.
NAMES = (
    *(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
    "DenseNet121",
    "DenseNet169",
    "DenseNet201",
    *(f"EfficientNetB{i}" for i in range(8)),
    *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "ResNet50",
    "ResNet50V2",
    "ResNet101",
    "ResNet101V2",
    "ResNet152",
    "ResNet152V2",
    "VGG16",
    "VGG19",
    "Xception",
)
# The paper's: the authors' code pools the output of the last block, as it does with
# DenseNet-161. Of VGG its last pooling layer, which CroW (Kalantidis et al. 2016) and
# R-MAC (Tolias et al. 2016) describe. The others have the default of `CamNetwork`.
_DEFAULT_LAYERS = {
    "ResNet50": "conv5_block3_out",
    "VGG16": "block5_pool",
    "VGG19": "block5_pool",
}


def load(
    name: str, weights: str | os.PathLike | None = "imagenet", seed: int = 0
) -> CamNetwork:
    """Load a network of `keras.applications`, e.g. "keras:ResNet50".

    The default layer of ResNet50 is the last one, 2,048 channels with stride 32:
    features and CAM maps are then the same tensor. Deviation: the authors' weights are
    torchvision's; Keras's are of another training, with the stride in another
    convolution.

    Args:
        name: "keras:" and the name of the constructor.
        weights: "imagenet" (Keras downloads them into its cache folder), None for
            random ones, or a ``.weights.h5``, ``.h5`` or ``.keras`` file, of this
            network or as Keras publishes it.
        seed: of the random weights.

    Raises:
        ValueError: if there is no such network, or its CAM would not be exact at any
            input size.
        WeightsError: if the weights cannot be downloaded, or belong to another
            network; it says which file is needed and where.
    """
    constructor, module = _find(name)
    model = constructor(weights=None, classifier_activation=None)
    if weights is None:
        weights_id = randomize(model, seed)
    elif weights == "imagenet":
        _split(name, model)  # one that is refused is not worth a download
        with downloading(name):
            model = constructor(weights="imagenet", classifier_activation=None)
        weights_id = f"arrays:{hash_arrays(model.get_weights())}"
    else:
        weights_id = keras_file.load_weights(model, weights, name)
        _mend_normalization(model)
    parts = _split(name, model)
    return CamNetwork(
        name=name,
        backbone=parts.backbone,
        class_weights=parts.class_weights,
        class_bias=parts.class_bias,
        class_names=class_names(),
        preprocess=lambda images: module.preprocess_input(
            images, data_format="channels_last"
        ),
        weights_sha256=weights_id,
        default_layer=_DEFAULT_LAYERS.get(name.removeprefix(PREFIX)),
    )


def _split(name: str, model: keras.Model) -> heads.Split:
    return heads.split(heads.slide_windows(model) if "VGG" in name else model, name)


def _find(name: str) -> tuple[Callable[..., keras.Model], Any]:
    """Find a constructor and the module that has its `preprocess_input`."""
    wanted = name.removeprefix(PREFIX)
    applications = {
        key: value for key, value in vars(keras.applications).items() if callable(value)
    }
    if wanted not in applications:
        similar = difflib.get_close_matches(wanted, applications, n=4, cutoff=0.4)
        raise ValueError(
            f"keras.applications has no network {wanted!r}; "
            f"similar: {', '.join(similar) or 'none'}"
        )
    for module in vars(keras.applications).values():
        if isinstance(module, types.ModuleType) and hasattr(module, wanted):
            return applications[wanted], module
    # MobileNetV3 is in no module of its own; it scales its input inside.
    return applications[wanted], keras.applications.mobilenet_v3


def _mend_normalization(model: keras.Model) -> None:
    """Let ImageNet's colours have the deviation that they have.

    The files that Keras publishes for EfficientNetB0-B7 hold deviations where its
    layer expects variances. ``constructor(weights="imagenet")`` makes up for it with
    another Rescaling layer, ``constructor(weights=None)`` does not.
    """
    for layer in model.layers:
        if isinstance(layer, layers.Normalization) and layer.weights:
            mean, variance, count = layer.get_weights()
            if np.allclose(variance, DEVIATION_RGB):
                layer.set_weights([mean, variance**2, count])
