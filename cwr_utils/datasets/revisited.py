"""Revisited Oxford and Paris (Radenovic et al. 2018): the same photos, new labels.

The 70 query photos are not in the database: 4,993 and 6,322 photos are left. Each query
has easy, hard and unclear images; a difficulty says which of them are to be found
(`evaluation.revisited_ground_truth`). One load serves all three: queries are those of
Medium and keep which positives are hard. Ground truth is one pickle: a dictionary of
`imlist`, `qimlist` (names) and `gnd`, for each query `bbx` (x1, y1, x2, y2) and `easy`,
`hard`, `junk` (numbers of images in `imlist`).

Deviation: the protocol crops the query before the network sees it. Here, as in the
paper, the features inside its box come from the whole photo (`describe_query`).
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from cwr_utils.datasets import oxford_paris
from cwr_utils.datasets.base import Dataset, DatasetError, Query, checked_dataset
from cwr_utils.datasets.download import RemoteFile, fetch
from cwr_utils.pickles import PlainUnpickler

BASES = {"roxford5k": "oxford5k", "rparis6k": "paris6k"}
_TOWNS = ("oxford", "paris_general")
_KINDS = ("easy", "hard", "junk")
_HOST = "http://cmp.felk.cvut.cz/revisitop/data/datasets"
_NUMPY = {
    f"numpy.{c}.{m}" for c in ("core", "_core") for m in ("multiarray", "numeric")
}


def load(
    name: str,
    data_root: str | Path,
    subset: bool = False,
    download: bool = False,
) -> Dataset:
    """ROxford5k or RParis6k.

    Args:
        name: "roxford5k" or "rparis6k".
        data_root: with the images as `oxford_paris.load` or the official program has
            them, and gnd_roxford5k.pkl (gnd_rparis6k.pkl) there, in a subfolder
            roxford5k or oxford5k (rparis6k or paris6k), or in `downloads`.
        subset: search the photos that are there, for the queries whose photos are
            there, and let the note say what is missing; else a missing one is an error.
        download: fetch what is missing.

    Returns:
        The query images are no `images`, but have a `path`. Positives are the easy and
        the hard images, junk the unclear ones; `at_difficulty` chooses others.

    Raises:
        DatasetError: all problems: files or images that are missing, a ground truth
            that is damaged, of another set, or holds more than plain values.
    """
    base, top = BASES[name], Path(data_root)
    roots = (top / name, top / base, top)
    file = RemoteFile(f"gnd_{name}.pkl", (f"{_HOST}/{name}/gnd_{name}.pkl",))
    places = [root / file.name for root in (*roots, top / "downloads")]
    truth = next((place for place in places if place.is_file()), None)
    if truth is None and not download:
        raise DatasetError(
            f"{name} is not complete at data_root={str(top)!r}:",
            [f"no {file.name}: looked for " + ", ".join(map(str, places))],
            f"datasets.load({name!r}, {str(top)!r}, download=True) fetches what is "
            f"missing. By hand: {file.urls[0]} (some 100 kB), put into {top / name}",
        )
    truth = truth or fetch([file], top / "downloads", "some 100 kB")[0]
    images, query_images, labels = _read_truth(truth)
    problems: list[str] = []
    found = oxford_paris.find_images_of(name, base, top, download, problems)
    missing = [image for image in (*images, *query_images) if image not in found]
    if missing and not subset:
        problems.append(
            f"{len(missing):,} of {len(images) + len(query_images):,} photos that "
            f"{truth.name} lists are missing: {', '.join(missing[:5])}"
        )
    queries, listed = [], 0
    for image, label in zip(query_images, labels, strict=True):
        if image in found:
            easy, hard, junk = (
                frozenset(images[row] for row in label[kind]) for kind in _KINDS
            )
            listed += len(easy | hard)
            parts = (easy, hard, junk)
            easy, hard, junk = (part.intersection(found) for part in parts)
            queries.append(
                Query(
                    image,
                    image,
                    label["bbx"],
                    easy | hard,
                    junk,
                    landmark=_landmark(image, easy | hard),
                    hard=hard,
                )
            )
    paths = {image: found[image] for image in images if image in found}
    note = f"Medium unless said; {len(images):,} images, {len(query_images)} queries"
    if missing:
        positives = sum(len(query.positives) for query in queries)
        note = (
            f"Medium unless said; {len(paths):,} of {len(images):,} images, "
            f"{len(queries)} of {len(query_images)} queries, {positives:,} of their "
            f"{listed:,} positives: a subset, comparable with no published value"
        )
    return checked_dataset(
        name,
        paths,
        queries,
        note,
        problems=problems,
        advice=f'Complete the images; "{name}-subset" searches those that are there.',
        query_paths={image: found[image] for image in query_images if image in found},
    )


def _landmark(image: str, positives: Set[str]) -> str:
    """By the name of the query photo; by most of its positives if that is the town's.

    oxford_002985 is in the same group of five queries as all_souls_000013.
    """
    names = [oxford_paris.without_number(name) for name in (image, *sorted(positives))]
    named = [name for name in names if name not in _TOWNS]
    if names[0] in _TOWNS and named:
        return Counter(named).most_common(1)[0][0]
    return names[0]


def _read_truth(path: Path) -> tuple[list[str], list[str], list[dict]]:
    """Images, query images, and the labels of each query."""
    try:
        with path.open("rb") as file:
            # Python 2 wrote it: its strings are bytes.
            content = _TruthUnpickler(file, encoding="latin-1").load()
        keys = ("imlist", "qimlist", "gnd")
        images, queries, labels = (_list(content[key]) for key in keys)
        if len(queries) != len(labels):
            raise ValueError(f"{len(queries)} queries, {len(labels)} ground truths")
        if not all(isinstance(image, str) for image in (*images, *queries)):
            raise ValueError("a name of an image is no text")
        for label in labels:
            label["bbx"] = tuple(float(number) for number in _list(label["bbx"]))
            for kind in _KINDS:
                rows = label[kind] = _list(label[kind])
                if not all(type(r) is int and 0 <= r < len(images) for r in rows):
                    raise ValueError(f"`{kind}` has what is no number of an image")
    except Exception as error:  # a damaged pickle raises almost any
        raise DatasetError(
            f"{path} is damaged or no ground truth of the revisited sets: "
            f"{type(error).__name__} {error}. Delete it and fetch it again."
        ) from error
    return images, queries, labels


class _Number:
    """The type of an array's elements: whole or floating-point numbers only."""

    def __init__(self, code: str) -> None:
        if not re.fullmatch("[iuf][1248]", code):
            raise pickle.UnpicklingError(f"an array of {code!r} instead of numbers")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = {"<": "<", ">": ">", "|": "|", "=": "<"}[state[1]]

    def read(self, data: bytes | str) -> list:
        data = data.encode("latin-1") if isinstance(data, str) else data
        return np.frombuffer(data, self.order + self.code).tolist()


