"""Extraction: right numbers, resume after a kill, honest errors, bounded memory."""

import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pytest
import reference
import tiny

from cwr_utils import extraction, pooling, protocol
from cwr_utils.extraction import Describer, ExtractionConf, ImageMaps, extract
from cwr_utils.images import ImageError, ResizePolicy, read_image, resize_image
from cwr_utils.networks import top_classes
from cwr_utils.store import Store, StoreError, StoreMismatchError

CONF = ExtractionConf(resize=tiny.RESIZE)


@pytest.fixture(scope="module")
def network():
    return tiny.network()


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "Describer", tiny.describer)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """18 photos: landscape, portrait and square ones in turn."""
    return tiny.dataset(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def store(data, network, tmp_path_factory):
    """All classes, one photo a batch."""
    path = tmp_path_factory.mktemp("stores") / "all"
    return extract(data, network, path, CONF, batch=1, block=4)


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
    maps = network.maps(photo[None], tiny.LAYER)
    features, cam_maps = maps["features"][0].astype(float), maps["cam_maps"][0]
    cams = []
    for c in classes:
        cam = reference.class_activation_map(cam_maps, network.class_weights[:, c])
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


def test_every_array_equals_loops_over_single_photos(store, data, network):
    policy = ResizePolicy.parse(tiny.RESIZE)
    assert store.names == list(data.images)
    stored = everything(store)
    for row, name in enumerate(data.images):
        photo = resize_image(read_image(data.path(name)), policy)
        expected = naive(photo, network)
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


def test_a_power_is_applied_to_class_vectors_and_mean_regions(data, network, tmp_path):
    few = replace(data, images=data.images[:1])
    conf = replace(CONF, power=2.0)
    stored = everything(extract(few, network, tmp_path / "s", conf))
    photo = read_image(data.path(data.images[0]))
    photo = resize_image(photo, ResizePolicy.parse(tiny.RESIZE))
    maps = network.maps(photo[None], tiny.LAYER)
    features = maps["features"][0]
    cams = maps["cam_maps"][0] @ network.class_weights
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


def test_a_store_of_float32_is_rounded_by_float16_only(store, data, network, tmp_path):
    conf = replace(CONF, dtype="float32")
    precise = extract(data, network, tmp_path / "s", conf, batch=1, block=4)
    for name in ("class_vectors", "globals", "regions"):
        assert precise.dtype(name) == np.float32
        np.testing.assert_array_equal(
            precise.read(name).astype(np.float16), store.read(name)
        )


def test_top_classes_mode_keeps_the_same_rows(store, data, network, tmp_path):
    count = 4
    kept = extract(
        data, network, tmp_path / "s", replace(CONF, classes=count), batch=2, block=4
    )
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


@pytest.mark.parametrize(("batch", "block"), [(3, 4), (2, 18)])
def test_the_batch_changes_nothing(store, data, network, tmp_path, batch, block):
    """Sizes and orientations mixed within a block, and batches that are not full."""
    got = extract(data, network, tmp_path / "s", CONF, batch=batch, block=block)
    assert got.names == store.names
    for name, expected in everything(store).items():
        np.testing.assert_allclose(got.read(name), expected, rtol=2e-3, atol=1e-4)


def test_a_batch_has_photos_of_one_size_and_always_the_same_number(
    data, network, tmp_path, monkeypatch
):
    shapes = []
    original = Describer.__call__
    monkeypatch.setattr(
        Describer, "__call__", lambda s, x: shapes.append(x.shape) or original(s, x)
    )
    extract(data, network, tmp_path / "s", CONF, batch=4, block=18)
    assert {shape[0] for shape in shapes} == {4}
    assert {shape[1:3] for shape in shapes} == {(48, 64), (64, 48)}
    assert len(shapes) == 5  # 12 landscape or square photos, 6 portraits


def test_photos_of_many_sizes_get_as_many_regions_as_the_largest_has(
    data, network, tmp_path
):
    conf = ExtractionConf(resize="native")
    store = extract(data, network, tmp_path / "s", conf, batch=2, block=5)
    grids = [(18, 24), (24, 18), (20, 20)]  # of 96x72, 72x96 and 80x80 at stride 4
    counts = [len(pooling.rmac_regions(*grid)) for grid in grids]
    assert store.shape("regions")[1] == max(counts) > min(counts)
    square = data.images.index("place0_2")
    assert not store.read("regions")[square, :, min(counts) :].any()


def test_the_same_photos_give_the_same_bits(data, network, tmp_path):
    first = extract(data, network, tmp_path / "1", CONF, batch=3, block=4)
    again = extract(
        data, tiny.network.__wrapped__(), tmp_path / "2", CONF, batch=3, block=4
    )
    assert files(first) == files(again)


def test_the_logits_choose_the_classes_not_the_order_of_the_cams(network):
    describer = Describer(network, replace(CONF, classes=3))
    photos = np.stack([tiny.view(place, 0) for place in range(5)])
    got = describer(photos)
    np.testing.assert_array_equal(got["top_classes"], top_classes(got["logits"], 3))
    assert len({tuple(row) for row in got["top_classes"]}) > 1


# Queries


def test_a_query_takes_classes_from_its_crop_and_features_from_the_whole_photo(
    data, network, tmp_path
):
    queries = extraction.extract_queries(data, network, tmp_path / "q", CONF)
    assert queries.names == [query.name for query in data.queries]
    query = data.queries[0]  # 96x72 pixels, resized to 64x48: 16x12 and 8x6 cells
    photo = read_image(data.path(query.image))
    resized = resize_image(photo, ResizePolicy.parse(tiny.RESIZE))
    maps = network.maps(resized[None], tiny.LAYER)
    # Box (8, 8, 90, 66) of 96x72 touches cells 1..15 and 1..11 of 16x12.
    inside = maps["features"][0, 1:11, 1:15]
    cams = [
        reference.class_activation_map(maps["cam_maps"][0], network.class_weights[:, c])
        for c in range(tiny.CLASSES)
    ]
    cams = [np.maximum(c / c.max(), 0) if c.max() > 0 else 0 * c for c in cams]
    cams = [reference.bilinear(cam, (12, 16))[1:11, 1:15] for cam in cams]
    expected = l2(reference.class_vectors(inside, np.stack(cams, axis=-1)))
    got = queries.read("class_vectors")[0]
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-4)
    # 82 x 58 pixels at the scale of the resized photo, to multiples of 16.
    crop = extraction.cv2.resize(photo[8:66, 8:90], (48, 32), interpolation=3)
    logits = network.maps(crop[None], tiny.LAYER)["logits"].astype(float)
    np.testing.assert_array_equal(
        queries.read("top_classes")[0], top_classes(logits, tiny.CLASSES)[0]
    )
    whole = top_classes(maps["logits"], tiny.CLASSES)[0]
    assert queries.read("top_classes")[0].tolist() != whole.tolist()


