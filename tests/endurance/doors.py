"""The ways in for files that others made, each with small whole ones to damage.

A door makes its files in a folder and returns them with a function that takes one in.
It may return, or raise one of the package's own errors, which names what is wrong.
"""

import dataclasses
import io
import itertools
import json
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from mutations import TOKENS, mend_png, mutate, mutate_json, mutate_text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclasses.dataclass(frozen=True)
class Door:
    """A way in.

    Attributes:
        cases: damaged files in a whole campaign.
        prepare: folder -> files in it that are to be damaged, and what takes one in.
        mutate: damages one.
    """

    cases: int
    prepare: Callable[[Path], tuple[Mapping[str, bytes], Callable]]
    mutate: Callable = mutate


DOORS: dict[str, Door] = {}


def door(cases: int, mutate: Callable = mutate):
    """Register a door under the name of its function."""

    def register(prepare):
        DOORS[prepare.__name__] = Door(cases, prepare, mutate)
        return prepare

    return register


class WrongNumbersError(AssertionError):
    """Damage that gave other numbers instead of an error."""


def own(*errors: type[Exception], naming: str = "{}"):
    """Let an attempt end in one of these errors, if it names the file.

    Args:
        errors: the package's own.
        naming: what the message must have; "{}" is the name of the file.
    """

    def wrap(attempt):
        def checked(path, rng):
            try:
                attempt(path, rng)
            except errors as error:
                if naming.format(path.name) not in str(error):
                    raise AssertionError(
                        f"{path.name} is not named: {error}"
                    ) from error
                return type(error).__name__
            return "taken"

        return checked

    return wrap


