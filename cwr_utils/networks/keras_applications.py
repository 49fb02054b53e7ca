"""The networks of `keras.applications` that end in GAP + Dense.

Only there is the class activation map exact. A normalisation, a second Dense or a
nonlinearity between the GAP and the classes would make the CAM an approximation,
so such networks are refused.
"""

import difflib
import os
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from cwr_utils.networks.cam_network import CamNetwork, hash_arrays, randomize
from cwr_utils.networks.imagenet import DEVIATION_RGB, class_names
from cwr_utils.networks.importers import downloading, keras_file

PREFIX = "keras:"
# Those that end in GAP + Dense; `load` looks at the network itself, not at this.
NAMES = (
    "DenseNet121",
    "DenseNet169",
    "DenseNet201",
    *(f"EfficientNetB{i}" for i in range(8)),
    *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNetV2",
    "ResNet50",
    "ResNet50V2",
    "ResNet101",
    "ResNet101V2",
    "ResNet152",
    "ResNet152V2",
    "Xception",
)
# The paper's: the authors' code pools the output of the last block, as it does with
# DenseNet-161. The others have the default of `CamNetwork`.
_DEFAULT_LAYERS = {"ResNet50": "conv5_block3_out"}


def load(
    name: str, weights: str | os.PathLike | None = "imagenet", seed: int = 0
) -> CamNetwork:
    """Load a network of `keras.applications`, e.g. "keras:ResNet50".

    Its default layer is the last one, 2,048 channels with stride 32: features and CAM
    maps are then the same tensor. Deviation: the authors' weights are torchvision's;
    Keras's are of another training, with the stride in another convolution.

    Args:
        name: "keras:" and the name of the constructor.
        weights: "imagenet" (Keras downloads them into its cache folder), None for
            random ones, or a ``.weights.h5``, ``.h5`` or ``.keras`` file, of this
            network or as Keras publishes it.
        seed: of the random weights.

    Raises:
        ValueError: if there is no such network, if it does not end in GAP + Dense,
            or if it takes one input size only.
        WeightsError: if the weights cannot be downloaded, or belong to another
            network; it says which file is needed and where.
    """
    constructor, module = _find(name)
    model = constructor(weights=None, classifier_activation=None)
    if weights is None:
        weights_id = randomize(model, seed)
    elif weights == "imagenet":
        _split(name, model)  # a network that is refused is not worth a download
        with downloading(name):
            model = constructor(weights="imagenet", classifier_activation=None)
        weights_id = f"arrays:{hash_arrays(model.get_weights())}"
    else:
        weights_id = keras_file.load_weights(model, weights, name)
        _mend_normalization(model)
    backbone, classifier = _split(name, model)
    class_weights, class_bias = classifier.get_weights()
    return CamNetwork(
        name=name,
        backbone=backbone,
        class_weights=class_weights,
        class_bias=class_bias,
        class_names=class_names(),
        preprocess=lambda images: module.preprocess_input(
            images, data_format="channels_last"
        ),
        weights_sha256=weights_id,
        default_layer=_DEFAULT_LAYERS.get(name.removeprefix(PREFIX)),
    )


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


def _split(name: str, model: keras.Model) -> tuple[keras.Model, layers.Dense]:
    """Split a model into what comes before the GAP, for any input size, and Dense.

    Raises:
        ValueError: if anything but dropout is between or behind them, or if the
            layers do not fit together at every size.
    """
    classifier = model.layers[-1]
    if not isinstance(classifier, layers.Dense):
        raise ValueError(
            f"{name} ends in the {type(classifier).__name__} layer "
            f"{classifier.name!r}, not in GAP + Dense: its CAM is not exact"
        )
    before = classifier.input._keras_history.operation
    while isinstance(before, layers.Dropout):
        before = before.input._keras_history.operation
    if not isinstance(before, layers.GlobalAveragePooling2D):
        raise ValueError(
            f"{name} has the {type(before).__name__} layer {before.name!r} between "
            "its last feature maps and its Dense layer, not GAP alone: its CAM is "
            "not exact"
        )
    fixed_size = keras.Model(model.input, before.input)
    backbone = keras.models.clone_model(
        fixed_size, input_tensors=keras.Input((None, None, 3), name="input")
    )
    try:
        backbone.compute_output_shape((1, 197, 261, 3))
    except Exception as error:
        # NASNet: Keras fixes each layer's padding for the size it is built with.
        raise ValueError(
            f"{name} works only at the input size {model.input.shape[1:3]} that "
            f"Keras builds it with, not at any: {error}"
        ) from error
    backbone.set_weights(fixed_size.get_weights())
    for layer in backbone.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()  # it computes with a copy of its weights
    return backbone, classifier


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
