"""What is computed from a store of photos once, and kept beside it."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from cwr_utils.identity import digest
from cwr_utils.jobs import hand_out
from cwr_utils.store import (
    ArraySpec,
    DiskStore,
    JoinedStore,
    Store,
    begin_part,
    open_parts,
)

MOST_JOBS = 128  # each carries a whitening, some MB

# From a store and some of its rows to the arrays of these rows.
Compute = Callable[[Store, Sequence[int]], Mapping[str, np.ndarray]]


def derive(
    store: Store,
    name: str,
    facts: Mapping,
    specs: Mapping[str, ArraySpec],
    compute: Compute,
    executor: Executor | None = None,
) -> Store:
    """The store with what is computed of each photo; what is there is not again.

    It is known by the contents and settings of the photos and by `facts`, and photos
    that come later are the only ones added.

    Args:
        store: of the photos.
        name: part of the folder's name.
        facts: all that the arrays depend on, besides the photos' store.
        specs: the arrays of a photo.
        compute: what gives them; for an executor it can be sent elsewhere.
        executor: where they are computed, for example a process pool or Dask's
            `Client.get_executor`; its machines see the stores under the same paths.
            This process if None. The arrays are the same.

    Raises:
        StoreError: if the photos' store has not what is needed, or the disk is full.
    """
    facts = {**facts, "photos": digest(store.config)}
    path = derived_path(store.path, name, facts)
    contents = dict(store.items())
    part = begin_part(path, facts, contents, specs, store.block)
    if part is None:
        return open_parts(path, facts, contents)
    missing = part.missing_blocks()
    begun = len(part) - sum(len(part.blocks[number]) for number in missing)
    with tqdm(
        total=len(part), initial=begun, desc=f"derive {name}", leave=False
    ) as bar:
        if executor is None:
            _write_blocks(part, missing, store, compute, bar.update)
        else:
            size = max(1, -(-len(missing) // MOST_JOBS))
            places = [source.path.absolute() for source in store.sources]
            jobs = [
                _Job(part.path.absolute(), missing[n : n + size], places, compute)
                for n in range(0, len(missing), size)
            ]
            hand_out(executor, derive_blocks, jobs, lambda _, done: bar.update(done))
    return open_parts(path, facts, contents)


def derived_path(photos: Path, name: str, facts: Mapping) -> Path:
    """Folder of what `derive` keeps beside the store of the photos."""
    return photos.with_name(f"{photos.name}-{name}-{digest(facts)[:12]}")


class _Job(NamedTuple):
    """Blocks that a machine computes: paths and numbers, no open store.

    Attributes:
        target: folder of the store that is written.
        blocks: their numbers.
        places: folders of the photos' stores.
        compute: see `derive`.
    """

    target: Path
    blocks: list[int]
    places: list[Path]
    compute: Compute


def derive_blocks(job: _Job) -> int:
    """Compute and write some blocks, in whatever process this is.

    Returns:
        The number of their photos.
    """
    part = DiskStore.open(job.target)
    missing = set(part.missing_blocks())  # what a machine wrote before it died stays
    names = [part.names[row] for number in job.blocks for row in part.blocks[number]]
    contents = {name: part.hashes[name] for name in names}
    store = JoinedStore([DiskStore.open(place) for place in job.places], contents)
    blocks = [number for number in job.blocks if number in missing]
    _write_blocks(part, blocks, store, job.compute)
    return len(names)


def _write_blocks(
    part: DiskStore,
    blocks: Sequence[int],
    store: Store,
    compute: Compute,
    update: Callable[[int], object] = lambda photos: None,
) -> None:
    rows = {name: row for row, name in enumerate(store.names)}
    for number in blocks:
        chosen = [rows[part.names[index]] for index in part.blocks[number]]
        part.write_block(number, compute(store, chosen))
        update(len(chosen))
