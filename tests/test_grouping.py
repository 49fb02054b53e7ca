"""Few vectors a photo that stand for all classes: against naive loops."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from cwr_utils import explain, grouping, retrieval
from cwr_utils.arrays import l2_normalize
from cwr_utils.grouping import GroupedIndex, Groups, dequantize, quantize
from cwr_utils.names import BITS
from cwr_utils.retrieval import Collection, Method, rank
from cwr_utils.store import ArraySpec, DiskStore, JoinedStore, Store, StoreError
from cwr_utils.whitening import fit

METHOD = Method("grouped", 4, num_whitening_classes=3, dimensions=9, groups=3, bits=16)
pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grouping")
    return tiny.described(folder, tiny.setup(folder / "cache", power=2.0))


@pytest.fixture
def opened(experiment):
    return Collection.open(experiment)


def unit(seed, *shape):
    return l2_normalize(np.random.default_rng(seed).standard_normal(shape))


# Quantised vectors


@given(st.integers(0, 10**6), st.sampled_from(BITS), st.integers(1, 9))
def test_components_are_off_by_half_a_step_at_most(seed, bits, dimensions):
    vectors = unit(seed, 4, dimensions).astype(np.float32)
    vectors[1] = 0
    stored = quantize(vectors, bits)
    assert stored.nbytes == 4 * (
        2 * dimensions if bits == 16 else -(-dimensions * bits // 8)
    )
    found = dequantize(stored, bits, dimensions)
    assert found.shape == vectors.shape and not found[1].any()
    np.testing.assert_allclose(np.linalg.norm(found[[0, 2, 3]], axis=1), 1, rtol=1e-6)
    peak = np.abs(vectors).max(axis=1, keepdims=True)
    step = np.float32(2**-10) if bits == 16 else peak / (2 ** (bits - 1) - 1)
    # The last l2 brings the length back, which the rounding may have changed a little.
    lengths = (found * vectors).sum(axis=1, keepdims=True)
    scale = np.where(lengths > 0, (vectors**2).sum(1, keepdims=True), 1)
    off = np.sqrt(dimensions) * step / 2
    assert (np.abs(found - vectors * scale) <= 2 * off + 1e-6).all()


@pytest.mark.parametrize("dimensions", [15, 14])
def test_whole_numbers_of_four_bits_come_back(dimensions):
    whole = np.arange(-7, 8)[:dimensions].astype(np.float32)
    vectors = np.stack([whole / np.linalg.norm(whole), np.zeros_like(whole)])
    stored = quantize(vectors, 4)
    assert stored.dtype == np.uint8 and stored.shape == (2, (dimensions + 1) // 2)
    np.testing.assert_allclose(dequantize(stored, 4, dimensions), vectors, atol=1e-7)


def test_eight_bits_by_hand():
    stored = quantize(np.array([[0.6, -0.8, 0.0]], np.float32), 8)
    assert stored.tolist() == [[95, -127, 0]]  # 0.6 / 0.8 * 127 = 95.25
    found = dequantize(stored, 8, 3)[0]
    np.testing.assert_allclose(found, np.array([95, -127, 0]) / np.hypot(95, 127))


# Which vector stands for a class


def naive_stand_in(columns, kept, class_id):
    """Place in `kept` of the class with the most similar centred column."""
    centred = columns - columns.mean(axis=0)
    best, place = -np.inf, -1
    for number, other in enumerate(kept):
        if other == class_id:
            return number
        a, b = centred[class_id], centred[other]
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        if cosine > best:
            best, place = cosine, number
    return place


def kept_store(path, kept, vectors):
    """A store as `derive` writes it, of 16 bits."""
    specs = {
        "classes": ArraySpec((kept.shape[1],), "int32"),
        "vectors": ArraySpec(vectors.shape[1:], "float16", by_photo=True),
    }
    images = {f"photo{n}": f"hash{n}" for n in range(len(kept))}
    store = DiskStore.create(path, {}, images, specs, 4)
    for number, rows in enumerate(store.blocks):
        some = slice(rows.start, rows.stop)
        values = {"classes": kept[some], "vectors": vectors[some]}
        store.write_block(number, values)
    return store


@pytest.fixture
def kept(tmp_path):
    """Weights, kept classes, vectors and the index of eleven generated photos."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((5, 8)).astype(np.float32) + 2
    classes = np.array([rng.permutation(8)[:3] for _ in range(11)])
    vectors = unit(4, 11, 3, 6)
    store = kept_store(tmp_path / "kept", classes, vectors)
    return weights, classes, vectors, GroupedIndex(store, 16, 6, weights)


