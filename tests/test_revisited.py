"""Revisited Oxford and Paris: a ground truth that is a pickle, queries outside."""

import pickle

import numpy as np
import pytest
import tiny

from cwr_utils import datasets, evaluation
from cwr_utils.datasets import DatasetError, revisited
from cwr_utils.datasets import download as downloads
from cwr_utils.retrieval import Collection, Experiment, Method

IMAGES = [f"tower_{number:06d}" for number in range(6)]
QUERIES = ["tower_000100", "tower_000101"]
BOX = [8.0, 8.0, 90.0, 66.0]
# The second query has no easy image.
LABELS = [([0, 1], [2], [3]), ([], [4], [])]


def ground_truth(make=list):
    """As the official file has it; `make` turns a list into what is pickled."""
    gnd = [
        {"bbx": make(BOX), "easy": make(easy), "hard": make(hard), "junk": make(junk)}
        for easy, hard, junk in LABELS
    ]
    return {"imlist": IMAGES, "qimlist": QUERIES, "gnd": gnd}


@pytest.fixture
def root(tmp_path):
    """Photos of two places as the official program lays them out."""
    folder = tmp_path / "roxford5k" / "jpg"
    folder.mkdir(parents=True)
    for number, name in enumerate([*IMAGES[:4], QUERIES[0], *IMAGES[4:], QUERIES[1]]):
        photo = tiny.view(number // 5, len(tiny.SIZES) * number)
        tiny.write(folder / f"{name}.png", photo)
    truth = pickle.dumps(ground_truth())
    (tmp_path / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(truth)
    return tmp_path


def write_truth(root, content):
    data = content if isinstance(content, bytes) else pickle.dumps(content)
    (root / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(data)


@pytest.mark.parametrize(
    ("name", "positives", "junk"),
    [
        ("roxford5k-easy", [{0, 1}, set()], [{2, 3}, {4}]),
        ("roxford5k", [{0, 1, 2}, {4}], [{3}, set()]),
        ("roxford5k-hard", [{2}, {4}], [{0, 1, 3}, set()]),
    ],
)
def test_each_difficulty_has_its_own_ground_truth(root, name, positives, junk):
    data = datasets.load(name, root)
    assert data.name == "roxford5k"  # one extraction serves all three
    assert data.images == tuple(IMAGES)
    assert [query.image for query in data.queries] == QUERIES
    assert data.queries[0].box == tuple(BOX)
    for query, found, passed in zip(data.queries, positives, junk, strict=True):
        assert query.positives == {IMAGES[row] for row in found}
        assert query.junk == {IMAGES[row] for row in passed}
        assert data.path(query.image).stem == query.image
    assert set(data.hashes()) == {*IMAGES, *QUERIES}
    assert data.note.endswith("6 of 6 images, 2 of 2 queries")


def test_queries_outside_the_database_can_be_searched_for(root, tmp_path):
    data = datasets.load("roxford5k-easy", root)
    other = tiny.dataset(tmp_path / "other", "other", first_place=50)
    experiment = Experiment(data, other, tiny.setup(tmp_path, layer=tiny.LAYER))
    experiment.extract()
    retrieval = Collection.open(experiment)
    assert retrieval.database.names == IMAGES
    result = retrieval.run(Method("online", 2, 2, 4, query_expansion=1, rerank=3))
    assert set(result.rankings[QUERIES[0]]) == set(IMAGES)
    row = retrieval.row(result)
    assert row["mAP"] == row["mAP_with_self"] == row["mAP_without_self"]
    table = retrieval.evaluate(result)
    assert table["positives"].tolist() == [2, 0] and np.isnan(table["ap"][1])
    assert row["mAP"] == table["ap"][0] > 0
    precision = evaluation.mean_precision_at(result.rankings, data.queries, 1, False)
    assert precision in (0, 1)


def test_a_query_photo_named_after_the_town_is_of_its_positives_landmark(root):
    def label(*easy):
        return {"bbx": BOX, "easy": list(easy), "hard": [], "junk": []}

    names = ["oxford_000001", "keble_000001", "oxford_000002", "tower_000001"]
    queries = ["keble_000009", "oxford_000009", "tower_000009", "oxford_000008"]
    labels = [label(0, 1), label(0, 1, 2), label(0, 3), label(0, 2)]
    content = {"imlist": names, "qimlist": queries, "gnd": labels}
    write_truth(root, content)
    for name in (*names, *queries):
        tiny.write(root / "roxford5k" / "jpg" / f"{name}.png", tiny.view(0, 0))
    found = [query.landmark for query in datasets.load("roxford5k", root).queries]
    assert found == ["keble", "keble", "tower", "oxford"]


# The pickle

MAKERS = {
    "list": list,
    "int64": lambda values: np.array(values, None if values == BOX else np.int64),
    "big endian": lambda values: np.array(values, ">f8" if values == BOX else ">i4"),
    "row": lambda values: np.array([values], float if values == BOX else np.uint16),
    "scalars": lambda values: list(np.array(values, float if values == BOX else int)),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("make", MAKERS)
def test_lists_and_arrays_are_read_alike(root, make, protocol):
    expected = datasets.load("roxford5k", root)
    write_truth(root, pickle.dumps(ground_truth(MAKERS[make]), protocol))
    found = datasets.load("roxford5k", root)
    assert found.queries == expected.queries


def test_a_pickle_of_python_2_is_read(root):
    """Its text and the bytes of its arrays are byte strings of one kind."""

    def text(value):
        return b"U" + bytes([len(value)]) + value.encode()

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    array += b"(K\x01(K\x02tcnumpy\ndtype\n(U\x02i8K\x00K\x01tR(K\x03U\x01<NNNtb\x89"
    array += b"U\x10" + np.array([1, 200]).tobytes() + b"tb"
    path = root / "old.pkl"
    path.write_bytes(b"\x80\x02(" + text("a") + array + b"l.")
    with path.open("rb") as file:
        text, array = revisited._TruthUnpickler(file, encoding="latin-1").load()
    assert (text, array.values) == ("a", [1, 200])


LAUGHING = b"\x80\x02]q\x00" + b"".join(
    b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60)
)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02]q\x00h\x00a.",  # a list in itself
        b"\x80\x02" + b"(" * 2000 + b"t" * 2000 + b".",
        LAUGHING + b".",  # of 2**60 elements, if one were to write them out
        LAUGHING + b"Q.",
        b"\x80\x02K\x00r\xff\xff\xff\x0f.",  # kept under the number 2**28
        b"\x80\x05\x96\xff\xff\xff\x7f\0\0\0\0.",  # so many bytes, none of them there
        b"\x82\x01.",  # an extension that nobody registered: a plain ValueError
    ],
)
def test_a_strange_ground_truth_is_refused_at_once(root, data):
    write_truth(root, data)
    with pytest.raises(DatasetError, match=r"gnd_roxford5k\.pkl is damaged or no"):
        datasets.load("roxford5k", root)


