"""The store: atomic shards, mismatch errors, reading by class."""

import json
import shutil

import numpy as np
import pytest

from cwr_utils import store as store_module
from cwr_utils.store import ArraySpec, DiskStore, StoreError, StoreMismatchError

CONFIG = {"network": "a", "layer": "x", "classes": None}
IMAGES = {f"photo{i}": f"hash{i}" for i in range(7)}
ARRAYS = {
    "top_classes": ArraySpec((3,), "int32"),
    "class_vectors": ArraySpec((5, 4), "float16", by_row=True),
}


def values(rows, seed=0):
    rng = np.random.default_rng(seed)
    vectors = rng.random((7, 5, 4)).astype(np.float16)
    top = np.argsort(rng.random((7, 5)), axis=1)[:, :3]
    take = slice(rows.start, rows.stop)
    return {"top_classes": top[take], "class_vectors": vectors[take]}


def make(path, **changes):
    return DiskStore.create(path, {**CONFIG, **changes}, IMAGES, ARRAYS, block=3)


def fill(store):
    for number in store.missing_blocks():
        store.write_block(number, values(store.blocks[number]))
    return store


def test_round_trip_by_class_and_by_image(tmp_path):
    store = fill(make(tmp_path / "s"))
    expected = values(range(7))
    assert store.missing_blocks() == []
    got = DiskStore.open(tmp_path / "s")
    np.testing.assert_array_equal(
        got.class_vectors([4, 0]), expected["class_vectors"][:, [4, 0]]
    )
    top = np.concatenate([block for _, block in got.iter_top_class_vectors(2)])
    rows = np.arange(7)[:, None]
    np.testing.assert_array_equal(
        top, expected["class_vectors"][rows, expected["top_classes"][:, :2]]
    )


def test_missing_blocks_are_the_ones_not_written(tmp_path):
    store = make(tmp_path / "s")
    assert store.missing_blocks() == [0, 1, 2]
    store.write_block(1, values(store.blocks[1]))
    assert make(tmp_path / "s").missing_blocks() == [0, 2]
    with pytest.raises(StoreError, match="lacks 2 of 3 blocks"):
        store.require_complete()
    with pytest.raises(StoreError, match="Cannot read"):
        store.read("class_vectors")


def test_a_block_of_zeros_counts_as_written(tmp_path):
    store = make(tmp_path / "s")
    block = {name: np.zeros_like(v) for name, v in values(range(3)).items()}
    store.write_block(0, block)
    assert store.missing_blocks() == [1, 2]


@pytest.mark.parametrize("field", ["network", "layer", "classes"])
def test_another_configuration_is_refused_by_name(tmp_path, field):
    make(tmp_path / "s")
    with pytest.raises(StoreMismatchError, match=f'another {field}: .* "other" here'):
        make(tmp_path / "s", **{field: "other"})


def test_changed_new_and_missing_images_are_named(tmp_path):
    make(tmp_path / "s")
    images = dict(IMAGES, photo2="edited", extra="hash")
    del images["photo5"]
    with pytest.raises(StoreMismatchError) as error:
        DiskStore.create(tmp_path / "s", CONFIG, images, ARRAYS, block=3)
    for text in ["1 changed (photo2)", "1 new (extra)", "1 gone (photo5)"]:
        assert text in str(error.value)


def test_the_same_images_in_another_order_are_other_images(tmp_path):
    """Or a store that goes on would have vectors in the wrong rows."""
    make(tmp_path / "s")
    turned = dict(reversed(IMAGES.items()))
    with pytest.raises(StoreMismatchError, match="the same ones in another order"):
        DiskStore.create(tmp_path / "s", CONFIG, turned, ARRAYS, block=3)


def test_facts_that_nobody_asks_for_do_not_matter_and_missing_ones_do(tmp_path):
    store = make(tmp_path / "s")
    few = {name: CONFIG[name] for name in list(CONFIG)[:1]}
    assert store.require(few, IMAGES) is store
    with pytest.raises(StoreMismatchError, match="another colour: nothing there"):
        store.require({**CONFIG, "colour": "red"}, IMAGES)


def test_a_damaged_shard_is_an_error_not_wrong_numbers(tmp_path):
    store = fill(make(tmp_path / "s"))
    shard = store._shard("class_vectors", 1)
    data = bytearray(shard.read_bytes())
    data[5] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="Cannot read"):
        DiskStore.open(tmp_path / "s").read("class_vectors")


def test_a_damaged_configuration_is_an_error(tmp_path):
    make(tmp_path / "s")
    file = tmp_path / "s" / store_module.disk.CONFIG_FILE
    whole = json.loads(file.read_text())
    parts = [json.dumps({**whole, part: 3}) for part in ("config", "images", "arrays")]
    for text in ('{"config": {', "[]", *parts):
        file.write_text(text)
        with pytest.raises(StoreError, match=r"store\.json is damaged"):
            DiskStore.open(tmp_path / "s")
    with pytest.raises(StoreError, match="No store"):
        DiskStore.open(tmp_path / "nothing")


def test_wrong_shape_and_overflow_are_refused(tmp_path):
    store = make(tmp_path / "s")
    block = values(range(3))
    with pytest.raises(ValueError, match="must have shape"):
        store.write_block(1, {**block, "top_classes": np.zeros((3, 2))})
    with pytest.raises(ValueError, match="NaN or overflow"):
        store.write_block(
            0, {**block, "class_vectors": np.full((3, 5, 4), 1e6, np.float32)}
        )


