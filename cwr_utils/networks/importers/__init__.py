"""Readers of weight files: bytes in, named NumPy arrays out."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_DOWNLOAD_TIMEOUT = 20.0  # seconds without a byte


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


def weight_file(path: str | os.PathLike) -> Path:
    """Return the path of a weight file that is there.

    Raises:
        WeightsError: if it is not.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"there is no weight file {path}")
    return Path(path)


@contextmanager
def downloading(network: str, url: str = "") -> Iterator[None]:
    """Let Keras fetch the weights of a network, but not wait for ever.

    Args:
        network: its name, for the error.
        url: where they are; if not given, Keras's own error names it.

    Raises:
        WeightsError: if they cannot be had; it says what to fetch by hand, and how
            to use it.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        yield
    except Exception as error:  # Keras raises a bare one
        url = url or "".join(re.findall(r"https?://\S+?\.(?:h5|keras)", str(error))[:1])
        if not url:
            raise
        raise WeightsError(
            f"the ImageNet weights of {network} cannot be downloaded on this machine. "
            f"Fetch {url.rsplit('/', 1)[1]} elsewhere, from {url}, and put it into "
            f"{weights_folder()}, or give its path as `weights`; None makes random "
            f"ones. Keras says: {error}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def describe_start(path: str | os.PathLike) -> str:
    """Say how a file starts, for errors about its format."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start.lstrip()[:1] == b"<":
        return f"it starts with {start!r}: a web page, not the file that it links to"
    return f"it starts with {start!r}"
