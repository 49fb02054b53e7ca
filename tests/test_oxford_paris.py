"""Oxford, Paris and the distractors: reading, combining, downloading.

The downloads come from a server that the test runs on this machine.
"""

import dataclasses
import errno
import hashlib
import http.server
import io
import os
import re
import sys
import tarfile
import threading
import time

import cv2
import numpy as np
import pytest
import simplejpeg

from cwr_utils import datasets
from cwr_utils.datasets import DatasetError, oxford_paris
from cwr_utils.datasets import download as downloads
from cwr_utils.datasets.download import RemoteFile, fetch, unpack
from cwr_utils.images import check_box

JPEG = cv2.imencode(".jpg", np.full((30, 40, 3), 100, np.uint8))[1].tobytes()


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(JPEG)
    return path


def truth_files(prefix="oxc1_"):
    files = {
        "query": f"{prefix}tower_000000 1.5 2 30 20.25\r\n",
        "good": "tower_000000\r\ntower_000001\r\n",
        "ok": "tower_000002\n",
        "junk": "",
    }
    return {f"tower_1_{kind}.txt": text.encode() for kind, text in files.items()}


def make_oxford(root, images="oxbuild_images", truth="gt_files_170407", prefix="oxc1_"):
    for number in range(6):
        write_image(root / images / f"tower_{number:06d}.jpg")
    (root / truth).mkdir(parents=True)
    for name, text in truth_files(prefix).items():
        (root / truth / name).write_bytes(text)
    return root / truth


# --- Oxford and Paris -----------------------------------------------------------


@pytest.mark.parametrize("images", ["oxbuild_images", "images", "images/sub"])
@pytest.mark.parametrize("truth", ["gt_files_170407", "gt_files_120310", "gt/sub"])
def test_official_layout(tmp_path, images, truth):
    truth_folder = make_oxford(tmp_path, images, truth)
    (truth_folder / "._tower_1_query.txt").write_bytes(b"\0\5\x16\7")  # from a Mac
    oxford = datasets.load("oxford5k", tmp_path)
    (query,) = oxford.queries
    assert query.name == "tower_1"
    assert query.image == "tower_000000"
    assert query.box == (1.5, 2, 30, 20.25)
    assert query.positives == {"tower_000000", "tower_000001", "tower_000002"}
    assert query.junk == frozenset()
    assert oxford.distractors == ("tower_000003", "tower_000004", "tower_000005")
    assert oxford.note == "6 of 5,063 images of Oxford Buildings, 1 of 55 queries"


def test_paris_in_a_subfolder_without_the_prefix(tmp_path):
    make_oxford(tmp_path / "paris6k", "paris/tower", "gt_files_120310", prefix="")
    paris = datasets.load("paris6k", tmp_path)
    assert paris.queries[0].image == "tower_000000"
    assert paris.note == "6 of 6,392 images of Paris, 1 of 55 queries"


def test_the_corrupt_paris_files_are_left_out_by_name(tmp_path):
    assert len(oxford_paris.CORRUPT_PARIS) == 6412 - 6392
    truth = make_oxford(tmp_path, "paris", "gt_files_120310", prefix="")
    for name in oxford_paris.CORRUPT_PARIS:
        folder = tmp_path / "paris" / name.split("_")[1]
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.jpg").write_text("<title>302 Found</title>")
    (truth / "tower_1_ok.txt").write_text("tower_000002\nparis_louvre_000136\n")
    (truth / "tower_1_junk.txt").write_text("paris_triomphe_000867\n")
    paris = datasets.load("paris6k", tmp_path)
    assert len(paris.images) == 6
    (query,) = paris.queries
    assert query.positives == {"tower_000000", "tower_000001", "tower_000002"}
    assert query.ok == {"tower_000002"}
    assert query.junk == frozenset()


