"""Oxford Buildings, Paris and the 100k distractors (Philbin et al. 2007, 2008).

A folder of images, and a folder of ground truth with four files a query::

    all_souls_1_query.txt   oxc1_all_souls_000013 136.5 34.1 648.5 955.7
    all_souls_1_good.txt    names of images, one a line: a clear view
    all_souls_1_ok.txt      more than a quarter is visible
    all_souls_1_junk.txt    less than a quarter is visible, or very distorted

Good and ok images are the positives. The prefix `oxc1_` stands on Oxford's query lines
only. Queries are found by their files, so a subset of the landmarks works.

Since 2022 the official archives (-v1) have blurred faces; the paper used the first
ones. Copies elsewhere differ more: one on Kaggle cost a project 10 points of mAP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from cwr_utils.datasets.base import (
    Dataset,
    DatasetError,
    Query,
    checked_dataset,
    unreadable_images,
    warn_of,
)
from cwr_utils.datasets.download import RemoteFile, fetch, rar_program, unpack
from cwr_utils.datasets.folder import find_images
from cwr_utils.images import Facts, ImageError, read_image

DISTRACTOR_PREFIX = "flickr100k/"
_QUERY_PREFIX = "oxc1_"

# Web pages under the name of a photo, according to the official corrupt.txt; the
# evaluation codes of deepcluster, vissl and deep-retrieval have the same list.
CORRUPT_PARIS = frozenset(
    f"paris_{name}"
    for name in """
    louvre_000136 louvre_000146 moulinrouge_000422 museedorsay_001059 notredame_000188
    pantheon_000284 pantheon_000960 pantheon_000974 pompidou_000195 pompidou_000196
    pompidou_000201 pompidou_000467 pompidou_000640 sacrecoeur_000299 sacrecoeur_000330
    sacrecoeur_000353 triomphe_000662 triomphe_000833 triomphe_000863 triomphe_000867
    """.split()
)

# Distractors that other projects left out. Some decoders read most of them (the lists
# of the paper's authors miss one image in all), so each is tried.
_DOUBTFUL_DISTRACTORS = """
    06_000443 autumn_000335 baby_001317 cat_001894 festival_001907 green_002662
    park_001319 portrait_000801 river_001733 school_001535
    """.split()


@dataclass(frozen=True)
class _Part:
    """A folder of a data set, and how to get it.

    Attributes:
        what: is in it.
        folders: names that it may have; a download makes the first one.
        files: archives that hold it.
        size: of the archives.
        counts: how many images (queries) it has when it is complete.
        count: counts them in a folder.
    """

    what: str
    folders: tuple[str, ...]
    files: tuple[RemoteFile, ...]
    size: str
    counts: tuple[int, ...]
    count: Callable[[Path], int]

    def find_in(self, *roots: Path) -> Path | None:
        """The folder, if it is in one of these."""
        places = (root / name for root in roots for name in self.folders)
        return next((place for place in places if place.is_dir()), None)

    def missing_from(self, roots: Sequence[Path]) -> str:
        """What was not found there."""
        places, names = " and ".join(map(str, roots)), ", ".join(self.folders)
        return f"no folder of {self.what}: looked in {places} for {names}"

    def problem_in(self, folder: Path) -> str:
        """What is wrong with an unpacked folder; "" if it is complete."""
        found = self.count(folder)
        expected = " or ".join(f"{count:,}" for count in self.counts)
        what = f"Expected {expected} {self.what}; found {found:,}"
        return "" if found in self.counts else what

    def by_hand(self, place: Path) -> str:
        """What to get where, and what to do with it."""
        first, last = self.files[0], self.files[-1]
        names = first.name if first is last else f"{first.name} ... {last.name}"
        source = first.urls[0].rpartition("/")[0]
        return f"{names} ({self.size}) from {source}, unpacked into {place}"


def _count_images(folder: Path) -> int:
    found, _ = find_images(folder)
    return sum(path.stem not in CORRUPT_PARIS for path in found.values())


def _count_queries(folder: Path) -> int:
    return len(_query_files(folder))


def _remote(name: str, *folders: str) -> RemoteFile:
    return RemoteFile(name, tuple(f"{folder}/{name}" for folder in folders))


# The first one as cnnimageretrieval and revisitop name it; it redirects to the second.
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_THOR = "https://thor.robots.ox.ac.uk"
_OXFORD_HOSTS = (f"{_VGG}/oxbuildings", f"{_THOR}/datasets/oxford-buildings")
_PARIS_HOSTS = (f"{_VGG}/parisbuildings", f"{_THOR}/datasets/paris-buildings")

# No checksum of these archives is public: what was unpacked is counted instead.
_IMAGES = {
    "oxford5k": _Part(
        "images of Oxford Buildings",
        ("oxbuild_images", "images", "jpg"),
        (_remote("oxbuild_images-v1.tgz", *_OXFORD_HOSTS, f"{_THOR}/oxbuildings"),),
        "1.9 GB",
        (5063,),
        _count_images,
    ),
    "paris6k": _Part(
        "images of Paris",
        ("images", "paris", "jpg"),
        tuple(_remote(f"paris_{n}-v1.tgz", *_PARIS_HOSTS) for n in (1, 2)),
        "about 2.4 GB",
        (6392,),  # 6,412 without the corrupt ones
        _count_images,
    ),
}
_TRUTH = {
    "oxford5k": _Part(
        "queries of Oxford Buildings (ground truth)",
        ("gt_files_170407", "gt_files_120310", "gt"),
        (_remote("gt_files_170407.tgz", *_OXFORD_HOSTS),),
        "8 kB",
        (55,),
        _count_queries,
    ),
    "paris6k": _Part(
        "queries of Paris (ground truth)",
        ("gt_files_120310", "gt_files_170407", "gt"),
        (_remote("paris_120310.tgz", *_PARIS_HOSTS),),
        "some kB",
        (55,),
        _count_queries,
    ),
}
_DISTRACTORS = _Part(
    "distractors of Flickr 100k",
    ("flickr100k", "oxc1_100k", "distractors100k"),
    tuple(
        _remote(f"oxc1_100k.part{n:02}.rar", f"{_VGG}/oxbuildings/ox100k")
        for n in range(1, 41)
    ),
    "40 parts, perhaps 40 GB",
    (100_071, 100_070),  # as published; in the lists of the paper's authors
    _count_images,
)
# Name -> whose images and queries; with distractors.
NAMES = {
    "oxford5k": ("oxford5k", False),
    "paris6k": ("paris6k", False),
    "oxford105k": ("oxford5k", True),
    "paris106k": ("paris6k", True),
    "flickr100k": ("", True),
}


def load(
    name: str,
    data_root: str | Path,
    skip_unreadable: bool = False,
    download: bool = False,
) -> Dataset:
    """Oxford5k or Paris6k, with or without the 100k distractors, or a part of them.

    Args:
        name: "oxford5k", "paris6k", "oxford105k" and "paris106k" (the same with the
            distractors), or "flickr100k" (the distractors alone, without queries).
        data_root: the folder that holds images and ground truth, or the one above,
            with a subfolder oxford5k or paris6k. Images in oxbuild_images, images,
            paris or jpg; ground truth in gt_files_170407, gt_files_120310 or gt;
            distractors in flickr100k, oxc1_100k or distractors100k, beside the images
            or in `data_root`. Files may lie in subfolders of these.
        skip_unreadable: leave unreadable images out, of the ground truth too, with a
            warning.
        download: fetch the folders that are missing. Archives go to
            `data_root`/downloads, where those put by hand are used too, and may be
            deleted afterwards. A folder that is there is used as it is.

    Returns:
        Images are named without suffix, as in the ground truth, distractors with
        "flickr100k/" before that. The query image is one of its own positives, as
        published. The 20 corrupt files of Paris are never among them.

    Raises:
        DatasetError: all problems: folders, files or images that are missing, lines
            that cannot be read, boxes outside their image or upside down, more images
            than published; after a download, what each address answered.
    """
    base, with_distractors = NAMES[name]
    top = Path(data_root)
    root = _root(top, base, download)
    parts: dict[_Part, Sequence[Path]]
    parts = dict.fromkeys([_IMAGES[base], _TRUTH[base]] if base else [], (root,))
    if with_distractors:
        parts[_DISTRACTORS] = (root, top)
    folders = _folders(name, top, parts, download)
    return _read(name, folders, _TRUTH.get(base), skip_unreadable)


def find_images_of(
    name: str, base: str, top: Path, download: bool, problems: list[str]
) -> dict[str, Path]:
    """The photos alone, for another ground truth of the same.

    Args:
        name: of the data set that they are for, and a folder that they may be in.
        base: "oxford5k" or "paris6k", the folder that they are fetched to.
        top: the folder above, where they may be too.
        download: fetch them if it is not there.
        problems: takes what is wrong with them.

    Returns:
        Name -> file, of the images that can be used.

    Raises:
        DatasetError: if they are not there, or cannot be fetched.
    """
    part = _IMAGES[base]
    roots = (top / name, top, top / base)
    return _read_images(
        part, _folders(name, top, {part: roots}, download)[part], problems
    )


def _folders(
    name: str, top: Path, parts: Mapping[_Part, Sequence[Path]], download: bool
) -> dict[_Part, Path]:
    """The folder of each part, in one of its roots; fetched into the last of them."""
    found = {part: part.find_in(*roots) for part, roots in parts.items()}
    absent = {
        part: roots[-1] / part.folders[0]
        for part, roots in parts.items()
        if found[part] is None
    }
    if absent and not download:
        raise DatasetError(
            f"{name} is not complete at data_root={str(top)!r}:",
            [part.missing_from(parts[part]) for part in absent],
            f"datasets.load({name!r}, {str(top)!r}, download=True) fetches what is "
            "missing. By hand: "
            + "; ".join(part.by_hand(place) for part, place in absent.items()),
        )
    for part, place in absent.items():
        if part.files[0].name.endswith(".rar"):
            rar_program()  # before the download rather than after it
        unpack(fetch(part.files, top / "downloads", part.size), place, part.problem_in)
    return {part: folder or absent[part] for part, folder in found.items()}


def recognise(folder: str | Path) -> str | None:
    """Whether a folder is laid out like one of these data sets, or a part of it.

    Returns:
        "oxford5k" or "paris6k", by the names in its query files; None if it has none.
    """
    for truth in _TRUTH.values():
        found = truth.find_in(Path(folder))
        for file in _query_files(found) if found else []:
            words = file.read_text(encoding="utf-8", errors="replace").split()
            if words:
                return "paris6k" if words[0].startswith("paris_") else "oxford5k"
    return None


def _root(top: Path, base: str, download: bool) -> Path:
    """The folder of images and ground truth: `top`, or the subfolder named `base`."""
    if not base or (top / base).is_dir():
        return top / base
    here = _IMAGES[base].find_in(top) or _TRUTH[base].find_in(top)
    return top / base if download and not here else top


def _read(
    name: str,
    folders: Mapping[_Part, Path],
    truth: _Part | None,
    skip_unreadable: bool,
) -> Dataset:
    problems: list[str] = []
    found = {
        part: _read_images(part, folder, problems)
        for part, folder in folders.items()
        if part is not truth
    }
    paths = {name: path for images in found.values() for name, path in images.items()}
    facts: dict[Path, Facts] = {}
    skipped = unreadable_images(paths, facts) if skip_unreadable else {}
    warn_of(skipped)
    notes = [
        f"{len(images.keys() - skipped.keys()):,} of {max(part.counts):,} {part.what}"
        for part, images in found.items()
    ]
    queries = []
    if truth is not None:
        absent = CORRUPT_PARIS | skipped.keys()
        queries = [
            query
            for file in _query_files(folders[truth])
            if (query := _read_query(file, paths, absent, problems)) is not None
        ]
        if not queries and not problems:
            problems.append(f"{folders[truth]} holds no files named *_query.txt.")
        notes.append(f"{len(queries)} of {max(truth.counts)} queries")
    return checked_dataset(
        name,
        {image: path for image, path in paths.items() if image not in skipped},
        queries,
        ", ".join(notes),
        problems=problems,
        advice="Complete the images, or remove the four ground-truth files of queries "
        "that you have no images of; skip_unreadable=True passes over damaged images.",
        facts=facts,
    )


def _read_images(part: _Part, folder: Path, problems: list[str]) -> dict[str, Path]:
    """Name -> file, of the images that can be used."""
    prefix = DISTRACTOR_PREFIX if part is _DISTRACTORS else ""
    named: dict[str, Path] = {}
    found, left_out = find_images(folder)
    problems += left_out.values()
    for path in found.values():
        name = prefix + path.stem
        if name in named:
            problems.append(f"Image {name!r} is there twice: {path} and {named[name]}.")
        elif name not in CORRUPT_PARIS:
            named[name] = path
    for stem in _DOUBTFUL_DISTRACTORS if prefix else ():
        path = named.get(prefix + stem)
        if path is not None and not _can_be_decoded(path):
            del named[prefix + stem]
    if len(named) > max(part.counts):
        problems.append(
            f"{folder} holds {len(named):,} {part.what}, more than the published "
            f"{max(part.counts):,}: other images lie among them."
        )
    return dict(sorted(named.items()))


def _can_be_decoded(path: Path) -> bool:
    try:
        read_image(path)
    except ImageError:
        return False
    return True


def _query_files(folder: Path) -> list[Path]:
    # Archives made on a Mac hold a hidden twin of every file.
    return sorted(f for f in folder.rglob("*_query.txt") if not f.name.startswith("."))


def _read_query(
    file: Path,
    paths: Mapping[str, Path],
    left_out: Set[str],
    problems: list[str],
) -> Query | None:
    name = file.name.removesuffix("_query.txt")
    try:
        image, *numbers = file.read_text(encoding="utf-8").split()
        x1, y1, x2, y2 = (float(number) for number in numbers)
    except (OSError, ValueError):
        problems.append(f"{file.name}: expected one line `image x1 y1 x2 y2`.")
        return None
    if image not in paths:
        image = image.removeprefix(_QUERY_PREFIX)
    if image in left_out:
        return None
    lists = {
        kind: _read_names(file.with_name(f"{name}_{kind}.txt"), problems) - left_out
        for kind in ("good", "ok", "junk")
    }
    good, ok, junk = lists.values()
    box = (x1, y1, x2, y2)
    return Query(name, image, box, good | ok, junk, ok, without_number(name))


def without_number(name: str) -> str:
    """Of a query or a photo: all_souls of all_souls_1 and of all_souls_000013."""
    return re.sub(r"_\d+$", "", name)


def _read_names(file: Path, problems: list[str]) -> frozenset[str]:
    try:
        return frozenset(file.read_text(encoding="utf-8").split())
    except FileNotFoundError:
        problems.append(f"{file.name} is missing beside its query file.")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{file.name} cannot be read ({error}).")
    return frozenset()
