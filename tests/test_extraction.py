"""Extraction: right numbers, resume after a kill, honest errors, bounded memory."""

import os
import signal
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
import reference
import tiny

import cwr_utils
from cwr_utils import files as disk
from cwr_utils import pooling
from cwr_utils.extraction import (
    Describer,
    ImageMaps,
    Shard,
    describer_of,
    extract,
    extract_queries,
    extract_shard,
    maps,
    photos,
)
from cwr_utils.images import ImageError, ResizePolicy, read_image, resize_image
from cwr_utils.networks import top_classes
from cwr_utils.store import DiskStore, StoreError, StoreMismatchError

SETUP = tiny.setup()
NETWORK = SETUP.network
pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """18 photos: landscape, portrait and square ones in turn."""
    return tiny.dataset(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def store(data, tmp_path_factory):
    """All classes, one photo a batch."""
    path = tmp_path_factory.mktemp("stores") / "all"
    return extract(data, SETUP, path, batch=1, block=4)


def spoil(path):
    """Damage in the middle of a file, which only decoding finds."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    return path


def everything(store):
    return {name: store.read(name) for name in store.arrays}


def files(store):
    """Relative path -> bytes of every shard."""
    shards = sorted(p for p in store.path.glob("*/c/**/*") if p.is_file())
    return {str(p.relative_to(store.path)): p.read_bytes() for p in shards}


def l2(vectors):
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def naive(photo, network, classes=range(tiny.CLASSES)):
    """What a store keeps of a resized photo, by the loops of tests/reference.py."""
    maps = NETWORK.maps(photo[None], tiny.LAYER)
    features, cam_maps = maps["features"][0].astype(float), maps["cam_maps"][0]
    cams = []
    for c in classes:
        cam = reference.class_activation_map(cam_maps, NETWORK.class_weights[:, c])
        cam = np.maximum(cam / cam.max(), 0) if cam.max() > 0 else np.zeros_like(cam)
        cams.append(reference.bilinear(cam, features.shape[:2]))
    vectors = reference.class_vectors(features, np.stack(cams, axis=-1))
    weights = reference.channel_weights(features)
    saliency = features.sum(axis=-1)
    spatial = np.sqrt(saliency / np.linalg.norm(saliency))[..., None]
    pooled = [
        features.sum(axis=(0, 1)),
        features.sum(axis=(0, 1)) * weights,
        features.max(axis=(0, 1)),
        np.mean(features**3, axis=(0, 1)) ** (1 / 3),
        (features * spatial).sum(axis=(0, 1)) * weights,
    ]
    regions = [
        [
            pool(features[y1:y2, x1:x2].reshape(-1, features.shape[-1]))
            for x1, y1, x2, y2 in pooling.rmac_regions(*features.shape[:2])
        ]
        for pool in (
            lambda x: x.max(axis=0),
            lambda x: np.mean(x**3, axis=0) ** (1 / 3),
            lambda x: x.mean(axis=0),
        )
    ]
    logits = maps["logits"][0].astype(float)
    return {
        "class_vectors": l2(vectors),
        "globals": l2(np.array(pooled)),
        "regions": l2(np.array(regions)),
        "probabilities": np.exp(logits) / np.exp(logits).sum(),
        "top_classes": np.argsort(-logits, kind="stable"),
        "empty_cams": sum(not cam.any() for cam in cams),
    }


# The numbers


def test_every_array_equals_loops_over_single_photos(store, data):
    policy = ResizePolicy.parse(tiny.RESIZE)
    assert store.names == list(data.images)
    stored = everything(store)
    for row, name in enumerate(data.images):
        photo = resize_image(read_image(data.path(name)), policy)
        expected = naive(photo, NETWORK)
        for array, value in expected.items():
            got = stored[array][row]
            if array == "regions":
                count = value.shape[1]
                assert not got[:, count:].any()
                got = got[:, :count]
            np.testing.assert_allclose(got, value, rtol=2e-3, atol=2e-4)
    assert (stored["empty_cams"] >= 1).all()  # the network's last class
    assert not stored["class_vectors"][:, -1].any()
    np.testing.assert_array_equal(
        stored["top_classes"], top_classes(stored["probabilities"], tiny.CLASSES)
    )


def test_a_power_is_applied_to_class_vectors_and_mean_regions(data, tmp_path):
    few = replace(data, images=data.images[:1])
    setup = tiny.setup(power=2.0)
    stored = everything(extract(few, setup, tmp_path / "s"))
    photo = read_image(data.path(data.images[0]))
    photo = resize_image(photo, ResizePolicy.parse(tiny.RESIZE))
    maps = NETWORK.maps(photo[None], tiny.LAYER)
    features = maps["features"][0]
    cams = maps["cam_maps"][0] @ NETWORK.class_weights
    peak = cams.max(axis=(0, 1))
    cams = np.maximum(cams / np.where(peak > 0, peak, 1), 0) * (peak > 0)
    cams = np.asarray(pooling.resize_maps(cams, features.shape[:2]))
    sums = np.einsum("hwk,hwc->ck", features**2, cams) ** 0.5
    vectors = l2(sums * reference.channel_weights(features))
    np.testing.assert_allclose(
        stored["class_vectors"][0], vectors, rtol=2e-3, atol=2e-4
    )
    x1, y1, x2, y2 = pooling.rmac_regions(*features.shape[:2])[0]
    region = np.sqrt(np.mean(features[y1:y2, x1:x2] ** 2, axis=(0, 1)))
    np.testing.assert_allclose(
        stored["regions"][0, 2, 0], l2(region), rtol=2e-3, atol=2e-4
    )


def test_a_store_of_float32_is_rounded_by_float16_only(store, data, tmp_path):
    setup = tiny.setup(dtype="float32")
    precise = extract(data, setup, tmp_path / "s", batch=1, block=4)
    for name in ("class_vectors", "globals", "regions"):
        assert precise.dtype(name) == np.float32
        np.testing.assert_array_equal(
            precise.read(name).astype(np.float16), store.read(name)
        )


def test_top_classes_mode_keeps_the_same_rows(store, data, tmp_path):
    count = 4
    kept = extract(data, tiny.setup(classes=count), tmp_path / "s", batch=2, block=4)
    assert kept.shape("class_vectors") == (count, store.shape("class_vectors")[1])
    expected = next(store.iter_top_class_vectors(count))
    got = next(kept.iter_top_class_vectors(count))
    np.testing.assert_allclose(got[1], expected[1], rtol=2e-3, atol=1e-4)
    np.testing.assert_array_equal(
        kept.read("top_classes"), store.read("top_classes")[:, :count]
    )
    for name in ("globals", "regions", "probabilities"):
        np.testing.assert_allclose(
            kept.read(name), store.read(name), rtol=2e-3, atol=1e-4
        )


@pytest.mark.parametrize("regional", [0, 2])
def test_a_store_without_baselines_keeps_the_rest(store, data, tmp_path, regional):
    setup = tiny.setup(baselines=False, region_classes=regional)
    kept = extract(data, setup, tmp_path / "s", batch=1, block=4)
    left = {"top_classes", "probabilities", "empty_cams", "class_vectors"}
    assert {*kept.arrays} - {"region_vectors"} == left
    assert kept.has("region_vectors") == bool(regional)
    for name in left:
        expected = store.read(name)
        np.testing.assert_allclose(kept.read(name), expected, rtol=2e-3, atol=1e-4)
    assert kept.config["baselines"] is False
    assert "baselines" not in SETUP.photo_facts(data)  # those from before stay valid
    queries = extract_queries(data, setup, tmp_path / "q")
    assert {*queries.arrays} == {*kept.arrays}


@pytest.mark.parametrize(("batch", "block"), [(3, 4), (2, 18)])
def test_the_batch_changes_nothing(store, data, tmp_path, batch, block):
    """Sizes and orientations mixed within a block, and batches that are not full."""
    got = extract(data, SETUP, tmp_path / "s", batch=batch, block=block)
    assert got.names == store.names
    for name, expected in everything(store).items():
        np.testing.assert_allclose(got.read(name), expected, rtol=2e-3, atol=1e-4)


def test_photos_and_whitening_photos_share_a_graph():
    """And other settings have their own."""
    assert describer_of(SETUP) is describer_of(tiny.setup())
    assert describer_of(SETUP) is not describer_of(tiny.setup(power=2.0))


def test_a_batch_has_photos_of_one_size_and_always_the_same_number(
    data, tmp_path, monkeypatch
):
    shapes = []
    original = Describer.__call__
    monkeypatch.setattr(
        Describer, "__call__", lambda s, x: shapes.append(x.shape) or original(s, x)
    )
    extract(data, SETUP, tmp_path / "s", batch=4, block=18)
    assert {shape[0] for shape in shapes} == {4}
    assert {shape[1:3] for shape in shapes} == {(48, 64), (64, 48)}
    assert len(shapes) == 5  # 12 landscape or square photos, 6 portraits


def test_photos_of_many_sizes_get_as_many_regions_as_the_largest_has(data, tmp_path):
    setup = tiny.setup(resize="native")
    store = extract(data, setup, tmp_path / "s", batch=2, block=5)
    grids = [(18, 24), (24, 18), (20, 20)]  # of 96x72, 72x96 and 80x80 at stride 4
    counts = [len(pooling.rmac_regions(*grid)) for grid in grids]
    assert store.shape("regions")[1] == max(counts) > min(counts)
    square = data.images.index("place0_2")
    assert not store.read("regions")[square, :, min(counts) :].any()


def test_the_same_photos_give_the_same_bits(data, tmp_path):
    first = extract(data, SETUP, tmp_path / "1", batch=3, block=4)
    again = extract(
        data,
        tiny.setup(own=tiny.network.__wrapped__()),
        tmp_path / "2",
        batch=3,
        block=4,
    )
    assert files(first) == files(again)


def test_the_logits_choose_the_classes_not_the_order_of_the_cams():
    describer = Describer(tiny.setup(classes=3))
    stack = np.stack([tiny.view(place, 0) for place in range(5)])
    got = describer(stack)
    np.testing.assert_array_equal(got["top_classes"], top_classes(got["logits"], 3))
    assert len({tuple(row) for row in got["top_classes"]}) > 1


# Queries


def test_a_query_takes_classes_from_its_crop_and_features_from_the_whole_photo(
    data, tmp_path
):
    queries = extract_queries(data, SETUP, tmp_path / "q")
    assert queries.names == [query.name for query in data.queries]
    query = data.queries[0]  # 96x72 pixels, resized to 64x48: 16x12 and 8x6 cells
    photo = read_image(data.path(query.image))
    resized = resize_image(photo, ResizePolicy.parse(tiny.RESIZE))
    maps = NETWORK.maps(resized[None], tiny.LAYER)
    # Box (8, 8, 90, 66) of 96x72 touches cells 1..15 and 1..11 of 16x12.
    inside = maps["features"][0, 1:11, 1:15]
    cams = [
        reference.class_activation_map(maps["cam_maps"][0], NETWORK.class_weights[:, c])
        for c in range(tiny.CLASSES)
    ]
    cams = [np.maximum(c / c.max(), 0) if c.max() > 0 else 0 * c for c in cams]
    cams = [reference.bilinear(cam, (12, 16))[1:11, 1:15] for cam in cams]
    expected = l2(reference.class_vectors(inside, np.stack(cams, axis=-1)))
    got = queries.read("class_vectors")[0]
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-4)
    # 82 x 58 pixels at the scale of the resized photo, to multiples of 16.
    crop = cv2.resize(photo[8:66, 8:90], (48, 32), interpolation=3)
    logits = NETWORK.maps(crop[None], tiny.LAYER)["logits"].astype(float)
    np.testing.assert_array_equal(
        queries.read("top_classes")[0], top_classes(logits, tiny.CLASSES)[0]
    )
    whole = top_classes(maps["logits"], tiny.CLASSES)[0]
    assert queries.read("top_classes")[0].tolist() != whole.tolist()


def test_a_query_without_a_box_is_the_photo_itself(store, data, tmp_path):
    whole = replace(data.queries[1], box=None)
    one = replace(data, queries=(whole,))
    queries = extract_queries(one, SETUP, tmp_path / "q")
    row = data.images.index(whole.image)
    for name, value in everything(queries).items():
        expected = store.read(name)[row]
        np.testing.assert_allclose(value[0], expected, rtol=2e-3, atol=1e-4)


def test_queries_keep_all_classes_whatever_the_database_keeps(data, tmp_path):
    setup = tiny.setup(classes=2)
    queries = extract_queries(data, setup, tmp_path / "q")
    assert queries.config["classes"] is None
    assert queries.shape("class_vectors")[0] == tiny.CLASSES


def test_only_a_query_whose_box_moved_is_described_again(data, tmp_path, monkeypatch):
    first = extract_queries(data, SETUP, tmp_path / "q")
    moved = replace(data.queries[2], box=(0.0, 0.0, 40.0, 40.0))
    turned = replace(data, queries=(*data.queries[:2], moved, *data.queries[3:]))
    expected = extract_queries(turned, SETUP, tmp_path / "anew")
    described, original = [], Describer.describe_query
    monkeypatch.setattr(
        Describer,
        "describe_query",
        lambda s, photo, box: described.append(box) or original(s, photo, box),
    )
    got = extract_queries(turned, SETUP, tmp_path / "q")
    assert described == [moved.box]
    for name, value in everything(expected).items():
        np.testing.assert_array_equal(got.read(name), value)
    again = extract_queries(data, SETUP, tmp_path / "q")
    assert described == [moved.box] and again.items() == first.items()


def test_a_query_without_a_box_is_described_as_its_photo_is(data, tmp_path):
    whole = tuple(replace(query, box=None) for query in data.queries)
    asked, setup = replace(data, queries=whole), tiny.setup(dtype="float32")
    photos = extract(asked, setup, tmp_path / "db", batch=1)
    queries = extract_queries(asked, setup, tmp_path / "q")
    rows = [photos.names.index(query.image) for query in whole]
    assert queries.arrays == photos.arrays
    for name in photos.arrays:
        np.testing.assert_array_equal(queries.read(name), photos.read(name, rows))


def test_a_data_set_without_queries_is_refused_by_name(data, tmp_path):
    with pytest.raises(ValueError, match="tiny has no queries"):
        extract_queries(replace(data, queries=()), SETUP, tmp_path / "q")


# Resume

RUN = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import tiny
from cwr_utils import extraction

def on_block(number):
    print("block", number, flush=True)
    if number == 1:
        time.sleep(600)

data = tiny.dataset(Path(sys.argv[1]))
extraction.extract(
    data, tiny.setup(), sys.argv[2], batch=1, block=4, on_block=on_block
)
"""


def test_a_killed_extraction_goes_on_where_it_stopped(
    store, data, tmp_path, monkeypatch
):
    path, here = tmp_path / "killed", Path(__file__).parent
    command = [sys.executable, "-c", RUN, str(tmp_path / "photos"), str(path)]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        printed = [next(process.stdout) for _ in range(2)]
        # Block 2 is being computed, or is complete in memory and waits to be written.
        process.send_signal(signal.SIGKILL)
    assert printed == ["block 0\n", "block 1\n"]
    assert process.returncode == -signal.SIGKILL
    killed = DiskStore.open(path)
    assert killed.missing_blocks() == [2, 3, 4]
    with pytest.raises(StoreError, match="lacks 3 of 5 blocks"):
        killed.require_complete()
    written = {p: p.stat().st_mtime_ns for p in path.glob("*/c/[01]/**/*")}

    read, decoded, blocks = photos.read_image, [], []
    monkeypatch.setattr(
        photos, "read_image", lambda p: decoded.append(p.stem) or read(p)
    )
    done = extract(data, SETUP, path, batch=1, block=4, on_block=blocks.append)
    assert blocks == [2, 3, 4]
    assert sorted(decoded) == sorted(data.images[8:])
    assert written == {p: p.stat().st_mtime_ns for p in path.glob("*/c/[01]/**/*")}
    # Half of `done` comes from another process than `store`.
    assert files(done) == files(store)
    assert len(files(done)) == 5 * len(done.arrays)


def test_a_block_that_was_half_written_is_written_again(store, data, tmp_path):
    """A kill between two arrays of a block, and one within a shard."""
    path = tmp_path / "s"
    broken = extract(data, SETUP, path, batch=1, block=4)
    shard = broken._shard("class_vectors", 3)
    shard.rename(shard.with_name("0.__lock"))  # what a writer leaves that is killed
    assert broken.missing_blocks() == [3]
    written = []
    again = extract(data, SETUP, path, batch=1, block=4, on_block=written.append)
    assert written == [3]
    assert {k: v for k, v in files(again).items() if "lock" not in k} == files(store)


def test_a_complete_store_is_not_computed_again(store, data, monkeypatch):
    monkeypatch.setattr(photos, "read_image", None)
    monkeypatch.setattr(Describer, "__call__", None)
    again = extract(data, SETUP, store.path, block=4)
    assert files(again) == files(store)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("layer", {"layer": "maps"}),
        ("resize", {"resize": "96x72"}),
        ("classes", {"classes": 3}),
        ("power", {"power": 2.0}),
        ("dtype", {"dtype": "float32"}),
        ("flip_negative_cams", {"flip_negative_cams": True}),
        ("stretched", {"stretch_query_images": True}),
    ],
)
def test_other_settings_are_refused_by_name(store, data, field, changes):
    message = f"another .*{field}: .* there, .* here"
    with pytest.raises(StoreMismatchError, match=message):
        extract(data, tiny.setup(**changes), store.path)


