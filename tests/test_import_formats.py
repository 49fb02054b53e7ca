"""Readers of Caffe, Keras 1 and PyTorch's zip files, against files written here."""

import struct
import tracemalloc

import numpy as np
import pytest
from weight_files import (
    bytes_field,
    caffe_layer,
    number_field,
    state_dict,
    write_caffe,
    write_keras1,
    write_torch_old,
    write_torch_zip,
)

from cwr_utils.networks.importers import (
    NamedArrays,
    WeightsError,
    caffe,
    keras1_theano,
)
from cwr_utils.networks.importers.torch_state_dict import read_state_dict

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((6, 2, 3, 3)).astype(np.float32)
MATRIX = RNG.standard_normal((5, 6)).astype(np.float32)
BIAS = RNG.standard_normal(6).astype(np.float32)
LAYERS = {"conv": (KERNEL, BIAS), "fc": (MATRIX,)}


# Caffe


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_caffe_layers_of_both_forms(tmp_path, old, packed):
    path = tmp_path / "net.caffemodel"
    write_caffe(path, LAYERS, {"conv": 2}, old=old, packed=packed)
    found = caffe.read_layers(path)
    assert list(found) == ["conv", "fc"]  # and not "data", which has no blobs
    assert (found["conv"].group, found["fc"].group) == (2, 1)
    shapes = [(6, 2, 3, 3), (1, 1, 1, 6) if old else (6,)]
    assert [blob.shape for blob in found["conv"].blobs] == shapes
    np.testing.assert_array_equal(found["conv"].blobs[0], KERNEL)
    np.testing.assert_array_equal(found["conv"].blobs[1].ravel(), BIAS)
    np.testing.assert_array_equal(found["fc"].blobs[0].reshape(5, 6), MATRIX)


def test_caffe_file_cut_anywhere_never_gives_wrong_arrays(tmp_path):
    path = tmp_path / "net.caffemodel"
    data = write_caffe(path, LAYERS).read_bytes()
    whole = caffe.read_layers(path)
    refused = 0
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            found = caffe.read_layers(path)
        except WeightsError as error:
            assert "net.caffemodel" in str(error)
            refused += 1
        else:  # cut between two layers: the network misses the rest
            assert list(found) == ["conv"]
            np.testing.assert_array_equal(
                found["conv"].blobs[0], whole["conv"].blobs[0]
            )
    assert refused == len(data) - 1


def test_truncated_caffe_file_names_the_last_whole_layer(tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(write_caffe(path, LAYERS).read_bytes()[:-10])
    with pytest.raises(WeightsError, match="after layer 'conv'.*truncated: field 100"):
        caffe.read_layers(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no caffemodel with weights; it starts with b''"),
        (b"<!DOCTYPE html><html>", "a web page, not the file that it links to"),
        (b"\x89HDF\r\n\x1a\n", "no caffemodel .*HDF"),
        (caffe_layer("data", []), "no caffemodel with weights"),
        (bytes_field(2, bytes_field(1, b"")), r"oldest form \(V0\)"),
        (number_field(100, 7), "number 7 is where bytes belong"),
        (bytes_field(100, bytes_field(7, bytes_field(5, b"123"))), "3 bytes"),
        (
            bytes_field(100, bytes_field(7, bytes_field(5, bytes(8)))),
            r"shape \(0, 0, 0, 0\) has 2 values",
        ),
        (b"\xff" * 20, "more than 10 bytes"),
    ],
)
def test_other_files_are_no_caffemodels(tmp_path, data, message):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        caffe.read_layers(path)
    with pytest.raises(WeightsError, match="no weight file"):
        caffe.read_layers(tmp_path / "none.caffemodel")


@pytest.mark.parametrize("group", [1, 2, 3])
def test_expanded_groups_do_what_the_groups_do(group):
    x = RNG.standard_normal(2 * group)
    full = caffe.expand_groups(KERNEL, group)
    assert full.shape == (6, 2 * group, 3, 3)
    for i, j in np.ndindex(3, 3):
        parts = zip(
            np.split(KERNEL[:, :, i, j], group), np.split(x, group), strict=True
        )
        expected = np.concatenate([kernel @ part for kernel, part in parts])
        np.testing.assert_allclose(full[:, :, i, j] @ x, expected, rtol=1e-6)


# Keras 1


@pytest.mark.parametrize("group", ["", "model_weights"])
def test_keras1_layers_in_order(tmp_path, group):
    layers = {"pad_2": (), "conv_10": (KERNEL, BIAS), "conv_9": (MATRIX,)}
    path = write_keras1(tmp_path / "w.h5", layers, group, backend=b"theano")
    found = keras1_theano.read_layers(path)
    assert list(found) == ["conv_10", "conv_9"]
    np.testing.assert_array_equal(found["conv_10"][0], KERNEL)
    np.testing.assert_array_equal(found["conv_10"][1], BIAS)