def test_an_absent_data_set_says_what_to_get(tmp_path):
    with pytest.raises(DatasetError, match="no folder of images of Oxford") as caught:
        datasets.load("oxford105k", tmp_path)
    assert len(caught.value.problems) == 3
    for part in (
        f"datasets.load('oxford105k', '{tmp_path}', download=True)",
        "oxbuild_images-v1.tgz (1.9 GB) from https://www.robots.ox.ac.uk/~vgg/data/",
        f"unpacked into {tmp_path / 'oxbuild_images'}",
        "oxc1_100k.part01.rar ... oxc1_100k.part40.rar",
        f"unpacked into {tmp_path / 'flickr100k'}",
    ):
        assert part in str(caught.value)
    (tmp_path / "images").mkdir()
    with pytest.raises(DatasetError, match="no folder of queries of Paris") as caught:
        datasets.load("paris6k", tmp_path)
    assert len(caught.value.problems) == 1


def test_all_problems_of_an_official_layout_are_listed(tmp_path):
    truth = make_oxford(tmp_path)
    (truth / "tower_1_ok.txt").write_text("tower_000077\n")
    (truth / "tower_1_junk.txt").write_text("tower_000001\n")
    (truth / "tower_2_query.txt").write_text("oxc1_tower_000001 30 20 1 2")
    (truth / "tower_2_good.txt").write_text("")
    (truth / "tower_2_ok.txt").write_text("")
    (truth / "tower_3_query.txt").write_text("oxc1_tower_000001 30 20 1")
    image = tmp_path / "oxbuild_images" / "tower_000005.jpg"
    image.write_bytes(image.read_bytes()[:-4])
    write_image(tmp_path / "oxbuild_images" / "copy" / "tower_000004.jpg")
    with pytest.raises(DatasetError) as caught:
        datasets.load("oxford5k", tmp_path)
    text = str(caught.value)
    for part in (
        "positive image 'tower_000077' is not in the folder",
        "'tower_000001' is both positive and junk",
        "tower_2_junk.txt is missing",
        "upside down",
        "tower_3_query.txt: expected one line",
        "tower_000005.jpg: the file is truncated",
        "'tower_000004' is there twice",
    ):
        assert part in text
    assert len(caught.value.problems) == 7


def test_photos_are_not_fewer_without_a_word(tmp_path):
    make_oxford(tmp_path)
    (tmp_path / "oxbuild_images" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DatasetError, match=r"gone\.jpg: a link to a file that is not"):
        datasets.load("oxford5k", tmp_path)


def test_damaged_images_can_be_left_out_of_an_official_layout(tmp_path):
    make_oxford(tmp_path)
    (tmp_path / "oxbuild_images" / "tower_000002.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 files are left out"):
        oxford = datasets.load("oxford5k", tmp_path, skip_unreadable=True)
    assert len(oxford.images) == 5
    assert oxford.queries[0].positives == {"tower_000000", "tower_000001"}
    assert oxford.note.startswith("5 of 5,063 images")


def test_ground_truth_without_queries_is_an_error(tmp_path):
    truth = make_oxford(tmp_path)
    (truth / "tower_1_query.txt").unlink()
    with pytest.raises(DatasetError, match=r"no files named \*_query\.txt"):
        datasets.load("oxford5k", tmp_path)


def test_real_oxford_images(dev_data):
    oxford = datasets.load("oxford5k", dev_data / "oxford5k_dev")
    assert (len(oxford.images), len(oxford.queries)) == (164, 30)
    for query in oxford.queries:
        assert query.image in query.positives
        check_box(query.box, oxford.size(query.image))
    assert oxford.queries[0].box == (187.7, 17.1, 887.5, 238.9)
    assert len({query.landmark for query in oxford.queries}) == 6


# --- distractors ----------------------------------------------------------------