def test_the_batch_is_that_of_the_store_or_refused(store, data):
    assert store.config["batch"] == 1
    with pytest.raises(StoreMismatchError, match="another batch: 1 there, 3 here"):
        extract(data, SETUP, store.path, batch=3)


def test_a_loaded_photo_is_opened_once_to_be_extracted(data, tmp_path):
    """Its size and content are known since it was loaded."""
    loaded = replace(data, facts={})
    loaded.hashes()
    opened, listening = [], [True]

    def listen(event, arguments):  # a hook stays for ever
        if listening and event == "open" and str(arguments[0]).endswith(".png"):
            opened.append(Path(arguments[0]).stem)

    sys.addaudithook(listen)
    extract(loaded, SETUP, tmp_path / "s", batch=1, block=4)
    listening.clear()
    assert sorted(opened) == sorted(data.images)


# Shards on an executor


def test_shards_on_an_executor_give_the_same_bits(store, data, tmp_path):
    blocks = []
    with ThreadPoolExecutor(2) as pool:
        options = {"executor": pool, "batch": 1, "block": 4}
        got = extract(data, SETUP, tmp_path / "s", **options, on_block=blocks.append)
    assert files(got) == files(store)
    assert sorted(blocks) == [0, 1, 2, 3, 4]


def test_only_missing_shards_are_submitted(store, data, tmp_path):
    path = tmp_path / "s"
    extract(data, SETUP, path, batch=1, block=4)._shard("class_vectors", 2).unlink()
    blocks = []
    with ThreadPoolExecutor(2) as pool:
        got = extract(data, SETUP, path, executor=pool, on_block=blocks.append)
    assert blocks == [2]
    assert files(got) == files(store)


