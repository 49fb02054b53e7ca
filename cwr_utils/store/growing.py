"""Stores that grow: a store, and those beside it with what came later."""

import glob
import itertools
from collections.abc import Mapping
from pathlib import Path

from cwr_utils.store.base import BLOCK, ArraySpec, Store, StoreError
from cwr_utils.store.disk import DiskStore
from cwr_utils.store.joined import JoinedStore


def parts(path: str | Path) -> list[DiskStore]:
    """The store at a path, and those beside it with what came later; none if none."""
    path = Path(path)
    later = sorted(path.parent.glob(f"{glob.escape(path.name)}+*"))
    return [
        DiskStore.open(place) for place in (path, *later) if DiskStore.exists(place)
    ]


def open_parts(path: str | Path, config: Mapping, images: Mapping[str, str]) -> Store:
    """Open what was described of some images, by their content.

    Args:
        path: of the first of the stores, see `parts`.
        config: facts that they must have.
        images: name -> SHA-256 of its content, in order.

    Returns:
        The first store if it is of just these images, or else its and the others'
        entries as one.

    Raises:
        StoreMismatchError: if a store is of other facts; names them.
        StoreError: if there is no store, or an image is in none.
    """
    found = parts(path)
    if not found:
        raise StoreError(f"No store at {path}: run the extraction first.")
    for store in found:
        store.require(config)
    if found[0].items() == list(images.items()):
        return found[0].require_complete()
    return JoinedStore(found, images)


def begin_part(
    path: str | Path,
    config: Mapping,
    images: Mapping[str, str],
    arrays: Mapping[str, ArraySpec],
    block: int = BLOCK,
) -> DiskStore | None:
    """The store that what is not described yet goes into; None if everything is.

    A store cannot grow. Where one is there of other images, what is new gets one of its
    own beside it, and `open_parts` finds both. Arguments and errors are those of
    `DiskStore.create`.
    """
    found = parts(path)
    if not found or found[0].items() == list(images.items()):
        return DiskStore.create(path, config, images, arrays, block)
    for store in found:
        store.require(config)
    known = {content for store in found for content in store.rows_by_content()}
    # A content that is there twice is described once, under its first name.
    new = {c: n for n, c in reversed(list(images.items())) if c not in known}
    if not new:
        return None
    missing = {name: content for content, name in reversed(list(new.items()))}
    begun = [store for store in found if store.items() == list(missing.items())]
    free = (
        f"{path}+{n}" for n in itertools.count(1) if not DiskStore.exists(f"{path}+{n}")
    )
    place = begun[0].path if begun else next(free)
    # What is added is often little, and a shard has room for a whole block.
    return DiskStore.create(place, config, missing, arrays, min(block, len(missing)))
