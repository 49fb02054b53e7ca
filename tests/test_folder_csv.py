"""CSV files in a folder of photos are found without being named."""

import os
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from cwr_utils import datasets, runs
from cwr_utils.datasets import DatasetError, folder


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "holiday"
    folder.mkdir()
    for name in ("a", "b", "c"):
        pixels = rng.integers(0, 255, (40, 60, 3), np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    return folder


def test_groups_make_queries(photos):
    (photos / "groups.csv").write_text("image,group\na,x\nb,x\nc,y\n")
    data = datasets.load(str(photos))
    assert [query.image for query in data.queries] == ["a.png", "b.png"]
    assert data.queries[0].positives == {"b.png"}


def test_queries_may_have_boxes(photos):
    (photos / "groups.csv").write_text("image,group\na,x\nb,x\nc,y\n")
    (photos / "queries.csv").write_text("image,x1,y1,x2,y2\nb,1,2,30,20\n")
    (query,) = datasets.load(str(photos)).queries
    assert query.box == (1, 2, 30, 20)
    assert query.positives == {"a.png"}


def test_a_folder_without_queries_says_how_to_make_some(photos):
    assert datasets.load(str(photos)).queries == ()
    with pytest.raises(datasets.DatasetError, match=r"no queries.*groups\.csv"):
        runs.load_data(str(photos), "", str(photos), "")


def test_groups_are_landmarks(photos):
    (photos / "groups.csv").write_text("image,group\na,x\nb,x\nc,y\n")
    assert [q.landmark for q in datasets.load(str(photos)).queries] == ["x", "x"]
    (photos / "queries.csv").write_text("image\nc\na\n")
    assert [q.landmark for q in datasets.load(str(photos)).queries] == ["y", "x"]
    (photos / "groups.csv").unlink()
    assert [q.landmark for q in datasets.load(str(photos)).queries] == ["", ""]


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("image, x1, y1, x2, y2", "a, 10, 5, 50, 35"),
        ("Image,X1,Y1,X2,Y2", "a,10,5,50,35"),
        ("image,xmin,ymin,xmax,ymax", "a,10,5,50,35"),
        ("image,x_min,y_min,x_max,y_max", "a,10,5,50,35"),
        ("ymax,xmax,image,ymin,xmin", "35,50,a,5,10"),
        ("image,left,top,right,bottom", "a,10,5,50,35"),
        ("image,x,y,w,h", "a,10,5,40,30"),
        ("image,left,top,width,height", "a,10,5,40,30"),
    ],
)
def test_boxes_are_read_under_all_of_their_names(photos, header, cells):
    (photos / "queries.csv").write_text(f"{header}\n{cells}\n")
    (query,) = datasets.load(str(photos)).queries
    assert query.image == "a.png"
    assert query.box == (10, 5, 50, 35)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("image,xa,ya,xb,yb\na,1,2,30,20\n", "not known: 'xa', 'ya', 'xb', 'yb'"),
        ("image,group\na,x\n", "not known: 'group'"),
        ("image,x1,y1,x2,y2,xmin\na,1,2,30,20,1\n", "'x1', 'xmin'"),
        ("image,x1,y1\na,1,2\n", "line 2: the columns of a box are"),
        ("image,x1,y1,x2,y2,h\na,1,2,30,20,9\n", "line 2: the columns of a box are"),
        ("image,x1,y1,x2,y2\na,0.1,0.1,0.9,1\n", "line 2: a box is in pixels; 0.1, "),
        ("image,x,y,w,h\na,0,0,1,1\n", "shares of the photo: multiply"),
        ("image,x1,y1,x2,y2\na,10,5,20,100,5,100,5\n", "line 2: 8 cells for 5 columns"),
        ("image,x1,y1,x2,y2\na,1,,30,20\n", "four numbers; got 1, nothing, 30, 20"),
        ('image,x1,y1,x2,y2\na,"1,5",2,30,20\n', "four numbers; got 1,5, 2"),
        ('image,name\na,"two\nlines"\n', "must be a file name"),
    ],
)
def test_what_is_not_known_in_queries_is_an_error(photos, content, what):
    (photos / "queries.csv").write_text(content)
    with pytest.raises(DatasetError, match="queries.csv|Query 'two") as caught:
        datasets.load(str(photos))
    assert what in str(caught.value)


def test_an_unquoted_comma_is_an_error_and_not_another_group(photos):
    text = "image,group\na,St. Paul's, London\nb,St. Paul's, Rome\nc,x\n"
    (photos / "groups.csv").write_text(text)
    with pytest.raises(DatasetError) as caught:
        datasets.load(str(photos))
    assert [problem.partition(";")[0] for problem in caught.value.problems] == [
        "groups.csv, line 2: 3 cells for 2 columns",
        "groups.csv, line 3: 3 cells for 2 columns",
    ]


def test_a_photo_with_an_empty_group_is_a_distractor(photos):
    (photos / "d.png").write_bytes((photos / "c.png").read_bytes())
    text = " Image , GROUP ,note\na,x,first\nb,x,\nc,,\nd\n,,\n\n"
    (photos / "Groups.csv").write_text(text)
    data = datasets.load(str(photos))
    assert [query.image for query in data.queries] == ["a.png", "b.png"]
    assert data.distractors == ("c.png", "d.png")