def test_a_failing_shard_cancels_the_rest_and_is_named(tmp_path):
    data = tiny.dataset(tmp_path / "photos", places=2, views=2, distractors=0)
    broken = spoil(data.path(data.images[1]))
    with ThreadPoolExecutor(1) as pool, pytest.raises(ImageError, match=broken.name):
        extract(data, SETUP, tmp_path / "s", block=1, executor=pool)
    assert DiskStore.open(tmp_path / "s").missing_blocks()


def test_a_network_without_a_recipe_stays_in_its_process(data, tmp_path):
    network = tiny.network.__wrapped__()
    network.recipe = None
    setup = tiny.setup(own=network)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="`recipe`"):
        extract(data, setup, tmp_path / "s", executor=pool)
    assert not (tmp_path / "s").exists()


def test_a_shard_refuses_other_weights(store, data):
    shard = Shard(store.path, 0, ())
    recipe = (tiny.network, (1, "tiny")), SETUP.recipe[1]
    with pytest.raises(StoreMismatchError, match="same weight file"):
        extract_shard(shard, recipe)


def test_another_network_is_refused(store, data):
    other = tiny.setup(own=tiny.network(name="other"))
    with pytest.raises(StoreMismatchError, match='another network: "tiny" there'):
        extract(data, other, store.path)
    with pytest.raises(StoreMismatchError, match="another weights_sha256"):
        extract(data, tiny.setup(own=tiny.network(seed=1)), store.path)