def test_the_most_similar_column_of_the_classifier_chooses(kept):
    weights, classes, _, index = kept
    for row in range(11):
        expected = [naive_stand_in(weights.T, classes[row], c) for c in range(8)]
        assert index.stand_ins(range(8), [row])[0].tolist() == expected
        assert index.named(range(8), row) == [classes[row][n] for n in expected]


def test_a_class_that_has_a_twin_still_stands_for_itself(tmp_path):
    weights = np.ones((2, 4), np.float32)
    weights[0] = [1, 1, 1, 5]  # 0, 1 and 2 are alike to the last bit
    store = kept_store(tmp_path / "kept", np.array([[3, 1, 2, 0]]), unit(0, 1, 4, 5))
    index = GroupedIndex(store, 16, 5, weights)
    assert index.named([0, 1, 2, 3], 0) == [0, 1, 2, 3]


@pytest.mark.parametrize("repeat_empty", [False, True])
def test_chosen_photos_are_described_as_a_loop_would(kept, repeat_empty, monkeypatch):
    weights, classes, vectors, index = kept
    rows, asked, shares = [9, 0, 10, 4, 9], [5, 2, 7], [1.0, 0.5, 0.25]
    expected = []
    for row in rows:
        total, last = np.zeros(6), np.zeros(6)
        for class_id, share in zip(asked, shares, strict=True):
            vector = vectors[row][naive_stand_in(weights.T, classes[row], class_id)]
            last = vector if vector.any() or not repeat_empty else last
            total += share * last
        expected.append(total / np.linalg.norm(total))
    monkeypatch.setattr(grouping, "ROWS", 2)
    read, reading = [], index.store.read

    def counting(name, images=slice(None)):
        read.extend(images if name == "vectors" else [])
        return reading(name, images)

    monkeypatch.setattr(index.store, "read", counting)
    found = index.describe(rows, asked, shares, repeat_empty)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert read == rows, "photos that nobody asked for were read"


@pytest.mark.parametrize("together", [1, 2, 9])
def test_several_queries_are_described_as_each_alone(kept, together, monkeypatch):
    *_, index = kept
    monkeypatch.setattr(grouping, "SUMS_BYTES", together * 4 * 11 * 6)
    lists = [[5, 2, 7], [1], [0, 3]]
    shares = [np.array([1, 0.5, 0.25]), np.array([1]), np.array([1, 0.1])]
    for weights in (shares, None):
        found = list(index.many(lists, False, weights))
        assert len(found) == 3
        for number, classes in enumerate(lists):
            own = weights and weights[number]
            expected = index.describe(np.arange(11), classes, own)
            np.testing.assert_array_equal(found[number], expected)


def test_an_empty_vector_is_repeated_or_adds_nothing(tmp_path):
    vectors = unit(5, 1, 3, 4)
    vectors[0, 2] = 0
    store = kept_store(tmp_path / "kept", np.array([[0, 1, 2]]), vectors)
    index = GroupedIndex(store, 16, 4, np.eye(3, dtype=np.float32))
    first, second, _ = vectors[0]
    for repeat, expected in ((False, first + second), (True, first + 3 * second)):
        found = index.describe([0], [0, 1, 2], [1, 1, 2], repeat)
        np.testing.assert_allclose(found[0], l2_normalize(expected), atol=1e-3)
        (several,) = index.many([[0, 1, 2]], repeat, [np.array([1, 1, 2])])
        np.testing.assert_array_equal(several, found)
    assert not index.describe([0], [2]).any()


def test_one_photo_is_read_without_the_others(kept):
    """Its record has a checksum of its own: damage to another one does not matter."""
    _, _, vectors, index = kept
    shard = index.store.path / "vectors" / "c" / "0" / "0" / "0"
    damaged = bytearray(shard.read_bytes())
    record = np.float16(vectors[2]).tobytes()
    damaged[damaged.index(record) + 3] ^= 1
    shard.write_bytes(damaged)
    again = DiskStore.open(index.store.path)
    for row in (0, 1, 3):
        np.testing.assert_array_equal(
            again.read("vectors", [row])[0], np.float16(vectors[row])
        )
    with pytest.raises(StoreError, match="Cannot read"):
        again.read("vectors", [2])


