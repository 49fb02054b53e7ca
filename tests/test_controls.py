"""The parts of the explorers, without a collection."""

import io
from datetime import UTC, datetime

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
    file = {"name": name, "type": "", "size": len(content), "content": content}
    panel.upload.value = ({**file, "last_modified": datetime.fromtimestamp(0, UTC)},)


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
    assert chosen == ["mine.png"] and panel.choice.value is None


def test_a_large_photo_is_shown_small_and_a_box_is_in_its_own_pixels(panel, data):
    panel, _, chosen = panel
    large = Image.new("RGB", (900, 600))
    file = io.BytesIO()
    large.save(file, "PNG")
    upload(panel, "large.png", file.getvalue())
    assert Image.open(io.BytesIO(panel.photo.jpeg)).size == (360, 240)
    assert panel.photo.size == [900, 600]
    panel.photo.box = [10.0, 20.0, 890.0, 590.0]
    assert panel.box == (10, 20, 890, 590)
    assert (panel.x.value, panel.y.value) == ((10, 890), (20, 590))
    assert chosen == ["large.png", "large.png"]
