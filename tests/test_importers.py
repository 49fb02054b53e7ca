"""The reader of PyTorch files: what it reads, and what it must never run."""

import io
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest

from cwr_utils.networks.importers import WeightsError
from cwr_utils.networks.importers.torch_state_dict import (
    MAGIC_NUMBER,
    PROTOCOL_VERSION,
    read_state_dict,
)

SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}


class Tensor:
    """What torch pickles: a storage, and how to look at it."""

    def __init__(self, key, kind, array, shape=None, strides=None, offset=0):
        self.storage = (key, kind, array)
        self.view = (offset, shape or array.shape)
        items = tuple(step // array.itemsize for step in array.strides)
        self.strides = strides or items


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a writer of files in the old format, with any part replaced."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild(*_):
        raise AssertionError("the file's own function ran")

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild
    kinds = {}
    for kind in ("FloatStorage", "LongStorage", "HalfStorage", "ComplexFloatStorage"):
        kinds[kind] = type(kind, (), {"__module__": "torch"})
        setattr(torch, kind, kinds[kind])

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, tuple) and value[:1] == ("storage",):
                return value
            return None

        def reducer_override(self, value):
            if not isinstance(value, Tensor):
                return NotImplemented
            key, kind, array = value.storage
            storage = ("storage", kinds[kind], key, "cpu", array.size, None)
            hooks = OrderedDict()
            return rebuild, (storage, *value.view, value.strides, False, hooks)

    def dump(value):
        if isinstance(value, bytes):
            return value
        buffer = io.BytesIO()
        Pickler(buffer, protocol=2).dump(value)
        return buffer.getvalue()

    def write(tensors, /, tail=b"", **parts):
        storages = {t.storage[0]: t.storage[2] for t in tensors.values()}
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setitem(sys.modules, "torch._utils", utils)
        pickles = {
            "magic": MAGIC_NUMBER,
            "protocol": PROTOCOL_VERSION,
            "system": SYSTEM,
            "state": OrderedDict(tensors),
            "keys": list(storages),
        }
        data = b"".join(dump(value) for value in (pickles | parts).values())
        for array in storages.values():
            data += array.size.to_bytes(8, "little") + array.tobytes()
        path = tmp_path / "weights.pth"
        path.write_bytes(data + tail)
        monkeypatch.delitem(sys.modules, "torch")
        monkeypatch.delitem(sys.modules, "torch._utils")
        return path

    return write


@pytest.fixture
def state():
    values = np.arange(24, dtype="<f4").reshape(2, 3, 4)
    return {
        "conv.weight": Tensor("100", "FloatStorage", values),
        "bn.num_batches_tracked": Tensor("200", "LongStorage", np.array(7, "<i8")),
    }


def test_reads_names_values_types_and_order(write, state):
    arrays = read_state_dict(write(state))
    assert list(arrays) == ["conv.weight", "bn.num_batches_tracked"]
    np.testing.assert_array_equal(arrays["conv.weight"], np.arange(24).reshape(2, 3, 4))
    assert arrays["conv.weight"].dtype == np.float32
    assert arrays["bn.num_batches_tracked"] == 7
    assert arrays["bn.num_batches_tracked"].shape == ()


def test_reads_views_of_a_shared_storage(write):
    flat = np.arange(12, dtype="<f4")
    arrays = read_state_dict(
        write(
            {
                "transposed": Tensor("1", "FloatStorage", flat, (4, 3), (1, 4)),
                "row": Tensor("1", "FloatStorage", flat, (4,), (1,), offset=8),
            }
        )
    )
    np.testing.assert_array_equal(arrays["transposed"], flat.reshape(3, 4).T)
    np.testing.assert_array_equal(arrays["row"], flat[8:])


PARTS = ["magic", "protocol", "system", "state", "keys"]
ATTACKS = {
    "reduce": "cos\nsystem\n(S'touch {marker}'\ntR.",
    "inst": "(S'touch {marker}'\nios\nsystem\n.",
    "obj": "(cos\nsystem\nS'touch {marker}'\no.",
    "eval": 'cbuiltins\neval\n(S\'open("{marker}", "w")\'\ntR.',
    "dotted": "\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
    "near miss": "ccollections\nnamedtuple\n(S'A'\nS'b'\ntR.",
    "storage module": "ctorch.storage\n_load_from_bytes\n(S'{marker}'\ntR.",
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("part", PARTS)
def test_no_code_of_the_file_runs(write, state, tmp_path, part, attack):
    marker = tmp_path / "marker"
    evil = ATTACKS[attack].format(marker=marker).encode("latin-1")
    if not evil.startswith(b"\x80"):
        evil = b"\x80\x02" + evil
    path = write(state, **{part: evil})
    with pytest.raises(WeightsError, match=r"weights\.pth .*Nothing was run"):
        read_state_dict(path)
    assert not marker.exists()


def test_the_attacks_are_real(tmp_path):
    """An ordinary unpickler does run them."""
    marker = tmp_path / "marker"
    pickle.loads(ATTACKS["reduce"].format(marker=marker).encode())  # noqa: S301
    assert marker.exists()


def test_code_behind_a_valid_tensor_does_not_run(write, state, tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'marker')!r}, 'w')",)

    path = write(state, state={"ok": state["conv.weight"], "evil": Evil()})
    with pytest.raises(WeightsError, match=r"builtin.*exec.*Nothing was run"):
        read_state_dict(path)
    assert not (tmp_path / "marker").exists()


def test_file_cut_anywhere_is_an_error(write, state, tmp_path):
    data = write(state).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=r"cut\.pth"):
            read_state_dict(path)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"magic": 1}, "magic number"),
        ({"protocol": 1002}, "protocol"),
        ({"system": {"little_endian": False}}, "little-endian"),
        ({"state": [1, 2]}, "state dict"),
        ({"state": {"epoch": 3}}, "'epoch' is a int .*checkpoint"),
        ({"keys": ["100"]}, "disagree"),
        ({"keys": ["100", "300"]}, "disagree"),
        ({"keys": "100"}, "list of keys"),
        ({"tail": b"more"}, "4 bytes are left over"),
    ],
)
def test_wrong_parts_are_named(write, state, parts, message):
    with pytest.raises(WeightsError, match=message):
        read_state_dict(write(state, **parts))


@pytest.mark.parametrize(
    "view",
    [
        {"shape": (25,), "strides": (1,)},
        {"shape": (2,), "strides": (1,), "offset": 23},
        {"shape": (2,), "strides": (-1,), "offset": 5},
        {"shape": (2, 2), "strides": (1,)},
    ],
)
def test_view_outside_its_storage_is_an_error(write, view):
    values = np.arange(24, dtype="<f4")
    path = write({"w": Tensor("1", "FloatStorage", values, **view)})
    with pytest.raises(WeightsError, match="tensor 'w'"):
        read_state_dict(path)


def test_unknown_storage_kind_is_an_error(write):
    values = np.zeros(2, "<c8")
    path = write({"w": Tensor("1", "ComplexFloatStorage", values)})
    with pytest.raises(WeightsError, match=r"torch\.ComplexFloatStorage"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with b''"),
        (b"<!DOCTYPE html>", "starts with b'<!DO'"),
        (b"PK\x03\x04rest", "damaged .*zip"),
    ],
)
def test_other_formats_are_named(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="no weight file .*nowhere.pth"):
        read_state_dict(tmp_path / "nowhere.pth")
