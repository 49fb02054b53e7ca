"""Data sets: `load` by name or from a folder, checked before anything is computed."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cwr_utils.datasets import (
    everyday,
    folder,
    monuments,
    oxford_paris,
    revisited,
    street,
)
from cwr_utils.datasets.base import Dataset, DatasetError, Query

__all__ = ["Dataset", "DatasetError", "Query", "available", "load", "load_demo"]

_SOURCES: dict[str, Callable[..., Dataset]] = {
    "monuments": monuments.load,
    "monuments_whitening": monuments.load_whitening,
    "street": street.load,
    "everyday": everyday.load,
    **{name: partial(oxford_paris.load, name) for name in oxford_paris.NAMES},
    **{name: partial(revisited.load, name) for name in revisited.BASES},
    **{
        f"{name}-subset": partial(revisited.load, name, subset=True)
        for name in revisited.BASES
    },
}


def available() -> tuple[str, ...]:
    """Names that `load` knows; the path of a folder with photos is the other choice."""
    return tuple(_SOURCES)


def load(name: str, data_root: str | Path = "data", **options: object) -> Dataset:
    """Load a data set; every image, name and box is checked.

    Args:
        name: "monuments" (the demo) and "monuments_whitening" (to fit its whitening
            on), "street" (the demo without apt), "everyday" (no buildings),
            "oxford5k", "paris6k", the same with 100k distractors ("oxford105k",
            "paris106k"), these alone ("flickr100k"), the revisited sets ("roxford5k"
            and "rparis6k"; "roxford5k-subset" and "rparis6k-subset" search those of
            their photos that are there), or a folder with photos.
        data_root: where fetched photos are kept; for Oxford and Paris the folder with
            images and ground truth; unused for a folder.
        options: of the source, see the `load` function of its module: `package` (a
            package file at hand) of the fetched ones, `queries`, `groups` and others
            of a folder, `skip_unreadable` of a folder, Oxford and Paris, `download`
            of Oxford, Paris and the distractors.

    Raises:
        DatasetError: all problems found, and what to do.
    """
    if name in _SOURCES:
        return _SOURCES[name](data_root=data_root, **options)
    if Path(name).is_dir():
        return folder.load(name, **options)  # pyright: ignore[reportArgumentType]
    place = Path(name).absolute()
    beside = place.parent.iterdir() if place.parent.is_dir() else ()
    known = [*_SOURCES, *(path.name for path in beside if path.is_dir())]
    close = difflib.get_close_matches(place.name, known, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise DatasetError(
        f"There is no folder {place}, and {place.name!r} is none of the data sets "
        f"{', '.join(_SOURCES)}.{hint}"
    )


def load_demo(data_root: str | Path = "data") -> Dataset:
    """The demo: monuments or, where it cannot be fetched, street.

    Says in one line why it had to be street.

    Raises:
        DatasetError: if neither can be had.
    """
    try:
        return load("monuments", data_root)
    except DatasetError as error:
        reason = " ".join(str(error).split())
        print(f"Using street views, because monuments cannot be had: {reason}")
        return load("street", data_root)
