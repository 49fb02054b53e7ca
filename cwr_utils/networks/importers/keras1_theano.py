"""Read the HDF5 weights that Keras 1 wrote when it ran on Theano.

The root (or the group `model_weights`, where the whole model was saved) lists its
layers in the attribute `layer_names`, each layer's group its arrays in
`weight_names`. A convolution's kernel is (out, in, h, w), a Dense kernel (in, out).
Theano computes true convolutions, so that kernels are upside down and mirrored for
every library that computes cross-correlations, Keras 3 among them.
"""

import os

import h5py
import numpy as np

from cwr_utils.networks.importers import WeightsError, describe_start, weight_file


def read_layers(path: str | os.PathLike) -> dict[str, tuple[np.ndarray, ...]]:
    """Read the arrays of the layers that have any, by name, in the model's order.

    Args:
        path: the ``.h5`` file.

    Returns:
        Layer name -> its arrays (kernel, bias), exactly as stored.

    Raises:
        WeightsError: if the file is missing, truncated, in another format, or was
            written by another backend than Theano.
    """
    path = weight_file(path)
    if not h5py.is_hdf5(path):
        raise WeightsError(f"{path} is no HDF5 file; {describe_start(path)}")
    layers: dict[str, tuple[np.ndarray, ...]] = {}
    where = "its header"
    try:
        with h5py.File(path) as file:
            root = file.get("model_weights", file)
            if "layer_names" not in root.attrs:
                raise WeightsError(
                    f"{path} has no attribute `layer_names`: no Keras 1 weight file "
                    f"(it holds {sorted(file)[:5]}; our own end in .weights.h5)"
                )
            backend = _text(root.attrs.get("backend", file.attrs.get("backend")))
            if backend not in ("", "theano"):
                raise WeightsError(
                    f"{path} was written with the backend {backend!r}, whose kernels "
                    "are stored in another way; expected Keras 1 on Theano"
                )
            for name in map(_text, root.attrs["layer_names"]):
                where = f"layer {name!r}"
                group = root[name]
                names = [_text(weight) for weight in group.attrs["weight_names"]]
                arrays = tuple(np.asarray(group[weight]) for weight in names)
                if arrays:
                    layers[name] = arrays
    except WeightsError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} is truncated or damaged in {where} ({error}); fetch it again"
        ) from error
    return layers


def to_cross_correlation(kernel: np.ndarray) -> np.ndarray:
    """Turn a true convolution's kernel (out, in, h, w) by 180 degrees."""
    return kernel[:, :, ::-1, ::-1]


def _text(name: bytes | str | None) -> str:
    return name.decode() if isinstance(name, bytes) else str(name or "")
