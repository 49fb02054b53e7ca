"""The embedded demo: landmarks of the world, two or three photographs each.

The photographs come from the package that `gcompris` describes: landmarks and other
buildings from the activities "explore monuments", "details" and "categorization"
(there also windmills, dams and solar panels, which serve as distractors). Who shows
what was checked by eye. Left out on purpose: the second copy of three photographs
that occur twice (Brandenburg Gate, Colosseum, Great Pyramid) and the paintings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from cwr_utils.datasets import everyday, gcompris
from cwr_utils.datasets.base import (
    Dataset,
    DatasetError,
    Query,
    checked_dataset,
    complete_folder,
)

MIN_LANDMARKS = 5

LANDMARKS = {
    "chenonceau": (
        "explore_monuments/france/chateaudeChenonceau",
        "details/Chenonceau_background",
    ),
    "christ_the_redeemer": (
        "explore_monuments/wonders/christTheRedeemer",
        "categorization/monuments/christTheRedeemer",
    ),
    "eiffel_tower": (
        "explore_monuments/france/eiffelTower",
        "categorization/monuments/eiffelTower",
        "details/TourEiffel_background",
    ),
    "louvre": (
        "categorization/monuments/leMusee",
        "details/Louvre_2007_02_24_c_background",
    ),
    "mount_rushmore": (
        "explore_monuments/usa/mountRushmore",
        "categorization/monuments/mountRushmore",
    ),
    "neuschwanstein": (
        "explore_monuments/germany/neuschwansteinCastle",
        "details/Neuschwanstein_background",
    ),
    "qutub_minar": (
        "explore_monuments/india/qutubMinar",
        "categorization/monuments/kutubMinar",
    ),
    "statue_of_liberty": (
        "explore_monuments/usa/statueofLiberty",
        "categorization/monuments/statueOfLiberty",
    ),
    "sydney_opera_house": (
        "categorization/monuments/operaHouse",
        "details/OperaSidney_background",
    ),
    "taj_mahal": (
        "explore_monuments/wonders/tajMahal",
        "categorization/monuments/tajMahal",
        "details/TajMahal_background",
    ),
}

_FOLDERS = (
    "explore_monuments",
    "categorization/monuments",
    "categorization/renewable",
    "details",
)

# Smaller copy -> the same photograph, which is kept.
_COPIES = {
    "categorization/monuments/brandenburgGate": (
        "explore_monuments/germany/brandenburgGate"
    ),
    "categorization/monuments/colosseum": "explore_monuments/wonders/colosseum",
    "categorization/monuments/greatPyramid": (
        "explore_monuments/egypt/greatPyramidOfGiza"
    ),
}

# Where the file name does not say what the photo shows. The two Victoria Memorials
# are different buildings; the two Great Wall photos and the two of Giza show
# different parts, so neither of them makes a query.
_CLEAR_NAMES = {
    "categorization/monuments/arcDeTriomphe": "arc_de_triomphe_du_carrousel",
    "categorization/monuments/cathedral": "santiago_cathedral",
    "categorization/monuments/greatWall": "great_wall_mutianyu",
    "categorization/monuments/leaningTowerOfPisa": "leaning_tower_of_pisa",
    "categorization/monuments/monument1": "dome_of_the_rock",
    "categorization/monuments/monument2": "aphrodisias_tetrapylon",
    "categorization/monuments/monument3": "st_francis_church_vienna",
    "categorization/monuments/victoriaMemorial": "victoria_memorial_london",
    "categorization/monuments/zimniPalace": "winter_palace",
    "explore_monuments/india/victoriaMemorial": "victoria_memorial_kolkata",
    "details/EgeskovSlotSpejling_background": "egeskov_castle",
    "details/GizahPyramids_background": "giza_three_pyramids",
    "details/NDP_background": "notre_dame_de_paris",
    "details/Nagoya_background": "nagoya_castle",
}


def load(data_root: str | Path = "data", package: str | Path | None = None) -> Dataset:
    """The landmarks, fetched on first use to `data_root`/monuments.

    Every photo of a landmark is a query for the others (leave one out): 22 queries
    without a box. Its own image is junk, the other photos of the landmark are the
    positives, everything else is a distractor. Every second one of the other
    photographs is held out: `load_whitening` has it, the database has not. Whitening
    fitted on photos that are in the database scores higher than it should.

    Args:
        data_root: folder for fetched photos.
        package: a gcompris-qt-data .deb that is at hand; None fetches it with apt.

    Raises:
        DatasetError: when it cannot be fetched (no apt, no network, no space), when
            the package has fewer than 5 complete landmarks, or when fetched files
            were damaged later.
    """
    folder, contents = _fetched(data_root, package)
    landmarks = _landmarks_in(contents)
    queries = []
    for landmark, members in landmarks.items():
        for name in members:
            own = frozenset({name})
            others = frozenset(members) - own
            queries.append(Query(name, name, None, others, own, landmark=landmark))
    held_out = _held_out(contents)
    kept = {name: photo for name, photo in contents.items() if name not in held_out}
    return checked_dataset(
        "monuments",
        {name: folder / photo["file"] for name, photo in kept.items()},
        queries,
        _note(landmarks, len(kept)),
        {name: photo["credit"] for name, photo in kept.items()},
        advice=f"Delete {folder} to fetch it again.",
    )


def load_whitening(
    data_root: str | Path = "data", package: str | Path | None = None
) -> Dataset:
    """Photographs to fit the demo's whitening on; none of them is in `load`.

    The held-out half of the other buildings, and the `everyday` photographs.

    Args:
        data_root: folder for fetched photos.
        package: a gcompris-qt-data .deb that is at hand; None fetches it with apt.

    Raises:
        DatasetError: as `load` and `everyday.load`.
    """
    folder, contents = _fetched(data_root, package)
    photos = everyday.load(data_root, package)
    held_out = _held_out(contents)
    paths = {name: folder / contents[name]["file"] for name in held_out}
    credits = {name: contents[name]["credit"] for name in held_out}
    return checked_dataset(
        "monuments_whitening",
        {**paths, **photos.paths},
        (),
        f"{len(held_out)} photographs of buildings that are not in monuments, and "
        f"{photos.note.replace('no buildings, ', '')}",
        {**credits, **photos.credits},
        advice=f"Delete {folder} to fetch it again.",
        facts=photos.facts,
    )


def _fetched(data_root: str | Path, package: str | Path | None) -> tuple[Path, dict]:
    """Folder of the photos, and what is in it."""
    folder = Path(data_root) / "monuments"
    if not folder.is_dir():
        with gcompris.open_package(package) as opened, complete_folder(folder) as new:
            gcompris.write_photos(new, opened, choose_photos(opened), _FOLDERS)
    return folder, gcompris.read_contents(folder)


def _held_out(contents: Mapping) -> tuple[str, ...]:
    """Every second photo that shows no landmark, by name."""
    landmarks = {n for names in _landmarks_in(contents).values() for n in names}
    return tuple(sorted(set(contents) - landmarks)[1::2])


def choose_photos(package: gcompris.Package) -> dict[str, str]:
    """Photo name -> key in the package: landmarks first, then distractors by name.

    Versions of the package differ: a landmark with a missing photo loses its
    queries, and its other photos become distractors.

    Raises:
        DatasetError: if fewer than 5 landmarks have all of their photos.
    """
    usable = {key for key, photo in package.photos.items() if photo.license}
    complete = {
        f"{landmark}_{number}": key
        for landmark, keys in LANDMARKS.items()
        if usable.issuperset(keys)
        for number, key in enumerate(keys, 1)
    }
    missing = [
        f"{landmark}: {key} is missing or has no licence"
        for landmark, keys in LANDMARKS.items()
        for key in keys
        if key not in usable
    ]
    found = len({name.rpartition("_")[0] for name in complete})
    if found < MIN_LANDMARKS:
        raise DatasetError(
            f"{package.version} has only {found} complete landmarks; at least "
            f"{MIN_LANDMARKS} are needed:",
            missing,
            "Use a version that has them (3.1 does), or another data set.",
        )
    chosen = set(complete.values())
    others: dict[str, str] = {}
    for key in sorted(usable - chosen):
        if _is_distractor(key, package.photos, usable):
            name = _CLEAR_NAMES.get(key) or _readable(key)
            others[name if name not in others else f"{name}_2"] = key
    return complete | dict(sorted(others.items()))


def _is_distractor(key: str, photos: Mapping, usable: set[str]) -> bool:
    if not key.startswith(tuple(f"{folder}/" for folder in _FOLDERS)):
        return False
    if key.startswith("details/") and not key.endswith("_background"):
        return False  # the small round details of the puzzle
    is_painting = "painting" in photos[key].comment
    return not is_painting and _COPIES.get(key) not in usable


def _readable(key: str) -> str:
    """Name without camels: .../pontduGard becomes pont_du_gard."""
    name = key.rpartition("/")[2].removesuffix("_background")
    name = re.sub(r"(?<=[a-z])(des?|du|of)(?=[A-Z])", r"_\1", name)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _landmarks_in(contents: Mapping) -> dict[str, list[str]]:
    """Landmark -> names of its photos, of the landmarks that are complete."""
    names = {
        landmark: [f"{landmark}_{number}" for number in range(1, len(keys) + 1)]
        for landmark, keys in LANDMARKS.items()
    }
    return {key: found for key, found in names.items() if contents.keys() >= set(found)}


def _note(landmarks: Mapping, images: int) -> str:
    queries = sum(len(names) for names in landmarks.values())
    note = (
        f"{queries} photographs of {len(landmarks)} landmarks, each a query for the "
        f"others, among {images - queries} other photographs"
    )
    absent = sorted(LANDMARKS.keys() - landmarks.keys())
    return note + (f" (incomplete, left out: {', '.join(absent)})" if absent else "")