@pytest.mark.parametrize("beside", [True, False])
def test_distractors_follow_the_landmarks_under_names_of_their_own(tmp_path, beside):
    make_oxford(tmp_path / "oxford5k")
    place = tmp_path / "oxford5k" / "flickr100k" if beside else tmp_path / "oxc1_100k"
    for name in ("tower/tower_000001.jpg", "sky/sky_000007.jpg"):
        write_image(place / name)
    combined = datasets.load("oxford105k", tmp_path)
    assert combined.name == "oxford105k"
    assert combined.images[5:] == (
        "tower_000005", "flickr100k/sky_000007", "flickr100k/tower_000001",
    )  # fmt: skip
    assert combined.path("flickr100k/tower_000001").parent.name == "tower"
    alone = datasets.load("oxford5k", tmp_path)
    assert combined.queries == alone.queries
    assert combined.note == (
        "6 of 5,063 images of Oxford Buildings, "
        "2 of 100,071 distractors of Flickr 100k, 1 of 55 queries"
    )
    with pytest.raises(DatasetError, match="no folder of images of Paris"):
        datasets.load("paris106k", tmp_path)


def test_distractors_can_be_loaded_alone(tmp_path):
    write_image(tmp_path / "flickr100k" / "sky" / "sky_000007.jpg")
    alone = datasets.load("flickr100k", tmp_path)
    assert alone.images == ("flickr100k/sky_000007",)
    assert alone.queries == ()
    write_image(tmp_path / "flickr100k" / "copy" / "sky_000007.jpg")
    with pytest.raises(DatasetError, match="'flickr100k/sky_000007' is there twice"):
        datasets.load("flickr100k", tmp_path)


def test_only_distractors_known_as_doubtful_may_be_damaged(tmp_path):
    folder = tmp_path / "flickr100k"
    for name in ("cat_001894", "park_001319", "sky_000007"):
        write_image(folder / f"{name}.jpg")
    (folder / "park_001319.jpg").write_bytes(JPEG[:-9])
    assert datasets.load("flickr100k", tmp_path).images == (
        "flickr100k/cat_001894", "flickr100k/sky_000007",
    )  # fmt: skip
    (folder / "sky_000007.jpg").write_bytes(JPEG[:-9])
    with pytest.raises(DatasetError, match=r"sky_000007\.jpg: .*truncated"):
        datasets.load("flickr100k", tmp_path)


def test_more_images_than_published_are_an_error(tmp_path, monkeypatch):
    make_oxford(tmp_path)
    part = dataclasses.replace(oxford_paris._IMAGES["oxford5k"], counts=(5,))
    monkeypatch.setitem(oxford_paris._IMAGES, "oxford5k", part)
    with pytest.raises(DatasetError, match="holds 6 images .* more than the published"):
        datasets.load("oxford5k", tmp_path)


def test_thousands_of_distractors_load_without_being_decoded(tmp_path, monkeypatch):
    make_oxford(tmp_path)
    one = write_image(tmp_path / "one.jpg")
    for tag in range(50):
        folder = tmp_path / "flickr100k" / f"tag{tag:02}"
        folder.mkdir(parents=True)
        for number in range(100):
            os.link(one, folder / f"tag{tag:02}_{number:06}.jpg")

    def decoded(*_args):
        pytest.fail("an image was decoded")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decoded)
    start = time.monotonic()
    combined = datasets.load("oxford105k", tmp_path)
    assert time.monotonic() - start < 15
    assert len(combined.images) == 5006
    assert len(combined.distractors) == 5003
    assert len(combined.take(20).images) == 20


# --- a host on this machine -----------------------------------------------------


