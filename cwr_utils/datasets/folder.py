"""Any folder of photos, with optional CSV files of queries and of groups."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path, PurePosixPath

from cwr_utils.datasets.base import (
    Dataset,
    DatasetError,
    Query,
    checked_dataset,
    unreadable_images,
    warn_of,
)
from cwr_utils.images import READS_HEIF, Box, Facts

SUFFIXES = tuple(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .tif .tiff .gif .bmp .dib .jp2 "
    ".j2k .jpf .jpx .ppm .pgm .pbm .pnm .tga".split()
)
_HEIF = (".heic", ".heif", ".hif")
# Pictures too, but of kinds that are not read here.
_OTHERS = frozenset(
    ".jxl .jxr .psd .xcf .exr .hdr .svg .ico .eps .dng .cr2 .cr3 .nef .arw .orf .raf "
    ".rw2 .pef .srw".split()
)

# A box in queries.csv: what its columns may be called, without blanks and underscores.
_COLUMNS = {
    word: words.split()[0]
    for words in (
        *("x1 xmin left x", "y1 ymin top y", "x2 xmax right", "y2 ymax bottom"),
        *("w width", "h height"),
    )
    for word in words.split()
}
_CORNERS = ("x1", "y1", "x2", "y2")
_SIDES = ("x1", "y1", "w", "h")


def load(
    folder: str | Path,
    queries: str | Path | None = None,
    groups: str | Path | None = None,
    group_column: str = "group",
    skip_unreadable: bool = False,
    note: str = "",
) -> Dataset:
    """Photos of a folder and its subfolders, named by their path inside it.

    Args:
        folder: with photos (`SUFFIXES`); hidden ones are passed over, links followed.
            Pictures that are not read are listed in `Dataset.left_out`.
        queries: CSV with a column image, optionally x1, y1, x2, y2 or x, y, w, h (a
            box in pixels, all four or none filled in) and name. `queries.csv` in the
            folder if None, where there is one.
        groups: CSV with the columns image and group; others are passed over. Images of
            one group show the same thing: they are each other's positives. Those
            without a group are distractors. Without `queries` every image of a group
            of two or more is a query for the others. `groups.csv` in the folder if
            None, where there is one.
        group_column: name of the group column.
        skip_unreadable: warn about unreadable files and go on, instead of an error.
        note: one line that says what the photos are.

    In the CSV files an image may be written without its suffix where that is clear, and
    names of columns in capitals, with blanks or as xmin or left. A relative CSV path is
    looked up in the working folder, then in `folder`.

    Raises:
        DatasetError: all problems with files, names and boxes, and with columns and
            cells that are not known.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder.")
    queries = _csv_file(queries, root, "queries.csv")
    groups = _csv_file(groups, root, "groups.csv")
    paths, left_out = find_images(root)
    facts: dict[Path, Facts] = {}
    skipped = unreadable_images(paths, facts) if skip_unreadable else {}
    left_out |= skipped
    warn_of(left_out)

    problems: list[str] = []
    resolver = _Resolver(paths)
    group_of = {}
    if groups is not None:
        group_of = _read_groups(groups, group_column, resolver, problems)
    members = defaultdict(set)
    for image, group in group_of.items():
        if image not in skipped:
            members[group].add(image)
    if queries is not None:
        asked = _read_queries(queries, resolver, problems)
    else:
        asked = [("", i, None) for i, g in group_of.items() if len(members[g]) > 1]

    found = _make_queries(
        [query for query in asked if query[1] not in skipped], group_of, members
    )
    paths = {name: path for name, path in paths.items() if name not in skipped}
    name = root.resolve().name
    note = note or f"{len(paths)} photos of the folder {name}"
    if not paths and not problems:
        kinds = ", ".join(SUFFIXES)
        problems.append(f"{root} holds no readable image file ({kinds}).")
    if groups is not None and not asked:
        note += f", no two of them in one group of {groups.name}"
    data = checked_dataset(
        name,
        paths,
        found,
        note,
        problems=problems,
        advice="Mend or remove these files and lines"
        + ("." if skip_unreadable else "; skip_unreadable=True passes over bad files."),
        facts=facts,
    )
    return replace(data, left_out=left_out)


