"""Networks of torchvision, with its weights: a state dict is read without torch."""

import hashlib
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from keras import layers, ops

from cwr_utils.networks import densenet161, resnet, vgg16
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

URL = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class Architecture:
    """One network as torchvision has it.

    Attributes:
        file: with its weights; PyTorch puts the first 8 digits of a file's SHA-256 into
            its name.
        build: makes the model up to the GAP from its sizes.
        sizes: the published ones.
        default_layer: which is pooled.
        key: torchvision's name of a layer, from ours.
        classifier: torchvision's name of the last layer.
    """

    file: str
    build: Callable[[Any], keras.Model]
    sizes: Any
    default_layer: str
    key: Callable[[str], str]
    classifier: str


ARCHITECTURES = {
    "densenet161": Architecture(
        "densenet161-8d451a50.pth",
        densenet161.build,
        densenet161.Sizes(),
        "relu5",
        "features.{}".format,
        "classifier",
    ),
    "resnet50": Architecture(
        "resnet50-0676ba61.pth",
        resnet.build,
        resnet.Sizes((3, 4, 6, 3)),
        "layer4.2.relu",
        str,
        "fc",
    ),
    "resnet101": Architecture(
        "resnet101-63fe2227.pth",
        resnet.build,
        resnet.Sizes((3, 4, 23, 3)),
        "layer4.2.relu",
        str,
        "fc",
    ),
    "vgg16": Architecture(
        "vgg16-397923af.pth",
        vgg16.build,
        vgg16.Sizes(),
        "pool5",
        vgg16.KEYS.__getitem__,
        "classifier.6",
    ),
}


def load(
    name: str,
    weights: str | os.PathLike | None = "imagenet",
    seed: int = 0,
    sizes: Any = None,
) -> CamNetwork:
    """Load a network of torchvision.

    The default layer is the last one before the GAP, as the paper's authors pooled
    DenseNet-161 and ResNet-50 (features and CAM maps are then the same tensor); of
    VGG-16 it is the last pooling layer (see `vgg16`).

    Args:
        name: a key of `ARCHITECTURES`.
        weights: "imagenet" for torchvision's (downloaded once into Keras's folder for
            weights), None for random ones, or a path: ``.pth``, ``.pt`` or
            ``.safetensors`` with torchvision's names, ``.weights.h5`` or ``.keras`` our
            own (`save_weights`).
        seed: of the random weights.
        sizes: for networks that are not the published one.

    Raises:
        WeightsError: if the file is missing, damaged, malicious, or of another
            network; it names the array, the expected and the found shape.
    """
    architecture = ARCHITECTURES[name]
    sizes = sizes or architecture.sizes
    if weights == "imagenet":
        weights = _fetch(name, architecture.file)
    backbone = architecture.build(sizes)
    model = keras_file.with_classifier(backbone, sizes.classes)
    if weights is None:
        weights_id = randomize(model, seed)
    elif Path(weights).suffix in (".h5", ".keras"):
        weights_id = keras_file.load_weights(model, weights, name)
    else:
        weights_id = _load_state_dict(name, model, Path(weights))
    class_weights, class_bias = model.layers[-1].get_weights()
    last = architecture.default_layer
    return CamNetwork(
        name=name,
        backbone=backbone,
        class_weights=class_weights,
        class_bias=class_bias,
        class_names=class_names()[: sizes.classes],
        preprocess=preprocess,
        weights_sha256=weights_id,
        default_layer=last,
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


def _fetch(name: str, file: str) -> Path:
    path = weights_folder() / file
    if not path.is_file():
        with downloading(name, URL + file):
            return Path(keras.utils.get_file(file, URL + file, cache_subdir="models"))
    return path


def _load_state_dict(name: str, model: keras.Model, path: Path) -> str:
    """Copy a state dict into the layers; return the file's SHA-256."""
    state = read_state_dict(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    stated = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    if stated and not digest.startswith(stated[1]):
        raise WeightsError(
            f"{path} is damaged: its SHA-256 should start with {stated[1]}, but is "
            f"{digest}; fetch it again"
        )
    arrays = NamedArrays(
        {
            # Up to torchvision 0.2 the parts of DenseNet had a dot: `norm.1`.
            re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): value
            for key, value in state.items()
            if not key.endswith("num_batches_tracked")
        },
        path,
        name,
    )
    architecture = ARCHITECTURES[name]
    for layer in model.layers:
        if not layer.weights:
            continue
        last = layer is model.layers[-1]
        key = architecture.classifier if last else architecture.key(layer.name)
        if isinstance(layer, layers.BatchNormalization):
            parts = ("weight", "bias", "running_mean", "running_var")
            shape = layer.gamma.shape
            layer.set_weights([arrays.take(f"{key}.{part}", shape) for part in parts])
            continue
        *window, inputs, outputs = layer.kernel.shape
        shape = (outputs, inputs, *window)
        if layer.name in vgg16.LINEAR:  # one vector for each output, channels first
            flat = arrays.take(f"{key}.weight", (outputs, math.prod(shape[1:])))
            kernel = flat.reshape(shape)
        else:
            kernel = arrays.take(f"{key}.weight", shape)
        kernel = kernel.transpose(*range(2, kernel.ndim), 1, 0)
        bias = [arrays.take(f"{key}.bias", (outputs,))] if layer.use_bias else []
        layer.set_weights([kernel, *bias])
    arrays.check_all_taken()
    return digest
