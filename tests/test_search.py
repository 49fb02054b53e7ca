"""Three lines from a folder of photos to a ranked answer."""

import io
import itertools
import json
import os
import re
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import tiny
from cv2 import imencode
from PIL import Image

from cwr_utils import datasets, extraction, images, networks, search
from cwr_utils.datasets import Dataset, DatasetError
from cwr_utils.extraction.describer import array_specs, finish
from cwr_utils.images import check_image, read_image
from cwr_utils.retrieval import Experiment, Method, rank
from cwr_utils.store import DiskStore, MemoryStore
from cwr_utils.whitening import WhiteningError

README = Path(__file__).resolve().parents[1] / "README.md"
CLASSES = Method("online", num_classes=4, num_whitening_classes=3, dimensions=12)
RAW = Method("sum", dimensions=0)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(search, "METHOD", CLASSES)
    with tiny.compile_once():
        yield
    plt.close("all")


@pytest.fixture
def photos(tmp_path):
    """3 places with 3 views each, and 2 others."""
    tiny.dataset(tmp_path / "my_photos", places=3, distractors=2)
    return tmp_path / "my_photos"


@pytest.fixture
def others(tmp_path):
    tiny.dataset(tmp_path / "others", "others", 0, 0, 12, first_place=100)
    return tmp_path / "others"


@pytest.fixture
def described(monkeypatch):
    """Numbers of photos that each call decoded to describe them."""
    counts, extract, read = [], extraction.extract, extraction.photos.read_image

    def counting(*arguments, **options):
        counts.append(0)
        return extract(*arguments, **options)

    def reading(path):
        counts[-1] += 1
        return read(path)

    monkeypatch.setattr(extraction, "extract", counting)
    monkeypatch.setattr(extraction.photos, "read_image", reading)
    return counts


@pytest.fixture
def make(tmp_path, others):
    def make(folder, **options):
        defaults = {"whitening": others, "network": tiny.network(), "resize": tiny.FINE}
        return search.index(folder, cache_dir=tmp_path / "c", **defaults | options)

    return make


# Answers


def test_the_views_of_a_place_come_first(make, photos):
    index = make(photos)
    assert len(index) == 11 and "12 other photos" in repr(index)
    for place in range(3):
        answer = index.search(tiny.view(place, 9))
        right = [name.startswith(f"place{place}") for name in answer.names]
        assert right[0] and sum(right[:3]) >= 2
        assert set(answer.names) == set(index.names)
        assert (np.diff(answer.scores) <= 0).all()
        assert answer.own == frozenset()


def test_a_path_a_name_and_an_array_are_one_photo(make, photos):
    index = make(photos)
    path = photos / "place1_0.png"
    answers = [index.search(q) for q in (path, str(path), path.name, read_image(path))]
    for answer in answers:
        assert answer.names == answers[0].names
        np.testing.assert_array_equal(answer.scores, answers[0].scores)
    assert answers[0].names[0] == "place1_0.png"
    assert answers[0].scores[0] == pytest.approx(1, abs=1e-3)
    assert answers[2].own == {"place1_0.png"}


@pytest.mark.parametrize(
    "method", [CLASSES, replace(CLASSES, aggregation="offline"), RAW]
)
def test_the_answer_is_that_of_the_workbook(make, photos, others, tmp_path, method):
    """The same photos, boxes and settings through the stores of the notebooks."""
    data = tiny.dataset(photos, places=3, distractors=2)
    other = tiny.dataset(others, "others", 0, 0, 12, first_place=100)
    setup = tiny.setup(tmp_path / "stores", resize=tiny.FINE, power=2.0)
    expected = rank(tiny.opened(Experiment(data, other, setup)), method)
    index = make(photos, method=method)
    for query in data.queries:
        answer = index.search(data.path(query.image), box=query.box)
        found = dict(zip(answer.names, answer.scores, strict=True))
        for name, score in zip(
            expected.rankings[query.name], expected.scores[query.name], strict=True
        ):
            assert found[f"{name}.png"] == pytest.approx(score, abs=2e-3)


