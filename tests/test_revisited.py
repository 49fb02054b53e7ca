"""Revisited Oxford and Paris: a ground truth that is a pickle, queries outside."""

import pickle
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import reference_ap
import tiny
from hypothesis import given
from hypothesis import strategies as st

from cwr_utils import datasets, evaluation, retrieval
from cwr_utils.datasets import DatasetError, Query, revisited
from cwr_utils.datasets import download as downloads
from cwr_utils.retrieval import Collection, Experiment, Method, rank, tabulate
from cwr_utils.runs.record import Record

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
    ("difficulty", "positives", "junk"),
    [
        ("easy", [{0, 1}, set()], [{2, 3}, {4}]),
        ("medium", [{0, 1, 2}, {4}], [{3}, set()]),
        ("hard", [{2}, {4}], [{0, 1, 3}, set()]),
    ],
)
def test_one_load_has_all_difficulties(root, difficulty, positives, junk):
    loaded = datasets.load("roxford5k", root)
    assert loaded.name == "roxford5k" and loaded.has_difficulties
    assert loaded.images == tuple(IMAGES)
    assert loaded.queries[0].box == tuple(BOX)
    data = loaded.at_difficulty(difficulty)
    assert [query.image for query in data.queries] == QUERIES
    for query, found, passed in zip(data.queries, positives, junk, strict=True):
        assert query.positives == {IMAGES[row] for row in found}
        assert query.junk == {IMAGES[row] for row in passed}
        assert data.path(query.image).stem == query.image
    assert set(data.hashes()) == {*IMAGES, *QUERIES}
    assert loaded.note == "Medium unless said; 6 images, 2 queries"
    if difficulty == "medium":  # as loaded
        for query, same in zip(loaded.queries, data.queries, strict=True):
            assert replace(query, hard=None) == same


@given(
    st.lists(st.sampled_from(["easy", "hard", "junk", "other"]), max_size=20), st.data()
)
def test_what_a_difficulty_does_not_ask_for_changes_nothing(kinds, draw):
    names = [f"image{number}" for number in range(len(kinds))]
    easy, hard, junk = (
        frozenset(n for n, kind in zip(names, kinds, strict=True) if kind == wanted)
        for wanted in ("easy", "hard", "junk")
    )
    query = Query("q", "outside", None, easy | hard, junk, hard=hard)
    ranking = draw.draw(st.permutations(names))
    passed = {"easy": junk | hard, "medium": junk, "hard": junk | easy}
    for difficulty, positives in {
        "easy": easy,
        "medium": easy | hard,
        "hard": hard,
    }.items():
        judged = query.at_difficulty(difficulty)
        assert (judged.positives, judged.junk) == (positives, passed[difficulty])
        without = [name for name in ranking if name not in judged.junk]
        tables = [evaluation.evaluate({"q": r}, [judged]) for r in (ranking, without)]
        pd.testing.assert_frame_equal(*tables)
        assert tables[0]["ap"].isna()[0] == (not positives)


def test_a_query_without_difficulties_is_not_judged_by_one(root, tmp_path):
    plain = tiny.dataset(tmp_path / "plain")
    assert not plain.has_difficulties
    with pytest.raises(ValueError, match="'query0' has no difficulties: expected one"):
        plain.at_difficulty("hard")
    data = datasets.load("roxford5k", root)
    with pytest.raises(ValueError, match="`difficulty` must be one of.*got 'expert'"):
        data.at_difficulty("expert")
    with pytest.raises(ValueError, match="has no difficulties"):  # chosen already
        data.at_difficulty("easy").at_difficulty("hard")


def test_what_is_hard_tells_two_ground_truths_apart(root):
    first = datasets.load("roxford5k", root)
    labels = ground_truth()
    labels["gnd"][0] |= {"easy": [0], "hard": [1, 2]}
    write_truth(root, labels)
    second = datasets.load("roxford5k", root)
    assert second.queries[0].positives == first.queries[0].positives
    assert second.checksum() != first.checksum()


def test_a_slice_keeps_the_difficulties_of_its_queries(root):
    part = datasets.load("roxford5k", root).take(4)
    assert part.queries[0].hard == {IMAGES[2]}
    easy = part.at_difficulty("easy").queries[0]
    assert easy.positives == {IMAGES[0], IMAGES[1]} and IMAGES[2] in easy.junk


METHODS = [
    Method("sum", dimensions=0),
    Method("online", 2, 2, 4, query_expansion=1, rerank=3),
]


@pytest.fixture
def collection(root, tmp_path):
    other = tiny.dataset(tmp_path / "other", "other", first_place=50)
    data = datasets.load("roxford5k", root)
    return tiny.opened(Experiment(data, other, tiny.setup(tmp_path, layer=tiny.LAYER)))