class _Array:
    """A flat array, as a pickle describes it."""

    values: Sequence = ()

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, _, data = state
        self.values = _read_array(data, kind, shape)


def _read_array(data: bytes, kind: _Number, shape: tuple, order: str = "C") -> list:
    if len([side for side in shape if side != 1]) > 1:
        raise pickle.UnpicklingError(f"an array of shape {shape} instead of a list")
    return kind.read(data)


class _TruthUnpickler(PlainUnpickler):
    """Admits arrays of numbers too."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up in the closed table; never import it."""
        if module in _NUMPY and name == "_reconstruct":
            return lambda *_: _Array()
        if module in _NUMPY and name == "_frombuffer":  # from protocol 5 on
            return _read_array
        if module in _NUMPY and name == "scalar":
            return lambda kind, data: kind.read(data)[0]
        if (module, name) == ("numpy", "ndarray"):
            return name  # an argument of `_reconstruct`
        if (module, name) == ("numpy", "dtype"):
            return lambda code, *_: _Number(code)
        if (module, name) == ("_codecs", "encode"):  # bytes, up to protocol 2
            return lambda text, _: text.encode("latin-1")
        if (module, name) == ("__builtin__", "bytes"):  # no bytes
            return lambda: b""
        return super().find_class(module, name)


def _list(value: Any) -> list:
    """What a pickle has as a list, a tuple or an array."""
    if not isinstance(value, list | tuple | _Array):
        raise TypeError(f"{type(value).__name__} instead of a list")
    return list(value.values if isinstance(value, _Array) else value)