def test_keras1_file_cut_anywhere_is_an_error(tmp_path):
    path = write_keras1(tmp_path / "w.h5", LAYERS)
    data = path.read_bytes()
    for length in [*range(0, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=r"w\.h5"):
            keras1_theano.read_layers(path)


def test_other_files_are_no_keras1_weights(tmp_path):
    path = tmp_path / "w.h5"
    with pytest.raises(WeightsError, match="no weight file"):
        keras1_theano.read_layers(path)
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(WeightsError, match="no HDF5 file; .*a web page"):
        keras1_theano.read_layers(path)
    write_keras1(path, LAYERS, backend="tensorflow")
    with pytest.raises(WeightsError, match="'tensorflow'.*expected Keras 1 on Theano"):
        keras1_theano.read_layers(path)
    write_keras1(path, LAYERS, group="somewhere")
    with pytest.raises(WeightsError, match="no attribute `layer_names`.*somewhere"):
        keras1_theano.read_layers(path)
    write_keras1(path, LAYERS, layer_names=["conv", "lost"])
    with pytest.raises(WeightsError, match="layer 'lost'"):
        keras1_theano.read_layers(path)


# PyTorch's zip format

ARRAYS = {"a.weight": KERNEL, "a.bias": BIAS}


@pytest.mark.parametrize("write", [write_torch_zip, write_torch_old])
def test_torch_formats_read_the_same(tmp_path, write):
    found = read_state_dict(write(tmp_path / "w.pth", ARRAYS))
    assert list(found) == list(ARRAYS)
    np.testing.assert_array_equal(found["a.weight"], KERNEL)
    assert found["a.bias"].dtype == np.float32


def test_views_in_a_zip_file_keep_their_strides(tmp_path):
    turned = KERNEL.transpose(3, 0, 2, 1)
    path = write_torch_zip(
        tmp_path / "w.pth",
        {},
        state_dict({"t": turned}, 5),
        **{"data/0": KERNEL.tobytes()},
    )
    np.testing.assert_array_equal(read_state_dict(path)["t"], turned)


@pytest.mark.parametrize(
    "attack",
    [
        b"cos\nsystem\n(S'touch {marker}'\ntR.",
        b'cbuiltins\neval\n(S\'open("{marker}", "w")\'\ntR.',
        b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.",
        b"ctorch._utils\n_rebuild_parameter\n.",
    ],
)
def test_no_code_in_a_zip_file_runs(tmp_path, attack):
    marker = tmp_path / "marker"
    attack = b"\x80\x02" + attack.replace(b"{marker}", str(marker).encode())
    path = write_torch_zip(tmp_path / "w.pth", ARRAYS, attack)
    with pytest.raises(WeightsError, match=r"w\.pth .*Nothing was run"):
        read_state_dict(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"data.pkl": None}, r"one member <folder>/data\.pkl; got none"),
        ({"data/1": None}, "archive/data/1"),
        ({"data/1": bytes(23)}, "storage 1 should have 24 bytes, but has 23"),
        ({"byteorder": b"big"}, "little-endian"),
        ({"data.pkl": b"\x80\x02]."}, "expected a state dict"),
        ({"data.pkl": state_dict(ARRAYS, 5)[:-1]}, "damaged"),
    ],
)
def test_wrong_members_of_a_zip_file_are_named(tmp_path, members, message):
    path = write_torch_zip(tmp_path / "w.pth", ARRAYS, **members)
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)


def test_a_damaged_number_does_not_fill_the_memory(tmp_path):
    place = b"\x80\x02}r" + struct.pack("<I", 2**24) + b"."  # in the unpickler's memo
    small = np.broadcast_to(np.float32(1), (7, 11))  # a value that is repeated
    repeated = state_dict({"t": small}, 5)
    seven, million = (b"J" + struct.pack("<i", n) for n in (7, 2**20))
    repeated = repeated.replace(seven, million)
    data = {"data/0": bytes(4 * small.size)}
    tracemalloc.start()
    assert read_state_dict(write_torch_zip(tmp_path / "place.pth", {}, place)) == {}
    with pytest.raises(WeightsError, match=r"\(1048576, 11\) .* or repeats some"):
        read_state_dict(write_torch_zip(tmp_path / "t.pth", {}, repeated, **data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_zip_file_cut_or_changed_is_an_error(tmp_path):
    path = write_torch_zip(tmp_path / "w.pth", ARRAYS)
    data = path.read_bytes()
    for length in range(4, len(data), 41):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=r"w\.pth"):
            read_state_dict(path)
    position = data.index(KERNEL.tobytes())
    path.write_bytes(data[:position] + b"\x00\x01" + data[position + 2 :])
    with pytest.raises(WeightsError, match="CRC"):
        read_state_dict(path)


# What all importers share


def test_named_arrays_name_what_does_not_fit():
    arrays = NamedArrays({"a": KERNEL, "b": BIAS.astype(np.float64)}, "f.h5", "net")
    assert arrays.take("b", (6,)).dtype == np.float32
    with pytest.raises(WeightsError, match=r"f\.h5 has no 'b' of shape \(6,\)"):
        arrays.take("b", (6,))
    with pytest.raises(WeightsError, match="1 arrays that net lacks, the first 'a'"):
        arrays.check_all_taken()
    message = r"'a' in f\.h5 .* shape \(6, 2, 1, 1\), but has \(6, 2, 3, 3\)"
    with pytest.raises(WeightsError, match=message):
        arrays.take("a", (6, 2, 1, 1))
