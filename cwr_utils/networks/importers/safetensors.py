"""Read a ``.safetensors`` file, which holds named arrays and no code.

Eight bytes, the length of the header as a little-endian integer; the header, a JSON
object of name -> ``dtype``, ``shape`` and ``data_offsets``, the first byte and the one
after the last; then the values, row by row, without gaps.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from cwr_utils.networks.importers import WeightsError

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # the upper half of a float32, which NumPy does not have
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "|b1",
}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read the named arrays of a file, in the order of their values.

    Raises:
        WeightsError: if the file is truncated or its header contradicts itself.
    """
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise WeightsError(
            f"truncated: a header of {length} bytes is announced, {len(data) - 8} are "
            "there; fetch the file again"
        )
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    values, end, arrays = memoryview(data)[8 + length :], 0, {}
    for name, entry in sorted(header.items(), key=_start):
        arrays[name], end = _read(name, entry, values, end)
    if end != len(values):
        raise WeightsError(
            f"the file has {len(values)} bytes of values; its header describes {end}"
        )
    return arrays


def _start(item: tuple[str, Any]) -> int:
    name, entry = item
    match entry:
        case {"data_offsets": [int(start), int()]}:
            return start
    raise WeightsError(f"{name!r} has no offsets in the header")


def _read(
    name: str, entry: dict[str, Any], values: memoryview, start: int
) -> tuple[np.ndarray, int]:
    """One array, which must begin at `start`, and where it ends."""
    kind, shape, offsets = (entry.get(k) for k in ("dtype", "shape", "data_offsets"))
    if kind not in _DTYPES:
        raise WeightsError(
            f"{name!r} is of the type {kind!r}; known are {', '.join(_DTYPES)}"
        )
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise WeightsError(f"{name!r} has the impossible shape {shape}")
    dtype = np.dtype(_DTYPES[kind])
    end = start + math.prod(shape) * dtype.itemsize
    if offsets != [start, end]:
        raise WeightsError(
            f"{name!r} of shape {tuple(shape)} should take the bytes {start} to {end}, "
            f"but has {offsets}"
        )
    if end > len(values):
        raise WeightsError(
            f"truncated: {name!r} ends at byte {end}, and the file has {len(values)} "
            "bytes of values; fetch it again"
        )
    array = np.frombuffer(values[start:end], dtype).reshape(shape)
    if kind == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    return array, end