def test_one_ranking_is_judged_as_the_official_program_does(collection, monkeypatch):
    table, _, results = tabulate(collection, METHODS)
    assert collection.first.database.names == IMAGES  # no query among them
    monkeypatch.setattr(Collection, "descriptors", None)  # nothing is searched again
    rows, per_query = retrieval.by_difficulty(collection, results.values())
    names = ["method", "slug", "difficulty"]
    assert list(rows)[:3] == names and list(per_query)[:3] == names
    assert list(per_query)[3:] == list(evaluation.COLUMNS)
    assert len(rows) == 6 and len(per_query) == 12
    kinds = ("easy", "hard", "junk")
    truths = [dict(zip(kinds, lists, strict=True)) for lists in LABELS]
    for method in METHODS:
        rankings = [
            [IMAGES.index(name) for name in results[method.slug].rankings[query]]
            for query in QUERIES
        ]
        assert sorted(rankings[0]) == list(range(6))
        for difficulty, left_out in {"easy": 1, "medium": 0, "hard": 0}.items():
            expected = reference_ap.compute_map(
                rankings, truths, difficulty, evaluation.DEPTHS
            )
            mine = f"slug == '{method.slug}' and difficulty == '{difficulty}'"
            row, each = rows.query(mine).iloc[0], per_query.query(mine)
            assert row["mAP"] == pytest.approx(expected[0], rel=0, abs=5e-16)
            means = row[["mP@1", "mP@5", "mP@10"]].to_list()
            assert means == pytest.approx(expected[2], rel=0, abs=5e-16)
            assert (row["left_out"], row["queries"]) == (left_out, 2 - left_out)
            assert row["method"] == method.label and row["images"] == 6
            assert each["query"].tolist() == QUERIES
            np.testing.assert_allclose(each["ap"], expected[1], rtol=0, atol=5e-16)
            found = each[["p@1", "p@5", "p@10"]]
            np.testing.assert_array_equal(found, expected[3])
    # The usual table is Medium's. Nothing of the queries' own could count.
    usual = table.set_index("slug")
    medium = rows[rows["difficulty"] == "medium"].set_index("slug")
    columns = ["mAP", "mAP_low", "mAP_high", "mP@1", "mP@5", "mP@10"]
    pd.testing.assert_frame_equal(usual[columns], medium[columns])
    assert (usual["mAP"] == usual["mAP_with_self"]).all()
    assert (usual["mAP"] == usual["mAP_without_self"]).all()


def test_notebook_04_shows_all_difficulties_of_a_revisited_set_alone(
    collection, tmp_path, capsys
):
    cells = nbformat.read("notebooks/04_evaluate_and_rerank.ipynb", 4).cells
    (cell,) = [cell.source for cell in cells if "has_difficulties" in cell.source]
    table, per_query, results = tabulate(collection, METHODS)
    record = Record("04", {}, tmp_path / "results", tmp_path / "figures")
    shown: list[pd.DataFrame] = []
    names = locals() | {"data": collection.data, "display": shown.append}
    exec("from cwr_utils import evaluation, figures, paper, retrieval, runs", names)
    exec(cell, names)
    (found,) = shown
    assert found.index[0] == METHODS[0].label and "R-MAC, ResNet-101" in found.index
    for name in ("difficulties", "difficulties_per_query"):
        written = pd.read_csv(tmp_path / "results" / f"{name}.csv")
        assert set(written["difficulty"]) == set(evaluation.DIFFICULTIES)
    out = capsys.readouterr().out
    assert collection.data.note in out and "are not comparable" in out
    exec(cell, names | {"data": collection.at_difficulty("hard").data})
    assert len(shown) == 1


def test_a_collection_is_judged_by_one_difficulty(collection):
    """To look closer: its rows, and whatever looks at positives and junk."""
    result = rank(collection, METHODS[0])
    hard = collection.at_difficulty("hard")
    rows, _ = retrieval.by_difficulty(collection, [result])
    rows = rows.set_index("difficulty")
    assert retrieval.row(hard, result)["mAP"] == rows["mAP"]["hard"]
    assert rank(hard, METHODS[0]).rankings == result.rankings
    assert hard.data.queries[0].positives == {IMAGES[2]}
    assert (
        hard.first.spaces is collection.first.spaces
        and hard.first.asked is collection.first.asked
    )
    with pytest.raises(ValueError, match="has no difficulties"):
        retrieval.by_difficulty(hard, [result])


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


def test_several_sizes_are_judged_together(root, tmp_path):
    sizes = [tiny.setup(tmp_path, resize=size) for size in (tiny.RESIZE, tiny.FINE)]
    data, raw = datasets.load("roxford5k", root), METHODS[0]
    both = tiny.opened(Experiment(data, None, sizes[0], also=(sizes[1],)))
    result = rank(both, raw)
    assert rank(both.at_difficulty("hard"), raw).rankings == result.rankings
    rows, _ = retrieval.by_difficulty(both, [result])
    assert rows["mAP"][1] == retrieval.row(both, result)["mAP"]


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
    assert query.positives == {IMAGES[0], IMAGES[2]} and query.hard == {IMAGES[2]}
    assert data.note == (
        "Medium unless said; 5 of 6 images, 1 of 2 queries, 2 of their 3 positives: a "
        "subset, comparable with no published value"
    )
    assert datasets.load("roxford5k-subset", root).note == data.note


def test_a_query_whose_positives_are_all_missing_is_left_out(root, tmp_path):
    (root / "roxford5k" / "jpg" / f"{IMAGES[4]}.png").unlink()
    data = datasets.load("roxford5k-subset", root)
    assert data.note.startswith("Medium unless said; 5 of 6 images, 2 of 2 queries, 3 ")
    setup = tiny.setup(tmp_path, layer=tiny.LAYER)
    collection = tiny.opened(Experiment(data, None, setup))
    rows, per_query = retrieval.by_difficulty(
        collection, [rank(collection, METHODS[0])]
    )
    assert rows["left_out"].tolist() == [1, 1, 1]
    row = retrieval.row(collection, rank(collection, METHODS[0]))
    assert (row["queries"], row["landmarks"]) == (2, 1)  # of those that are scored
    assert per_query["ap"].isna().tolist() == [False, True] * 3
    assert set(rows["note"]) == {data.note}


def test_a_complete_subset_is_the_set(root):
    whole = datasets.load("roxford5k", root)
    assert datasets.load("roxford5k-subset", root).note == whole.note


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
