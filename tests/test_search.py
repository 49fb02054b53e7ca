"""Three lines from a folder of photos to a ranked answer."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tiny
from cv2 import imencode

from cwr_utils import datasets, extraction, networks, search
from cwr_utils.datasets import DatasetError
from cwr_utils.images import check_image, read_image
from cwr_utils.retrieval import Experiment, Method
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
    expected = tiny.opened(Experiment(data, other, setup)).run(method)
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
    expected = tiny.opened(experiment).run(CLASSES)
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
    figure = part.show(top=4)
    assert len(figure.axes) == 5 and figure.axes[0].patches
    marks = [item.get_text() for item in figure.texts if "●" in item.get_text()]
    assert marks == [f"{part.names.index(query.name) + 1} ●"]


def test_an_answer_is_a_table_too(make, photos):
    answer = make(photos).search(photos / "place0_0.png")
    assert answer.table["name"].tolist() == answer.names
    assert answer.table.index.tolist() == list(range(1, 12))
    assert "place0_0.png" in repr(answer) and "11 photos" in repr(answer)
    assert answer._repr_html_().startswith("<table")


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
        ("nowhere.jpg", "no such file"),
        ("notes.txt", "not an image"),
        (".", "is a folder"),
        (np.zeros((9, 9)), "H, W, 3"),
        (np.zeros((9, 9, 3)), "uint8"),
    ],
)
def test_a_query_that_is_no_photo_is_named(make, photos, monkeypatch, photo, message):
    monkeypatch.chdir(photos)
    (photos / "notes.txt").write_text("no photo")
    with pytest.raises(ValueError, match=message):
        make(photos, whitening=None).search(photo)


def test_a_box_outside_the_photo_is_named(make, photos):
    with pytest.raises(ValueError, match="outside its image, which has 96x72 pixels"):
        make(photos, whitening=None).search(tiny.view(0, 0), box=(0, 0, 200, 50))


# Whitening


def test_whitening_is_never_fitted_on_what_is_searched(make, photos):
    with pytest.raises(WhiteningError, match="11 of the 11 whitening photos"):
        make(photos, whitening=photos)
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
    assert index.method.dimensions == index.collection.setup.channels == 12
    index.search(index.names[0])


# The README


def test_the_lines_of_the_readme_run(photos, others, tmp_path, monkeypatch):
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
    assert plt.get_fignums()


# Few classes a photo


def test_groups_take_one_setting_and_keep_few_classes(make, photos, monkeypatch):
    monkeypatch.setattr(search, "MOST_TOP_CLASSES", 3)
    index = make(photos, aggregation="grouped")
    assert index.method == replace(CLASSES, aggregation="grouped", groups=3)
    assert index.collection.database.shape("class_vectors")[0] == 3
    for place in range(3):
        names = index.search(tiny.view(place, 9)).names[:3]
        assert {name.split("_")[0] for name in names} == {f"place{place}"}
    whole = make(photos, method=replace(CLASSES, aggregation="grouped", groups=3))
    assert whole.collection.setup.classes is None
    assert (
        whole.search(tiny.view(0, 9)).names[:3]
        == index.search(tiny.view(0, 9)).names[:3]
    )


def test_groups_of_an_index_without_whitening_are_none(make, photos):
    assert make(photos, whitening=None, aggregation="grouped").method == search.PLAIN
