"""A person's own Keras model as a network: in memory, or a file of a whole model.

A file ``pets.keras`` may have ``pets.json`` beside it, an object with the arguments of
`from_keras` that the model does not know itself:

    {"class_names": ["cat", "dog"], "preprocess": "tf"}
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from cwr_utils.networks import heads, imagenet
from cwr_utils.networks.cam_network import CamNetwork, hash_arrays, randomize
from cwr_utils.networks.importers import WeightsError, keras_file, weight_file

SUFFIXES = (".keras", ".h5", ".hdf5")
# How pixels of 0..255 were scaled in training; three as Keras names them.
PREPROCESS: dict[str, Callable[[Any], Any]] = {
    "none": lambda images: images,
    "unit": lambda images: images / 255.0,
    **{
        mode: lambda images, mode=mode: (
            keras.applications.imagenet_utils.preprocess_input(
                images, data_format="channels_last", mode=mode
            )
        )
        for mode in ("tf", "torch", "caffe")
    },
}


def is_file(name: str) -> bool:
    """Whether a network's name is the path of a model file."""
    return name.endswith(SUFFIXES)


def load(
    name: str, weights: str | os.PathLike | None = "imagenet", seed: int = 0
) -> CamNetwork:
    """Load a model file as a network, called as the file.

    Args:
        name: path of a ``.keras`` file, or of an ``.h5`` file of a whole model. Nothing
            in it is run: models with Python code inside (Lambda layers) are refused.
            Prefer ``.keras``: HDF5 may read a damaged ``.h5`` for ever.
        weights: "imagenet" for those in the file, None for random ones, or the path of
            a weight file of this model.
        seed: of the random weights.

    Raises:
        WeightsError: if the file is missing, damaged or no whole model, or its weights
            do not fit.
        ValueError: if the model's CAM would not be exact (`heads.split`), or the
            ``.json`` beside it is wrong.
    """
    path = weight_file(name)
    beside = _read_beside(path.with_suffix(".json"))
    model = _read_model(path)
    if weights is None:
        randomize(model, seed)
    elif weights != "imagenet":
        keras_file.load_weights(model, weights, path.name)
    network = from_keras(model, **beside)
    network.name = path.name
    if weights is None:
        network.weights_sha256 = f"random:seed={seed}:{network.weights_sha256}"
    return network


def from_keras(
    model: keras.Model,
    class_names: Sequence[str] | None = None,
    preprocess: str | Callable[[Any], Any] | None = None,
) -> CamNetwork:
    """Make a network of a Keras model whose class activation maps are exact.

    The model may have any input size, models inside it, and any number of classes;
    which heads are exact is said in `networks.heads`.

    Args:
        model: functional or sequential, RGB image in, a score for each class out. It
            is copied.
        class_names: one for each class; None gives those of ImageNet to 1,000 classes
            and "class 0", "class 1" ... to any other number.
        preprocess: from RGB images (B, H, W, 3), float 0..255, to what the model takes:
            None or "none" where layers in the model do that, "unit" for 0..1, "tf" for
            -1..1, "torch" for ImageNet's mean and deviation, "caffe" for BGR less the
            mean, or a function of `keras.ops`.

    Returns:
        The network, called "model:" and the model's name. A network of a model in
        memory cannot be loaded again by other processes; that of a file can.

    Raises:
        ValueError: if the CAM would not be exact, with the reason and the nearest thing
            that works; or if there are not as many names as classes, or two are equal.
    """
    if not callable(preprocess):
        preprocess = _mode(preprocess or "none")
    # Keras numbers models without a name, in the order in which they are made.
    name = re.sub(r"^(functional|sequential|model)_\d+$", r"\1", model.name)
    parts = heads.split(model, name)
    classes = parts.class_weights.shape[1]
    if class_names is None:
        own = [f"class {number}" for number in range(classes)]
        class_names = imagenet.class_names() if classes == 1000 else own
    if len(set(class_names)) != classes or len(class_names) != classes:
        raise ValueError(
            f"{name} has {classes} classes; expected as many `class_names`, all of "
            f"them different; got {len(class_names)}, {len(set(class_names))} different"
        )
    return CamNetwork(
        name=f"model:{name}",
        backbone=parts.backbone,
        class_weights=parts.class_weights,
        class_bias=parts.class_bias,
        class_names=class_names,
        preprocess=preprocess,
        weights_sha256=identify(parts, preprocess),
    )


def identify(parts: heads.Split, preprocess: Callable[[Any], Any]) -> str:
    """SHA-256 of all that a network's numbers depend on.

    That is its layers, but for their names, their weights, and what becomes of each
    colour value on the way in: not the file they came in, nor when it was written.
    """
    levels = np.arange(256, dtype=np.float32)
    photo = np.stack([levels, levels[::-1], np.roll(levels, 85)], -1)[None, :, None]
    scaled = keras.ops.convert_to_numpy(preprocess(keras.ops.convert_to_tensor(photo)))
    arrays = [
        *parts.backbone.get_weights(),
        parts.class_weights,
        parts.class_bias,
        np.round(scaled, 4),  # to be the same on every backend
    ]
    graph = json.dumps(_graph(parts.backbone), sort_keys=True)
    return hashlib.sha256(f"{graph}{hash_arrays(arrays)}".encode()).hexdigest()


def _graph(model: keras.Model) -> Any:
    """Configuration of all layers, numbers in the place of their names."""
    config = model.get_config()["layers"]
    numbers = {layer["config"]["name"]: number for number, layer in enumerate(config)}

    def plain(value):
        if isinstance(value, dict):
            kept = {key: v for key, v in value.items() if key not in ("name", "dtype")}
            return {
                key: [numbers[v[0]], *v[1:]] if key == "keras_history" else plain(v)
                for key, v in kept.items()
            }
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return plain(
        [
            [layer["class_name"], layer["config"], layer["inbound_nodes"]]
            for layer in config
        ]
    )


def _has_model(path: Path) -> bool:
    """Whether an HDF5 file has the layers besides the weights."""
    if not h5py.is_hdf5(path):
        return True  # damaged: Keras says how
    with h5py.File(path) as file:
        return "model_config" in file.attrs


def _mode(name: Any) -> Callable[[Any], Any]:
    if name not in PREPROCESS:
        raise ValueError(
            f"`preprocess` must be a function or one of {', '.join(PREPROCESS)}; "
            f"got {name!r}"
        )
    return PREPROCESS[name]


def _read_beside(path: Path) -> dict[str, Any]:
    """The arguments in the ``.json`` beside a model; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        names = found.get("class_names", [])
        right = found.keys() <= {"class_names", "preprocess"} and all(
            isinstance(name, str) for name in names
        )
    except (ValueError, AttributeError, TypeError):
        right = False
    if not right:
        raise ValueError(
            f"{path} must be an object with `class_names`, a list of texts, and "
            f"`preprocess`, one of {', '.join(PREPROCESS)}, or one of the two"
        )
    return found


def _read_model(path: Path) -> keras.Model:
    """Load a whole model without running anything that it brings along."""
    try:
        whole = path.suffix == ".keras" or _has_model(path)
        if whole:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras and h5py raise many kinds
        raise WeightsError(
            f"{path} cannot be loaded: it is damaged, or has layers that Keras does "
            "not know, or code (a Lambda layer), of which nothing is run. Nearest "
            "thing that works, if you trust it: networks.from_keras(model) with a "
            f"model that you loaded yourself. Keras says: {str(error)[:500]}"
        ) from error
    raise WeightsError(
        f"{path} has weights and no model: give the name of a network, and this "
        "file as `weights`; or save the whole model, model.save('my.keras')"
    )