# What `derive` keeps


def whitening_of(store, dimensions=5):
    vectors = store.read("class_vectors").astype("f4")
    return fit(vectors.reshape(-1, vectors.shape[-1]), "generated").keep(dimensions)


@pytest.mark.parametrize("bits", BITS)
def test_kept_are_the_whitened_vectors_of_a_photos_own_classes(opened, bits):
    store, whitening = opened.first.database, whitening_of(opened.first.database)
    derived = grouping.derive(store, whitening, Groups(3, bits))
    top = store.read("top_classes")[:, :3]
    np.testing.assert_array_equal(derived.read("classes"), top)
    rows = np.arange(len(store))[:, None]
    expected = whitening(store.read("class_vectors")[rows, top])
    np.testing.assert_array_equal(derived.read("vectors"), quantize(expected, bits))
    assert derived.path.parent == store.path.parent
    arrays = json.loads((derived.path / "store.json").read_text())["arrays"]
    assert arrays["vectors"]["by_photo"], "a photo could not be read alone"


def test_they_are_computed_once_for_what_they_depend_on(opened, monkeypatch):
    store, whitening = opened.first.database, whitening_of(opened.first.database, 6)
    first = grouping.derive(store, whitening, Groups(2, 8))
    read = []
    monkeypatch.setattr(Store, "top_class_vectors", lambda *_: read.append(1) or 1 / 0)
    again = grouping.derive(store, whitening_of(store, 6), Groups(2, 8))
    assert again.path == first.path and not read
    moved = replace(whitening, mean=whitening.mean + 1)
    turned = replace(whitening, projection=whitening.projection[::-1])
    for other in (
        (whitening, Groups(2, 4)),
        (whitening, Groups(1, 8)),
        (whitening_of(store, 7), Groups(2, 8)),
        (moved, Groups(2, 8)),
        (turned, Groups(2, 8)),
    ):
        with pytest.raises(ZeroDivisionError):
            grouping.derive(store, *other)
    monkeypatch.setitem(store.config, "power", 9)
    with pytest.raises(ZeroDivisionError):
        grouping.derive(store, whitening, Groups(2, 8))


def test_photos_that_come_later_are_the_only_ones_added(opened, tmp_path, monkeypatch):
    whitening = whitening_of(opened.first.database)
    contents = dict(opened.first.database.items())
    few = JoinedStore([opened.first.database], dict(list(contents.items())[:5]))
    few.path = tmp_path / "photos"
    grouping.derive(few, whitening, Groups(2, 8))
    rows, reading = [], Store.top_class_vectors
    monkeypatch.setattr(
        Store,
        "top_class_vectors",
        lambda self, count, images: rows.extend(images) or reading(self, count, images),
    )
    every = JoinedStore([opened.first.database], contents)
    every.path = few.path
    derived = grouping.derive(every, whitening, Groups(2, 8))
    assert rows == list(range(5, len(contents)))
    expected = grouping.derive(opened.first.database, whitening, Groups(2, 8))
    for name in ("classes", "vectors"):
        np.testing.assert_array_equal(derived.read(name), expected.read(name))


# The method


@pytest.mark.parametrize("weighting", ["equal", "rank", "probability"])
def test_descriptors_are_those_of_a_naive_loop(opened, weighting):
    method = replace(METHOD, class_weighting=weighting)
    query, database = next(opened.descriptors(method, [1]))
    online, _ = next(opened.descriptors(replace(method, aggregation="online"), [1]))
    np.testing.assert_array_equal(query, online)
    columns = opened.first.setup.network.class_weights.T
    classes = opened.first.asked.top_classes[1][:4]
    known = opened.first.asked.store.read("probabilities")[1]
    whitening = opened.first.spaces.fitted(method)
    for row in range(len(database)):
        own = opened.first.database.read("top_classes", [row])[0][:3]
        vectors = opened.first.database.read("class_vectors", [row])[0]
        total = np.zeros(9)
        for place, class_id in enumerate(classes, start=1):
            chosen = own[naive_stand_in(columns, own, class_id)]
            shares = {"equal": 1, "rank": 1 / place, "probability": known[class_id]}
            total += shares[weighting] * whitening(vectors[chosen][None])[0]
        np.testing.assert_allclose(database[row], l2_normalize(total), atol=2e-3)


