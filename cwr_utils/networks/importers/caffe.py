"""Read the layers of a ``.caffemodel`` without Caffe or protobuf.

A protobuf message is a run of fields: a varint with the field's number and wire
type, then a varint, 4 or 8 bytes, or a length and that many bytes; a message inside
a message is such bytes. The numbers below are those of ``caffe.proto``. A network
has its layers in field 2 (`V1LayerParameter`, files from before 2015, such as Zhou's)
or 100 (`LayerParameter`).
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cwr_utils.networks.importers import WeightsError, describe_start, weight_file

# Field of the network -> fields of its layers: name, blobs, convolution_param.
_LAYER_FIELDS = {2: (4, 6, 10), 100: (1, 7, 106)}
_V0_LAYER = 1  # in a V1 layer: a layer of the format before that
_GROUP = 5  # in a ConvolutionParameter
# In a BlobProto; fields 1 to 4 are num, channels, height, width of the old form.
_BLOB_DATA = {5: "<f4", 8: "<f8"}
_BLOB_SHAPE = 7


@dataclass(frozen=True)
class CaffeLayer:
    """What a layer has learned.

    Attributes:
        blobs: a convolution's kernel (out, in / group, h, w) or a linear layer's
            matrix (out, in), then the bias (out,). The old form stores all of
            them with four axes, the first ones 1.
        group: the convolution's groups, 1 for other layers.
    """

    blobs: tuple[np.ndarray, ...]
    group: int = 1


def read_layers(path: str | os.PathLike) -> dict[str, CaffeLayer]:
    """Read the layers that have weights, by name, in the file's order.

    Raises:
        WeightsError: if the file is missing, truncated or no caffemodel; it names
            the last layer that could be read.
    """
    path = weight_file(path)
    layers: dict[str, CaffeLayer] = {}
    try:
        for number, value in _fields(memoryview(path.read_bytes())):
            if number in _LAYER_FIELDS:
                name, layer = _read_layer(_message(value), *_LAYER_FIELDS[number])
                if layer.blobs:
                    layers[name] = layer
    except (WeightsError, UnicodeDecodeError) as error:
        where = f"after layer {list(layers)[-1]!r}" if layers else describe_start(path)
        raise WeightsError(
            f"{path} is truncated, damaged or no caffemodel ({where}): {error}"
        ) from error
    if not layers:
        raise WeightsError(
            f"{path} is no caffemodel with weights; {describe_start(path)}"
        )
    return layers


def expand_groups(kernel: np.ndarray, group: int) -> np.ndarray:
    """Write a grouped convolution's kernel as that of an ordinary convolution.

    Group g sees only its own share of the input channels, so the kernel becomes
    block-diagonal: zero wherever input and output are of different groups.

    Args:
        kernel: (out, in / group, h, w).
        group: number of groups.

    Returns:
        (out, in, h, w).
    """
    outputs, inputs = kernel.shape[:2]
    full = np.zeros((outputs, inputs * group, *kernel.shape[2:]), kernel.dtype)
    share = outputs // group
    for g in range(group):
        rows = slice(g * share, (g + 1) * share)
        full[rows, g * inputs : (g + 1) * inputs] = kernel[rows]
    return full


def _read_layer(
    message: memoryview, name_field: int, blobs_field: int, convolution_field: int
) -> tuple[str, CaffeLayer]:
    name, blobs, group = "", [], 1
    for number, value in _fields(message):
        if number == name_field:
            name = bytes(_message(value)).decode()
        elif number == blobs_field:
            blobs.append(_read_blob(_message(value)))
        elif number == convolution_field:
            groups = [v for n, v in _fields(_message(value)) if n == _GROUP]
            group = max(1, _integers(groups[-1])[-1]) if groups else 1
        elif number == _V0_LAYER and name_field != _V0_LAYER:
            raise WeightsError(
                "its layers have the oldest form (V0); bring it up to date with "
                "Caffe's upgrade_net_proto_binary"
            )
    return name, CaffeLayer(tuple(blobs), group)


def _read_blob(message: memoryview) -> np.ndarray:
    parts: list[np.ndarray] = []
    shape: list[int] = []
    old_shape = [0, 0, 0, 0]
    for number, value in _fields(message):
        if number in _BLOB_DATA:
            dtype, data = np.dtype(_BLOB_DATA[number]), _message(value)
            if len(data) % dtype.itemsize:
                raise WeightsError(f"{len(data)} bytes are no run of {dtype} values")
            parts.append(np.frombuffer(data, dtype))
        elif number == _BLOB_SHAPE:
            for _, sizes in _fields(_message(value)):
                shape += _integers(sizes)
        elif number <= 4:
            old_shape[number - 1] = _integers(value)[-1]
    values = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    shape = shape or old_shape
    if math.prod(shape) != values.size:
        raise WeightsError(f"a blob of shape {tuple(shape)} has {values.size} values")
    return values.reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield each field's number and its value: a varint's, or the bytes."""
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if number == 0 or wire_type not in (0, 1, 2, 5):
            raise WeightsError(f"field {number} of type {wire_type} is no protobuf")
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(wire_type)
        if length is None:
            length, position = _varint(message, position)
        if length > end - position:
            raise WeightsError(
                f"truncated: field {number} needs {length} bytes, {end - position} "
                "are left; fetch the file again"
            )
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Read 7 bits a byte, the lowest first, until a byte below 128."""
    value = 0
    for shift in range(0, 70, 7):
        if position == len(message):
            raise WeightsError("truncated within a number; fetch the file again")
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise WeightsError("a number of more than 10 bytes is no protobuf")


def _integers(value: int | memoryview) -> list[int]:
    """Return one varint, or all of a packed run."""
    if isinstance(value, int):
        return [value]
    integers, position = [], 0
    while position < len(value):
        integer, position = _varint(value, position)
        integers.append(integer)
    return integers or [0]


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise WeightsError(f"the number {value} is where bytes belong")
    return value