def test_several_sizes_answer_together(make, photos, others, tmp_path):
    data = tiny.dataset(photos, places=3, distractors=2)
    other = tiny.dataset(others, "others", 0, 0, 12, first_place=100)
    setups = [
        tiny.setup(tmp_path / "stores", resize=size, power=2.0)
        for size in (tiny.FINE, tiny.RESIZE)
    ]
    experiment = Experiment(data, other, setups[0], also=(setups[1],))
    expected = rank(tiny.opened(experiment), CLASSES)
    index = make(photos, resize=f"{tiny.FINE} + {tiny.RESIZE}")
    for query in data.queries:
        answer = index.search(data.path(query.image), box=query.box)
        found = dict(zip(answer.names, answer.scores, strict=True))
        for name, score in zip(
            expected.rankings[query.name], expected.scores[query.name], strict=True
        ):
            assert found[f"{name}.png"] == pytest.approx(score, abs=2e-3)


def test_the_box_matters_and_is_shown(make, photos):
    index = make(photos)
    query = photos / "place0_0.png"
    whole, part = index.search(query), index.search(query, box=(5, 5, 40, 40))
    assert not np.allclose(whole.scores, part.scores)
    figure = part.figure(top=4)
    assert len(figure.axes) == 5 and figure.axes[0].patches
    marks = [item.get_text() for item in figure.texts if "●" in item.get_text()]
    assert marks == [f"{part.names.index(query.name) + 1} ●"]


def test_an_answer_is_a_table_too(make, photos):
    answer = make(photos).search(photos / "place0_0.png")
    assert answer.table["name"].tolist() == answer.names
    assert answer.table.index.tolist() == list(range(1, 12))
    assert "place0_0.png" in repr(answer) and "11 photos" in repr(answer)
    assert answer._repr_html_().startswith("<table")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_pillow_images_and_bytes_are_queries_too(make, photos, mode):
    index, path = make(photos), photos / "place1_0.png"
    by_path, by_bytes = index.search(path), index.search(memoryview(path.read_bytes()))
    np.testing.assert_array_equal(by_bytes.scores, by_path.scores)
    assert by_bytes.own == by_path.own == {"place1_0.png"}
    with Image.open(path) as image:
        answer = index.search(image.convert(mode), box=(5, 5, 60, 60))
        expected = np.asarray(image.convert(mode).convert("RGB"))
    np.testing.assert_array_equal(answer.photo, expected)
    np.testing.assert_array_equal(
        answer.scores, index.search(expected, box=(5, 5, 60, 60)).scores
    )


def test_a_pillow_image_is_turned_upright(make, photos):
    index, path = make(photos, whitening=None), photos / "place1_0.png"
    upright = read_image(path)
    image, exif = Image.fromarray(np.rot90(upright)), Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown a quarter to the right
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    answers = [index.search(q) for q in (Image.open(file), file.getvalue())]
    for answer in answers:
        np.testing.assert_array_equal(answer.photo, upright)


# Many queries


def test_many_queries_have_the_answers_of_each_alone(make, photos, monkeypatch):
    monkeypatch.setattr(search, "TOGETHER", 3)
    index = make(photos)
    queries = [tiny.view(place, 9) for place in (0, 1, 2, 1)] + [
        photos / "place0_0.png"
    ]
    boxes = [None, (5, 5, 60, 60), None, (0, 0, 40, 40), (5, 5, 60, 60)]
    asked, ask = [], type(index.collection).ask
    monkeypatch.setattr(
        type(index.collection),
        "ask",
        lambda self, group, store: asked.append(len(group)) or ask(self, group, store),
    )
    answers = index.search_many(iter(queries), boxes)
    first = next(answers)
    assert asked == [3]  # no more than the first ones are described yet
    answers = [first, *answers]
    assert asked == [3, 2]
    for answer, query, box in zip(answers, queries, boxes, strict=True):
        alone = index.search(query, box)
        assert answer.names == alone.names and answer.box == alone.box
        np.testing.assert_allclose(answer.scores, alone.scores, atol=1e-6)
        np.testing.assert_array_equal(answer.photo, alone.photo)
        assert answer.own == alone.own
    assert answers[-1].own == {"place0_0.png"}
    assert [a.box for a in index.search_many(queries[:2])] == [None, None]
    assert list(index.search_many([])) == []
    with pytest.raises(ValueError, match="shorter|longer"):
        list(index.search_many(queries, boxes[:-1]))