def test_another_version_is_refused(store, data, monkeypatch):
    monkeypatch.setattr(cwr_utils, "__version__", "99")
    with pytest.raises(StoreMismatchError, match='another package_version: .* "99"'):
        extract(data, tiny.setup(), store.path)


def test_the_name_of_a_data_set_is_not_its_identity(store, data):
    renamed = extract(replace(data, name="other"), SETUP, store.path)
    assert files(renamed) == files(store)


# Photos that come, go and change


def decoded_by(monkeypatch):
    """Names of the photos that are decoded from now on."""
    names, read = [], photos.read_image
    monkeypatch.setattr(photos, "read_image", lambda p: names.append(p.stem) or read(p))
    return names


def test_only_what_is_new_is_described_and_rows_follow_their_photos(
    tmp_path, monkeypatch
):
    """Added, changed, removed, renamed and in another order, all at once."""
    data = tiny.dataset(tmp_path / "photos", places=2, views=2, distractors=3)
    extract(data, SETUP, tmp_path / "s", batch=1, block=2)
    decoded = decoded_by(monkeypatch)
    tiny.write(data.path("other0_1"), tiny.view(5, 0))
    tiny.write(tmp_path / "photos/new.png", tiny.view(6, 0))
    names = ["new", "place1_0", "renamed", "other0_1", "place0_0"]
    paths = {**data.paths, "new": tmp_path / "photos/new.png"}
    paths["renamed"] = data.path("other0_2")
    now = replace(data, images=tuple(names), paths=paths, queries=(), facts={})
    got = extract(now, SETUP, tmp_path / "s", batch=1)
    assert decoded == ["new", "other0_1"]
    expected = extract(now, SETUP, tmp_path / "anew", batch=1)
    assert got.names == expected.names == names
    for name, value in everything(expected).items():
        np.testing.assert_array_equal(got.read(name), value)
    np.testing.assert_array_equal(
        got.class_vectors([3, 1]), expected.class_vectors([3, 1])
    )
    decoded.clear()
    assert extract(now, SETUP, tmp_path / "s").names == names
    extract(replace(data, facts={}), SETUP, tmp_path / "s")  # other0_1 has gone
    assert decoded == []