def photo(rng, width=40, height=28) -> np.ndarray:
    """(H, W, 3) uint8, smooth with some noise."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(3, 9) + y / rng.uniform(3, 9)) for _ in range(3)]
    noise = rng.normal(0, 8, (height, width, 3))
    return np.clip(128 + 90 * np.stack(waves, 2) + noise, 0, 255).astype(np.uint8)


def pictures() -> dict[str, bytes]:
    """One small picture of every kind that is read."""
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = photo(rng)
    picture, second = Image.fromarray(pixels), Image.fromarray(photo(rng))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        "baseline.jpg": ({"quality": 80}, None),
        "progressive.jpg": ({"progressive": True}, None),
        "turned.jpg": ({"exif": exif}, None),
        "restart.jpg": ({"restart_marker_blocks": 2, "subsampling": 0}, None),
        "grey.jpg": ({}, "L"),
        "cmyk.jpg": ({}, "CMYK"),
        "colour.png": ({}, None),
        "palette.png": ({}, "P"),
        "bits.png": ({}, "1"),
        "clear.png": ({}, "LA"),
        "deep.png": ({}, "I;16"),
        "moving.png": ({"save_all": True, "append_images": [second]}, None),
        "lossy.webp": ({"quality": 60}, None),
        "lossless.webp": ({"lossless": True}, None),
        "moving.webp": ({"save_all": True, "append_images": [second]}, None),
        "colour.bmp": ({}, None),
        "palette.bmp": ({}, "P"),
        "moving.gif": ({"save_all": True, "append_images": [second]}, None),
        "plain.tif": ({}, None),
        "lzw.tif": ({"compression": "tiff_lzw"}, None),
        "deflate.tif": ({"compression": "tiff_adobe_deflate"}, None),
        "jpeg.tif": ({"compression": "jpeg"}, None),
        "fax.tif": ({"compression": "group4"}, "1"),
        "deep.tif": ({}, "I;16"),
        "colour.jp2": ({}, None),
        "colour.avif": ({"quality": 60}, None),
        "colour.ppm": ({}, None),
        "bits.pbm": ({}, "1"),
        "colour.tga": ({"compression": "tga_rle"}, None),
        "two.mpo": ({"save_all": True, "append_images": [second]}, None),
    }
    files = {}
    for name, (options, mode) in made.items():
        stream = io.BytesIO()
        kind = {"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000"}
        if mode == "I;16":
            shown = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        else:
            shown = picture.convert(mode) if mode else picture
        suffix = name.rpartition(".")[2]
        shown.save(stream, kind.get(suffix, suffix).replace("pbm", "ppm"), **options)
        files[name] = stream.getvalue()
    try:
        from pillow_heif import from_pillow
    except ImportError:
        return files
    stream = io.BytesIO()
    from_pillow(picture).save(stream, format="HEIF")
    return files | {"phone.heic": stream.getvalue()}


def _mutate_picture(data, others, rng):
    damaged = mutate(data, others, rng)
    mends = damaged.startswith(b"\x89PNG") and rng.random() < 0.7
    return mend_png(damaged) if mends else damaged


@door(6000, _mutate_picture)
def images(folder):
    """`read_image` and `check_image`, which must agree about sizes."""
    from cwr_utils.images import ImageError, check_image, read_image

    @own(ImageError)
    def attempt(path, rng):
        size = check_image(path).size
        pixels = read_image(path)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert pixels.shape[1::-1] == size, f"{pixels.shape} for {size}"

    return pictures(), attempt


@door(60, lambda data, others, rng: data)
def index(folder):
    """`search.index` over folders of damaged pictures, and a search."""
    import tiny

    from cwr_utils import search
    from cwr_utils.datasets import DatasetError
    from cwr_utils.images import ImageError

    files = pictures()
    network = tiny.network()

    @own(DatasetError, ImageError, naming="")
    def attempt(path, rng):
        place = folder / "photos"
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        place.mkdir()
        names = rng.choice(list(files), 16, replace=False)
        for name in names[:14]:
            damaged = _mutate_picture(files[name], list(files.values()), rng)
            (place / name).write_bytes(damaged)
        for name in names[14:]:
            (place / name).write_bytes(files[name])
        with tiny.compile_once():
            found = search.index(
                place,
                whitening=None,
                network=network,
                resize="shorter:48",
                cache_dir=folder / "cache",
            )
            answer = found.search(found.names[0])
        assert {*found.names, *found.unreadable} == set(names)
        assert set(names[14:]) <= set(found.names)
        for name, reason in found.unreadable.items():
            assert name in reason, reason
        assert len(answer.names) == len(found)

    return {"any": b""}, attempt


@door(2000, mutate_text)
def csvs(folder):
    """`queries.csv` and `groups.csv` of a folder."""
    from cwr_utils import datasets

    rng = np.random.default_rng(0)
    names = [f"{town}{n}.png" for town in ("rome", "oslo") for n in range(3)]
    (folder / "set").mkdir()
    for name in (*names, "café.png"):
        (folder / "set" / name).write_bytes(_png(photo(rng)))
    groups = "image,group\n" + "".join(f"{n},{n[:4]}\n" for n in names) + "café.png,\n"
    corners = (
        'image,x1,y1,x2,y2,name\nrome0.png,1,2,30,20,"the dome, lit"\noslo1,,,,,\n'
    )
    sides = " Image , left,top, w ,h\nrome1.png, 1.5 ,2,30,20\n"
    files = {"set/groups.csv": groups, "set/queries.csv": corners, "sides.csv": sides}

    @own(datasets.DatasetError, naming="")
    def attempt(path, rng):
        queries = path if path.name == "sides.csv" else None
        try:
            data = datasets.load(str(folder / "set"), queries=queries)
            data.checksum()
        finally:
            if path.name != "sides.csv":
                path.write_bytes(files[f"set/{path.name}"])

    files = {name: text.encode() for name, text in files.items()}
    return files, attempt


def _png(pixels) -> bytes:
    import cv2

    return cv2.imencode(".png", pixels)[1].tobytes()


@door(1500, mutate_text)
def oxford(folder):
    """Ground truth of Oxford's layout."""
    from cwr_utils import datasets
    from cwr_utils.datasets import oxford_paris

    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "gt").mkdir()
    for number in range(6):
        (folder / "images" / f"all_souls_{number:06}.png").write_bytes(_png(photo(rng)))
    lists = {"good": "1", "ok": "2 3", "junk": "4"}
    files = {"gt/all_souls_1_query.txt": "oxc1_all_souls_000000 1.5 2 30.5 20"}
    for kind, numbers in lists.items():
        lines = [f"all_souls_00000{number}\n" for number in numbers.split()]
        files[f"gt/all_souls_1_{kind}.txt"] = "".join(lines)
    files = {name: text.encode() for name, text in files.items()}

    @own(datasets.DatasetError, naming="all_souls_1")
    def attempt(path, rng):
        try:
            datasets.load("oxford5k", str(folder)).checksum()
            oxford_paris.recognise(folder)
        finally:
            path.write_bytes(files[f"gt/{path.name}"])

    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files, attempt


