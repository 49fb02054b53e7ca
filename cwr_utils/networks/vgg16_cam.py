"""VGG-16-CAM, the paper's network.

VGG-16 (Simonyan and Zisserman 2015) up to conv5_3, then a 3x3 convolution to 1,024
maps with ReLU, global average pooling (GAP) and one linear layer (Zhou et al. 2016).
Layers have Zhou's names; ReLU is part of each convolution, so that `conv5_1`, which
the paper pools, is what the authors' code calls `relu5_1`.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from cwr_utils.networks.cam_network import CamNetwork, randomize
from cwr_utils.networks.imagenet import class_names
from cwr_utils.networks.importers import (
    NamedArrays,
    WeightsError,
    caffe,
    keras1_theano,
    keras_file,
    weights_folder,
)

NAME = "vgg16-cam"
NAMES = {"bgr": NAME, "swapped": f"{NAME}:swapped-mean"}  # by `mean_order`
# What weights="imagenet" looks for, in this order: the authors', Zhou's, our own.
FILES = (
    "vgg_cam_weights.h5",
    "vgg16CAM_train_iter_90000.caffemodel",
    "vgg16-cam.weights.h5",
)
AUTHORS_URL = "https://drive.google.com/open?id=0BwotWbbE50RQLWtPZ1VWTDYzUlE"
ZHOU_URL = f"http://cnnlocalization.csail.mit.edu/demoCAM/models/{FILES[1]}"

_CONVOLUTIONS = (2, 2, 3, 3, 3)  # in each block
_MEAN_BGR = (103.939, 116.779, 123.68)


@dataclass(frozen=True)
class Sizes:
    """How wide the network is; published weights need the default.

    Attributes:
        blocks: channels of the convolutions in each of the five blocks.
        maps: channels of the convolution before the GAP.
        classes: outputs.
    """

    blocks: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    maps: int = 1024
    classes: int = 1000


PUBLISHED = Sizes()


def load(
    weights: str | os.PathLike | None = "imagenet",
    seed: int = 0,
    mean_order: str = "bgr",
    sizes: Sizes = PUBLISHED,
) -> CamNetwork:
    """Load VGG-16-CAM.

    Args:
        weights: "imagenet" for one of `FILES` in Keras's folder for weights (they are
            fetched by hand: the error says how), None for random ones, or a path,
            whose ending says what it is: ``.caffemodel`` Zhou's, ``.h5`` the authors'
            (Keras 1 on Theano), ``.weights.h5`` or ``.keras`` our own
            (`save_weights`).
        seed: of the random weights.
        mean_order: "bgr" subtracts from each channel its own mean; "swapped" blue's
            mean from red and red's from blue, as the authors' code does. Deviation:
            they published with the latter. The network's name then says so, which
            keeps the two apart in a store.
        sizes: for networks that are not the published one.

    Raises:
        WeightsError: if the file is missing, damaged or of another network; it
            names the layer, the expected and the found shape.
        ValueError: if there is no such `mean_order`.
    """
    if mean_order not in NAMES:
        raise ValueError(f"`mean_order` must be 'bgr' or 'swapped'; got {mean_order!r}")
    if weights == "imagenet":
        weights = find_file()
    model = keras_file.with_classifier(_build(sizes), sizes.classes)
    if weights is None:
        weights_id = randomize(model, seed)
    else:
        weights_id = _load_file(model, Path(weights))
    class_weights, class_bias = model.layers[-1].get_weights()
    return _with_mean(
        mean_order,
        backbone=keras.Model(model.input, model.get_layer("CAM_conv").output),
        class_weights=class_weights,
        class_bias=class_bias,
        class_names=class_names()[: sizes.classes],
        weights_sha256=weights_id,
    )


def reorder_mean(network: CamNetwork, mean_order: str) -> CamNetwork:
    """The same layers behind another `mean_order`; see `load`."""
    return _with_mean(
        mean_order,
        backbone=network.backbone,
        class_weights=network.class_weights,
        class_bias=network.class_bias,
        class_names=network.class_names,
        weights_sha256=network.weights_sha256,
    )


def _with_mean(mean_order: str, **parts: Any) -> CamNetwork:
    mean = _MEAN_BGR if mean_order == "bgr" else _MEAN_BGR[::-1]
    return CamNetwork(
        name=NAMES[mean_order],
        preprocess=lambda images: preprocess(images, mean),
        default_layer="conv5_1",
        **parts,
    )


def preprocess(images: Any, mean_bgr: Iterable[float] = _MEAN_BGR) -> Any:
    """Turn float RGB images (..., 3) in 0..255 into BGR minus a mean per channel."""
    return ops.flip(images, axis=-1) - ops.convert_to_tensor(
        list(mean_bgr), images.dtype
    )


def trunk(blocks: tuple[int, ...]) -> tuple[Any, Any]:
    """VGG-16 up to conv5_3: the symbolic input and output.

    A side that is no multiple of 16 loses its last pixels in the pooling, as in Theano
    and PyTorch; Caffe would keep a partial cell instead.
    """
    x = inputs = keras.Input((None, None, 3), name="input")
    for block, (count, filters) in enumerate(
        zip(_CONVOLUTIONS, blocks, strict=True), 1
    ):
        for i in range(1, count + 1):
            x = _conv(x, filters, f"conv{block}_{i}")
        if block < len(_CONVOLUTIONS):
            x = layers.MaxPooling2D(2, name=f"pool{block}")(x)
    return inputs, x


def _conv(x: Any, filters: int, name: str) -> Any:
    options = {"padding": "same", "activation": "relu", "name": name}
    return layers.Conv2D(filters, 3, **options)(x)


def _build(sizes: Sizes) -> keras.Model:
    """Build the network up to the GAP."""
    inputs, x = trunk(sizes.blocks)
    return keras.Model(inputs, _conv(x, sizes.maps, "CAM_conv"), name="vgg16_cam")


def find_file() -> Path:
    """The file that weights="imagenet" reads.

    Raises:
        WeightsError: if there is none; it says what to fetch.
    """
    folder = weights_folder()
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    authors, zhou, own = FILES
    raise WeightsError(
        f"the weights of {NAME} must be fetched by hand. Either {authors} (82 MB; the "
        f"authors', Keras 1 on Theano): {AUTHORS_URL}, linked from "
        "https://github.com/imatge-upc/retrieval-2017-cam as 'CAM-VGG-16 Weights'. Or "
        f"{zhou} (72 MB; Zhou's, from which the former was made): {ZHOU_URL}, linked "
        "from https://github.com/zhoubolei/CAM. (Sizes are computed from the layers; "
        f"no checksum is published.) Put it into {folder} under that name, or give its "
        "path as `weights`, then look at networks.check_top5(network). A file of "
        f"networks.save_weights may lie there as {own}. weights=None makes random ones"
    )


def _load_file(model: keras.Model, path: Path) -> str:
    """Load a file of any format; return its SHA-256."""
    if path.name.endswith((".weights.h5", ".keras")):
        return keras_file.load_weights(model, path, NAME)
    if path.suffix == ".caffemodel":
        _assign_caffe(model, path)
    elif path.suffix in (".h5", ".hdf5"):
        _assign_theano(model, path)
    else:
        raise WeightsError(
            f"expected a .caffemodel, .h5, .weights.h5 or .keras file for {NAME}; "
            f"got {path}"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _assign_caffe(model: keras.Model, path: Path) -> None:
    """Copy Zhou's layers, which are found by name."""
    found = caffe.read_layers(path)
    arrays = NamedArrays(
        _name_arrays((name, layer.blobs) for name, layer in found.items()), path, NAME
    )
    for layer in _learned(model):
        group = found[layer.name].group if layer.name in found else 1
        shape = _stored_shape(layer, group)
        kernel = arrays.take(f"{layer.name} kernel", shape)
        if len(shape) == 4:
            kernel = caffe.expand_groups(kernel, group).transpose(2, 3, 1, 0)
        else:
            kernel = kernel.T
        layer.set_weights([kernel, arrays.take(f"{layer.name} bias", layer.bias.shape)])
    arrays.check_all_taken()