def test_an_interrupted_addition_goes_on(tmp_path, monkeypatch):
    data = tiny.dataset(tmp_path / "photos", places=2, views=2, distractors=6)
    few = replace(data, images=data.images[:4])
    extract(few, SETUP, tmp_path / "s", batch=1, block=2)

    def stop(number):
        raise KeyError("stopped")

    with pytest.raises(KeyError):
        extract(data, SETUP, tmp_path / "s", batch=1, block=2, on_block=stop)
    decoded = decoded_by(monkeypatch)
    got = extract(data, SETUP, tmp_path / "s", batch=1, block=2)
    assert len(decoded) < 6
    expected = extract(data, SETUP, tmp_path / "anew", batch=1)
    for name, value in everything(expected).items():
        np.testing.assert_array_equal(got.read(name), value)


def test_other_query_photos_are_refused_where_they_are_stretched(tmp_path):
    """Which photos are stretched is part of what the store holds."""
    data = tiny.dataset(tmp_path / "photos", places=2, views=1, distractors=0)
    setup = tiny.setup(stretch_query_images=True)
    extract(data, setup, tmp_path / "s")
    fewer = replace(data, queries=data.queries[:1])
    with pytest.raises(StoreMismatchError, match="another stretched"):
        extract(fewer, setup, tmp_path / "s")


# Errors


def test_an_undecodable_photo_stops_the_run_and_complete_blocks_stay(tmp_path):
    data = tiny.dataset(tmp_path / "photos", places=4, distractors=4)
    victim = spoil(data.path(data.images[9]))
    with pytest.raises(ImageError, match=victim.name):
        extract(data, SETUP, tmp_path / "s", batch=1, block=4)
    assert DiskStore.open(tmp_path / "s").missing_blocks() == [2, 3]
    tiny.write(victim, tiny.view(0, 0))
    data = replace(data, facts={})  # as a new process sees it
    done = extract(data, SETUP, tmp_path / "s", batch=1, block=4)
    assert done.names == list(data.images)