def test_one_photo_with_several_boxes_is_several_queries(make, photos):
    index, boxes = make(photos), [None, (0, 0, 40, 40), (50, 30, 96, 72)]
    answers = list(index.search_many([tiny.view(0, 9)] * 3, boxes))
    assert len({tuple(answer.scores.tolist()) for answer in answers}) == 3


# Shown and saved


@pytest.fixture
def answer(make, photos):
    return make(photos, whitening=None).search(photos / "place0_0.png")


def test_in_a_notebook_the_picture_comes_once(answer, monkeypatch):
    shown = []
    shell = SimpleNamespace(kernel=None)
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr("IPython.display.display", shown.append)
    assert answer.show(top=3) is None
    (figure,) = shown
    # What is open at the end of a cell is drawn by the notebook too.
    assert len(figure.axes) == 4 and plt.get_fignums() == []
    assert len(answer.figure(top=3).axes) == 4 and plt.get_fignums() == []


def test_in_a_window_it_stays_open(answer, monkeypatch):
    opened = []
    canvas = "matplotlib.backends.backend_agg.FigureCanvasAgg"
    monkeypatch.setattr(f"{canvas}.required_interactive_framework", "tk")
    monkeypatch.setattr(plt, "show", lambda: opened.extend(plt.get_fignums()))
    assert answer.show() is None and len(opened) == 1


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a.png", b"\x89PNG"),
        ("a.JPG", b"\xff\xd8"),
        ("a.pdf", b"%PDF"),
        ("new/a.svg", b"<?xml"),
    ],
)
def test_an_answer_is_saved_as_a_picture(answer, tmp_path, name, start):
    path = answer.save(str(tmp_path / name), top=2)
    assert path == tmp_path / name and path.read_bytes().startswith(start)
    assert plt.get_fignums() == []


def test_an_answer_is_saved_as_a_table_and_as_paths(answer, photos, tmp_path):
    table = pd.read_csv(answer.save(tmp_path / "a.csv"), index_col="rank")
    assert table["name"].tolist() == answer.names and list(table.index[:2]) == [1, 2]
    np.testing.assert_allclose(table["score"], answer.scores, rtol=1e-6)
    assert table["path"].tolist() == [str(photos / name) for name in answer.names]
    paths = json.loads(answer.save(tmp_path / "a.json").read_text())
    assert paths == table["path"].tolist()
    assert json.loads(answer.save(tmp_path / "a.json", top=2).read_text()) == paths[:2]
    odd = answer.save(tmp_path / "a.txt", kind="table", top=3)
    assert len(pd.read_csv(odd)) == 3
    assert answer.save(tmp_path / "b", kind="picture").read_bytes()[1:4] == b"PNG"
    assert sorted(p.name for p in tmp_path.glob("*")) == [
        *("a.csv", "a.json", "a.txt", "b", "c", "my_photos", "others")
    ]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [("a.docx", None, "docx"), ("a.png", "photo", "picture, table or paths; got 'ph")],
)
def test_what_cannot_be_saved_is_refused(answer, tmp_path, name, kind, message):
    with pytest.raises(ValueError, match=message):
        answer.save(tmp_path / name, kind)
    assert not (tmp_path / name).exists()


def test_the_explorer_searches_the_folder(make, photos):
    index = make(photos)
    explorer = index.explorer()
    (ranking,) = explorer.search.results(index.method).rankings.values()
    assert ranking == index.search(photos / "other0_0.png").names


def test_rerank_and_expansion_work_as_well(make, photos):
    method = replace(CLASSES, rerank=4, rerank_classes=3, query_expansion=2)
    answer = make(photos, method=method).search(tiny.view(1, 9))
    assert {name[:6] for name in answer.names[:3]} == {"place1"}


# Growing and resuming