def test_a_query_without_a_box_is_the_photo_itself(store, data, network, tmp_path):
    whole = replace(data.queries[1], box=None)
    one = replace(data, queries=(whole,))
    queries = extraction.extract_queries(one, network, tmp_path / "q", CONF)
    row = data.images.index(whole.image)
    for name, value in everything(queries).items():
        expected = store.read(name)[row]
        np.testing.assert_allclose(value[0], expected, rtol=2e-3, atol=1e-4)


def test_queries_keep_all_classes_whatever_the_database_keeps(data, network, tmp_path):
    conf = replace(CONF, classes=2)
    queries = extraction.extract_queries(data, network, tmp_path / "q", conf)
    assert queries.config["classes"] is None
    assert queries.shape("class_vectors")[0] == tiny.CLASSES


def test_a_moved_box_is_another_store(data, network, tmp_path):
    extraction.extract_queries(data, network, tmp_path / "q", CONF)
    moved = replace(data.queries[2], box=(0.0, 0.0, 40.0, 40.0))
    queries = (*data.queries[:2], moved, *data.queries[3:])
    with pytest.raises(StoreMismatchError, match=r"1 changed \(query2\)"):
        extraction.extract_queries(
            replace(data, queries=queries), network, tmp_path / "q", CONF
        )