def test_a_groups_file_without_a_pair_is_not_asked_for_again(photos):
    (photos / "groups.csv").write_text("image,group\na,x\nb,y\n")
    with pytest.raises(DatasetError, match=r"no two of them in one group of groups\."):
        runs.load_data(str(photos), "", str(photos), "")


def test_queries_need_no_ground_truth(photos):
    (photos / "queries.csv").write_text("image\na\n")
    (query,) = datasets.load(str(photos)).queries
    assert (query.positives, query.junk) == (frozenset(), {"a.png"})


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_accents_are_the_same_however_they_are_written(photos, on_disk, written):
    (photos / "a.png").rename(photos / unicodedata.normalize(on_disk, "café.png"))
    for text in ("café.png", "café"):
        text = unicodedata.normalize(written, text)
        (photos / "groups.csv").write_text(f"image,group\n{text},x\nb,x\n")
        assert len(datasets.load(str(photos)).queries) == 2


def test_two_spellings_of_one_name_are_told_apart(photos):
    names = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    for old, new in zip("ab", names, strict=True):
        (photos / f"{old}.png").rename(photos / new)
    (photos / "queries.csv").write_text("image\n" + "\n".join(names))
    assert [query.image for query in datasets.load(str(photos)).queries] == names


@pytest.mark.parametrize(
    ("name", "why"), [(b"caf\xe9.png", "no text in UTF-8"), (b"a\nb.png", "line break")]
)
def test_names_that_no_ranking_file_can_hold_are_refused_at_load(photos, name, why):
    os.rename(photos / "a.png", os.fsencode(photos) + b"/" + name)
    with pytest.raises(DatasetError, match=f"rename it, .*{why}") as caught:
        datasets.load(str(photos))
    assert len(caught.value.problems) == 1
    with pytest.warns(UserWarning, match=f"1 files are left out:\n.*{why}"):
        data = datasets.load(str(photos), skip_unreadable=True)
    assert data.images == ("b.png", "c.png")


# What lies in a folder


def test_all_that_can_be_read_is_found(photos):
    pixels = Image.open(photos / "a.png")
    kinds = {"jfif": "jpeg", "jpe": "jpeg", "TIF": "tiff", "gif": "gif", "avif": "avif"}
    kinds |= {"jp2": "jpeg2000", "ppm": "ppm", "mpo": "jpeg", "tga": "tga"}
    for suffix, kind in kinds.items():
        pixels.save(photos / f"d.{suffix}", kind)
    (photos / "notes.txt").touch()
    data = datasets.load(str(photos))
    assert set(data.images) == {"a.png", "b.png", "c.png", *(f"d.{s}" for s in kinds)}
    assert data.left_out == {}


def test_heic_is_read_where_there_is_a_decoder_and_listed_elsewhere(
    photos, monkeypatch
):
    pytest.importorskip("pillow_heif")
    Image.open(photos / "a.png").save(photos / "d.HEIC", "heif")
    assert datasets.load(str(photos)).size("d.HEIC") == (60, 40)
    monkeypatch.setattr(folder, "READS_HEIF", False)
    found, left_out = folder.find_images(photos)
    assert "d.HEIC" not in found
    assert "install pillow-heif" in left_out["d.HEIC"]


def test_linked_folders_are_followed_and_loops_end(photos, tmp_path):
    library = tmp_path / "library"
    (library / "2019").mkdir(parents=True)
    (photos / "b.png").rename(library / "2019" / "b.png")
    (photos / "a_year").symlink_to(library / "2019")
    (photos / "loop").symlink_to(photos)
    (library / "2019" / "back").symlink_to(photos)
    (photos / "self").symlink_to(photos / "self")
    (photos / "linked.png").symlink_to(library / "2019" / "b.png")
    (photos / "z_real").mkdir()
    (photos / "c.png").rename(photos / "z_real" / "c.png")
    (photos / "a_link").symlink_to(photos / "z_real")
    data = datasets.load(str(photos))
    assert data.images == ("a.png", "a_year/b.png", "linked.png", "z_real/c.png")


def test_pictures_that_are_not_read_are_listed_with_the_reason(photos):
    (photos / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    (photos / "sub").mkdir()
    (photos / "sub" / "RAW.CR2").touch()
    (photos / ".hidden.cr2").touch()
    with pytest.warns(UserWarning, match="2 files are left out") as caught:
        data = datasets.load(str(photos))
    assert data.images == ("a.png", "b.png", "c.png")
    assert list(data.left_out) == ["gone.jpg", "sub/RAW.CR2"]
    assert "a link to a file that is not there" in data.left_out["gone.jpg"]
    assert ".cr2 is not read; save it as JPEG" in data.left_out["sub/RAW.CR2"]
    assert all(reason in str(caught[0].message) for reason in data.left_out.values())
    assert data.take(1).left_out == data.left_out
