"""The parts of the explorers, without a collection."""

import io

import numpy as np
import pytest
import tiny
from PIL import Image, features

from cwr_utils.widgets import controls


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("photos"), places=1, distractors=0)


@pytest.fixture
def panel(data):
    """A panel, its message, and the names of what was chosen on it."""
    chosen = []
    message = controls.Message()
    start = controls.first_key(data, 0)

    def changed():
        chosen.append(panel.source.query.name)

    panel = controls.PhotoPanel(data, start, changed, message)
    return panel, message, chosen


def written(form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tiny.view(0, 0)).save(file, form)
    return file.getvalue()


def emptied_avif() -> bytes:
    """An AVIF file whose only item has no bytes: Pillow raises a RuntimeError."""
    if not features.check("avif"):
        pytest.skip("this Pillow does not read AVIF")
    data = bytearray(written("AVIF"))
    length = data.find(b"iloc") + 22
    data[length : length + 4] = bytes(4)
    return bytes(data)


def upload(panel, name: str, content: bytes) -> None:
    """What the browser sends."""
    panel.photo._handle_custom_msg({"name": name}, [memoryview(content)])


BAD = {
    "empty": lambda: b"",
    "text": lambda: b"no picture",
    "cut": lambda: written("PNG")[:-30],
    "damaged": emptied_avif,
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_an_upload_that_is_no_photo_is_named_each_time(panel, content):
    panel, message, chosen = panel
    before = panel.source
    for _ in range(2):
        message.say("ready")
        upload(panel, "holiday.jpg", content())
        assert 'role="alert"' in message.value
        assert "holiday.jpg: " in message.value
    assert panel.source is before and chosen == []


def test_an_upload_is_decoded_from_its_bytes(panel, monkeypatch):
    monkeypatch.setattr("tempfile.mkdtemp", None)  # no file is written
    panel, message, chosen = panel
    upload(panel, "mine.png", written("PNG"))
    np.testing.assert_array_equal(panel.source.photo, tiny.view(0, 0))
    assert chosen == ["mine.png"]
    assert panel.choice.list.label == "upload: mine.png"


def test_one_goes_back_to_an_upload(panel):
    panel, _, chosen = panel
    upload(panel, "mine.png", written("PNG"))
    upload(panel, "other.bmp", written("BMP"))
    panel.choice.value = ("query", 0)
    panel.choice.value = ("upload", "mine.png")
    assert chosen == ["mine.png", "other.bmp", "query0", "mine.png"]
    assert panel.choice.list.label == "upload: mine.png"


def test_what_the_browser_could_not_send_is_said(panel):
    panel, message, chosen = panel
    refusal = {"name": "huge.tif", "refused": "the browser cannot scale its 90 MB down"}
    panel.photo._handle_custom_msg(refusal, [])
    assert "huge.tif: the browser cannot scale its 90 MB down." in message.value
    assert 'role="alert"' in message.value and chosen == []


def test_a_large_photo_is_shown_small_and_a_box_is_in_its_own_pixels(panel, data):
    panel, _, chosen = panel
    large = Image.new("RGB", (900, 600))
    file = io.BytesIO()
    large.save(file, "PNG")
    upload(panel, "large.png", file.getvalue())
    assert Image.open(io.BytesIO(panel.photo.jpeg)).size == (720, 480)
    assert panel.photo.size == [900, 600]
    panel.photo.box = [10.0, 20.0, 890.0, 590.0]
    assert panel.box == (10, 20, 890, 590)
    assert (panel.x.value, panel.y.value) == ((10, 890), (20, 590))
    assert chosen == ["large.png", "large.png"]


# Lists that are searched by name


@pytest.fixture
def finder():
    """Of 5,000 names, and what was chosen in turn."""
    finder, chosen = controls.Finder("Class", "Find a class"), []
    finder.offer([(f"name {n}", n) for n in range(5000)], 0)
    finder.observe(lambda change: chosen.append(change["new"]), "value")
    return finder, chosen


def test_every_name_is_found_by_a_part_of_it(finder):
    finder, chosen = finder
    assert len(finder.list.options) == 2000
    assert "3,000 more" in finder.note.value
    finder.find.value = "E 2718"
    assert finder.list.options == (("name 2718", 2718),)
    assert (finder.value, chosen, finder.note.value) == (2718, [2718], "")


def test_what_is_chosen_stays_while_it_is_found(finder):
    finder, chosen = finder
    finder.list.value = 271
    finder.find.value = "71"
    assert finder.value == finder.list.value == 271
    finder.find.value = "1"
    finder.find.value = ""
    assert finder.value == finder.list.value == 271
    assert chosen == [271]


def test_a_choice_from_outside_is_shown_however_far_down(finder):
    finder, chosen = finder
    finder.find.value = "name 2"
    finder.value = 4999
    assert finder.find.value == "" and finder.list.label == "name 4999"
    assert len(finder.list.options) == 2001
    assert chosen == [2, 4999]


def test_an_unknown_name_changes_nothing(finder):
    finder, chosen = finder
    finder.find.value = "<b>"
    assert "&lt;b&gt;" in finder.note.value
    assert finder.value == 0 and chosen == []


def test_another_list_forgets_what_was_searched_for(finder):
    finder, chosen = finder
    finder.find.value = "2999"
    finder.offer([("one", "a"), ("two", "b")], "b")
    assert (finder.find.value, finder.list.label, finder.value) == ("", "two", "b")
    assert chosen == [2999, "b"]
