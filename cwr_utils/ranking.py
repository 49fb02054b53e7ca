"""Cosine ranking and average query expansion (Secs. 3.3 and 4.3)."""

import numpy as np

from cwr_utils.arrays import check_shape, l2_normalize


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