def test_only_new_photos_are_described(make, photos, described):
    before = make(photos, whitening=None).search(tiny.view(1, 9))
    make(photos, whitening=None)
    assert described == [11, 0]
    tiny.write(photos / "a_new_one.png", tiny.view(7, 0))
    (photos / "sub").mkdir()
    (photos / "place2_0.png").rename(photos / "sub" / "renamed.png")
    (photos / "place0_0.png").unlink()
    (photos / "a_copy.png").write_bytes((photos / "place2_1.png").read_bytes())
    index = make(photos, whitening=None)
    assert described == [11, 0, 1]
    assert len(index) == 12 and "sub/renamed.png" in index.names
    answer = index.search(tiny.view(1, 9))
    old = dict(zip(before.names, before.scores, strict=True))
    new = dict(zip(answer.names, answer.scores, strict=True))
    assert new["place1_1.png"] == pytest.approx(old["place1_1.png"])
    assert new["sub/renamed.png"] == pytest.approx(old["place2_0.png"])
    assert new["a_copy.png"] == new["place2_1.png"]


def test_an_interrupted_description_goes_on(make, photos, described, monkeypatch):
    extract = extraction.extract

    def stop(number):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        extraction, "extract", lambda *a, **k: extract(*a, **k, on_block=stop)
    )
    with pytest.raises(KeyboardInterrupt):
        make(photos, whitening=None)
    monkeypatch.setattr(extraction, "extract", extract)
    index = make(photos, whitening=None)
    assert described[1:] == [3]  # a block of 8 was complete
    assert {n[:6] for n in index.search(tiny.view(2, 9)).names[:3]} == {"place2"}


def test_another_network_describes_anew(make, photos, described):
    make(photos, whitening=None)
    make(photos, whitening=None, network=tiny.network(seed=1))
    assert described == [11, 11]


# Many photos


def test_an_index_that_is_opened_again_reads_no_photo(make, photos, monkeypatch):
    for path in photos.iterdir():
        os.utime(path, (1e9, 1e9))
    names = make(photos, whitening=None).names
    read, read_bytes = [], images._read_bytes
    monkeypatch.setattr(
        images, "_read_bytes", lambda path: read.append(path) or read_bytes(path)
    )
    assert make(photos, whitening=None).names == names and read == []
    tiny.write(photos / "place1_0.png", tiny.view(7, 0))
    assert make(photos, whitening=None).names == names
    assert {path.name for path in read} == {"place1_0.png"}


