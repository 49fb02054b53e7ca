"""Everyday things, animals and musicians: photographs with no queries.

A collection to fit the whitening on, disjoint from the landmarks of `monuments` in
subject and in every photo. It comes from the package that `gcompris` describes;
drawings were excluded by eye.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from cwr_utils.datasets import gcompris
from cwr_utils.datasets.base import (
    Dataset,
    DatasetError,
    checked_dataset,
    complete_folder,
)

MIN_PHOTOS = 60
MIN_SIDE = 200  # of the longer side, in pixels

_FOLDERS = (
    "categorization/fishes",
    "categorization/others",
    "categorization/tools",
    "erase",
    "explore_farm_animals/animals",
    "explore_world_animals/animals",
    "explore_world_music/music",
)
# Of this folder only the views under water are photographs.
_UNDER_WATER = "clickgame"


def load(data_root: str | Path = "data", package: str | Path | None = None) -> Dataset:
    """The photographs, fetched on first use to `data_root`/everyday.

    Args:
        data_root: folder for fetched photos.
        package: a gcompris-qt-data .deb that is at hand; None fetches it with apt.

    Raises:
        DatasetError: when it cannot be fetched, when the package has fewer than 60
            of them, or when fetched files were damaged later.
    """
    folder = Path(data_root) / "everyday"
    if not folder.is_dir():
        with gcompris.open_package(package) as opened, complete_folder(folder) as new:
            names = choose_photos(opened)
            gcompris.write_photos(new, opened, names, (*_FOLDERS, _UNDER_WATER))
    contents = gcompris.read_contents(folder)
    return checked_dataset(
        "everyday",
        {name: folder / photo["file"] for name, photo in contents.items()},
        (),
        f"{len(contents)} photographs of animals, tools, household and music; "
        "no buildings, no queries",
        {name: photo["credit"] for name, photo in contents.items()},
        advice=f"Delete {folder} to fetch it again.",
    )


def choose_photos(package: gcompris.Package) -> dict[str, str]:
    """Photo name -> key in the package, sorted by key.

    Raises:
        DatasetError: if there are fewer than 60.
    """
    chosen = {}
    for key, photo in sorted(package.photos.items()):
        folder, _, stem = key.rpartition("/")
        wanted = folder in _FOLDERS or (
            folder == _UNDER_WATER and stem.startswith("sea")
        )
        if wanted and photo.license and _longer_side(photo.read()) >= MIN_SIDE:
            chosen[f"{folder.rpartition('/')[2]}_{stem}".lower()] = key
    if len(chosen) < MIN_PHOTOS:
        raise DatasetError(
            f"{package.version} has only {len(chosen)} of these photographs; at least "
            f"{MIN_PHOTOS} are needed."
        )
    return chosen


def _longer_side(data: bytes) -> int:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
    return 0 if image is None else 2 * max(image.shape[:2])
