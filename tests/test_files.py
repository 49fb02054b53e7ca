"""Whole files and folders: what a reader sees, whatever happens to the writer."""

import multiprocessing

import pytest

from cwr_utils import files


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with files.whole_file(path) as part:
        part.write_text("half")
        assert not path.exists()
        part.write_text("whole")
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    with pytest.raises(OSError, match="full"), files.whole_file(path) as part:
        part.write_text("ha")
        raise OSError("full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.whole_file(tmp_path / "file"):
        pass


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file.txt"
    with files.whole_file(path) as first:
        first.write_text("first")
        # As another process would: its own part, which does not touch the first one's.
        writer = multiprocessing.get_context("spawn").Process(
            target=files.write_text, args=(path, "second")
        )
        writer.start()
        writer.join()
        assert path.read_text() == "second" and first.read_text() == "first"
    assert path.read_text() == "first"


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder"
    with pytest.raises(KeyError), files.whole_folder(target) as part:
        (part / "a").touch()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with files.whole_folder(target) as part:
        (part / "a").touch()
    assert [p.name for p in target.iterdir()] == ["a"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_the_folder_of_a_faster_process_stays(tmp_path):
    target = tmp_path / "folder"
    with files.whole_folder(target):
        target.mkdir()
        (target / "theirs").touch()
    assert [p.name for p in target.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [target]


def _enter(folder, entered):
    with files.locked(folder):
        entered.set()


def test_a_locked_folder_is_entered_by_one_at_a_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    entered = context.Event()
    with files.locked(tmp_path):
        other = context.Process(target=_enter, args=(tmp_path, entered))
        other.start()
        assert not entered.wait(1)
    assert entered.wait(60)
    other.join()


def test_json_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"é": [1, None]})
    assert path.read_text(encoding="utf-8").endswith("\n")
    assert "\\u00e9" in path.read_text(encoding="utf-8")