def find_images(root: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Look for photos in a folder and its subfolders, also linked ones.

    Each folder counts once, by its own place rather than a link: no loop is endless.

    Returns:
        Path inside the folder, with slashes -> file, sorted, hidden ones left out; and
        such paths of pictures that are not read -> why.
    """
    found, left_out, seen = {}, {}, set()
    folders, links = [root], []
    while folders or links:
        folder = (folders or links).pop(0)
        if (place := folder.resolve()) in seen:
            continue
        seen.add(place)
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            name = folder.relative_to(root).as_posix()
            left_out[name] = f"{folder}: cannot be opened ({error.strerror})."
            continue
        for path in (path for path in paths if not path.name.startswith(".")):
            name, kind = path.relative_to(root).as_posix(), path.suffix.lower()
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif kind in _OTHERS or (kind in _HEIF and not READS_HEIF):
                mend = "install pillow-heif, or " if kind in _HEIF else ""
                left_out[name] = f"{path}: {kind} is not read; {mend}save it as JPEG."
            elif kind in (*SUFFIXES, *_HEIF):
                if path.is_file():
                    found[name] = path
                else:
                    left_out[name] = f"{path}: a link to a file that is not there."
    return dict(sorted(found.items())), dict(sorted(left_out.items()))


class _Resolver:
    """Image names as people write them -> names of the data set."""

    def __init__(self, paths: Mapping[str, Path]):
        self._names = set(paths)
        self._by_text = defaultdict(list)
        for name in paths:
            for text in (name, str(PurePosixPath(name).with_suffix(""))):
                self._by_text[_composed(text)].append(name)

    def __call__(self, text: str) -> str:
        """The name; ValueError with the reason where there is none."""
        if text in self._names:
            return text
        matches = self._by_text.get(_composed(text), [])
        if len(matches) > 1:
            raise ValueError(f"image {text!r} could be {' or '.join(matches)}")
        if not matches:
            raise ValueError(f"image {text!r} is not in the folder")
        return matches[0]


# A Mac writes é as e and an accent; it looks the same.
_composed = partial(unicodedata.normalize, "NFC")


def _csv_file(given: str | Path | None, root: Path, usual: str) -> Path | None:
    """The file that was given, or else the usual one, whatever its capitals."""
    if given is not None:
        return Path(given) if Path(given).exists() else root / given
    return next((f for f in sorted(root.iterdir()) if f.name.lower() == usual), None)


def _read_csv(
    file: Path, required: tuple[str, ...], known: tuple[str, ...], problems: list[str]
) -> list[tuple[int, dict[str, str]]]:
    """(line number, column -> text) of every row with content; the header is line 1.

    Args:
        file: in UTF-8.
        required: columns, as `_column` calls them.
        known: all columns that there may be; any if empty.
        problems: takes the lines that have too many cells.

    Raises:
        DatasetError: if the file cannot be read, or has other columns.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file} cannot be read as CSV ({error}).") from error
    rows = [(line, row) for line, row in rows if any(row)]
    header = rows.pop(0)[1] if rows else []
    columns = [_column(text) for text in header]
    odd = [
        repr(text)
        for text, column in zip(header, columns, strict=True)
        if columns.count(column) > 1 or (known and column not in known)
    ]
    if odd or not set(columns) >= set(required):
        raise DatasetError(
            f"{file} must have the columns {', '.join(required)}; "
            f"got {', '.join(header) or 'none'}."
            + (f" Twice or not known: {', '.join(odd)}." if odd else "")
            + (f" There may be {', '.join(known)}." if known else "")
        )
    count = len(columns)
    problems += [
        f"{file.name}, line {line}: {len(row)} cells for {count} columns; a text with "
        "a comma needs double quotes."
        for line, row in rows
        if any(row[count:])
    ]
    return [
        (n, dict(zip_longest(columns, row[:count], fillvalue=""))) for n, row in rows
    ]


def _column(text: str) -> str:
    plain = re.sub(r"[\s_]", "", text).casefold()
    return _COLUMNS.get(plain, plain)


def _read_groups(
    file: Path, column: str, resolver: _Resolver, problems: list[str]
) -> dict[str, str]:
    groups: dict[str, str] = {}
    column = _column(column)
    for line, row in _read_csv(file, ("image", column), (), problems):
        try:
            image, group = resolver(row["image"]), row[column]
            if (other := groups.setdefault(image, group)) != group:
                other, group = other or "no group", group or "no group"
                raise ValueError(f"image {image!r} is in {other} and {group}")
        except ValueError as error:
            problems.append(f"{file.name}, line {line}: {error}.")
    return {image: group for image, group in groups.items() if group}


def _read_queries(
    file: Path, resolver: _Resolver, problems: list[str]
) -> list[tuple[str, str, Box | None]]:
    queries = []
    known = ("image", "name", *_CORNERS, "w", "h")
    for line, row in _read_csv(file, ("image",), known, problems):
        try:
            image, box = resolver(row["image"]), _read_box(row)
            queries.append((row.get("name", ""), image, box))
        except ValueError as error:
            problems.append(f"{file.name}, line {line}: {error}.")
    return queries


def _read_box(row: Mapping[str, str]) -> Box | None:
    columns = _SIDES if "w" in row or "h" in row else _CORNERS
    if row.keys() - {"image", "name"} not in (set(), set(columns)):
        raise ValueError("the columns of a box are x1, y1, x2, y2 or x, y, w, h")
    texts = [row.get(column, "") for column in columns]
    if not any(texts):
        return None
    try:
        x1, y1, x2, y2 = numbers = [float(text) for text in texts]
    except ValueError:
        shown = ", ".join(text or "nothing" for text in texts)
        what = ", ".join(columns)
        raise ValueError(f"{what} must be four numbers; got {shown}") from None
    if all(0 <= number <= 1 for number in numbers):
        raise ValueError(
            f"a box is in pixels; {', '.join(texts)} seem to be shares of the photo: "
            "multiply them by its width and height"
        )
    return (x1, y1, x1 + x2, y1 + y2) if columns is _SIDES else (x1, y1, x2, y2)


def _make_queries(
    asked: list[tuple[str, str, Box | None]],
    group_of: Mapping[str, str],
    members: Mapping[str, set[str]],
) -> list[Query]:
    queries: list[Query] = []
    taken = {name for name, _, _ in asked}
    for name, image, box in asked:
        if not name:
            # It becomes a file name: no slashes, and never twice the same.
            base = str(PurePosixPath(image).with_suffix("")).replace("/", "_")
            name, number = base, 1
            while name in taken:
                number += 1
                name = f"{base}_{number}"
            taken.add(name)
        group, own = group_of.get(image, ""), frozenset({image})
        same = frozenset(members[group]) - own if group else frozenset()
        queries.append(Query(name, image, box, same, own, landmark=group))
    return queries
