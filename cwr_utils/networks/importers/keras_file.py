"""Weight files of this Keras: ``.weights.h5``, ``.h5`` and ``.keras``."""

import hashlib
import os
import re
import warnings

import keras

from cwr_utils.networks.cam_network import CamNetwork
from cwr_utils.networks.importers import WeightsError, weight_file


def with_classifier(backbone: keras.Model, classes: int) -> keras.Model:
    """Put global average pooling and a linear layer `CAM_fc` behind a backbone."""
    pool = keras.layers.GlobalAveragePooling2D("channels_last", name="CAM_pool")
    logits = keras.layers.Dense(classes, name="CAM_fc")(pool(backbone.output))
    return keras.Model(backbone.input, logits, name=backbone.name)


def load_weights(model: keras.Model, path: str | os.PathLike, name: str) -> str:
    """Load a file into a model that has the same layers.

    Args:
        model: the model; its last axis are the classes.
        path: the file.
        name: the network's, for the errors.

    Returns:
        The file's SHA-256.

    Raises:
        WeightsError: if the file is missing, damaged or of another model; it names
            the layer, the expected and the found shape.
    """
    path = weight_file(path)
    if path.suffix not in (".h5", ".keras"):
        raise WeightsError(
            f"expected a .weights.h5, .h5 or .keras file for {name}; got {path}"
        )
    expected = f"the weights of {name} with {model.output.shape[-1]} classes"
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            model.load_weights(path)
    except Exception as error:
        # Keras and h5py raise many kinds of exceptions for a file that does not fit.
        # Keras then prints whole arrays and lists of layers: the first part will do.
        reason = re.split(r"Target variable:|List of objects", str(error))[0].strip()
        raise WeightsError(f"{path} does not hold {expected}: {reason}") from error
    for warning in warned:
        # Keras only warns where it leaves a layer as it was.
        if "Skipping" in str(warning.message):
            raise WeightsError(f"{path} lacks part of {expected}: {warning.message}")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_weights(network: CamNetwork, path: str | os.PathLike) -> None:
    """Save a network, once imported, as a Keras file of our own.

    Args:
        network: "vgg16-cam" or "densenet161"; `load` reads the file back.
        path: ends in ``.weights.h5``.
    """
    classes = len(network.class_names)
    model = with_classifier(network.backbone, classes)
    model.layers[-1].set_weights([network.class_weights, network.class_bias])
    model.save_weights(path)
