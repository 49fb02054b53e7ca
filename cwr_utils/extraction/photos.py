"""Photographs to a store: decode ahead, one compiled graph, atomic blocks, resume.

Threads decode and resize while the network works on earlier photos, two forward passes
at a time, and another thread writes the finished block, so memory holds two blocks and
a few photos however large the collection is. Only pooled vectors leave the device.

A block is a `Shard`: it needs no other and nobody else writes it. So shards run in any
order, on any executor, more than once if a machine dies.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from cwr_utils.datasets import Dataset
from cwr_utils.extraction.ahead import DECODERS, IN_FLIGHT, ahead, helpers
from cwr_utils.extraction.conf import Setup
from cwr_utils.extraction.describer import (
    Describer,
    array_specs,
    describer_of,
    finish,
    most_regions,
)
from cwr_utils.images import Size, read_image, resize_image
from cwr_utils.jobs import hand_out
from cwr_utils.networks import compile_options
from cwr_utils.store import (
    BLOCK,
    DiskStore,
    Store,
    StoreMismatchError,
    begin_part,
    open_parts,
)


class ShardPhoto(NamedTuple):
    """A photo of a shard: absolute path, (width, height), and how it is read."""

    path: Path
    size: Size
    stretched: bool


@dataclass(frozen=True)
class Shard:
    """One block of a store, as work that any process can do.

    Attributes:
        store: absolute path of the store, which exists.
        number: the block.
        photos: in order.
    """

    store: Path
    number: int
    photos: tuple[ShardPhoto, ...]


def extract(
    dataset: Dataset,
    setup: Setup,
    path: str | Path | None = None,
    *,
    batch: int | None = None,
    block: int = BLOCK,
    on_block: Callable[[int], Any] = lambda number: None,
    executor: Executor | None = None,
) -> Store:
    """Describe every photo of a data set; goes on where an earlier run stopped.

    Photos are known by their content: those that were described before, under any name,
    are not described again, and those that are gone are left out.

    Args:
        dataset: the photos.
        setup: how to describe them.
        path: the store's folder; that of the setup if None. What is added later goes
            into folders beside it.
        batch: photos of one size in a forward pass; if None that of the store where one
            is there, or else 1 on CPU and 16 on a GPU. It moves the last bits, so it
            belongs to the store's configuration.
        block: photos a shard, the unit of work, of writing and of resume.
        on_block: called with the number of each block after it is on disk.
        executor: where the shards are computed, for example a process pool or Dask's
            `Client.get_executor`; its machines see the photos and the store under the
            same paths. This process if None.

    Returns:
        The complete store, images in the order of `dataset.images`.

    Raises:
        StoreMismatchError: if the store there is of another configuration.
        ImageError: if a photo cannot be decoded; blocks that are complete stay.
        ValueError: if there is an executor and the network has no `recipe`.
    """
    if executor is not None and setup.network.recipe is None:
        raise ValueError(
            f"{setup.network.name} cannot be made again in another process: load it "
            "with `networks.load`, or set its `recipe`."
        )
    path = Path(setup.photos_path(dataset) if path is None else path).absolute()
    describer = describer_of(setup)
    facts, contents = setup.photo_facts(dataset), photo_contents(dataset)
    sizes = {dataset.target_size(n, setup.policy) for n in dataset.images}
    store = begin_part(
        path,
        {**facts, "batch": batch or _usual_batch(path)},
        contents,
        array_specs(setup, most_regions({describer.grid(s) for s in sizes})),
        block,
    )
    missing = store.missing_blocks() if store else []
    if store is None or not missing:
        # Its folder's name, not its place: executed notebooks are passed on.
        what = f"{dataset.name}, {path.name}"
        tqdm.write(f"{what}: complete, {len(contents)} photos; extraction skipped.")
        return open_parts(path, facts, contents)
    photos = [
        ShardPhoto(dataset.path(n).absolute(), dataset.size(n), n in facts["stretched"])
        for n in store.names
    ]
    shards = [
        Shard(store.path, n, tuple(photos[i] for i in store.blocks[n])) for n in missing
    ]
    total = len(contents)
    done = total - sum(len(shard.photos) for shard in shards)
    with tqdm(total=total, initial=done, desc=f"extract {dataset.name}") as bar:
        if executor is None:
            _extract_here(describer, store, shards, bar.update, on_block)
        else:

            def note(shard: Shard, number: int) -> None:
                bar.update(len(shard.photos))
                on_block(number)

            work = partial(extract_shard, recipe=setup.recipe)
            hand_out(executor, work, shards, note)
    return open_parts(path, facts, contents)


def photo_contents(dataset: Dataset) -> dict[str, str]:
    """Image -> content, for their store."""
    hashes = dataset.hashes()
    return {name: hashes[name] for name in dataset.images}


def open_photos(dataset: Dataset, setup: Setup) -> Store:
    """Open what `extract` has described of a data set's photos.

    Raises:
        StoreError: if a photo is not described.
    """
    path, facts = setup.photos_path(dataset), setup.photo_facts(dataset)
    return open_parts(path, facts, photo_contents(dataset))


def extract_shard(shard: Shard, recipe: tuple) -> int:
    """Compute and write one block, in whatever process this is.

    The network is made once a process and kept.

    Args:
        shard: the block.
        recipe: of the setup, see `Setup.recipe`.

    Returns:
        The block's number.

    Raises:
        StoreMismatchError: if the network has other weights here.
        ImageError: if a photo cannot be decoded.
    """
    store, describer = DiskStore.open(shard.store), _describer(recipe)
    here = describer.setup.network.weights_sha256
    if here != (there := store.config["weights_sha256"]):
        raise StoreMismatchError(
            f"{shard.store} was begun with weights {there}; this machine loads {here}. "
            "Give every machine the same weight file."
        )
    _extract_here(describer, store, [shard])
    return shard.number


@lru_cache(maxsize=1)
def _describer(recipe: tuple) -> Describer:
    return Describer(Setup.again(recipe))


def _extract_here(
    describer: Describer,
    store: DiskStore,
    shards: Sequence[Shard],
    update: Callable[[int], Any] = lambda photos: None,
    on_block: Callable[[int], Any] = lambda number: None,
) -> None:
    """Photos to pixels to arrays to blocks, each step in threads of its own."""
    policy, size = describer.setup.policy, store.config["batch"]

    def load(photo: tuple[_Batch, int]) -> tuple[_Batch, np.ndarray]:
        batch, position = photo
        path, _, stretched = batch.shard.photos[position]
        pixels = read_image(path)
        pixels = _stretch_contrast(pixels) if stretched else pixels
        return batch, resize_image(pixels, policy)

    def compute(stack: tuple[_Batch, list[np.ndarray]]) -> tuple[_Batch, dict]:
        batch, pixels = stack
        return batch, finish(describer(np.stack(pixels)), store)

    def write(number: int, arrays: dict) -> None:
        store.write_block(number, arrays)
        on_block(number)

    batches = (b for shard in shards for b in _batches(shard, describer.setup, size))
    photos = ((batch, position) for batch in batches for position in batch.positions)
    with (
        helpers(DECODERS) as decoders,
        ThreadPoolExecutor(IN_FLIGHT) as passes,
        helpers(1) as writer,
    ):
        loaded = ahead(decoders, load, photos, DECODERS + size)
        described = ahead(passes, compute, _stacks(loaded, size), IN_FLIGHT)
        writing = None  # one block, while the next one is computed
        for block in _blocks(described, update):
            if writing:
                writing.result()  # nothing is written after a write that failed
            writing = writer.submit(write, *block)
        if writing:
            writing.result()


@dataclass(frozen=True, eq=False)
class _Batch:
    """Photos of one size in a shard, which pass through the network together."""

    shard: Shard
    positions: list[int]
    is_last: bool


def _batches(shard: Shard, setup: Setup, size: int) -> Iterator[_Batch]:
    """A shard's photos, grouped by their size, at most `size` together."""
    groups: dict[Size, list[int]] = {}
    for position, photo in enumerate(shard.photos):
        target = setup.policy.target_size(*photo.size)
        groups.setdefault(target, []).append(position)
    parts = [
        group[start : start + size]
        for group in groups.values()
        for start in range(0, len(group), size)
    ]
    for number, part in enumerate(parts, start=1):
        yield _Batch(shard, part, is_last=number == len(parts))