def test_a_data_set_without_queries_is_refused_by_name(data, network, tmp_path):
    with pytest.raises(ValueError, match="tiny has no queries"):
        extraction.extract_queries(
            replace(data, queries=()), network, tmp_path / "q", CONF
        )


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
conf = extraction.ExtractionConf(resize=tiny.RESIZE)
network = tiny.network()
extraction.extract(
    data, network, sys.argv[2], conf, batch=1, block=4, on_block=on_block
)
"""


def test_a_killed_extraction_goes_on_where_it_stopped(
    store, data, network, tmp_path, monkeypatch
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
    killed = Store.open(path)
    assert killed.missing_blocks() == [2, 3, 4]
    with pytest.raises(StoreError, match="lacks 3 of 5 blocks"):
        killed.require_complete()
    written = {p: p.stat().st_mtime_ns for p in path.glob("*/c/[01]/**/*")}

    read, decoded, blocks = extraction.read_image, [], []
    monkeypatch.setattr(
        extraction, "read_image", lambda p: decoded.append(p.stem) or read(p)
    )
    done = extract(data, network, path, CONF, batch=1, block=4, on_block=blocks.append)
    assert blocks == [2, 3, 4]
    assert sorted(decoded) == sorted(data.images[8:])
    assert written == {p: p.stat().st_mtime_ns for p in path.glob("*/c/[01]/**/*")}
    # Half of `done` comes from another process than `store`.
    assert files(done) == files(store)
    assert len(files(done)) == 5 * len(done.arrays)


def test_a_block_that_was_half_written_is_written_again(store, data, network, tmp_path):
    """A kill between two arrays of a block, and one within a shard."""
    path = tmp_path / "s"
    broken = extract(data, network, path, CONF, batch=1, block=4)
    shard = broken._shard("class_vectors", 3)
    shard.rename(shard.with_name("0.__lock"))  # what a writer leaves that is killed
    assert broken.missing_blocks() == [3]
    written = []
    again = extract(
        data, network, path, CONF, batch=1, block=4, on_block=written.append
    )
    assert written == [3]
    assert {k: v for k, v in files(again).items() if "lock" not in k} == files(store)


def test_a_complete_store_is_not_computed_again(store, data, network, monkeypatch):
    monkeypatch.setattr(extraction, "read_image", None)
    monkeypatch.setattr(Describer, "__call__", None)
    again = extract(data, network, store.path, CONF, block=4)
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
        ("stretch_query_images", {"stretch_query_images": True}),
    ],
)
def test_other_settings_are_refused_by_name(store, data, network, field, changes):
    with pytest.raises(StoreMismatchError, match=f"another {field}: .* there, .* now"):
        extract(data, network, store.path, replace(CONF, **changes))


def test_the_batch_is_that_of_the_store_or_refused(store, data, network):
    assert store.config["batch"] == 1
    with pytest.raises(StoreMismatchError, match="another batch: 1 there, 3 now"):
        extract(data, network, store.path, CONF, batch=3)


# Shards on an executor


def test_shards_on_an_executor_give_the_same_bits(store, data, network, tmp_path):
    blocks = []
    with ThreadPoolExecutor(2) as pool:
        options = {"executor": pool, "batch": 1, "block": 4}
        got = extract(
            data, network, tmp_path / "s", CONF, **options, on_block=blocks.append
        )
    assert files(got) == files(store)
    assert sorted(blocks) == [0, 1, 2, 3, 4]


def test_only_missing_shards_are_submitted(store, data, network, tmp_path):
    path = tmp_path / "s"
    extract(data, network, path, CONF, batch=1, block=4)._shard(
        "class_vectors", 2
    ).unlink()
    blocks = []
    with ThreadPoolExecutor(2) as pool:
        got = extract(data, network, path, CONF, executor=pool, on_block=blocks.append)
    assert blocks == [2]
    assert files(got) == files(store)


def test_a_failing_shard_cancels_the_rest_and_is_named(network, tmp_path):
    data = tiny.dataset(tmp_path / "photos", places=2, views=2, distractors=0)
    broken = data.path(data.images[1])
    broken.write_bytes(broken.read_bytes()[:-20])
    with ThreadPoolExecutor(1) as pool, pytest.raises(ImageError, match=broken.name):
        extract(data, network, tmp_path / "s", CONF, block=1, executor=pool)
    assert Store.open(tmp_path / "s").missing_blocks()


def test_a_network_without_a_recipe_stays_in_its_process(data, tmp_path):
    network = tiny.network.__wrapped__()
    network.recipe = None
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="`recipe`"):
        extract(data, network, tmp_path / "s", CONF, executor=pool)
    assert not (tmp_path / "s").exists()


def test_a_shard_refuses_other_weights(store, data):
    photos = tuple(data.path(name) for name in data.images[:4])
    shard = extraction.Shard(store.path, 0, photos, (tiny.network, (1, "tiny")))
    with pytest.raises(StoreMismatchError, match="same weight file"):
        extraction.extract_shard(shard)


def test_another_network_is_refused(store, data):
    with pytest.raises(StoreMismatchError, match="another network: 'tiny' there"):
        extract(data, tiny.network(name="other"), store.path, CONF)
    with pytest.raises(StoreMismatchError, match="another weights_sha256"):
        extract(data, tiny.network(seed=1), store.path, CONF)


def test_another_version_or_data_set_is_refused(store, data, network, monkeypatch):
    with pytest.raises(StoreMismatchError, match="another dataset: 'tiny' there"):
        extract(replace(data, name="other"), network, store.path, CONF)
    monkeypatch.setattr(extraction.cwr_utils, "__version__", "99")
    with pytest.raises(StoreMismatchError, match="another package_version: .* '99'"):
        extract(data, network, store.path, CONF)


def test_changed_photos_are_refused_by_name(network, tmp_path):
    data = tiny.dataset(tmp_path / "photos", places=1, distractors=3)
    extract(data, network, tmp_path / "s", CONF)
    tiny.write(data.path("other0_1"), tiny.view(5, 0))
    with pytest.raises(StoreMismatchError, match=r"images: 1 changed \(other0_1\)"):
        extract(data, network, tmp_path / "s", CONF)
    fewer = replace(data, images=data.images[:4])
    with pytest.raises(StoreMismatchError, match="2 gone"):
        extract(fewer, network, tmp_path / "s", CONF)


def test_other_query_photos_are_refused_where_they_are_stretched(network, tmp_path):
    """Which photos are stretched is part of what the store holds."""
    data = tiny.dataset(tmp_path / "photos", places=2, views=1, distractors=0)
    conf = replace(CONF, stretch_query_images=True)
    extract(data, network, tmp_path / "s", conf)
    fewer = replace(data, queries=data.queries[:1])
    with pytest.raises(StoreMismatchError, match="another stretched"):
        extract(fewer, network, tmp_path / "s", conf)


# Errors


def test_an_undecodable_photo_stops_the_run_and_complete_blocks_stay(network, tmp_path):
    data = tiny.dataset(tmp_path / "photos", places=4, distractors=4)
    victim = data.path(data.images[9])
    whole = cv2.imencode(".jpg", tiny.view(0, 0))[1].tobytes()
    victim.write_bytes(whole[: len(whole) // 2])  # the header is there
    with pytest.raises(ImageError, match=victim.name):
        extract(data, network, tmp_path / "s", CONF, batch=1, block=4)
    assert Store.open(tmp_path / "s").missing_blocks() == [2, 3]
    victim.write_bytes(whole)
    with pytest.raises(StoreMismatchError, match=f"1 changed .{data.images[9]}"):
        extract(data, network, tmp_path / "s", CONF, batch=1, block=4)


def test_a_missing_photo_is_an_error_before_any_work(network, tmp_path):
    data = tiny.dataset(tmp_path / "photos", places=1, distractors=1)
    data.path("other0_0").unlink()
    with pytest.raises(ImageError, match="other0_0.png: no such file"):
        extract(data, network, tmp_path / "s", CONF)
    assert not (tmp_path / "s").exists()


def test_a_write_error_is_a_store_error_and_earlier_blocks_are_safe(
    store, data, network, tmp_path
):
    """The operating system refuses block 2: a file stands where its folder goes."""
    path = tmp_path / "s"
    obstacle = path / "class_vectors" / "c" / "2"

    def on_block(number):
        if number == 0:
            obstacle.write_text("")

    with pytest.raises(StoreError, match="Cannot write block 2 .* run again"):
        extract(data, network, path, CONF, batch=1, block=4, on_block=on_block)
    assert 2 in Store.open(path).missing_blocks()
    assert not {0, 1} & set(Store.open(path).missing_blocks())
    obstacle.unlink()
    done = extract(data, network, path, CONF, batch=1, block=4)
    assert files(done) == files(store)


def test_an_error_in_the_last_block_is_not_lost(data, network, tmp_path, monkeypatch):
    original = Store.write_block

    def write_block(store, number, values):
        if number == 4:
            raise StoreError("the disk is full")
        original(store, number, values)

    monkeypatch.setattr(Store, "write_block", write_block)
    with pytest.raises(StoreError, match="the disk is full"):
        extract(data, network, tmp_path / "s", CONF, batch=1, block=4)
    assert Store.open(tmp_path / "s").missing_blocks() == [4]


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"layer": "featurs"}, "no feature layer 'featurs'; similar: features"),
        ({"layer": "linear", "power": 2.0}, "`power` 2.0 needs a layer without"),
        ({"classes": 7}, "tiny has 6 classes; `classes` 7"),
    ],
)
def test_what_the_network_cannot_do_is_refused(data, network, tmp_path, conf, message):
    with pytest.raises(ValueError, match=message):
        extract(data, network, tmp_path / "s", replace(CONF, **conf))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "big"}, "resize policy"),
        ({"classes": 0}, "`classes` must be None .* got 0"),
        ({"power": 0.0}, "`power` must be above 0"),
        ({"power": -1.0}, "`power` must be above 0"),
        ({"power": float("nan")}, "`power` must be above 0"),
        ({"dtype": "float64"}, "`dtype` must be 'float16' or 'float32'"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ExtractionConf(**fields)


# Work beside work


def test_photos_are_decoded_while_the_network_works(
    data, network, tmp_path, monkeypatch
):
    """The first pass waits for photos beyond its own: in turn, they never come."""
    started, arrived = [], threading.Event()
    read, call = extraction.read_image, Describer.__call__

    def counted(path):
        started.append(path)
        if len(started) >= 4:
            arrived.set()
        return read(path)

    def waiting(self, images):
        assert arrived.wait(20), f"only {len(started)} photos were begun"
        return call(self, images)

    monkeypatch.setattr(extraction, "read_image", counted)
    monkeypatch.setattr(Describer, "__call__", waiting)
    extract(data, network, tmp_path / "s", CONF, batch=1, block=4)
    assert len(started) == len(data.images)


def test_decoding_does_not_run_far_ahead(data, network, tmp_path, monkeypatch):
    """Photos that wait take memory: only a few may."""
    begun, passes, ahead = [], [], []
    read, call = extraction.read_image, Describer.__call__

    def counted(self, images):
        passes.append(len(images))
        ahead.append(len(begun) - len(passes))
        return call(self, images)

    monkeypatch.setattr(
        extraction, "read_image", lambda path: begun.append(path) or read(path)
    )
    monkeypatch.setattr(Describer, "__call__", counted)
    extract(data, network, tmp_path / "s", CONF, batch=1, block=4)
    assert max(ahead) <= 4 + 1


def test_a_block_is_written_while_the_network_goes_on(
    data, network, tmp_path, monkeypatch
):
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
    extract(data, network, tmp_path / "s", CONF, batch=1, block=4, on_block=on_block)
    assert seen == [True] * 5


def test_memory_does_not_grow_with_the_number_of_photos(network, tmp_path, monkeypatch):
    """Four times the photos, the same peak of what NumPy holds."""
    photo = tiny.view(0, 0)
    monkeypatch.setattr(extraction, "read_image", lambda path: photo.copy())
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
            network,
            tmp_path / str(count),
            CONF,
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


def test_conf_takes_the_flags_of_a_protocol():
    conf = ExtractionConf.with_protocol(protocol.get("authors_code"), power=2.0)
    assert conf.flip_negative_cams and conf.stretch_query_images
    assert not conf.scale_query_box
    assert conf.power == 2.0
    corrected = protocol.get("corrected")
    size = ExtractionConf().resize
    assert ExtractionConf.with_protocol(corrected, size) == ExtractionConf()


def test_store_paths_differ_where_settings_do(data, network):
    confs = [
        CONF,
        replace(CONF, layer="maps"),
        replace(CONF, resize="shorter:720"),
        replace(CONF, classes=3),
        replace(CONF, power=2.0),
        replace(CONF, flip_negative_cams=True),
        replace(CONF, stretch_query_images=True),
    ]
    paths = {extraction.store_path("cache", data, network, conf) for conf in confs}
    assert len(paths) == len(confs)
    for path in paths:
        assert path.parts[:2] == ("cache", "tiny") and len(path.parts) == 3
    # The paper and the corrections describe the photos alike: one store serves both.
    for preset in ("paper", "corrected"):
        flags = ExtractionConf.with_protocol(protocol.get(preset), resize=tiny.RESIZE)
        assert extraction.store_path("cache", data, network, flags) in paths


def test_a_network_that_was_never_trained_has_stores_of_its_own(data, network):
    trained = SimpleNamespace(
        name=network.name,
        weights_sha256="1a",
        default_layer=network.default_layer,
        precision=network.precision,
    )
    paths = [
        extraction.store_path("cache", data, each, CONF) for each in (network, trained)
    ]
    assert paths[0].name == f"{paths[1].name}-random"


# Maps on demand


@pytest.fixture
def maps(data, network):
    return ImageMaps(data, network, CONF)


def test_maps_are_those_of_the_resized_photo(maps, data, network):
    photo = read_image(data.path("place1_0"))
    photo = resize_image(photo, ResizePolicy.parse(tiny.RESIZE))
    expected = network.maps(photo[None], tiny.LAYER)
    features, cam_maps = maps("place1_0")
    assert features.dtype == cam_maps.dtype == np.float16
    np.testing.assert_allclose(features, expected["features"][0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(cam_maps, expected["cam_maps"][0], rtol=1e-3, atol=1e-3)


def test_maps_come_in_order_also_of_repeated_and_known_photos(maps, data):
    expected = {name: maps(name)[0] for name in data.images}
    names = ["place1_0", "place1_0", "other0_1", "place1_0", "place0_0", "other0_1"]
    for kept in (10**9, 1):
        fresh = ImageMaps(data, maps.network, CONF, cache_bytes=kept)
        fresh("place0_0")
        got = list(fresh.many(names))
        assert len(got) == len(names)
        for name, (features, _) in zip(names, got, strict=True):
            np.testing.assert_array_equal(features, expected[name])


def test_maps_are_kept_within_their_bytes_and_used_again(data, network, monkeypatch):
    read, decoded = extraction.read_image, []
    monkeypatch.setattr(
        extraction, "read_image", lambda path: decoded.append(path.stem) or read(path)
    )
    one = sum(array.nbytes for array in ImageMaps(data, network, CONF)("place0_0"))
    decoded.clear()
    maps = ImageMaps(data, network, CONF, cache_bytes=2 * one)
    list(maps.many(["place0_0", "place0_1", "place0_0", "place1_0"]))
    assert decoded == ["place0_0", "place0_1", "place1_0"]
    maps("place0_0")  # used more recently than place0_1
    assert len(decoded) == 3
    maps("place0_1")
    assert decoded[3:] == ["place0_1"]
    assert sum(a.nbytes for entry in maps._kept.values() for a in entry) <= 2 * one


# Maps on disk


def map_files(cache):
    return sorted(cache.rglob("*.npz"))


def test_maps_stay_on_disk_for_another_process(data, network, tmp_path, monkeypatch):
    names = list(data.images)
    first = ImageMaps(data, network, CONF, cache_dir=tmp_path)
    expected = list(first.many(names))
    contents = {data.sha256(name) for name in names}
    assert {file.stem for file in map_files(tmp_path)} == contents
    monkeypatch.delattr(extraction, "read_image")  # nothing is decoded any more
    got = ImageMaps(data, network, CONF, 0, tmp_path).many(names)
    for ours, theirs in zip(got, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_maps_of_other_settings_are_apart_and_powers_share_theirs(
    data, network, tmp_path
):
    def count(conf):
        ImageMaps(data, network, conf, cache_dir=tmp_path)(data.images[0])
        return len(map_files(tmp_path))

    assert count(CONF) == 1
    assert count(replace(CONF, power=2.0)) == 1
    assert count(replace(CONF, resize="128x96")) == 2
    network.weights_sha256 += "other"
    try:
        assert count(CONF) == 3
    finally:
        network.weights_sha256 = network.weights_sha256.removesuffix("other")


def test_a_square_that_stands_upright_has_maps_of_its_own(data, network, tmp_path):
    maps = ImageMaps(data, network, CONF, cache_dir=tmp_path)
    maps._is_square = lambda name: True
    maps(data.images[0])
    maps(data.images[0], squares_upright=True)
    sha256 = data.sha256(data.images[0])
    assert {f.stem for f in map_files(tmp_path)} == {sha256, f"{sha256}-upright"}


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", "cut", "flipped"])
def test_damaged_maps_are_computed_again(data, network, tmp_path, capsys, damage):
    name = data.images[0]
    expected = ImageMaps(data, network, CONF, cache_dir=tmp_path)(name)
    (file,) = map_files(tmp_path)
    content = file.read_bytes()
    if damage == "cut":
        damage = content[:-100]
    elif damage == "flipped":
        damage = content[:400] + bytes([content[400] ^ 255]) + content[401:]
    file.write_bytes(damage)
    got = ImageMaps(data, network, CONF, cache_dir=tmp_path)(name)
    np.testing.assert_array_equal(got[0], expected[0])
    assert file.read_bytes() == content
    output = capsys.readouterr()
    assert "damaged" in output.out + output.err


def test_a_full_disk_ends_the_keeping_of_maps_and_nothing_else(
    data, network, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("cwr_utils.store.DISK_RESERVE", 2.0)
    maps = ImageMaps(data, network, CONF, cache_dir=tmp_path)
    expected = ImageMaps(data, network, CONF)
    for name in data.images[:3]:
        np.testing.assert_array_equal(maps(name)[0], expected(name)[0])
    assert not map_files(tmp_path)
    output = capsys.readouterr()
    assert (output.out + output.err).count("No more maps are kept") == 1


def test_a_network_in_half_precision_has_stores_of_its_own(data, network, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = tiny.network.__wrapped__()
    finally:
        keras.config.set_dtype_policy("float32")
    assert (network.precision, half.precision) == ("float32", "bfloat16")
    paths = {extraction.store_path(tmp_path, data, n, CONF) for n in (network, half)}
    assert len(paths) == 2
    extract(data, network, tmp_path / "store", CONF)
    with pytest.raises(StoreMismatchError):
        extract(data, half, tmp_path / "store", CONF)
