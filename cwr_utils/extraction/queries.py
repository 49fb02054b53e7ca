"""Query regions to a store, or one that nobody foresaw to arrays in memory."""

from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from cwr_utils.datasets import Dataset, Query
from cwr_utils.extraction.conf import Setup
from cwr_utils.extraction.describer import (
    Describer,
    array_specs,
    describer_of,
    finish,
    most_regions,
)
from cwr_utils.images import read_image
from cwr_utils.store import MemoryStore, Store, begin_part, open_parts

BLOCK = 8


def extract_queries(
    dataset: Dataset, setup: Setup, path: str | Path | None = None
) -> Store:
    """Describe the query regions of a data set, for all classes.

    Args:
        dataset: the queries and their photos.
        setup: how to describe them.
        path: the store's folder; that of the setup if None.

    Returns:
        The complete store, in the order of `dataset.queries`.

    Raises:
        ValueError: if there are no queries.
    """
    if not dataset.queries:
        raise ValueError(
            f"{dataset.name} has no queries: there is nothing to describe."
        )
    path = Path(setup.queries_path(dataset) if path is None else path)
    describer = describer_of(setup.of_queries)
    grids = {_grid(describer, dataset, query) for query in dataset.queries}
    facts, contents = setup.query_facts(), query_contents(dataset)
    specs = array_specs(setup.of_queries, most_regions(grids))
    store = begin_part(path, facts, contents, specs, BLOCK)
    missing = store.missing_blocks() if store else []
    if store is None or not missing:
        what = f"{dataset.name}, {path.name}"
        tqdm.write(f"{what}: complete, {len(contents)} queries; extraction skipped.")
        return open_parts(path, facts, contents)
    asked = {query.name: query for query in dataset.queries}
    total = sum(len(store.blocks[number]) for number in missing)
    with tqdm(total=total, desc=f"queries {dataset.name}") as bar:
        for number in missing:
            described = []
            for index in store.blocks[number]:
                query = asked[store.names[index]]
                photo = read_image(dataset.path(query.image))
                described.append(_arrays(describer, query, photo, store))
                bar.update()
            names = described[0]
            store.write_block(
                number, {n: np.concatenate([d[n] for d in described]) for n in names}
            )
    return open_parts(path, facts, contents)


def open_queries(dataset: Dataset, setup: Setup) -> Store:
    """Open what `extract_queries` has described.

    Raises:
        StoreError: if a query is not described, or one with its box.
    """
    path, facts = setup.queries_path(dataset), setup.query_facts()
    return open_parts(path, facts, query_contents(dataset))


def describe_query(
    describer: Describer, query: Query, photo: np.ndarray, sha256: str
) -> MemoryStore:
    """Describe one query that need not be part of a data set, in memory.

    Args:
        describer: of all classes.
        query: its name and box.
        photo: (H, W, 3) uint8 RGB.
        sha256: of the photo's content.

    Returns:
        A complete store of one entry.
    """
    setup, (height, width) = describer.setup, photo.shape[:2]
    grids = [_region_grid(describer, query, (width, height))]
    store = MemoryStore(
        setup.query_facts(),
        {query.name: query_content(query, sha256)},
        array_specs(setup, most_regions(grids)),
    )
    store.write_block(0, _arrays(describer, query, photo, store))
    return store


def query_contents(dataset: Dataset) -> dict[str, str]:
    """Query -> content, for their store."""
    return {q.name: query_content(q, dataset.sha256(q.image)) for q in dataset.queries}


def query_content(query: Query, sha256: str) -> str:
    """A query's content: SHA-256 of the photo, and the box."""
    return f"{sha256} {query.box}"


def _arrays(describer: Describer, query: Query, photo: np.ndarray, store: Store):
    """Arrays (1, ...) of a query for a store."""
    described = describer.describe_query(photo, query.box)
    return finish({name: array[None] for name, array in described.items()}, store)


def _grid(describer: Describer, dataset: Dataset, query: Query) -> tuple[int, int]:
    return _region_grid(describer, query, dataset.size(query.image))


def _region_grid(
    describer: Describer, query: Query, size: tuple[int, int]
) -> tuple[int, int]:
    """(H, W) cells of a query's region in a photo of (width, height) pixels."""
    rows, columns = describer.grid(describer.setup.policy.target_size(*size))
    if query.box is None:
        return rows, columns
    x1, y1, x2, y2 = describer.query_cells(query.box, size, (columns, rows))
    return y2 - y1, x2 - x1
