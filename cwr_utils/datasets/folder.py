"""Any folder of photos, with optional CSV files of queries and of groups."""

from __future__ import annotations

import csv
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from cwr_utils.datasets.base import (
    Dataset,
    DatasetError,
    Query,
    checked_dataset,
    unreadable_images,
)
from cwr_utils.images import Box, Facts

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_BOX_COLUMNS = ("x1", "y1", "x2", "y2")


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
        folder: with jpg, jpeg, png, webp or bmp files; hidden ones are passed over.
        queries: CSV with a column image, optionally x1, y1, x2, y2 (a box in pixels,
            all four or none filled in) and name. `queries.csv` in the folder if None,
            where there is one.
        groups: CSV with the columns image and group. Images of one group show the
            same thing: they are each other's positives. Without `queries` every
            image of a group of two or more is a query for the others. `groups.csv` in
            the folder if None, where there is one.
        group_column: name of the group column.
        skip_unreadable: warn about unreadable files and go on, instead of an error.
        note: one line that says what the photos are.

    In the CSV files an image may be written without its suffix where that is clear. A
    relative CSV path is looked up in the working folder, then in `folder`.

    Raises:
        DatasetError: all problems with files, names and boxes.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder.")
    queries = queries or _if_file(root / "queries.csv")
    groups = groups or _if_file(root / "groups.csv")
    paths = find_images(root)
    facts: dict[Path, Facts] = {}
    skipped = unreadable_images(paths, facts) if skip_unreadable else {}
    if skipped:
        lines = "\n  - ".join(skipped.values())
        warnings.warn(f"{len(skipped)} files are left out:\n  - {lines}", stacklevel=2)

    problems: list[str] = []
    resolver = _Resolver(paths)
    group_of = {}
    if groups is not None:
        file = _find_csv(groups, root)
        group_of = _read_groups(file, group_column, resolver, problems)
    members = defaultdict(set)
    for image, group in group_of.items():
        if image not in skipped:
            members[group].add(image)
    if queries is not None:
        file = _find_csv(queries, root)
        asked = _read_queries(file, resolver, problems)
    else:
        asked = [
            ("", image, None)
            for image, group in group_of.items()
            if len(members[group]) > 1
        ]

    found = _make_queries(
        [query for query in asked if query[1] not in skipped], group_of, members
    )
    paths = {name: path for name, path in paths.items() if name not in skipped}
    name = root.resolve().name
    return checked_dataset(
        name,
        paths,
        found,
        note or f"{len(paths)} photos of the folder {name}",
        problems=problems or _no_images(root, paths),
        advice="Mend or remove these files and lines"
        + ("." if skip_unreadable else "; skip_unreadable=True passes over bad files."),
        facts=facts,
    )


def find_images(root: Path) -> dict[str, Path]:
    """Path inside the folder, with slashes -> file; sorted, hidden ones left out."""
    found = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
        if not hidden and path.suffix.lower() in SUFFIXES and path.is_file():
            found[name] = path
    return dict(sorted(found.items()))


class _Resolver:
    """Image names as people write them -> names of the data set."""

    def __init__(self, paths: Mapping[str, Path]):
        self._names = set(paths)
        self._by_stem = defaultdict(list)
        for name in paths:
            self._by_stem[str(PurePosixPath(name).with_suffix(""))].append(name)

    def __call__(self, text: str) -> str:
        """The name; ValueError with the reason where there is none."""
        if text in self._names:
            return text
        matches = self._by_stem.get(text, [])
        if len(matches) > 1:
            raise ValueError(f"image {text!r} could be {' or '.join(matches)}")
        if not matches:
            raise ValueError(f"image {text!r} is not in the folder")
        return matches[0]


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _find_csv(file: str | Path, root: Path) -> Path:
    return Path(file) if Path(file).exists() else root / file


def _read_csv(file: Path, required: tuple[str, ...]) -> list[tuple[int, dict]]:
    """(line number, row) of every row; the header is line 1."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file} cannot be read as CSV ({error}).") from error
    missing = [name for name in required if name not in columns]
    if missing:
        raise DatasetError(
            f"{file} must have the columns {', '.join(required)}; "
            f"got {', '.join(columns) or 'none'}."
        )
    return rows


def _read_groups(
    file: Path, column: str, resolver: _Resolver, problems: list[str]
) -> dict[str, str]:
    groups: dict[str, str] = {}
    for line, row in _read_csv(file, ("image", column)):
        try:
            image, group = resolver(row["image"] or ""), (row[column] or "").strip()
            if not group:
                raise ValueError(f"image {image!r} has an empty {column}")
            if groups.setdefault(image, group) != group:
                raise ValueError(f"image {image!r} is in {groups[image]} and {group}")
        except ValueError as error:
            problems.append(f"{file.name}, line {line}: {error}.")
    return groups


def _read_queries(
    file: Path, resolver: _Resolver, problems: list[str]
) -> list[tuple[str, str, Box | None]]:
    queries = []
    for line, row in _read_csv(file, ("image",)):
        try:
            name = (row.get("name") or "").strip()
            queries.append((name, resolver(row["image"] or ""), _read_box(row)))
        except ValueError as error:
            problems.append(f"{file.name}, line {line}: {error}.")
    return queries


def _read_box(row: Mapping[str, str]) -> Box | None:
    texts = [(row.get(column) or "").strip() for column in _BOX_COLUMNS]
    if not any(texts):
        return None
    try:
        x1, y1, x2, y2 = (float(text) for text in texts)
    except ValueError:
        shown = ", ".join(text or "nothing" for text in texts)
        raise ValueError(f"x1, y1, x2, y2 must be four numbers; got {shown}") from None
    return x1, y1, x2, y2


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
        same = members[group_of[image]] if image in group_of else set()
        queries.append(
            Query(name, image, box, frozenset(same - {image}), frozenset({image}))
        )
    return queries


def _no_images(root: Path, paths: Mapping[str, Path]) -> list[str]:
    suffixes = ", ".join(SUFFIXES)
    return [] if paths else [f"{root} holds no readable image file ({suffixes})."]