def test_a_large_folder_keeps_only_what_its_search_needs(make, photos, monkeypatch):
    small = make(photos)
    assert small.method.aggregation == "online"
    assert small.collection.first.setup.classes is None
    monkeypatch.setattr(search.space, "LARGE", 10)
    monkeypatch.setattr(search, "KEPT", 3)
    monkeypatch.setattr(search, "FIRST", 2)
    large = make(photos)
    assert large.method == replace(small.method, aggregation="grouped", cascade=2)
    assert large.collection.first.setup.classes == 6  # the network has no more
    explicit = make(photos, aggregation="offline")
    assert explicit.method == replace(small.method, aggregation="offline")
    assert explicit.collection.first.database.shape("class_vectors")[0] == 4
    few = replace(large.method, groups=3)  # and the first stage needs four
    assert make(photos, method=few).collection.first.setup.classes == 4
    expected = make(photos, method=large.method).search(tiny.view(1, 9))
    assert large.search(tiny.view(1, 9)).names == expected.names
    plain = make(photos, whitening=None).collection
    assert plain.first.setup.classes == 3 and plain.first.database.has("regions")
    assert not large.collection.first.database.has("regions")
    # Online aggregation chooses among all of them.
    assert make(photos, method=CLASSES).collection.first.setup.classes is None


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Opens 100,000 photos, of which the last but one is `tiny.view(3, 9)`."""
    folder = tmp_path_factory.mktemp("many")
    count, planted = 100_000, 99_998
    names = [f"{number:06}.jpg" for number in range(count)]
    paths = {name: folder / name for name in names}
    facts = {paths[n]: images.Facts((96, 72), f"sha of {n}") for n in names}
    data = Dataset("many", tuple(names), (), "100,000 photos", paths, facts=facts)
    others = tiny.dataset(folder / "others", "others", 0, 0, 12, first_place=100)
    setup = tiny.setup(folder / "cache", resize=tiny.FINE, power=2.0)
    setup = replace(setup, classes=4)
    describer, rng = tiny.describer(setup), np.random.default_rng(0)
    one = describer(images.resize_image(tiny.view(3, 9), setup.policy)[None])
    specs = array_specs(setup, one["regions"].shape[2])
    facts = {**setup.photo_facts(data), "batch": 1}
    store = DiskStore.create(
        setup.photos_path(data), facts, data.hashes(), specs, block=4096
    )
    known = finish(one, store)
    classes = np.array(list(itertools.permutations(range(tiny.CLASSES), 4)), "i4")
    for number, rows in enumerate(store.blocks):
        values = {}
        for name, spec in specs.items():
            shape = (len(rows), *spec.shape)
            if name == "top_classes":
                values[name] = classes[rng.integers(len(classes), size=len(rows))]
            else:
                values[name] = rng.random(shape, "f4").astype(spec.dtype)
            if planted in rows:
                values[name][planted - rows.start] = known[name][0]
        store.write_block(number, values)
    with tiny.compile_once():
        training = extraction.extract(others, replace(setup, classes=None))

    def open_index(method):
        queries = MemoryStore(setup.query_facts(), {}, {})
        experiment = Experiment(data, others, setup)
        database = DiskStore.open(store.path)
        collection = tiny.collection(experiment, database, queries, training)
        return search.Index(collection, method, {})

    return open_index


@pytest.mark.parametrize(
    "method",
    [
        replace(CLASSES, aggregation="offline"),
        replace(CLASSES, aggregation="grouped", groups=2, cascade=1000),
        search.PLAIN,
        Method("gem", dimensions=6),
    ],
    ids=lambda method: method.aggregation,
)
def test_100_000_photos_fit_into_little_memory(many, method):
    """Their descriptors are 3 to 5 MB, the arrays of the store 100 times that."""
    tracemalloc.start()
    index = many(method)
    answer = index.search(tiny.view(3, 9))
    _, opening = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    held, _ = tracemalloc.get_traced_memory()
    again = list(index.search_many([tiny.view(3, 9), tiny.view(4, 9)]))
    _, searching = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.names[0] == again[0].names[0] == "099998.jpg"
    assert len(answer.names) == len(answer.table) == 100_000
    assert opening < 100 * 2**20 and searching - held < 20 * 2**20


# Files that cannot be read


def test_unreadable_files_are_listed(make, photos):
    (photos / "empty.jpg").touch()
    whole = (photos / "place0_0.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    # Whole at both ends, damaged inside: only decoding tells.
    damaged = bytearray(imencode(".jpg", tiny.view(0, 0))[1].tobytes())
    damaged[200:400] = b"\xff\xd8" * 100
    (photos / "a_damaged.jpg").write_bytes(damaged)
    check_image(photos / "a_damaged.jpg")
    with pytest.warns(UserWarning, match="3 of 14 files .* cut.png, empty.jpg, a_dam"):
        index = make(photos, whitening=None)
    assert set(index.unreadable) == {"empty.jpg", "cut.png", "a_damaged.jpg"}
    assert len(index) == 11 and "3 unreadable" in repr(index)
    assert "truncated" in index.unreadable["cut.png"]


@pytest.mark.parametrize("broken", [False, True])
def test_an_empty_folder_is_an_error(make, tmp_path, broken):
    (tmp_path / "empty").mkdir()
    if broken:
        (tmp_path / "empty" / "a.jpg").touch()
    with pytest.raises(DatasetError, match="holds no readable image file") as error:
        make(tmp_path / "empty")
    assert len(error.value.problems) == broken
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        make("nowhere")


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        ("nowhere.jpg", "no file .*my_photos/nowhere.jpg, and no photo [^?]*$"),
        ("place0_0.jpg", "Did you mean place0_0.png[?]"),
        ("notes.txt", "not an image"),
        (".", "is a folder"),
        (np.zeros((9, 9)), "H, W, 3"),
        (np.zeros((9, 9, 3)), "uint8"),
        (b"no photo", "The bytes of the query: not an image"),
        (b"", "The bytes of the query: the file is empty"),
        (Image.new("F", (9, 9)), "mode F .* convert it to RGB"),
        (Image.new("I;16", (9, 9)), "mode I;16 .* convert it to RGB"),
    ],
)
def test_a_query_that_is_no_photo_is_named(make, photos, monkeypatch, photo, message):
    monkeypatch.chdir(photos)
    (photos / "notes.txt").write_text("no photo")
    with pytest.raises(ValueError, match=message):
        make(photos, whitening=None).search(photo)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 200, 50), "outside its image, which has 96x72 pixels"),
        ((9, 9, 14, 60), "has 5x51 pixels, too few to describe: take at least 32x32"),
        ((9, 9, 60, 40.5), "has 51x31.5 pixels"),
        ((9, 9, 9, 60), "is empty or upside down"),
    ],
)
def test_a_box_that_cannot_be_described_is_named(make, photos, box, message):
    with pytest.raises(ValueError, match=message):
        make(photos, whitening=None).search(tiny.view(0, 0), box=box)


# Whitening


def test_whitening_is_never_fitted_on_what_is_searched(make, photos):
    with pytest.raises(
        WhiteningError, match="11 of the 11 whitening photos .*other0_0"
    ):
        make(photos, whitening=photos)
    assert not list(photos.parent.rglob("store.json"))  # before anything is described
    with pytest.raises(WhiteningError, match="needs whitening, which is never fitted"):
        make(photos, whitening=None, method=CLASSES)


def test_without_whitening_photos_it_says_so_and_does_without(
    make, photos, monkeypatch
):
    def fail(*_):
        raise DatasetError("No apt-get here.")

    monkeypatch.setattr(datasets, "load", fail)
    with pytest.warns(UserWarning, match="without whitening .*Reason: No apt-get"):
        index = make(photos, whitening=search.WHITENING)
    assert index.method == search.PLAIN and "not whitened" in repr(index)
    assert {n[:6] for n in index.search(tiny.view(1, 9)).names[:3]} == {"place1"}
    with pytest.raises(DatasetError, match="No apt-get"):
        make(photos, whitening="paris6k")


def test_few_whitening_photos_give_few_dimensions(make, photos, tmp_path):
    few = tmp_path / "few"
    tiny.dataset(few, "few", 0, 0, 4, first_place=200)
    assert make(photos, whitening=few).method.dimensions == 6


def test_few_channels_give_few_dimensions(make, photos, monkeypatch):
    monkeypatch.setattr(search, "METHOD", replace(CLASSES, dimensions=16))
    index = make(photos)
    assert index.method.dimensions == index.collection.first.setup.channels == 12
    index.search(index.names[0])


# The README


def test_the_lines_of_the_readme_run(photos, others, tmp_path, monkeypatch, capsys):
    text = README.read_text(encoding="utf-8")
    (code,) = [c for c in re.findall(r"(?s)```python\n(.*?)```", text) if "search" in c]
    assert len([line for line in code.splitlines() if line.strip()]) <= 4
    tiny.write(tmp_path / "query.jpg", tiny.view(1, 9))
    other = tiny.dataset(others, "others", 0, 0, 12, first_place=100)
    monkeypatch.setattr(datasets, "load", lambda *_: other)
    monkeypatch.setattr(networks, "load", lambda *_: tiny.network())
    for name, value in {"cache_dir": tmp_path / "c", "resize": tiny.FINE}.items():
        monkeypatch.setitem(search.index.__kwdefaults__, name, value)
    monkeypatch.chdir(tmp_path)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(code, names)
    assert {n[:6] for n in names["answer"].names[:3]} == {"place1"}
    (place,) = re.findall(
        r"There is no screen here; see (.*)\n", capsys.readouterr().out
    )
    assert read_image(place).size and not plt.get_fignums()


# Few classes a photo


def test_groups_take_one_setting_and_keep_few_classes(make, photos, monkeypatch):
    monkeypatch.setattr(search, "METHOD", replace(CLASSES, groups=3))
    index = make(photos, aggregation="grouped")
    assert index.method == replace(CLASSES, aggregation="grouped", groups=3)
    assert index.collection.first.database.shape("class_vectors")[0] == 3
    for place in range(3):
        names = index.search(tiny.view(place, 9)).names[:3]
        assert {name.split("_")[0] for name in names} == {f"place{place}"}
    again = make(photos, method=index.method)
    assert again.collection.first.setup.facts == index.collection.first.setup.facts


def test_groups_of_an_index_without_whitening_are_none(make, photos):
    assert make(photos, whitening=None, aggregation="grouped").method == search.PLAIN