class Host:
    """Serves `files`; misbehaves as told.

    `codes`: path -> status to answer with. `cuts`: after how many bytes the next
    answers break off. `requests`: (path, Range header) of all that came.
    """

    def __init__(self):
        self.files, self.codes, self.cuts, self.requests = {}, {}, [], []
        self.knows_ranges, self.kind, self.shift = True, "application/x-gzip", 0
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                host.answer(self)

            def log_message(self, *_args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,)).start()

    def answer(self, handler):
        span = handler.headers.get("Range")
        self.requests.append((handler.path, span))
        content = self.files.get(handler.path)
        code = self.codes.get(handler.path, 200 if content is not None else 404)
        if code != 200:
            return handler.send_error(code)
        start = int(re.fullmatch(r"bytes=(\d+)-", span)[1]) if span else 0
        start = start if self.knows_ranges else 0
        if start and start >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            return handler.end_headers()
        handler.send_response(206 if start else 200)
        if start:
            first = start + self.shift
            span = f"bytes {first}-{len(content) - 1}/{len(content)}"
            handler.send_header("Content-Range", span)
        handler.send_header("Content-Type", self.kind)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else len(content)
        handler.wfile.write(content[start:end])

    def offer(self, name, content=b""):
        self.files[f"/{name}"] = content
        return RemoteFile(name, (f"{self.url}/{name}",))


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "_PAUSE", 0)
    host = Host()
    yield host
    host.server.shutdown()
    host.server.server_close()


def make_tar(files, kind=tarfile.REGTYPE, link=""):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def oxford(host, monkeypatch):
    """Oxford Buildings with six images and one query, offered by `host`."""
    images = {f"tower_{number:06d}.jpg": JPEG for number in range(6)}
    dead = f"{host.url}/moved/images.tgz"
    photos = host.offer("images.tgz", make_tar(images))
    photos = dataclasses.replace(photos, urls=(dead, *photos.urls))
    truth = host.offer("truth.tgz", make_tar(truth_files()))
    for parts, file, count in (
        (oxford_paris._IMAGES, photos, 6),
        (oxford_paris._TRUTH, truth, 1),
    ):
        part = dataclasses.replace(parts["oxford5k"], files=(file,), counts=(count,))
        monkeypatch.setitem(parts, "oxford5k", part)


def test_a_download_happens_on_request_and_once(tmp_path, host, oxford):
    with pytest.raises(DatasetError, match="download=True"):
        datasets.load("oxford5k", tmp_path)
    assert not host.requests
    fetched = datasets.load("oxford5k", tmp_path, download=True)
    assert len(fetched.images) == 6
    assert len(fetched.queries) == 1
    asked = ["/moved/images.tgz", "/images.tgz", "/truth.tgz"]
    assert [path for path, _ in host.requests] == asked
    assert sorted(os.listdir(tmp_path)) == ["downloads", "oxford5k"]
    assert sorted(os.listdir(tmp_path / "downloads")) == ["images.tgz", "truth.tgz"]
    assert datasets.load("oxford5k", tmp_path).images == fetched.images
    datasets.load("oxford5k", tmp_path, download=True)
    datasets.load("oxford5k", tmp_path / "oxford5k", download=True)
    assert len(host.requests) == 3


def test_archives_put_there_by_hand_serve_without_a_network(tmp_path, host, oxford):
    (tmp_path / "downloads").mkdir()
    for name in ("images.tgz", "truth.tgz"):
        (tmp_path / "downloads" / name).write_bytes(host.files[f"/{name}"])
    assert len(datasets.load("oxford5k", tmp_path, download=True).images) == 6
    assert not host.requests


def test_what_is_there_is_not_fetched_again(tmp_path, host, oxford):
    for number in range(6):
        write_image(tmp_path / "jpg" / f"tower_{number:06d}.jpg")
    datasets.load("oxford5k", tmp_path, download=True)
    assert [path for path, _ in host.requests] == ["/truth.tgz"]
    assert sorted(os.listdir(tmp_path)) == ["downloads", "gt_files_170407", "jpg"]


def test_a_wrong_count_leaves_nothing(tmp_path, host, oxford):
    host.files["/images.tgz"] = make_tar({"tower_000000.jpg": JPEG, "readme": b""})
    with pytest.raises(DatasetError, match="Expected 6 images of Oxf.* found 1 in"):
        datasets.load("oxford5k", tmp_path, download=True)
    assert os.listdir(tmp_path / "oxford5k") == []


