"""Networks whose class activation maps are exact, under one interface.

`load` makes a `CamNetwork`; `available` lists the names that it knows. `from_keras`
makes one of a person's own model.
"""

import difflib
import os
from typing import Any

from cwr_utils.backend import keras
from cwr_utils.networks import (
    catalog,
    efficientnet_lite,
    hub,
    keras_applications,
    keras_model,
    torchvision,
    vgg16_cam,
)
from cwr_utils.networks.cam_network import (
    CamNetwork,
    FeatureLayer,
    compile_options,
    top_classes,
)
from cwr_utils.networks.check import Check, check_top5
from cwr_utils.networks.heads import slide_windows
from cwr_utils.networks.importers import WeightsError
from cwr_utils.networks.importers.keras_file import save_weights
from cwr_utils.networks.keras_model import from_keras
from cwr_utils.protocol import Protocol

table = catalog.table
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")

__all__ = [
    "CamNetwork",
    "Check",
    "FeatureLayer",
    "WeightsError",
    "available",
    "check_top5",
    "compile_options",
    "from_keras",
    "load",
    "save_weights",
    "slide_windows",
    "table",
    "top_classes",
    "under",
]


def available() -> list[str]:
    """Return the names that `load` knows."""
    prefix = keras_applications.PREFIX
    return [
        *efficientnet_lite.SCALES,
        vgg16_cam.NAME,
        *torchvision.ARCHITECTURES,
        *(f"{prefix}{name}" for name in keras_applications.NAMES),
    ]


def load(
    name: str,
    weights: str | os.PathLike | None = "imagenet",
    seed: int = 0,
    precision: str | None = None,
    **options: Any,
) -> CamNetwork:
    """Load a network by name.

    Args:
        name: one of `available`; the path of a whole Keras model, ``.keras`` or
            ``.h5`` (see `keras_model`); or "hub:" and a preset of KerasHub (see `hub`).
        weights: "imagenet", None for random ones, or the path of a weight file. A model
            file and a preset have their own, which are meant by "imagenet".
        seed: of the random weights; nothing else here is random.
        precision: Keras's policy for the convolutions, "float32", "mixed_float16" or
            "mixed_bfloat16"; None is the policy that Keras has. CAMs, pooling and
            logits are float32 in any case.
        options: what one network alone takes: `mean_order` of "vgg16-cam".

    Returns:
        The network, ready for `maps`.

    Raises:
        ValueError: if the name or the precision is unknown, or the network's CAM would
            not be exact.
        WeightsError: if the weights cannot be had; it says what to do.
    """
    if precision not in (None, *PRECISIONS):
        raise ValueError(
            f"`precision` must be one of {', '.join(PRECISIONS)}; got {precision!r}."
        )
    usual, order = keras.config.dtype_policy(), keras.config.image_data_format()
    precision = precision or usual.name
    try:
        keras.config.set_dtype_policy(precision)
        # Photos are, whatever a person's keras.json says.
        keras.config.set_image_data_format("channels_last")
        network = _load(name, weights, seed, **options)
    finally:
        keras.config.set_dtype_policy(usual)
        keras.config.set_image_data_format(order)
    # A path may be relative, and other processes work elsewhere.
    if weights not in ("imagenet", None):
        weights = os.path.abspath(weights)
    if keras_model.is_file(name):
        name = os.path.abspath(name)
    if hub.is_folder(name):
        name = hub.PREFIX + os.path.abspath(name.removeprefix(hub.PREFIX))
    settings = tuple(sorted(options.items()))
    network.recipe = _load_again, (name, weights, seed, precision, settings)
    return network


def _load_again(name, weights, seed, precision, options) -> CamNetwork:
    return load(name, weights, seed, precision, **dict(options))


def _load(name, weights, seed, **options: Any) -> CamNetwork:
    if keras_model.is_file(name):
        return keras_model.load(name, weights, seed, **options)
    if name.startswith(hub.PREFIX):
        return hub.load(name, weights, seed, **options)
    if name in efficientnet_lite.SCALES:
        return efficientnet_lite.load(name, weights, seed, **options)
    if name == vgg16_cam.NAME:
        return vgg16_cam.load(weights, seed, **options)
    if name in torchvision.ARCHITECTURES:
        return torchvision.load(name, weights, seed, **options)
    if name.startswith(keras_applications.PREFIX):
        return keras_applications.load(name, weights, seed, **options)
    similar = difflib.get_close_matches(name, available(), n=3, cutoff=0.4)
    raise ValueError(
        f"unknown network {name!r}; similar: {', '.join(similar) or 'none'}; "
        f"all of them: {', '.join(available())}, the path of a .keras or .h5 "
        "file, or hub: and a preset of KerasHub"
    )


def under(network: CamNetwork, protocol: Protocol) -> CamNetwork:
    """The network as a protocol has it: VGG-16-CAM with its `mean_order`.

    The name of the network then says so, and with it every store and table.
    """
    if network.name not in vgg16_cam.NAMES.values():
        return network
    turned = vgg16_cam.reorder_mean(network, protocol.mean_order)
    if turned.name == network.name:
        return network
    if network.recipe is not None:
        make, (name, weights, seed, precision, settings) = network.recipe
        settings = dict(settings) | {"mean_order": protocol.mean_order}
        again = name, weights, seed, precision, tuple(sorted(settings.items()))
        turned.recipe = make, again
    return turned