def _payloads() -> dict[str, bytes]:
    """Pickles that run a program wherever names are looked up as usual."""
    calls = {
        "os": "system",
        "posix": "system",
        "builtins": "exec",
        "subprocess": "getoutput",
        "runpy": "_run_code",
        "numpy.testing._private.utils": "runstring",
        "torch": "load",
        "numpy": "load",
    }
    command = b"touch ran"
    made = {}
    for module, name in calls.items():
        words = [module.encode(), name.encode()]
        named = b"\n".join(words) + b"\n"
        text = b"X" + struct.pack("<I", len(command)) + command
        short = b"".join(b"\x8c" + bytes([len(word)]) + word for word in words)
        made |= {
            f"{module} reduce": b"\x80\x02c" + named + text + b"\x85R.",
            f"{module} inst": b"(" + text + b"i" + named + b".",
            f"{module} obj": b"\x80\x02(c" + named + text + b"o.",
            f"{module} new": b"\x80\x02c" + named + text + b"\x85\x81.",
            f"{module} stack": b"\x80\x04" + short + b"\x93" + text + b"\x85R.",
        }
    made["dotted"] = b"\x80\x04\x8c\x0bcollections\x8c\x13OrderedDict.__new__\x93)R."
    made["extension"] = b"\x80\x02\x82\x01)R."
    made["person"] = b"Pos.system\n."
    # Attributes of what the closed tables give, and what they do with arguments.
    lists = b"\x80\x02cnumpy\nndarray\nX\x06\x00\x00\x00format\x86R."
    state = b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R}X\x05\x00\x00\x00orderX"
    state += b"\x01\x00\x00\x00<sb."
    deep = b"\x80\x02" + b"(" * 5000 + b"t" * 5000 + b"."
    memo = b"\x80\x02]q\x00h\x00a."  # a list in itself
    large = b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"."
    wide = b"\x80\x02K\x00r\xff\xff\xff\x0f."
    return made | {
        "list": lists,
        "state": state,
        "deep": deep,
        "itself": memo,
        "large": large,
        "wide": wide,
    }


