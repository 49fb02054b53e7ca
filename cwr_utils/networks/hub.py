"""Image classifiers of KerasHub whose head is exact (the `hub` extra).

``hub:resnet_50_imagenet`` is a preset that KerasHub knows by name, ``hub:FOLDER`` one
in a local folder, and ``hub:hf://timm/resnet50.a1_in1k`` a checkpoint of timm on the
Hugging Face hub, which KerasHub transforms.
"""

import difflib
import os
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from cwr_utils.networks.cam_network import CamNetwork, randomize
from cwr_utils.networks.importers import WeightsError, downloading
from cwr_utils.networks.keras_model import from_keras

PREFIX = "hub:"


def load(
    name: str, weights: str | os.PathLike | None = "imagenet", seed: int = 0
) -> CamNetwork:
    """Load a preset of KerasHub.

    Args:
        name: "hub:" and a preset: a name, a folder, or "hf://", "kaggle://" and a
            handle. Nothing that a preset brings along is run.
        weights: "imagenet" for those of the preset, None for random ones.
        seed: of the random weights.

    Returns:
        The network; one of a folder is called "hub:" and the folder's own name.

    Raises:
        WeightsError: if the preset cannot be had or read; it says what to do.
        ValueError: if KerasHub is not installed, the weights are a file, the preset's
            CAM would not be exact, or it changes colours in another way than by a
            factor and a summand for each.
    """
    if weights not in ("imagenet", None):
        raise ValueError(
            f"{name} has the weights of its preset, or random ones (None); got the "
            f"file {weights}. Nearest thing that works: a classifier of KerasHub that "
            "has read it, and networks.from_keras(classifier)."
        )
    classifier = _open(name, load_weights=weights is not None)
    if weights is None:
        randomize(classifier, seed)
    scale, offset = _colours(name, classifier.preprocessor)
    network = from_keras(classifier, None, lambda images: _apply(images, scale, offset))
    network.name = short_name(name)
    if weights is None:
        network.weights_sha256 = f"random:seed={seed}:{network.weights_sha256}"
    return network


def is_folder(name: str) -> bool:
    """Whether a network's name is a preset in a local folder."""
    return name.startswith(PREFIX) and os.path.isdir(name.removeprefix(PREFIX))


def short_name(name: str) -> str:
    """What tables call a preset: a folder by its own name alone."""
    return PREFIX + Path(name.removeprefix(PREFIX)).name if is_folder(name) else name


def _open(name: str, load_weights: bool) -> Any:
    """The classifier of a preset."""
    try:
        import keras_hub
    except ImportError as error:
        raise ValueError(
            f"{name} needs KerasHub: pip install 'cwr-workbook[hub]'"
        ) from error
    preset, classifiers = name.removeprefix(PREFIX), keras_hub.models.ImageClassifier
    try:
        with downloading(name), warnings.catch_warnings():
            # Keras only warns where it leaves a layer as it was.
            warnings.filterwarnings("error", "Skipping")
            return classifiers.from_preset(preset, load_weights=load_weights)
    except Exception as error:  # KerasHub, its hubs and Keras raise many kinds
        known = list(classifiers.presets)
        similar = difflib.get_close_matches(preset, known, n=4, cutoff=0.5)
        advice = f"similar: {', '.join(similar) or 'none'}; or name a folder"
        if preset in known or "://" in preset:
            advice = (
                "where there is internet, save it by keras_hub.models.ImageClassifier"
                f".from_preset({preset!r}).save_to_preset('folder'); take hub:folder"
            )
        elif os.path.isdir(preset):
            advice = (
                "the folder has no whole preset with a classifier, or one with code"
            )
        raise WeightsError(
            f"{name} cannot be loaded as an image classifier: {advice}. KerasHub says: "
            f"{str(error)[:500]}"
        ) from error


def _colours(name: str, preprocessor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Factor and summand (3,) by which a preprocessor changes colours.

    They are seen on photos of one colour: what else it does is to resize.
    """
    if preprocessor is None:
        return np.ones(3, np.float32), np.zeros(3, np.float32)
    colours = np.array([[0, 0, 0], [255, 255, 255], [200, 100, 50]], np.float32)
    photos = np.broadcast_to(colours[:, None, None], (3, 8, 8, 3))
    black, white, other = ops.convert_to_numpy(preprocessor(photos))[:, 0, 0]
    scale = (white - black) / 255
    if not np.allclose(other, _apply(colours[2], scale, black), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{name} changes colours in another way than by a factor and a summand for "
            "each. Nearest thing that works: networks.from_keras(classifier, "
            "preprocess=...) with a function that does the same."
        )
    return scale, black


def _apply(images: Any, scale: np.ndarray, offset: np.ndarray) -> Any:
    dtype = keras.backend.standardize_dtype(images.dtype)
    return images * scale.astype(dtype) + offset.astype(dtype)