def test_all_classes_are_online_aggregation(opened):
    method = replace(METHOD, groups=64)  # the network has six
    for number in range(2):
        _, found = next(opened.descriptors(method, [number]))
        _, expected = next(
            opened.descriptors(replace(method, aggregation="online"), [number])
        )
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_store_of_few_classes_is_enough(experiment):
    few = replace(experiment, setup=replace(experiment.setup, classes=3))
    small, whole = tiny.opened(few), Collection.open(experiment)
    for method in (METHOD, replace(METHOD, bits=4, refine="dba:photos=2")):
        found, expected = rank(small, method), rank(whole, method)
        for name, scores in found.scores.items():
            np.testing.assert_allclose(scores, expected.scores[name], atol=2e-2)
    with pytest.raises(StoreError, match="top 3 classes of each image; 4 were asked"):
        rank(small, replace(METHOD, groups=4))


def test_its_settings_stand_in_its_name_and_in_no_other():
    assert METHOD.label == "OnA, 4 classes, 3 groups of 16 bits"
    assert METHOD.slug == "grouped-nc4-npca3-g3-b16-d9"
    assert METHOD.settings["groups"] == 3 and METHOD.settings["bits"] == 16
    online = replace(METHOD, aggregation="online")
    assert not online.settings.keys() & {"groups", "bits"}
    assert online.slug == "online-nc4-npca3-d9"


def test_rows_of_a_table_tell_groups_apart(opened):
    rows = [
        retrieval.row(opened, rank(opened, replace(METHOD, groups=n))) for n in (1, 3)
    ]
    assert rows[0]["identity"] != rows[1]["identity"]
    assert rows[0]["setting"] == rows[1]["setting"]
    assert [row["groups"] for row in rows] == [1, 3]


def test_bytes_of_a_photo_by_hand(opened, experiment):
    """The tiny network has 6 classes and 12 channels; three classes are kept."""
    expected = {
        METHOD: 3 * 4 + 3 * 9 * 2,
        replace(METHOD, bits=4): 3 * 4 + 3 * 5,
        replace(METHOD, bits=8, groups=64): 6 * 4 + 6 * 9,
        replace(METHOD, aggregation="online"): 6 * 12 * 2,
        replace(METHOD, aggregation="offline"): 9 * 4,
        Method("sum", dimensions=0): 12 * 4,
    }
    assert {m: opened.photo_bytes(m) for m in expected} == expected
    twice = Collection.open(replace(experiment, also=(experiment.setup,)))
    assert twice.photo_bytes(METHOD) == 2 * expected[METHOD]


def test_more_classes_than_the_list_of_a_photo_are_ordered_by_probability(tmp_path):
    rng = np.random.default_rng(1)
    specs = {
        "top_classes": ArraySpec((2,), "int32"),
        "probabilities": ArraySpec((5,), "float32"),
        "class_vectors": ArraySpec((5, 4), "float16", by_row=True),
    }
    images = {f"photo{n}": f"hash{n}" for n in range(3)}
    store = DiskStore.create(tmp_path / "s", {"classes": None}, images, specs)
    known, vectors = rng.random((3, 5)), unit(2, 3, 5, 4).astype(np.float16)
    order = np.argsort(-known)
    values = {"top_classes": order[:, :2], "probabilities": known}
    store.write_block(0, {**values, "class_vectors": vectors})
    for count in (2, 4, 9):
        expected = order[:, :count]
        np.testing.assert_array_equal(store.top_classes(count, slice(None)), expected)
        found = store.top_class_vectors(count, [2, 0])
        for row, got in zip((2, 0), found, strict=True):
            np.testing.assert_array_equal(got, vectors[row][order[row, :count]])


def test_there_is_no_one_map_of_them(opened):
    with pytest.raises(ValueError, match="no one map"):
        explain.embedding_picture(opened, METHOD)


def test_joined_stores_of_few_classes_give_the_first(experiment):
    setup = replace(experiment.setup, classes=3)
    store = tiny.opened(replace(experiment, setup=setup)).first.database
    joined = JoinedStore([store], dict(store.items()))
    np.testing.assert_array_equal(
        joined.top_class_vectors(2, [4, 1]), store.read("class_vectors", [4, 1])[:, :2]
    )