def _assign_theano(model: keras.Model, path: Path) -> None:
    """Copy the authors' layers, most of which Keras named; the order tells which."""
    found = keras1_theano.read_layers(path)
    # The errors name a layer as the file does, and as we do.
    pairs = itertools.zip_longest(found, _learned(model))
    labels = [
        f"{name} ({layer.name if layer else 'none'} here)" for name, layer in pairs
    ]
    arrays = NamedArrays(
        _name_arrays(zip(labels, found.values(), strict=False)), path, NAME
    )
    for layer, label in zip(_learned(model), labels, strict=False):
        shape = _stored_shape(layer)
        if len(shape) == 4:
            kernel = arrays.take(f"{label} kernel", shape)
            kernel = keras1_theano.to_cross_correlation(kernel).transpose(2, 3, 1, 0)
        else:
            kernel = arrays.take(f"{label} kernel", shape[::-1])
        layer.set_weights([kernel, arrays.take(f"{label} bias", layer.bias.shape)])
    arrays.check_all_taken()


def _learned(model: keras.Model) -> list[keras.Layer]:
    return [layer for layer in model.layers if layer.weights]


def _stored_shape(layer: keras.Layer, group: int = 1) -> tuple[int, ...]:
    """Return the shape that a kernel has in Caffe and Theano: outputs first."""
    *window, inputs, outputs = layer.kernel.shape
    return (outputs, inputs // group, *window)


def _name_arrays(
    found: Iterable[tuple[str, Iterable[np.ndarray]]],
) -> dict[str, np.ndarray]:
    """Name the arrays of each layer for the errors; drop leading axes of size 1."""
    named = {}
    for layer, arrays in found:
        for number, array in enumerate(arrays):
            # Caffe's old form: (1, 1, 1, out) for a bias, (1, 1, out, in) for a matrix.
            while array.ndim > 1 and array.shape[0] == 1:
                array = array[0]
            what = ("kernel", "bias")[number] if number < 2 else f"array {number}"
            named[f"{layer} {what}"] = array
    return named