def test_a_dead_link_says_what_was_tried_and_what_to_do(tmp_path, host, oxford):
    host.codes["/images.tgz"] = 401
    with pytest.raises(DatasetError, match="images.tgz cannot be downloaded") as caught:
        datasets.load("oxford5k", tmp_path, download=True)
    assert caught.value.problems == (
        f"{host.url}/moved/images.tgz: HTTP 404 Not Found",
        f"{host.url}/images.tgz: HTTP 401 Unauthorized",
    )
    assert "images.tgz (1.9 GB in all)" in str(caught.value)
    assert f"put them into {tmp_path / 'downloads'}" in str(caught.value)


# --- fetch ----------------------------------------------------------------------

CONTENT = bytes(range(256)) * 40


def test_a_broken_line_is_continued(tmp_path, host):
    file = host.offer("a.bin", CONTENT)
    host.cuts = [1000, 0, 0, 2000]
    (path,) = fetch([file], tmp_path, "10 kB")
    assert path.read_bytes() == CONTENT
    spans = [span for _, span in host.requests]
    assert spans == [None, *["bytes=1000-"] * 3, "bytes=3000-"]
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_later_run_continues(tmp_path, host):
    file = host.offer("a.bin", CONTENT)
    host.cuts = [5000, 0, 0, 0]
    with pytest.raises(DatasetError, match=r"broke off after 5,000 of 10,240 bytes"):
        fetch([file], tmp_path, "10 kB")
    assert os.listdir(tmp_path) == ["a.bin.part"]
    (path,) = fetch([file], tmp_path, "10 kB")
    assert path.read_bytes() == CONTENT
    assert host.requests[-1] == ("/a.bin", "bytes=5000-")


def test_a_host_without_ranges_starts_again(tmp_path, host):
    file = host.offer("a.bin", CONTENT)
    host.knows_ranges = False
    host.cuts = [7000]
    (path,) = fetch([file], tmp_path, "10 kB")
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 1])
def test_a_partial_file_may_be_whole_or_too_long(tmp_path, host, length):
    file = host.offer("a.bin", CONTENT)
    (tmp_path / "a.bin.part").write_bytes((CONTENT + b"!")[:length])
    (path,) = fetch([file], tmp_path, "10 kB")
    assert path.read_bytes() == CONTENT
    assert len(host.requests) == length - len(CONTENT) + 1


def test_answers_that_are_not_the_file_are_refused(tmp_path, host):
    file = host.offer("a.bin", CONTENT)
    host.kind = "text/html; charset=utf-8"  # a log-in page, for example
    with pytest.raises(DatasetError, match="a web page came instead of the file"):
        fetch([file], tmp_path, "10 kB")
    host.kind = "application/x-gzip"
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:10])
    host.shift = 5
    with pytest.raises(DatasetError, match="asked from byte 10, it sent 'bytes 15-"):
        fetch([file], tmp_path, "10 kB")


def test_a_host_in_trouble_is_asked_again(tmp_path, host):
    file = host.offer("a.bin", CONTENT)
    host.codes["/a.bin"] = 503
    with pytest.raises(DatasetError, match=r"HTTP 503 .*\(3 tries\)"):
        fetch([file], tmp_path, "10 kB")
    assert len(host.requests) == 3


def test_a_host_that_is_gone_is_an_error(tmp_path, host):
    file = RemoteFile("a.bin", ("http://127.0.0.1:1/a.bin",))
    with pytest.raises(DatasetError, match="127.0.0.1:1/a.bin: .*refused"):
        fetch([file], tmp_path, "10 kB")


