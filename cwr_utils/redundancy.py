"""Why more classes can hurt: how alike a photo's class vectors are, and what each adds.

The descriptor is a sum of class vectors. If those of one photo are nearly parallel, a
further class adds little that is new; if, besides, its map looks at the wrong things,
what it adds is noise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from cwr_utils import evaluation, ranking
from cwr_utils.aggregation import Aggregator
from cwr_utils.arrays import check_shape, l2_normalize
from cwr_utils.names import CLASS_WEIGHTINGS
from cwr_utils.retrieval import Collection, Described, Method, tabulate


def mean_cosine(vectors) -> np.ndarray:
    """(N,) mean cosine over all pairs of the vectors (N, C, D) of each photo.

    With s the sum of C unit vectors it is ``(|s|^2 - C) / (C (C - 1))``. Zero vectors
    (empty CAMs) are left out; NaN where fewer than two are left.
    """
    check_shape(vectors, "N C D", "vectors")
    unit = l2_normalize(np.asarray(vectors, np.float32))
    count = unit.any(axis=-1).sum(axis=-1).astype(float)
    squares = (unit.sum(axis=1) ** 2).sum(axis=-1)
    pairs = np.where(count > 1, count * (count - 1), np.nan)
    return (squares - count) / pairs


def parallel(collection: Collection, method: Method, classes: int = 16) -> pd.DataFrame:
    """How alike the class vectors of one photo are, before and after whitening.

    Args:
        collection: whose setups are compared.
        method: a class aggregation; its whitening is used.
        classes: of each photo's most probable ones.

    Returns:
        A row for each setup: network, layer, resize, and the mean cosine "raw" and
        "whitened" between classes of one photo, and "other photos", whitened, between
        the first classes of different photos.
    """
    rows = []
    for member in collection.members:
        raw, whitened, first = [], [], []
        for vectors, parts in _blocks(member, method, classes):
            raw.append(mean_cosine(vectors))
            whitened.append(mean_cosine(parts))
            first.append(parts[:, 0])
        setup = member.setup
        rows.append(
            {
                "network": setup.network.name,
                "layer": setup.layer,
                "resize": setup.resize,
                "raw": np.nanmean(np.concatenate(raw)),
                "whitened": np.nanmean(np.concatenate(whitened)),
                "other photos": mean_cosine(np.concatenate(first)[None])[0],
            }
        )
    return pd.DataFrame(rows)


def by_rank(
    collection: Collection, method: Method, ranks: Sequence[int]
) -> pd.DataFrame:
    """What the class at each rank is worth alone.

    Args:
        collection: its first setup is measured.
        method: a class aggregation; its whitening is used.
        ranks: of classes in the lists of each photo and query, from 1.

    Returns:
        A row for each rank: "mAP" of the class at that rank alone, and "cosine" of its
        whitened vector with that of the photo's first class, mean over photos.
    """
    most, member = max(ranks), collection.first
    aggregator, asked = _unweighted(member, method), member.asked
    parts = np.concatenate([p for _, p in _blocks(member, method, most)])
    queries = [
        aggregator.parts(asked.vectors(n, asked.classes(n, most)))
        for n in range(len(collection.data.queries))
    ]
    rows = []
    for rank in ranks:
        database = parts[:, rank - 1]
        scores = np.stack([q[rank - 1] for q in queries]) @ database.T
        cosine = np.einsum("nd,nd->n", database, parts[:, 0]).mean()
        rows.append({"rank": rank, "mAP": _map(collection, scores), "cosine": cosine})
    return pd.DataFrame(rows)


def by_count(
    collection: Collection,
    method: Method,
    counts: Sequence[int],
    weightings: Sequence[str] = CLASS_WEIGHTINGS,
) -> pd.DataFrame:
    """MAP of offline aggregation by the number and the weights of classes.

    Args:
        collection: all its setups together.
        method: a class aggregation.
        counts: values of N_C.
        weightings: out of `names.CLASS_WEIGHTINGS`.

    Returns:
        Rows of `retrieval.row`.
    """
    offline = replace(method, aggregation="offline", query_expansion=0, rerank=0)
    variants = [
        replace(offline, class_weighting=weighting, num_classes=count)
        for weighting in weightings
        for count in counts
    ]
    return tabulate(collection, variants)[0]


def _blocks(
    member: Described, method: Method, classes: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Class vectors (n, C, K) of some photos, and whitened (n, C, D), in turn."""
    aggregator = _unweighted(member, method)
    for _, vectors in member.database.iter_top_class_vectors(classes):
        yield vectors, aggregator.parts(vectors)


def _unweighted(member: Described, method: Method) -> Aggregator:
    """What whitens class vectors as a method does, and weighs them alike."""
    return member.space(replace(method, class_weighting="equal")).aggregator


def _map(collection: Collection, scores: np.ndarray) -> float:
    """The mAP of (Q, N) scores."""
    images, queries = collection.data.images, collection.data.queries
    rankings = {
        query.name: [images[row] for row in ranking.order(row_scores)]
        for query, row_scores in zip(queries, scores, strict=True)
    }
    per_query = evaluation.evaluate(rankings, queries)
    return evaluation.mean_average_precision(per_query)