@door(4000)
def revisited(folder):
    """The pickle of the revisited ground truth, all protocols; first malicious ones."""
    from cwr_utils import datasets

    rng = np.random.default_rng(0)
    images = [f"tower_{number:06}" for number in range(6)]
    (folder / "roxford5k" / "jpg").mkdir(parents=True)
    for name in images:
        (folder / "roxford5k" / "jpg" / f"{name}.png").write_bytes(_png(photo(rng)))

    def truth(make):
        label = {"bbx": make([1.0, 2.0, 30.0, 20.0]), "easy": make([0, 1])}
        label |= {"hard": make([2]), "junk": make([3])}
        return {"imlist": images[:5], "qimlist": images[5:], "gnd": [label]}

    files = {}
    for protocol, make in itertools.product(range(6), (list, np.array)):
        data = pickle.dumps(truth(make), protocol)
        files[f"{make.__name__}{protocol}"] = data
    files = {f"{name}.pkl": data for name, data in files.items()}
    payloads = _payloads()
    whole = pickle.dumps(truth(list), 2)
    for name, data in list(payloads.items()):
        body = data[2:-1] if data.startswith(b"\x80") else data[:-1]
        payloads[f"{name}, inside"] = whole[:-1] + body + b"\x86."
    waiting = iter(payloads.values())

    @own(datasets.DatasetError, naming="roxford5k")
    def attempt(path, rng):
        data = next(waiting, None) or path.read_bytes()
        (folder / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(data)
        datasets.load("roxford5k", str(folder)).checksum()

    return files, attempt


def _state(sizes) -> dict[str, np.ndarray]:
    """What a torchvision file of a small DenseNet holds."""
    from cwr_utils.networks import torchvision

    model = torchvision.load("densenet161", None, sizes=sizes)
    state = {}
    for layer in model.backbone.layers:
        arrays = [np.asarray(a) for a in layer.get_weights()]
        key = f"features.{layer.name}"
        if len(arrays) == 1:
            state[f"{key}.weight"] = arrays[0].transpose(3, 2, 0, 1)
        for part, array in zip(
            ("weight", "bias", "running_mean", "running_var"), arrays, strict=False
        ):
            if len(arrays) == 4:
                state[f"{key}.{part}"] = array
    state["classifier.weight"] = model.class_weights.T
    state["classifier.bias"] = model.class_bias
    return state


def _mutate_torch(data, others, rng):
    """Damage to the file, or to a member of the archive before it is packed."""
    if not data.startswith(b"PK") or rng.random() < 0.3:
        return mutate(data, others, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = "archive/data.pkl" if rng.random() < 0.8 else rng.choice(list(members))
    if rng.random() < 0.05:
        del members[name]
    else:
        members[name] = mutate(members[name], list(members.values()), rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return stream.getvalue()


@door(3000, _mutate_torch)
def torch(folder):
    """State dicts, old, zip and safetensors; first malicious ones."""
    from weight_files import write_safetensors, write_torch_old, write_torch_zip

    from cwr_utils.networks import WeightsError, densenet161, torchvision
    from cwr_utils.networks.importers.torch_state_dict import read_state_dict

    sizes = densenet161.Sizes(stem=2, growth=1, blocks=(1, 1), classes=2)
    state = _state(sizes)
    files = {"old.pth": write_torch_old(folder / "a", state).read_bytes()}
    files["zip.pth"] = write_torch_zip(folder / "a", state).read_bytes()
    files["new.safetensors"] = write_safetensors(folder / "a", state).read_bytes()
    payloads = list(_payloads().values())
    zips = [write_torch_zip(folder / "a", {}, data).read_bytes() for data in payloads]
    old = files["old.pth"]
    start = old.index(b"ccollections") - 2
    waiting = iter([*zips, *payloads, *(old[:start] + data for data in payloads)])
    (folder / "a").unlink()

    @own(WeightsError)
    def attempt(path, rng):
        data = next(waiting, None)
        if data is not None:
            path.write_bytes(data)
        if rng.random() < 0.03:
            torchvision.load("densenet161", path, sizes=sizes)
        else:
            read_state_dict(path)

    return files, attempt


@door(1500)
def keras_files(folder):
    """Weights of this Keras, of Keras 1 and of Caffe, into small networks."""
    from test_vgg16_cam import NAMES
    from weight_files import write_caffe, write_keras1

    from cwr_utils.networks import WeightsError, save_weights, vgg16_cam

    sizes = vgg16_cam.Sizes((2, 2, 2, 2, 2), maps=2, classes=2)
    network = vgg16_cam.load(None, sizes=sizes)
    save_weights(network, folder / "own.weights.h5")
    model = vgg16_cam.keras_file.with_classifier(network.backbone, 2)
    model.save(folder / "own.keras")
    layers = {}
    for layer in model.layers:
        arrays = layer.get_weights()
        if arrays:
            kernel = arrays[0]
            kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
            layers[layer.name] = [kernel, arrays[1]]
    assert set(NAMES) <= set(layers)
    write_caffe(folder / "new.caffemodel", layers)
    write_caffe(folder / "old.caffemodel", layers, old=True)
    layers["CAM_fc"][0] = layers["CAM_fc"][0].T
    write_keras1(folder / "theano.h5", layers)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    @own(WeightsError)
    def attempt(path, rng):
        vgg16_cam._load_file(model, path)

    for path in folder.iterdir():
        vgg16_cam.load(path, sizes=sizes)  # whole ones are taken
    return files, attempt


@door(400)
def keras_models(folder):
    """Whole models of others.

    Of .h5 files only what is cut off: HDF5 itself may read a damaged attribute for
    ever, which nothing but a process of its own could end.
    """
    import keras

    from cwr_utils import networks

    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(3, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    for ending in ("keras", "h5"):
        model.save(folder / f"pets.{ending}")
        networks.load(str(folder / f"pets.{ending}"))  # whole ones are taken
    old = (folder / "pets.h5").read_bytes()

    @own(networks.WeightsError, ValueError, naming="pets")
    def attempt(path, rng):
        networks.load(str(path))
        (folder / "pets.h5").write_bytes(old[: rng.integers(len(old))])
        networks.load(str(folder / "pets.h5"))

    return {"pets.keras": (folder / "pets.keras").read_bytes()}, attempt


@door(4000)
def caffe(folder):
    """The reader of Caffe's format alone, which is our own."""
    from weight_files import write_caffe

    from cwr_utils.networks import WeightsError
    from cwr_utils.networks.importers.caffe import read_layers

    rng = np.random.default_rng(0)
    layers = {"conv": [rng.standard_normal((2, 1, 3, 3)), np.ones(2)]}
    layers["fc"] = [np.ones((3, 2)), np.ones(3)]
    for name, form in {
        "new": {},
        "old": {"old": True},
        "loose": {"packed": False},
    }.items():
        write_caffe(folder / f"{name}.caffemodel", layers, {"conv": 2}, **form)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    @own(WeightsError)
    def attempt(path, rng):
        read_layers(path)

    return files, attempt


def _a_store(place):
    from cwr_utils.store import ArraySpec, DiskStore

    specs = {
        "top_classes": ArraySpec((3,), "int32"),
        "class_vectors": ArraySpec((4, 5), "float16", by_row=True),
    }
    names = {f"photo{n}.png": f"{n:064x}" for n in range(5)}
    store = DiskStore.create(place, {"classes": None, "layer": "x"}, names, specs, 2)
    rng = np.random.default_rng(0)
    for number, rows in enumerate(store.blocks):
        top = np.stack([rng.permutation(4)[:3] for _ in rows]).astype(np.int32)
        vectors = rng.standard_normal((len(rows), 4, 5)).astype(np.float16)
        store.write_block(number, {"top_classes": top, "class_vectors": vectors})
    return DiskStore.open(place)


def _mutate_store(data, others, rng):
    return (mutate_json if data.startswith(b"{") else mutate)(data, others, rng)


def _read_store(place):
    """All that a store can be asked for."""
    from cwr_utils.store import DiskStore

    store = DiskStore.open(place)
    store.require({"classes": None, "layer": "x"}).require_complete()
    read = {name: store.read(name) for name in ("top_classes", "class_vectors")}
    read["one class"] = store.start_class(1)()
    read["some"] = store.class_vectors([0, 2], slice(1, 4))
    own = [vectors for _, vectors in store.iter_top_class_vectors(2)]
    read["own"] = np.concatenate(own)
    return list(store.names), list(store.hashes.values()), read


@door(4000, _mutate_store)
def stores(folder):
    """A store's configuration, array metadata and shards: right numbers or an error."""
    from cwr_utils.store import StoreError

    _a_store(folder / "store")
    names, hashes, whole = _read_store(folder / "store")
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }

    @own(StoreError, naming="store")
    def attempt(path, rng):
        try:
            other_names, other_hashes, read = _read_store(folder / "store")
        finally:
            path.unlink()
            for name in list(folder.rglob("zarr.json")):
                name.unlink()
            for name, data in files.items():
                (folder / name).write_bytes(data)
        # What a store says of its photos cannot be checked here: who asks for photos
        # names them (`Store.require`).
        same = names == other_names and hashes == other_hashes
        for name, values in read.items():
            if same and not np.array_equal(values, whole[name]):
                raise WrongNumbersError(name)

    return files, attempt


@door(1500)
def maps(folder):
    """Kept maps: as they were written, or computed again."""
    from cwr_utils.extraction.maps import MapFiles

    rng = np.random.default_rng(0)
    kept = MapFiles(folder)
    whole = [rng.standard_normal((3, 4, 5)).astype(np.float16) for _ in range(2)]
    kept.write("one", *whole)
    files = {"one.npz": (folder / "one.npz").read_bytes()}
    # What NumPy would unpickle.
    stream = io.BytesIO()
    np.savez(stream, features=np.array([{}], object), cam_maps=whole[0])
    strange = iter([stream.getvalue()])

    def attempt(path, rng):
        data = next(strange, None)
        if data is not None:
            path.write_bytes(data)
        found = kept.read("one")
        if found is None:
            return "None"
        for array, right in zip(found, whole, strict=True):
            if not np.array_equal(array, right):
                raise WrongNumbersError(f"{array!r:.80}")
        return "taken"

    return files, attempt


SWEEP = """\
notebooks: [method_table]
jobs: 2
parameters: {dataset: monuments, power: 1.5, dimensions: 32, weights: null}
grid:
  network: [efficientnet-lite0, vgg16-cam]
  seed: [0, 1]
cells:
  - {limit: 20, resize: "640x480"}
rows:
  - {aggregation: online, num_classes: 4}
  - {aggregation: rmac_max, dimensions: 0}
curve:
  query_expansion: [0, 5]
"""


@door(3000, mutate_text)
def sweeps(folder):
    """Sweep files."""
    from cwr_utils.runs.source import RunError, complete
    from cwr_utils.runs.sweeps import Sweep

    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
        for a, b in itertools.pairwise("abcdefghijkl")
    )
    strange = [
        bomb,
        SWEEP.replace("[0, 1]", "&a [*a]"),
        SWEEP.replace("seed", "&a [*a]"),
        "notebooks: [method_table]\ngrid: &a {power: [*a]}\n",
        "notebooks: &a [*a]\n",
        "[" * 5000,
        "notebooks: [method_table]\nrows: " + "[" * 1000,
        "? {a: 1}\n: 2\n",
        "notebooks: [method_table]\n2: 3\n",
        "notebooks: [method_table]\nparameters: {1: 2}\n",
        "notebooks: [method_table]\nparameters: {2020-01-01: 2}\n",
        "notebooks: [method_table]\ngrid: {power: [2020-01-01, !!binary aGVq]}",
        "!!python/object/apply:os.system ['touch ran']",
        "notebooks: !!python/object/apply:os.system ['touch ran']",
        *(SWEEP.replace("1.5", token) for token in TOKENS),
        *(SWEEP.replace("power", token) for token in TOKENS),
    ]
    waiting = iter(strange)

    @own(RunError)
    def attempt(path, rng):
        text = next(waiting, None)
        if text is not None:
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
        plan = Sweep.read(path)
        for cell in plan.cells.values():
            json.dumps(complete(plan.notebooks[0], cell))

    return {"plan.yaml": SWEEP.encode()}, attempt


@door(4000, mutate_text)
def parameters(folder):
    """`-p NAME=VALUE`, of all names and with values of all kinds."""
    from cwr_utils.runs import source

    known = source.parameters()
    texts = [f"{name}={value}" for name, value in known.items()]
    crossed = [f"{name}={token}" for name in known for token in TOKENS]
    waiting = iter(crossed)

    @own(source.RunError, naming="")
    def attempt(path, rng):
        text = next(waiting, None)
        if text is None:
            text = path.read_bytes().decode("utf-8", "surrogateescape")
        found = source.parse([text])
        assert all(
            type(value) is type(source.typed(name, value))
            for name, value in found.items()
        )

    return {f"{n}.txt": text.encode() for n, text in enumerate(texts)}, attempt


@door(1500, mutate_json)
def records(folder):
    """`run.json`, which decides what is done."""
    from cwr_utils.runs.record import read_runs
    from cwr_utils.runs.source import RunError

    content = {
        "02_extract_features": {
            "identity": "ab" * 32,
            "facts": {"power": 1.0, "layer": None},
            "parameters": {"power": 1.0},
        }
    }

    @own(RunError)
    def attempt(path, rng):
        for run in read_runs(path).values():
            run.get("identity")

    return {"run.json": json.dumps(content).encode()}, attempt
