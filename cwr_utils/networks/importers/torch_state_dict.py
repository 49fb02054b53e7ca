"""Read a PyTorch state dict, in the old or the zip file format, without torch.

The old format (before 1.6) is a stream: four pickles (magic number, protocol version,
description of the system that wrote it, the state dict), a fifth with the list of
storage keys, then for each key an int64 element count and that many little-endian
values. The zip format has the state dict in ``<folder>/data.pkl`` and each storage
in a member ``<folder>/data/<key>`` of its own.

Nothing that the pickles name is ever imported (`pickles`); the arrays are cut out of
the storages afterwards, with bounds checked.
"""

import math
import os
import reprlib
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from cwr_utils.networks.importers import WeightsError, describe_start, weight_file
from cwr_utils.networks.importers.safetensors import read_safetensors
from cwr_utils.pickles import PlainUnpickler

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

_STORAGE_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}


# The first is that of PyTorch 0.1 to 0.3.
_REBUILD_TENSOR = ("_rebuild_tensor", "_rebuild_tensor_v2")


@dataclass(frozen=True)
class _Storage:
    """A flat run of values that the end of the file holds under `key`."""

    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage, as the state dict describes it."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class _StateDictUnpickler(PlainUnpickler):
    """Admits the three kinds of names that a state dict is made of."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up in the closed table; never import it."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in _REBUILD_TENSOR:
            # A fresh function: the file could set attributes of a shared one.
            return lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, shape, strides
            )
        if module == "torch" and name in _STORAGE_DTYPES:
            return np.dtype(_STORAGE_DTYPES[name])
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        """Turn ("storage", dtype, key, device, size) into a record.

        In the old format a sixth element, None, says that it is not part of another.
        """
        match pid:
            case ("storage", np.dtype() as dtype, str(key), _, int(size), *view):
                if view in ([], [None]):
                    return _Storage(key, dtype, size)
        raise WeightsError(f"unexpected storage {reprlib.repr(pid)} in the state dict")


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the named arrays of a PyTorch state dict.

    Args:
        path: the ``.pth`` file, or a ``.safetensors`` file of the same arrays.

    Returns:
        Name -> array, in the file's order, with PyTorch's axes (a convolution is
        (out, in, height, width), a linear layer (out, in)). Floats stay as stored.

    Raises:
        WeightsError: if the file is missing, truncated, in another format, or
            names anything outside the closed table. None of its code is run.
    """
    path = weight_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
            file.seek(0)
            if start[8:] == b"{":
                return read_safetensors(path)
            if start[:4] == b"PK\x03\x04":
                return _read_zip(file)
            if start[:1] == b"\x80":
                return _read_stream(file, path.stat().st_size)
        raise WeightsError(f"no PyTorch weight file; {describe_start(path)}")
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:
        # A damaged pickle raises almost any exception; all mean the same here.
        raise WeightsError(
            f"{path} is truncated or damaged ({type(error).__name__}: {error}); "
            "fetch it again"
        ) from error


def _read_stream(file: BinaryIO, file_size: int) -> dict[str, np.ndarray]:
    header = {"magic number": MAGIC_NUMBER, "protocol": PROTOCOL_VERSION}
    for what, expected in header.items():
        found = PlainUnpickler(file).load()
        if found != expected:
            found = reprlib.repr(found)
            raise WeightsError(f"expected the {what} {expected}; got {found}")
    system = PlainUnpickler(file).load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightsError(f"expected a little-endian file; got {reprlib.repr(system)}")
    tensors = _StateDictUnpickler(file).load()
    keys = PlainUnpickler(file).load()
    if not isinstance(tensors, dict) or not isinstance(keys, list):
        raise WeightsError("expected a state dict (name -> tensor) and a list of keys")
    storages = _read_storages(file, file_size, _storages_of(tensors), keys)
    return {name: _to_array(name, t, storages) for name, t in tensors.items()}


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        found = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(found) != 1:
            raise WeightsError(
                f"expected one member <folder>/data.pkl; got {found or 'none'}: this "
                "zip file holds no PyTorch weights"
            )
        folder = found[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise WeightsError("expected a little-endian file")
        with archive.open(found[0]) as pickled:
            tensors = _StateDictUnpickler(pickled).load()
        if not isinstance(tensors, dict):
            raise WeightsError("expected a state dict (name -> tensor)")
        storages = {}
        for key, storage in _storages_of(tensors).items():
            member = archive.getinfo(f"{folder}data/{key}")
            num_bytes = storage.size * storage.dtype.itemsize
            if member.file_size != num_bytes:
                raise WeightsError(
                    f"storage {key} should have {num_bytes} bytes, but has "
                    f"{member.file_size}"
                )
            storages[key] = np.frombuffer(archive.read(member), storage.dtype)
    return {name: _to_array(name, t, storages) for name, t in tensors.items()}


def _storages_of(tensors: dict[Any, Any]) -> dict[str, _Storage]:
    storages: dict[str, _Storage] = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise WeightsError(
                f"expected only named tensors; {reprlib.repr(name)} is a "
                f"{type(tensor).__name__} (a checkpoint instead of a state dict?)"
            )
        storage = tensor.storage
        if not isinstance(storage, _Storage):
            raise WeightsError(f"tensor {name!r} has no storage")
        if storages.setdefault(storage.key, storage) != storage:
            raise WeightsError(f"storage {storage.key} is described in two ways")
    return storages


def _read_storages(
    file: BinaryIO, file_size: int, storages: dict[str, _Storage], keys: list[Any]
) -> dict[str, np.ndarray]:
    if len(keys) != len(storages) or set(keys) != set(storages):
        raise WeightsError(
            f"the list of storages ({len(keys)}) and the state dict "
            f"({len(storages)}) disagree"
        )
    arrays = {}
    for key in keys:
        storage = storages[key]
        size = int.from_bytes(file.read(8), "little", signed=True)
        if size != storage.size:
            raise WeightsError(
                f"storage {key} should have {storage.size} elements; the file says "
                f"{size}"
            )
        num_bytes = size * storage.dtype.itemsize
        left = file_size - file.tell()
        if num_bytes > left:
            raise WeightsError(
                f"truncated: storage {key} needs {num_bytes} bytes, {left} are left; "
                "fetch the file again"
            )
        arrays[key] = np.frombuffer(file.read(num_bytes), storage.dtype)
    if file.tell() != file_size:
        raise WeightsError(f"{file_size - file.tell()} bytes are left over at the end")
    return arrays


def _to_array(
    name: str, tensor: _Tensor, storages: dict[str, np.ndarray]
) -> np.ndarray:
    flat = storages[tensor.storage.key]
    shape, strides = tuple(tensor.shape), tuple(tensor.strides)
    whole = (tensor.offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in whole):
        raise WeightsError(f"tensor {name!r} has the impossible shape {shape}")
    last = tensor.offset + sum(
        (n - 1) * step for n, step in zip(shape, strides, strict=True)
    )
    if 0 not in shape and max(last + 1, math.prod(shape)) > flat.size:
        raise WeightsError(
            f"tensor {name!r} of shape {shape} reaches element {last} of a storage "
            f"with {flat.size}, or repeats some"
        )
    if 0 in shape:
        return np.zeros(shape, flat.dtype)
    view = np.lib.stride_tricks.as_strided(
        flat[tensor.offset :], shape, [step * flat.itemsize for step in strides]
    )
    return view.copy()