def test_a_missing_photo_is_an_error_before_any_work(tmp_path):
    data = tiny.dataset(tmp_path / "photos", places=1, distractors=1)
    data.path("other0_0").unlink()
    with pytest.raises(ImageError, match="other0_0.png: no such file"):
        extract(data, SETUP, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_write_error_is_a_store_error_and_earlier_blocks_are_safe(
    store, data, tmp_path
):
    """The operating system refuses block 2: a file stands where its folder goes."""
    path = tmp_path / "s"
    obstacle = path / "class_vectors" / "c" / "2"

    def on_block(number):
        if number == 0:
            obstacle.write_text("")

    with pytest.raises(StoreError, match="Cannot write block 2 .* run again"):
        extract(data, SETUP, path, batch=1, block=4, on_block=on_block)
    assert 2 in DiskStore.open(path).missing_blocks()
    assert not {0, 1} & set(DiskStore.open(path).missing_blocks())
    obstacle.unlink()
    done = extract(data, SETUP, path, batch=1, block=4)
    assert files(done) == files(store)


def test_an_error_in_the_last_block_is_not_lost(data, tmp_path, monkeypatch):
    original = DiskStore.write_block

    def write_block(store, number, values):
        if number == 4:
            raise StoreError("the disk is full")
        original(store, number, values)

    monkeypatch.setattr(DiskStore, "write_block", write_block)
    with pytest.raises(StoreError, match="the disk is full"):
        extract(data, SETUP, tmp_path / "s", batch=1, block=4)
    assert DiskStore.open(tmp_path / "s").missing_blocks() == [4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "featurs"}, "no feature layer 'featurs'; similar: features"),
        ({"layer": "linear", "power": 2.0}, "`power` 2.0 needs a layer without"),
        ({"classes": 7}, r"1 to 6, the classes of tiny; got 7"),
        ({"classes": 0}, r"`classes` must be None .* got 0"),
        ({"resize": "big"}, "resize policy"),
        ({"power": 0.0}, "`power` must be above 0"),
        ({"power": -1.0}, "`power` must be above 0"),
        ({"power": float("nan")}, "`power` must be above 0"),
        ({"dtype": "float64"}, "`dtype` must be 'float16' or 'float32'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.setup(**changes)


# Work beside work


def test_photos_are_decoded_while_the_network_works(data, tmp_path, monkeypatch):
    """The first pass waits for photos beyond its own: in turn, they never come."""
    started, arrived = [], threading.Event()
    read, call = photos.read_image, Describer.__call__

    def counted(path):
        started.append(path)
        if len(started) >= 4:
            arrived.set()
        return read(path)

    def waiting(self, images):
        assert arrived.wait(20), f"only {len(started)} photos were begun"
        return call(self, images)

    monkeypatch.setattr(photos, "read_image", counted)
    monkeypatch.setattr(Describer, "__call__", waiting)
    extract(data, SETUP, tmp_path / "s", batch=1, block=4)
    assert len(started) == len(data.images)


def test_decoding_does_not_run_far_ahead(data, tmp_path, monkeypatch):
    """Photos that wait take memory: only a few may."""
    begun, passes, ahead = [], [], []
    read, call = photos.read_image, Describer.__call__

    def counted(self, images):
        passes.append(len(images))
        ahead.append(len(begun) - len(passes))
        return call(self, images)

    monkeypatch.setattr(
        photos, "read_image", lambda path: begun.append(path) or read(path)
    )
    monkeypatch.setattr(Describer, "__call__", counted)
    extract(data, SETUP, tmp_path / "s", batch=1, block=4)
    assert max(ahead) <= 4 + 1


def test_several_passes_may_run_at_a_time_and_give_the_same_bits(store, data):
    """Also beside passes of the graph that boxes need, which shares the weights."""
    describer, photo = tiny.describer(SETUP), read_image(data.path("place0_0"))
    images = resize_image(photo, SETUP.policy)[None]
    with ThreadPoolExecutor(4) as pool:
        passes = list(pool.map(describer, [images] * 40))
    NETWORK.maps(images)
    passes.append(describer(images))
    for described in passes:
        kept = described["class_vectors"]
        np.testing.assert_array_equal(kept, store.read("class_vectors", [0]))


def test_a_block_is_written_while_the_network_goes_on(data, tmp_path, monkeypatch):
    """The first write waits for the next block's pass: in turn, it never comes."""
    passes, went_on, seen = [], threading.Event(), []
    call = Describer.__call__

    def counted(self, images):
        passes.append(len(images))
        if len(passes) > 4:
            went_on.set()
        return call(self, images)

    def on_block(number):
        seen.append(went_on.wait(20))

    monkeypatch.setattr(Describer, "__call__", counted)
    extract(data, SETUP, tmp_path / "s", batch=1, block=4, on_block=on_block)
    assert seen == [True] * 5


def test_memory_does_not_grow_with_the_number_of_photos(tmp_path, monkeypatch):
    """Four times the photos, the same peak of what NumPy holds."""
    photo = tiny.view(0, 0)
    monkeypatch.setattr(photos, "read_image", lambda path: photo.copy())
    one = tiny.dataset(tmp_path / "photos", places=0, distractors=1)

    def peak(count):
        """Bytes after the first block is on disk: hashing and compiling are over."""
        names = tuple(f"photo{number}" for number in range(count))
        data = replace(
            one, images=names, paths=dict.fromkeys(names, one.path("other0_0"))
        )
        tracemalloc.start()
        extract(
            data,
            SETUP,
            tmp_path / str(count),
            batch=1,
            block=8,
            on_block=lambda number: number or tracemalloc.reset_peak(),
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(8)  # compiles
    few, many = peak(32), peak(128)
    # The 96 photos more are 900 kB, their vectors 300 kB, their names and hashes 80.
    assert many < few + 200_000, (few, many)


# Protocol


def test_a_setup_takes_the_flags_of_its_protocol_and_gives_it_the_size():
    code = tiny.setup(protocol="authors_code", resize=None)
    assert code.resize == code.protocol.resize == "1024x720"
    assert code.map_policy.squares_upright and not code.policy.squares_upright
    sized = tiny.setup(protocol="authors_code")
    assert sized.resize == sized.protocol.resize == tiny.RESIZE
    assert sized.layer == tiny.setup(layer=None).layer == tiny.network().default_layer


PHOTO_CHANGES = [
    {"layer": "maps"},
    {"resize": "shorter:720"},
    {"classes": 3},
    {"power": 2.0},
    {"dtype": "float32"},
    {"flip_negative_cams": True},
    {"stretch_query_images": True},
]
QUERY_CHANGES = [
    {"query_classes": "same pass"},
    {"scale_query_box": False},
    {"keep_partial_cells": False},
]


def test_stores_lie_apart_where_settings_that_matter_differ(data):
    setups = [SETUP, *(tiny.setup(**changes) for changes in PHOTO_CHANGES)]
    paths = {setup.photos_path(data) for setup in setups}
    assert len(paths) == len(setups)
    for path in paths:
        assert path.parts[:3] == ("cache", "tiny", "photos") and len(path.parts) == 4
        assert path.name.startswith("tiny-")
    # Flags of queries and of the search leave the photos as they are.
    for preset in ("paper", "corrected"):
        assert tiny.setup(protocol=preset).photos_path(data) in paths
    queries = [SETUP, *(tiny.setup(**changes) for changes in QUERY_CHANGES)]
    assert len({setup.queries_path(data) for setup in queries}) == len(queries)
    kept = tiny.setup(classes=3), tiny.setup(repeat_previous_class=True)
    assert {setup.queries_path(data) for setup in kept} == {SETUP.queries_path(data)}


def test_other_weights_of_one_name_have_stores_of_their_own(data):
    other = tiny.setup(own=tiny.network(seed=1))
    assert other.photos_path(data) != SETUP.photos_path(data)


def test_another_version_describes_anew(data, monkeypatch):
    path = SETUP.photos_path(data)
    monkeypatch.setattr(cwr_utils, "__version__", "99")
    assert tiny.setup().photos_path(data) != path


@pytest.mark.parametrize("name", ["Rome #2", "a\\b", "c:d", "été", "e/f", ".."])
def test_a_data_set_may_have_any_name(data, name):
    path = SETUP.photos_path(replace(data, name=name))
    assert path.parts[0] == "cache" and len(path.parts) == 4
    assert not set("".join(path.parts)) & set("\\/:# ")


def test_a_setup_can_be_made_again_in_another_process():
    first = tiny.setup(power=2.0, protocol="authors_code")
    again = type(first).again(first.recipe)
    assert again.facts == first.facts and again.recipe == first.recipe
    hash(first.recipe)


# Maps on demand


@pytest.fixture
def image_maps(data):
    return ImageMaps(data, SETUP, on_disk=False)


def test_maps_are_those_of_the_resized_photo(image_maps, data):
    photo = read_image(data.path("place1_0"))
    photo = resize_image(photo, ResizePolicy.parse(tiny.RESIZE))
    expected = NETWORK.maps(photo[None], tiny.LAYER)
    features, cam_maps = image_maps("place1_0")
    assert features.dtype == cam_maps.dtype == np.float16
    np.testing.assert_allclose(features, expected["features"][0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(cam_maps, expected["cam_maps"][0], rtol=1e-3, atol=1e-3)


def test_maps_come_in_order_also_of_repeated_and_known_photos(image_maps, data):
    expected = {name: image_maps(name)[0] for name in data.images}
    names = ["place1_0", "place1_0", "other0_1", "place1_0", "place0_0", "other0_1"]
    for kept in (10**9, 1):
        fresh = ImageMaps(data, SETUP, cache_bytes=kept, on_disk=False)
        fresh("place0_0")
        got = list(fresh.many(names))
        assert len(got) == len(names)
        for name, (features, _) in zip(names, got, strict=True):
            np.testing.assert_array_equal(features, expected[name])


def test_maps_are_kept_within_their_bytes_and_used_again(data, monkeypatch):
    read, decoded = maps.read_image, []
    monkeypatch.setattr(
        maps, "read_image", lambda path: decoded.append(path.stem) or read(path)
    )
    first = ImageMaps(data, SETUP, on_disk=False)
    one = sum(array.nbytes for array in first("place0_0"))
    decoded.clear()
    few = ImageMaps(data, SETUP, cache_bytes=2 * one, on_disk=False)
    list(few.many(["place0_0", "place0_1", "place0_0", "place1_0"]))
    assert decoded == ["place0_0", "place0_1", "place1_0"]
    few("place0_0")  # used more recently than place0_1
    assert len(decoded) == 3
    few("place0_1")
    assert decoded[3:] == ["place0_1"]
    assert sum(a.nbytes for entry in few._kept.values() for a in entry) <= 2 * one


# Maps on disk


def map_files(cache):
    return sorted(cache.rglob("*.npz"))


def test_maps_stay_on_disk_for_another_process(data, tmp_path, monkeypatch):
    names = list(data.images)
    setup = tiny.setup(tmp_path)
    expected = list(ImageMaps(data, setup).many(names))
    assert len(map_files(tmp_path)) == len(names)
    monkeypatch.delattr(maps, "read_image")  # nothing is decoded any more
    got = ImageMaps(data, setup, 0).many(names)
    for ours, theirs in zip(got, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def half_network():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return tiny.network.__wrapped__()
    finally:
        keras.config.set_dtype_policy("float32")


def test_maps_of_other_settings_are_apart_and_powers_share_theirs(data, tmp_path):
    def count(**changes):
        ImageMaps(data, tiny.setup(tmp_path, **changes))(data.images[0])
        return len(map_files(tmp_path))

    assert count() == 1
    assert count(power=2.0) == count(protocol="paper") == 1
    assert count(resize="128x96") == 2
    assert count(own=tiny.network(seed=1)) == 3
    assert count(layer="maps") == 4
    assert count(own=half_network()) == 5


def test_a_square_that_stands_upright_has_maps_of_its_own(data, tmp_path):
    square, portrait = "place0_2", "place0_1"
    usual = ImageMaps(data, tiny.setup(tmp_path))
    upright = usual.under(tiny.setup(tmp_path, rerank_squares_upright=True))
    assert upright is not usual
    for name, same in ((square, False), (portrait, True)):
        first, second = usual(name)[0], upright(name)[0]
        assert (first.shape == second.shape) == same
    assert usual(square)[0].shape[:2] == upright(square)[0].shape[1::-1]
    assert len(map_files(tmp_path)) == 3


def test_maps_are_shared_under_flags_that_leave_them_as_they_are(data):
    usual = ImageMaps(data, SETUP)
    assert usual.under(tiny.setup(repeat_previous_class=True)) is usual
    assert usual.under(tiny.setup(power=2.0)) is usual
    assert usual.under(tiny.setup(resize="shorter:72")) is not usual


@pytest.mark.parametrize(
    "damage", [b"", b"PK\x03\x04", "cut", "flipped", "version", "empty"]
)
def test_damaged_maps_are_computed_again(data, tmp_path, capsys, damage):
    name, setup = data.images[0], tiny.setup(tmp_path)
    expected = ImageMaps(data, setup)(name)
    (file,) = map_files(tmp_path)
    content = file.read_bytes()
    if damage == "cut":
        damage = content[:-100]
    elif damage == "flipped":
        damage = content[:400] + bytes([content[400] ^ 255]) + content[401:]
    elif damage == "version":  # of the archive's format: one that nobody wrote yet
        place = content.index(b"PK\x01\x02") + 6
        damage = content[:place] + b"\xff" + content[place + 1 :]
    elif damage == "empty":  # whose checksum is right
        with zipfile.ZipFile(file, "w") as archive:
            for member in ("features.npy", "cam_maps.npy"):
                archive.writestr(member, b"")
        damage = file.read_bytes()
    file.write_bytes(damage)
    got = ImageMaps(data, setup)(name)
    np.testing.assert_array_equal(got[0], expected[0])
    assert file.read_bytes() == content
    output = capsys.readouterr()
    assert "damaged" in output.out + output.err


def test_maps_are_read_again_where_python_miscounts(data, tmp_path, monkeypatch):
    """CPython below 3.11.8, now and then, where threads parse headers together."""
    setup = tiny.setup(tmp_path)
    expected = ImageMaps(data, setup)(data.images[0])
    load, calls = np.load, []

    def miscount(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise SystemError("AST constructor recursion depth mismatch")
        return load(*arguments, **options)

    monkeypatch.setattr(np, "load", miscount)
    monkeypatch.setattr(tiny.network(), "maps", None)
    np.testing.assert_array_equal(
        ImageMaps(data, setup)(data.images[0])[0], expected[0]
    )
    assert len(calls) == 2


def test_a_full_disk_ends_the_keeping_of_maps_and_nothing_else(
    data, tmp_path, monkeypatch, capsys
):
    setup = tiny.setup(tmp_path)
    kept, expected = ImageMaps(data, setup), ImageMaps(data, SETUP, on_disk=False)
    monkeypatch.setattr(disk, "free_bytes", lambda path: maps.DISK_RESERVE - 1)
    for name in data.images[:3]:
        np.testing.assert_array_equal(kept(name)[0], expected(name)[0])
    assert not map_files(tmp_path)
    output = capsys.readouterr()
    assert (output.out + output.err).count("No more maps are kept") == 1
    monkeypatch.setattr(disk, "free_bytes", lambda path: maps.DISK_RESERVE)
    ImageMaps(data, setup)(data.images[0])
    assert len(map_files(tmp_path)) == 1


def test_a_network_in_half_precision_has_stores_of_its_own(data, tmp_path):
    half = tiny.setup(own=half_network())
    assert (NETWORK.precision, half.network.precision) == ("float32", "bfloat16")
    assert half.photos_path(data) != SETUP.photos_path(data)
    extract(data, SETUP, tmp_path / "store")
    with pytest.raises(StoreMismatchError, match="another precision"):
        extract(data, half, tmp_path / "store")