def test_a_wrong_checksum_is_refused(tmp_path, host):
    good = host.offer("a.bin", CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    wrong = host.offer("wrong/a.bin", CONTENT[:-1])
    urls = wrong.urls + good.urls
    bad = RemoteFile("a.bin", wrong.urls, digest)
    with pytest.raises(DatasetError, match=f"expected SHA-256 {digest}; got "):
        fetch([bad], tmp_path, "10 kB")
    assert os.listdir(tmp_path) == []
    (path,) = fetch([RemoteFile("a.bin", urls, digest)], tmp_path, "10 kB")
    assert path.read_bytes() == CONTENT


def test_a_full_disk_keeps_what_has_arrived(tmp_path, host, monkeypatch):
    def full(_url, part):
        part.write_bytes(b"begin")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "_receive", full)
    with pytest.raises(DatasetError, match="No space left.*kept and continued"):
        fetch([host.offer("a.bin")], tmp_path, "10 kB")
    assert (tmp_path / "a.bin.part").read_bytes() == b"begin"


# --- unpack ---------------------------------------------------------------------


def no_problem(_folder):
    return ""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../evil.txt", tarfile.REGTYPE),
        ("a/../../evil.txt", tarfile.REGTYPE),
        ("..\\evil.txt", tarfile.REGTYPE),
        ("/tmp/evil.txt", tarfile.REGTYPE),
        ("C:evil.txt", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("link", tarfile.LNKTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ],
)
def test_paths_and_links_that_lead_out_are_refused(tmp_path, name, kind):
    archive = tmp_path / "a.tgz"
    archive.write_bytes(make_tar({name: b""}, kind, link="../evil.txt"))
    with pytest.raises(DatasetError, match=f"holds {re.escape(repr(name))}.*refused"):
        unpack([archive], tmp_path / "new" / "folder", no_problem)
    assert os.listdir(tmp_path / "new") == []
    assert not (tmp_path / "evil.txt").exists()


def test_an_archive_cut_anywhere_leaves_nothing(tmp_path):
    noise = np.random.default_rng(0).bytes(3000)
    whole = make_tar({"paris/a/1.jpg": noise, "paris/b/2.jpg": noise[::-1]})
    archive = tmp_path / "a.tgz"
    for length in range(0, len(whole), 97):
        archive.write_bytes(whole[:length])
        with pytest.raises(DatasetError, match="is damaged"):
            unpack([archive], tmp_path / "new", no_problem)
        assert os.listdir(tmp_path) == ["a.tgz"]
    archive.write_bytes(whole)
    unpack([archive], tmp_path / "new", no_problem)
    assert (tmp_path / "new" / "paris" / "b" / "2.jpg").read_bytes() == noise[::-1]


@pytest.fixture
def distractors(host, monkeypatch):
    files = tuple(host.offer(f"x.part0{n}.rar", b"Rar!") for n in (1, 2))
    part = dataclasses.replace(oxford_paris._DISTRACTORS, files=files, counts=(2, 1))
    monkeypatch.setattr(oxford_paris, "_DISTRACTORS", part)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
def test_rar_volumes_go_to_the_program_that_is_there(
    tmp_path, host, distractors, monkeypatch
):
    tools = tmp_path / "tools"
    tools.mkdir()
    write_image(tools / "sky_000007.jpg")
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(DatasetError, match="apt-get install unar"):
        datasets.load("flickr100k", tmp_path, download=True)
    assert not host.requests  # not after a download of 40 GB

    script = tools / "unrar"  # unrar x -y -idq ARCHIVE FOLDER/
    script.write_text(f'#!/bin/sh\n/bin/cp {tools}/sky_000007.jpg "$5"\necho "$4"\n')
    script.chmod(0o755)
    alone = datasets.load("flickr100k", tmp_path, download=True)
    assert alone.images == ("flickr100k/sky_000007",)
    assert len(host.requests) == 2

    script.write_text("#!/bin/sh\necho wrong volume >&2\nexit 3\n")
    with pytest.raises(DatasetError, match=r"cannot unpack .*part01.rar: wrong volume"):
        unpack(sorted((tmp_path / "downloads").iterdir()), tmp_path / "new", no_problem)
    assert not (tmp_path / "new").exists()