def test_a_disk_that_is_too_small_is_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module.disk, "free_bytes", lambda path: 10)
    with pytest.raises(StoreError, match="GiB free"):
        make(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_top_classes_store_refuses_what_it_does_not_hold(tmp_path):
    store = fill(make(tmp_path / "s", classes=5))
    with pytest.raises(StoreError, match="top 5 classes"):
        store.class_vectors([1])
    with pytest.raises(StoreError, match="4 were asked for"):
        next(store.iter_top_class_vectors(4))


def test_the_configuration_is_readable_json(tmp_path):
    make(tmp_path / "s")
    meta = json.loads((tmp_path / "s" / store_module.disk.CONFIG_FILE).read_text())
    assert meta["config"] == CONFIG
    assert meta["images"][0] == ["photo0", "hash0"]


def test_a_path_may_be_relative(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    fill(make("../cache/s"))
    assert DiskStore.open(tmp_path / "cache" / "s").missing_blocks() == []


@pytest.fixture(params=["on disk", "in memory", "joined", "joined in memory"])
def any_store(request, tmp_path):
    """The same seven images in each kind of store, in the same order."""
    disk = fill(make(tmp_path / "s"))
    if request.param == "on disk":
        return disk
    if request.param == "joined":
        later = dict(list(IMAGES.items())[4:])
        part = DiskStore.create(tmp_path / "later", CONFIG, later, ARRAYS, block=2)
        for number, rows in enumerate(part.blocks):
            part.write_block(number, values(range(rows.start + 4, rows.stop + 4)))
        early = dict(list(IMAGES.items())[:4])
        first = DiskStore.create(tmp_path / "early", CONFIG, early, ARRAYS, block=4)
        first.write_block(0, values(range(4)))
        return store_module.JoinedStore([part, first], IMAGES)
    memory = store_module.MemoryStore(CONFIG, IMAGES, ARRAYS)
    memory.write_block(0, values(range(7)))
    if request.param == "in memory":
        return memory
    return store_module.JoinedStore([memory], IMAGES)


def test_every_store_answers_every_question(any_store):
    store, expected = any_store, values(range(7))
    vectors, top = expected["class_vectors"], expected["top_classes"]
    assert store.arrays == list(ARRAYS) and len(store) == 7
    assert store.items() == list(IMAGES.items())
    assert store.has("top_classes") and not store.has("regions")
    assert [store.shape(name) for name in ARRAYS] == [(3,), (5, 4)]
    assert [store.dtype(name) for name in ARRAYS] == [np.int32, np.float16]
    assert store.entry_bytes("class_vectors") == 40
    assert store.missing_blocks() == [] and store.require_complete() is store
    assert store.require({"layer": "x"}, IMAGES) is store
    assert store.rows_by_content() == {f"hash{i}": i for i in range(7)}
    for rows in (slice(None), slice(2, 5), [6, 0]):
        for name, value in expected.items():
            np.testing.assert_array_equal(store.read(name, rows), value[rows])
        got = store.class_vectors([4, 0], rows)
        np.testing.assert_array_equal(got, vectors[rows][:, [4, 0]])
        got = store.top_class_vectors(2, rows)
        chosen = top[rows][:, :2, None]
        right = np.take_along_axis(vectors[rows], chosen, axis=1)
        np.testing.assert_array_equal(got, right)
    np.testing.assert_array_equal(store.start_class(3)(), vectors[:, 3])
    blocks = [np.arange(7)[rows] for rows, _ in store.iter_top_class_vectors(2)]
    assert np.concatenate(blocks).tolist() == list(range(7))
    on_disk = [source.path for source in store.sources]
    files = [f for path in on_disk for f in path.rglob("*") if f.is_file()]
    assert store.disk_bytes() == sum(f.stat().st_size for f in files)
    assert bool(files) == (store.path.name != "memory")


def test_no_store_gives_classes_that_it_does_not_keep(tmp_path):
    own = {**CONFIG, "classes": 5}
    disk = fill(DiskStore.create(tmp_path / "s", own, IMAGES, ARRAYS))
    memory = store_module.MemoryStore(own, IMAGES, ARRAYS)
    for store in (disk, memory, store_module.JoinedStore([memory], IMAGES)):
        for read in (lambda s: s.class_vectors([0]), lambda s: s.start_class(0)):
            with pytest.raises(StoreError, match="only the top 5 classes"):
                read(store)
        assert store.top_class_vectors(2, slice(None)).shape == (7, 2, 4)


def test_parts_are_opened_in_the_order_that_is_asked_for(tmp_path):
    fill(make(tmp_path / "s"))
    turned = dict(reversed(IMAGES.items()))
    opened = store_module.open_parts(tmp_path / "s", CONFIG, turned)
    assert opened.items() == list(turned.items())
    expected = values(range(7))["class_vectors"][::-1]
    np.testing.assert_array_equal(opened.read("class_vectors"), expected)
    assert store_module.begin_part(tmp_path / "s", CONFIG, turned, ARRAYS) is None


def test_a_joined_store_names_what_it_lacks():
    with pytest.raises(StoreError, match="1 images are in none of 0 stores: a"):
        store_module.JoinedStore([], {"a": "0"})


def test_a_part_that_was_deleted_does_not_confuse_the_next(tmp_path):
    def begin(*contents):
        images = {f"photo{c}": c for c in contents}
        store = store_module.begin_part(tmp_path / "s", CONFIG, images, ARRAYS, block=3)
        fill_any(store)
        return store.path.name

    assert [begin("a"), begin("a", "b"), begin("a", "b", "c")] == ["s", "s+1", "s+2"]
    shutil.rmtree(tmp_path / "s+1")
    assert begin("a", "c", "d") == "s+1"
    opened = store_module.open_parts(tmp_path / "s", CONFIG, {"x": "d", "y": "c"})
    assert opened.names == ["x", "y"]


def fill_any(store):
    for number, rows in enumerate(store.blocks):
        store.write_block(number, values(range(len(rows))))
