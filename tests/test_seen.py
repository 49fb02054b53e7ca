"""Files that were looked at before are not read again unless they changed."""

import json
import os
import time

import pytest
import tiny

from cwr_utils.datasets import seen
from cwr_utils.datasets.base import unreadable_images
from cwr_utils.images import check_image

LONG_AGO = 1_000_000_000 * 10**9


@pytest.fixture
def photos(tmp_path):
    """Name -> file of three photos that were taken long ago."""
    paths = {f"{n}.png": tmp_path / f"{n}.png" for n in range(3)}
    for number, path in enumerate(paths.values()):
        tiny.write(path, tiny.view(number, number))
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return paths


@pytest.fixture
def record(photos, tmp_path):
    """The file in which they are remembered."""
    facts = {path: check_image(path) for path in photos.values()}
    seen.remember(tmp_path / "new/files.json", photos, facts)
    return tmp_path / "new/files.json"


def test_what_is_recalled_is_what_was_seen_and_no_file_is_opened(
    photos, record, monkeypatch
):
    expected = {path: check_image(path) for path in photos.values()}
    facts = seen.recall(record, photos)
    assert facts == expected
    monkeypatch.setattr("cwr_utils.images._read_bytes", None)
    assert unreadable_images(photos, facts) == {} and facts == expected


def test_a_file_that_changed_is_not_recalled(photos, record):
    first, second, third = photos.values()
    os.utime(first, ns=(LONG_AGO, LONG_AGO + 1))  # the time alone
    second.write_bytes(second.read_bytes() + b"\0")  # the length alone
    os.utime(second, ns=(LONG_AGO, LONG_AGO))
    assert list(seen.recall(record, photos)) == [third]
    third.unlink()
    assert seen.recall(record, photos) == {}


def test_a_file_that_was_just_written_is_looked_at_again(photos, tmp_path):
    """Its next change might not show in its time."""
    facts = {path: check_image(path) for path in photos.values()}
    now = time.time_ns()
    os.utime(photos["0.png"], ns=(now, now))
    seen.remember(tmp_path / "files.json", photos, facts)
    assert len(seen.recall(tmp_path / "files.json", photos)) == 2


def test_names_that_are_new_or_gone_do_not_matter(photos, record):
    other = {"more.png": photos["1.png"], "2.png": photos["2.png"]}
    assert list(seen.recall(record, other)) == [photos["2.png"]]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"0.png": 3}', '{"0.png": [[1, 2], [3], "a"]}', '{"0.png": null}'],
)
def test_a_damaged_record_is_none(photos, record, text):
    record.write_text(text)
    assert seen.recall(record, photos) == {}
    assert seen.recall(record.parent / "none.json", photos) == {}


def test_values_of_another_kind_are_none(photos, record):
    known = json.loads(record.read_text())
    known["0.png"][1] = ["wide", "high"]
    record.write_text(json.dumps(known))
    assert seen.recall(record, photos) == {}
