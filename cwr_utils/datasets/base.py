"""What a data set is: images, queries with ground truth, and who made the photos."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from cwr_utils.evaluation import revisited_ground_truth
from cwr_utils.files import whole_folder
from cwr_utils.images import (
    Box,
    Facts,
    ImageError,
    ResizePolicy,
    check_box,
    check_image,
)

_THREADS = 8


class DatasetError(ValueError):
    """Everything that is wrong with a data set, and what to do about it.

    Attributes:
        problems: one text a problem.
    """

    def __init__(self, what: str, problems: Iterable[str] = (), advice: str = ""):
        """`what` is the headline; all problems are listed below it."""
        self.problems = tuple(problems)
        lines = [what, *(f"  - {problem}" for problem in self.problems)]
        super().__init__("\n".join(lines + ([advice] if advice else [])))


@dataclass(frozen=True)
class Query:
    """One search: a region of an image, and the images that it should find.

    Attributes:
        name: of the query; it names the ranking file.
        image: name of the query image.
        box: (x1, y1, x2, y2) in pixels of the original image, exclusive end; None is
            the whole image.
        positives: names of the images to be found.
        junk: names that count neither as right nor as wrong.
        ok: those of the positives that the ground truth calls "ok": seen in part.
        landmark: what it asks for, as far as the data set says so: queries of one
            landmark succeed or fail together.
        hard: those of the positives that the revisited protocol calls hard; None
            where the ground truth knows no difficulties.
    """

    name: str
    image: str
    box: Box | None = None
    positives: frozenset[str] = frozenset()
    junk: frozenset[str] = frozenset()
    ok: frozenset[str] = frozenset()
    landmark: str = ""
    hard: frozenset[str] | None = None

    @property
    def ground_truth(self) -> frozenset[str]:
        """The query image, the positives and the junk."""
        return self.positives | self.junk | {self.image}

    def at_difficulty(self, difficulty: str) -> Query:
        """The same query, to be judged by one difficulty of the revisited protocol.

        Args:
            difficulty: of `evaluation.DIFFICULTIES`; as loaded, a query is "medium".

        Raises:
            ValueError: if there is no such difficulty, or the ground truth knows none.
        """
        if self.hard is None:
            raise ValueError(
                f"query {self.name!r} has no difficulties: expected one of a revisited "
                "data set, as `datasets.load` returns it."
            )
        easy = self.positives - self.hard
        truth = revisited_ground_truth(easy, self.hard, self.junk, difficulty)
        return replace(self, positives=truth[0], junk=truth[1], hard=None)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with queries. Build one with `load`, which checks every name and box.

    Attributes:
        name: of the collection.
        images: names, in the order of every matrix made from them.
        queries: may be empty (a collection to fit the whitening on).
        note: one line that says what this is; shown with every table.
        paths: files of the images, and of query images that are not among them.
        credits: author and licence by image name.
        facts: size and hash by file, of those that were looked at. `load` looks at
            all, others at first need; each file is opened once for both, and what is
            known is shared with every slice. A photo that changes afterwards is not
            noticed: load it again.
        left_out: pictures beside the images that are not among them -> why.
    """

    name: str
    images: tuple[str, ...]
    queries: tuple[Query, ...]
    note: str
    paths: Mapping[str, Path] = field(repr=False)
    credits: Mapping[str, str] = field(default_factory=dict, repr=False)
    facts: dict[Path, Facts] = field(default_factory=dict, repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict, repr=False)

    def path(self, name: str) -> Path:
        """The file of an image."""
        try:
            return self.paths[name]
        except KeyError:
            raise DatasetError(f"{self.name} has no image named {name!r}.") from None

    def credit(self, name: str) -> str:
        """Author and licence of a photo, "" where the source gives none."""
        self.path(name)
        return self.credits.get(name, "")

    @cached_property
    def ground_truth_images(self) -> frozenset[str]:
        """Query images, positives and junk of all queries."""
        return frozenset().union(*(query.ground_truth for query in self.queries))

    @cached_property
    def distractors(self) -> tuple[str, ...]:
        """Images in no query's ground truth, in the order of `images`."""
        return tuple(n for n in self.images if n not in self.ground_truth_images)

    def take(self, limit: int) -> Dataset:
        """A slice of about `limit` images, for a quick run.

        Queries come whole, each with all of its positives, in order, as long as they
        fill at most half of `limit` (the first one always comes); the rest are
        distractors. Junk, which changes no result, is not brought along.
        """
        if limit < 1:
            raise ValueError(f"`limit` must be at least 1; got {limit}.")
        if limit >= len(self.images):
            return self
        queries: list[Query] = []
        kept: set[str] = set()
        for query in self.queries:
            needed = query.positives | {query.image}
            if not queries or len(kept | needed) <= limit // 2:
                queries.append(query)
                kept |= needed
        # Where distractors are few, images of the queries that were left out serve.
        others = [name for name in self.images if name not in kept]
        others.sort(key=lambda name: name in self.ground_truth_images)
        kept.update(others[: max(limit - len(kept), limit // 2)])
        images = tuple(name for name in self.images if name in kept)
        queries = [replace(query, junk=query.junk & kept) for query in queries]
        note = f"{self.note} (a slice: {len(images)} of {len(self.images)} images)"
        part = replace(self, images=images, queries=tuple(queries), note=note)
        return replace(part, name=f"{self.name}-{len(images)}")

    def hold_out_distractors(self) -> tuple[Dataset, Dataset]:
        """Split off the images in no query's ground truth, to fit the whitening on.

        Returns:
            The data set without its distractors, and those, without queries.
        """
        rest = self.distractors
        kept = tuple(name for name in self.images if name in self.ground_truth_images)
        note = f"{len(rest)} images held out; {self.note}"
        others = replace(self, images=rest, queries=(), note=note)
        return (
            replace(self, name=f"{self.name}-ground-truth", images=kept),
            replace(others, name=f"{self.name}-distractors"),
        )

    @property
    def has_difficulties(self) -> bool:
        """Whether the ground truth is that of the revisited protocol."""
        return any(query.hard is not None for query in self.queries)

    def at_difficulty(self, difficulty: str) -> Dataset:
        """The same, every query judged by one difficulty: see `Query.at_difficulty`."""
        queries = tuple(query.at_difficulty(difficulty) for query in self.queries)
        return replace(self, queries=queries)

    @property
    def _files(self) -> tuple[str, ...]:
        """Images, and query images that are not among them, each once."""
        return tuple(dict.fromkeys((*self.images, *(q.image for q in self.queries))))

    def size(self, name: str) -> tuple[int, int]:
        """(width, height) of an image or query image, upright."""
        return self._look([name])[0].size

    def target_size(self, name: str, policy: ResizePolicy) -> tuple[int, int]:
        """(width, height) that `policy` gives it; ImageError with its name if none."""
        size = self.size(name)
        try:
            return policy.target_size(*size)
        except ImageError as error:
            raise ImageError(f"{self.path(name)}: {error}") from error

    def sha256(self, name: str) -> str:
        """SHA-256 of the file of an image or query image."""
        return self._look([name])[0].sha256

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the file of every image and query image, by name."""
        facts = self._look(self._files)
        return {n: fact.sha256 for n, fact in zip(self._files, facts, strict=True)}

    def checksum(self) -> str:
        """One SHA-256 over names, files and ground truth."""
        truth = [
            [q.name, q.image, q.box, sorted(q.positives), sorted(q.junk), q.landmark]
            + ([] if q.hard is None else [sorted(q.hard)])
            for q in self.queries
        ]
        content = [list(self.hashes().items()), truth]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _look(self, names: Sequence[str]) -> list[Facts]:
        """Facts of these files; those that are not known are opened.

        Raises:
            ImageError: what is wrong with files that are no whole images.
        """
        new = {n: path for n in names if (path := self.path(n)) not in self.facts}
        if new and (problems := unreadable_images(new, self.facts)):
            raise ImageError("\n".join(problems.values()))
        return [self.facts[self.path(name)] for name in names]


def checked_dataset(
    name: str,
    paths: Mapping[str, Path],
    queries: Sequence[Query],
    note: str,
    credits: Mapping[str, str] | None = None,
    problems: Iterable[str] = (),
    advice: str = "",
    query_paths: Mapping[str, Path] | None = None,
    facts: dict[Path, Facts] | None = None,
) -> Dataset:
    """A `Dataset`, after every file, name and box was looked at.

    Args:
        name: of the collection.
        paths: files of the images, in order.
        queries: with their ground truth.
        note: one line that says what this is.
        credits: author and licence by image name.
        problems: what the caller found already.
        advice: what the user can do about problems.
        query_paths: files of query images that are not to be found.
        facts: of files that were looked at already.

    Raises:
        DatasetError: with ALL problems: unreadable or truncated images, names that
            are no image of the collection, boxes outside their image or upside down.
    """
    found = list(problems)
    if not paths and not found:
        found.append("There are no images.")
    files = {**paths, **(query_paths or {})}
    facts = facts or {}
    found += unreadable_images(files, facts).values()
    for query in queries:
        found += _query_problems(query, paths, files, facts)
    times = Counter(query.name for query in queries)
    found += [f"{n} queries are named {name!r}." for name, n in times.items() if n > 1]
    if found:
        count = f"{len(found)} problem" + ("s" if len(found) > 1 else "")
        raise DatasetError(f"Data set {name!r} has {count}:", found, advice)
    credits = credits or {}
    return Dataset(name, tuple(paths), tuple(queries), note, files, credits, facts)


def unreadable_images(
    paths: Mapping[str, Path], facts: dict[Path, Facts]
) -> dict[str, str]:
    """What is wrong with each file that is no whole image, by name.

    Args:
        paths: name -> file. Each is opened once, without being decoded.
        facts: takes what is learnt of the others; files that are in it already are not
            opened.
    """
    new = [name for name, path in paths.items() if path not in facts]
    problems = {}
    with ThreadPoolExecutor(_THREADS) as pool:  # the disk is what we wait for
        found = pool.map(lambda name: _look_at(name, paths[name]), new)
        bar = tqdm(found, "Checking", len(new), leave=False, disable=len(new) < 500)
        for name, result in zip(new, bar, strict=True):
            if isinstance(result, Facts):
                facts[paths[name]] = result
            else:
                problems[name] = result
    return problems


def _look_at(name: str, path: Path) -> Facts | str:
    """Facts, or what is wrong."""
    try:
        name.encode()
        if {"\n", "\r"} & set(name):
            raise ImageError(f"{name!r}: rename it, names have no line breaks.")
        return check_image(path)
    except UnicodeEncodeError:
        return f"{name!r}: rename it, its name is no text in UTF-8."
    except ImageError as error:
        return str(error)


def warn_of(left_out: Mapping[str, str]) -> None:
    """Warn of pictures that are left out, if there are any."""
    if left_out:
        lines = "\n  - ".join(left_out.values())
        warnings.warn(f"{len(left_out)} files are left out:\n  - {lines}", stacklevel=3)


def _query_problems(
    query: Query,
    paths: Mapping[str, Path],
    files: Mapping[str, Path],
    facts: Mapping[Path, Facts],
) -> list[str]:
    start = f"Query {query.name!r}"
    problems = []
    if not re.fullmatch(r"[^./\\\0\n\r][^/\\\0\n\r]*", query.name):
        problems.append(f"{start}: the name must be a file name, without slashes.")
    if query.image not in files:
        problems.append(f"{start}: its image {query.image!r} is not in the folder.")
    elif query.box is not None and (known := facts.get(files[query.image])):
        try:
            check_box(query.box, known.size)
        except ValueError as error:
            problems.append(f"{start}, image {query.image!r}: {error}")
    for kind, names in (("positive", query.positives), ("junk", query.junk)):
        problems += [
            f"{start}: its {kind} image {name!r} is not in the folder."
            for name in sorted(names)
            if name not in paths
        ]
    problems += [
        f"{start}: image {name!r} is both positive and junk."
        for name in sorted(query.positives & query.junk)
    ]
    return problems


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """`files.whole_folder` for photos.

    Raises:
        DatasetError: when the disk is full, or the place cannot be written to.
    """
    try:
        with whole_folder(target) as folder:
            yield folder
    except OSError as error:
        raise DatasetError(
            f"Cannot write {target} ({error.strerror or error}); nothing was left "
            "there. Free some space or choose another `data_root`."
        ) from error


def run_program(command: Sequence[str], failure: str, **options: Any) -> None:
    """Run a program that asks nothing.

    Args:
        command: with its arguments.
        failure: begins the message if it fails; what the program said last ends it.
        options: of `subprocess.run`, such as `cwd` and `timeout` in seconds.
    """
    options |= {"stdin": subprocess.DEVNULL, "capture_output": True}
    try:
        done = subprocess.run(command, text=True, errors="replace", **options)
    except subprocess.TimeoutExpired as error:
        raise DatasetError(f"{failure}: more than {error.timeout} s.") from error
    if done.returncode:
        lines = (
            done.stderr.strip() or done.stdout.strip() or "no message"
        ).splitlines()
        errors = [line for line in lines if line.startswith("E:")] or lines  # of apt
        raise DatasetError(f"{failure}: {errors[-1]}")
