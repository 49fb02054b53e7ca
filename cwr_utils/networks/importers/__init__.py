"""Readers of weight files: bytes in, named NumPy arrays out."""

import os
from pathlib import Path

import numpy as np


class WeightsError(ValueError):
    """Weights that cannot be had or read, or that do not fit the network."""


class NamedArrays:
    """The arrays of one weight file, taken out by name with their shapes checked."""

    def __init__(
        self, arrays: dict[str, np.ndarray], path: str | os.PathLike, network: str
    ) -> None:
        """Hold `arrays`, read from `path`, that should fit `network`."""
        self._arrays = dict(arrays)
        self._path = path
        self._network = network

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Take one array out, as float32.

        Raises:
            WeightsError: if it is missing or has another shape than `shape`.
        """
        if name not in self._arrays:
            raise WeightsError(
                f"{self._path} has no {name!r} of shape {shape}: these are not the "
                f"weights of {self._network}"
            )
        found = self._arrays.pop(name)
        if found.shape != tuple(shape):
            raise WeightsError(
                f"{name!r} in {self._path} should have shape {tuple(shape)}, but has "
                f"{found.shape}: these are not the weights of {self._network}"
            )
        return found.astype(np.float32)

    def check_all_taken(self) -> None:
        """Refuse a file that holds more than the network.

        Raises:
            WeightsError: if an array was not taken.
        """
        if self._arrays:
            raise WeightsError(
                f"{self._path} has {len(self._arrays)} arrays that {self._network} "
                f"lacks, the first {next(iter(self._arrays))!r}: these are not the "
                f"weights of {self._network}"
            )


def weights_folder() -> Path:
    """Return the folder where `weights="imagenet"` looks: Keras's own for weights."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"


def describe_start(path: str | os.PathLike) -> str:
    """Say how a file starts, for errors about its format."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start.lstrip()[:1] == b"<":
        return f"it starts with {start!r}: a web page, not the file that it links to"
    return f"it starts with {start!r}"
