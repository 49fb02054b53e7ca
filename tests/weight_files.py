"""Writers of the formats that the importers read, byte by byte from their definitions.

Nothing here is shared with the readers, so that an error in one cannot hide in both.
"""

import json
import struct
import zipfile

import h5py
import numpy as np

# Protobuf, and the messages of caffe.proto


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number % 128 + 128])
        number //= 128
    return out + bytes([number])


def number_field(field, number):
    return varint(field * 8) + varint(number)


def bytes_field(field, content):
    return varint(field * 8 + 2) + varint(len(content)) + content


def blob(array, old=False, packed=True):
    """A BlobProto, in the old form with num, channels, height and width."""
    values = np.asarray(array, "<f4")
    if packed:
        data = bytes_field(5, values.tobytes())
    else:
        data = b"".join(b"\x2d" + value.tobytes() for value in values.ravel())
    if old:
        shape = (1,) * (4 - values.ndim) + values.shape
        return b"".join(number_field(i, n) for i, n in enumerate(shape, 1)) + data
    return bytes_field(7, bytes_field(1, b"".join(map(varint, values.shape)))) + data


def caffe_layer(name, arrays, group=None, old=False, packed=True):
    """A V1LayerParameter or LayerParameter, as a field of the network."""
    name_field, blobs, convolution, layer = (4, 6, 10, 2) if old else (1, 7, 106, 100)
    text = name.encode()
    # A bottom, a top and a type come along in every real file.
    content = bytes_field(name_field, text) + bytes_field(3, b"top")
    content += number_field(5, 4) if old else bytes_field(2, b"Convolution")
    for array in arrays:
        content += bytes_field(blobs, blob(array, old, packed))
    sizes = number_field(1, 7) + (number_field(5, group) if group else b"")
    return bytes_field(layer, content + bytes_field(convolution, sizes))


def write_caffe(path, layers, groups=None, **form):
    """Write name -> arrays as a network."""
    groups = groups or {}
    data = bytes_field(1, b"VGG_ILSVRC_16_layers") + caffe_layer("data", [], **form)
    for name, arrays in layers.items():
        data += caffe_layer(name, arrays, groups.get(name), **form)
    path.write_bytes(data)
    return path


# Keras 1


def write_keras1(path, layers, group="", **attributes):
    """Write layer name -> arrays, or () for a layer without any."""
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for key, value in attributes.items():
            root.attrs[key] = value
        for name, arrays in layers.items():
            names = [f"{name}_{what}" for what in ("W", "b", "c")[: len(arrays)]]
            layer = root.create_group(name)
            layer.attrs["weight_names"] = [text.encode() for text in names]
            for text, array in zip(names, arrays, strict=True):
                layer[text] = np.asarray(array, np.float32)
    return path


# PyTorch


def state_dict(arrays, num_pid):
    """A pickle of name -> float tensor, with `num_pid` elements a storage."""

    def text(value):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    def number(value):
        return b"J" + struct.pack("<i", value)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    empty = b"ccollections\nOrderedDict\n)R"
    out = b"\x80\x02" + empty + b"("
    for key, (name, array) in enumerate(arrays.items()):
        strides = [step // array.itemsize for step in array.strides]
        storage = text("storage") + b"ctorch\nFloatStorage\n" + text(str(key))
        storage += text("cpu") + number(array.size) + b"N" * (num_pid - 5)
        out += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        out += storage + b"tQ" + number(0) + numbers(array.shape) + numbers(strides)
        out += b"\x89" + empty + b"tR"
    # PyTorch hangs the versions of the modules on the dictionary.
    return out + b"u}" + text("_metadata") + empty + b"sb."


def write_torch_zip(path, arrays, pickled=None, **members):
    """Write the zip format; `members` replace or add to it, None leaves one out."""
    arrays = {name: np.asarray(array, "<f4") for name, array in arrays.items()}
    content = {"data.pkl": pickled or state_dict(arrays, 5), "version": b"3\n"}
    for key, array in enumerate(arrays.values()):
        content[f"data/{key}"] = array.tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (content | members).items():
            if data is not None:
                archive.writestr(f"archive/{name}", data)
    return path


def write_torch_old(path, arrays):
    """Write the format before PyTorch 1.6."""
    arrays = {name: np.asarray(array, "<f4") for name, array in arrays.items()}
    magic = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
    data = b"\x80\x02\x8a\x0a" + magic + b".\x80\x02M\xe9\x03."
    data += b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s."
    data += state_dict(arrays, 6) + b"\x80\x02]("
    for key in range(len(arrays)):
        data += b"X" + struct.pack("<I", len(str(key))) + str(key).encode()
    data += b"e."
    for array in arrays.values():
        data += struct.pack("<q", array.size) + array.tobytes()
    path.write_bytes(data)
    return path


# safetensors


def write_safetensors(path, arrays, kinds=()):
    """Write 8 bytes of length, a header in JSON, and the values; `kinds` or float32."""
    header, values = {"__metadata__": {"format": "pt"}}, b""
    for number, (name, array) in enumerate(arrays.items()):
        array = np.asarray(array) if kinds else np.asarray(array, "<f4")
        data = array.tobytes()
        header[name] = {
            "dtype": kinds[number] if kinds else "F32",
            "shape": list(array.shape),
            "data_offsets": [len(values), len(values) + len(data)],
        }
        values += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the values start at a multiple of 8
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)
    return path