def _stacks(loaded: Iterable[tuple[_Batch, np.ndarray]], size: int) -> Iterator[tuple]:
    """Each batch with its photos, `size` arrays (H, W, 3)."""
    pixels: list[np.ndarray] = []
    for batch, photo in loaded:
        pixels.append(photo)
        if len(pixels) == len(batch.positions):
            # A short one is filled up: another size would be compiled.
            yield batch, pixels + pixels[-1:] * (size - len(pixels))
            pixels = []


def _blocks(
    described: Iterable[tuple[_Batch, dict]], update: Callable[[int], Any]
) -> Iterator[tuple[int, dict]]:
    """Number and arrays of each shard, once all of its batches are there."""
    values: dict[str, np.ndarray] = {}
    for batch, arrays in described:
        for name, array in arrays.items():
            if name not in values:
                shape = len(batch.shard.photos), *array.shape[1:]
                values[name] = np.empty(shape, array.dtype)
            values[name][batch.positions] = array[: len(batch.positions)]
        update(len(batch.positions))
        if batch.is_last:
            yield batch.shard.number, values
            values = {}


def _usual_batch(path: Path) -> int:
    """Photos a forward pass: those of a store that is there, or of this machine."""
    if DiskStore.exists(path) and (known := DiskStore.open(path).config.get("batch")):
        return known
    return 16 if compile_options()["jit_compile"] else 1


def _stretch_contrast(photo: np.ndarray) -> np.ndarray:
    """Min-max stretch to 0..255 (what SciPy's old imresize did to float images)."""
    low, high = int(photo.min()), int(photo.max())
    scale = 255.0 / max(high - low, 1)
    return np.clip((photo.astype(np.float32) - low) * scale + 0.5, 0, 255).astype(
        np.uint8
    )
