"""Cosine ranking, top-k search, average query expansion (Secs. 3.3 and 4.3)."""

from typing import Any

import numpy as np

from cwr_utils.arrays import check_shape, l2_normalize, widen

SEARCH_ROWS = 65536  # 128 MiB of 512 float32 dimensions


def similarities(queries, database) -> np.ndarray:
    """Cosine similarity of l2-normalised descriptors.

    Args:
        queries: (Q, D).
        database: (N, D).

    Returns:
        (Q, N) float32.

    Raises:
        ValueError: if the dimensions differ.
    """
    queries, database = np.asarray(queries), np.asarray(database)
    _, dimensions = check_shape(queries, "Q D", "queries")
    check_shape(database, f"N {dimensions}", "database")
    return queries @ database.T


def order(scores, top: int | None = None) -> np.ndarray:
    """Indices by falling score; ties keep the database order.

    Args:
        scores: (N,) or (Q, N).
        top: only the best `top`, found without sorting the rest; all if None.

    Returns:
        (top,) or (Q, top) indices.
    """
    scores = np.asarray(scores)
    count = scores.shape[-1]
    if top is None or top >= count:
        return np.argsort(-scores, axis=-1, kind="stable")
    # The threshold is the top-th best score; cells tied with it are cut by index.
    rows = np.atleast_2d(scores)
    kept = np.empty((len(rows), top), int)
    for i, row in enumerate(rows):
        threshold = np.partition(row, -top)[-top]
        candidates = np.flatnonzero(row >= threshold)
        kept[i] = candidates[np.argsort(-row[candidates], kind="stable")][:top]
    return kept.reshape(*scores.shape[:-1], top)


def search(
    queries, database, top: int, rows: int = SEARCH_ROWS
) -> tuple[np.ndarray, np.ndarray]:
    """The `top` most similar descriptors, exactly, without a full sort.

    Memory beyond the arguments holds `rows` descriptors and their scores, so that the
    database may be a memory-mapped file; float16 halves it.

    Args:
        queries: (Q, D), l2-normalised.
        database: (N, D), l2-normalised; anything that slices to arrays.
        top: how many for each query; all N if there are fewer.
        rows: descriptors compared at a time.

    Returns:
        (Q, top) float32 scores, best first, and (Q, top) indices; ties keep the order
        of the database.

    Raises:
        ValueError: if the dimensions differ or `top` is below 1.
    """
    queries = np.asarray(queries, np.float32)
    count, dimensions = check_shape(queries, "Q D", "queries")
    check_shape(database, f"N {dimensions}", "database")
    if top < 1:
        raise ValueError(f"`top` must be at least 1; got {top}.")
    best = np.empty((count, 0), np.float32)
    found = np.empty((count, 0), int)
    for start in range(0, database.shape[0], rows):
        chunk = _single(database[start : start + rows])
        scores = queries @ chunk.T
        if start == 0 or best.shape[1] < top:
            kept = order(scores, top)
            best = np.hstack([best, np.take_along_axis(scores, kept, axis=1)])
            found = np.hstack([found, start + kept])
            kept = order(best, top)
            best = np.take_along_axis(best, kept, axis=1)
            found = np.take_along_axis(found, kept, axis=1)
            continue
        # Later rows must beat the last of the best: few do, and equals come too late.
        query, column = np.nonzero(scores > best[:, -1:])
        for row in np.unique(query):
            better = column[query == row]
            merged = np.concatenate([best[row], scores[row, better]])
            kept = order(merged, top)
            best[row] = merged[kept]
            found[row] = np.concatenate([found[row], start + better])[kept]
    return best, found


def faiss_index(database, factory: str = "HNSW32") -> Any:
    """An approximate index for collections too large for `search`.

    Args:
        database: (N, D), l2-normalised.
        factory: what FAISS builds, in the words of its index factory: "HNSW32" is quick
            and as large as the descriptors, "IVF1024,Flat" as large and quick to build,
            "IVF1024,PQ64" needs 64 bytes a descriptor.

    Returns:
        The FAISS index; ``index.search(queries, top)`` gives what `search` does.

    Raises:
        ImportError: if FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "An approximate index needs FAISS: pip install 'cwr-workbook[index]'."
        ) from error
    _, dimensions = check_shape(database, "N D", "database")
    index = faiss.index_factory(dimensions, factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(_single(database))
    for start in range(0, database.shape[0], SEARCH_ROWS):
        index.add(_single(database[start : start + SEARCH_ROWS]))
    return index


def recall(found, exact) -> float:
    """Share of the exact nearest neighbours that an index found (recall@k).

    Args:
        found: (Q, k) indices of an approximate search.
        exact: (Q, k) indices of `search`.
    """
    check_shape(np.asarray(found), f"{len(exact)} k", "found")
    hits = [len(np.intersect1d(*rows)) for rows in zip(found, exact, strict=True)]
    return sum(hits) / np.size(exact)


def expand_query(query, database, ranking, top: int, with_query: bool = True):
    """Average query expansion: the l2-normalised sum of the first descriptors.

    Args:
        query: (D,) descriptor.
        database: (N, D) descriptors.
        ranking: indices of database images, best first.
        top: images to add; 0 gives the query back.
        with_query: whether the query's own descriptor is part of the sum.

    Returns:
        (D,) float32 descriptor.
    """
    if top == 0:
        return np.asarray(query)
    total = np.asarray(database)[np.asarray(ranking)[:top]].sum(axis=0)
    return l2_normalize(total + query if with_query else total)


def _single(vectors) -> np.ndarray:
    """As float32, which FAISS takes and float16 becomes quickly."""
    return widen(vectors).astype(np.float32, copy=False)