@pytest.mark.parametrize(
    "attack",
    [
        b"cos\nsystem\n(S'touch {marker}'\ntR.",
        b"(S'touch {marker}'\nios\nsystem\n.",
        b'cbuiltins\neval\n(S\'open("{marker}", "w")\'\ntR.',
        b"cnumpy\nload\n(S'{marker}'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'{marker}'\ntR.",
    ],
)
def test_no_code_of_the_ground_truth_runs(root, attack):
    marker = root / "marker"
    write_truth(root, b"\x80\x02" + attack.replace(b"{marker}", bytes(marker)))
    with pytest.raises(DatasetError, match=r"no plain value: malicious\? Nothing was"):
        datasets.load("roxford5k", root)
    assert not marker.exists()


def test_a_ground_truth_cut_anywhere_is_an_error(root):
    whole = pickle.dumps(ground_truth(MAKERS["int64"]), 2)
    for length in range(0, len(whole), 7):
        write_truth(root, whole[:length])
        with pytest.raises(DatasetError, match=r"gnd_roxford5k\.pkl is damaged"):
            datasets.load("roxford5k", root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "TypeError"),
        ({"imlist": IMAGES}, "KeyError 'qimlist'"),
        (ground_truth() | {"qimlist": QUERIES[:1]}, "1 queries, 2 ground truths"),
        (ground_truth() | {"imlist": IMAGES[:3]}, "`junk` has what is no number of an"),
        (ground_truth() | {"imlist": [1, 2]}, "a name of an image is no text"),
        (ground_truth(lambda v: np.array(v, object)), "array of 'O8' instead of num"),
        (ground_truth(lambda v: np.array([v, v])), "instead of a list"),
        (b"<!DOCTYPE html>", "KeyError 60"),
    ],
)
def test_a_ground_truth_of_something_else_is_named(root, content, message):
    write_truth(root, content)
    with pytest.raises(DatasetError, match=f"no ground truth of the rev.*{message}"):
        datasets.load("roxford5k", root)


# What is missing


def test_missing_photos_are_an_error_unless_a_subset_is_asked_for(root):
    for name in (IMAGES[1], QUERIES[1]):
        (root / "roxford5k" / "jpg" / f"{name}.png").unlink()
    with pytest.raises(DatasetError, match=f"2 of 8 photos .*: {IMAGES[1]}, "):
        datasets.load("roxford5k", root)
    data = datasets.load("roxford5k", root, subset=True)
    assert len(data.images) == 5
    (query,) = data.queries
    assert query.positives == {IMAGES[0], IMAGES[2]}
    assert data.note == "medium: 5 of 6 images, 1 of 2 queries"


def test_absent_files_say_what_to_get(root, monkeypatch):
    with pytest.raises(DatasetError) as caught:
        datasets.load("rparis6k", root)
    for part in (
        "no gnd_rparis6k.pkl: looked for",
        f"datasets.load('rparis6k', '{root}', download=True)",
        "revisitop/data/datasets/rparis6k/gnd_rparis6k.pkl",
    ):
        assert part in str(caught.value)
    monkeypatch.setattr(revisited, "_HOST", "http://127.0.0.1:1")
    monkeypatch.setattr(downloads, "_PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DatasetError, match=r"gnd_rparis6k\.pkl cannot be downloaded"):
        datasets.load("rparis6k", root, download=True)
    (root / "downloads").mkdir(exist_ok=True)
    truth = root / "roxford5k" / "gnd_roxford5k.pkl"
    truth.rename(root / "downloads" / truth.name)
    assert len(datasets.load("roxford5k", root).images) == 6
    (root / "roxford5k" / "jpg").rename(root / "elsewhere")
    with pytest.raises(DatasetError, match="no folder of images of Oxford"):
        datasets.load("roxford5k", root)
    with pytest.raises(ValueError, match="`difficulty` must be one of"):
        datasets.load("roxford5k", root, difficulty="expert")
