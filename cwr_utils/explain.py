"""What a person wants to see of a result: the arguments of the figures.

Reads photos and recomputes maps of single images; draws nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.manifold import TSNE

from cwr_utils import aggregation, evaluation, reranking
from cwr_utils.arrays import check_shape
from cwr_utils.datasets import Dataset
from cwr_utils.images import cells_to_box, read_image
from cwr_utils.retrieval import BY_QUERY, Collection, Method, Result, rank


def relevance(query, image: str) -> str:
    """How an image counts for a query: one of `figures.RELEVANCE`.

    "ok" is a positive too, one that the ground truth calls seen in part.
    """
    positives, junk = evaluation.ground_truth(query)
    if image == query.image:
        return "query"
    if image in positives:
        return "ok" if image in query.ok else "positive"
    return "junk" if image in junk else "negative"


def ranks(query, ranking: Sequence[str]) -> dict[str, int]:
    """Name -> rank from 1, junk left out: so every table and picture counts."""
    _, junk = evaluation.ground_truth(query)
    counted = [name for name in ranking if name not in junk]
    return {name: rank for rank, name in enumerate(counted, start=1)}


def strip(
    data: Dataset, result: Result, number: int, top: int = 10, missed: int = 0
) -> dict:
    """The first images of a ranking, as `figures.result_strip` takes them.

    Args:
        data: photos, queries and ground truth.
        result: of any method.
        number: of the query.
        top: images to show.
        missed: how many of them may be positives from further down, at their ranks.

    Returns:
        Keyword arguments.
    """
    query = data.queries[number]
    ranking = result.rankings[query.name]
    positives, _ = evaluation.ground_truth(query)
    positives -= {query.image}
    rows = list(range(len(ranking)))
    late = [row for row in rows[top - missed :] if ranking[row] in positives][:missed]
    # Where all of them are among the first anyway, nothing gives way.
    rows = rows[: top - len(late)] + late if late and late[-1] >= top else rows[:top]
    names, counted = [ranking[row] for row in rows], ranks(query, ranking)
    scored = evaluation.evaluate({query.name: ranking}, [query])
    return {
        "query_photo": read_image(data.path(query.image)),
        "photos": [read_image(data.path(name)) for name in names],
        "relevance": [relevance(query, name) for name in names],
        "scores": result.scores[query.name][rows],
        "names": names,
        "ranks": [counted.get(name, "-") for name in names],
        "credits": [data.credit(name) for name in (query.image, *names)],
        "query_box": query.box,
        "title": f"{query.name}: {result.method.label}, AP {scored['ap'][0]:.2f}",
    }


def diagnose(data: Dataset, before: Result, after: Result) -> pd.DataFrame:
    """Query by query: what one result gains over another, and what it still misses.

    Args:
        data: queries and ground truth.
        before: of any method.
        after: of another one.

    Returns:
        Columns of `evaluation.compare` and of `evaluation.errors` of `after`, where
        `missed` is a text: names, with ranks in brackets.
    """
    queries = data.queries
    tables = [evaluation.evaluate(r.rankings, queries) for r in (before, after)]
    wrong = evaluation.errors(after.rankings, queries)
    late = wrong.pop("missed_ranks")
    wrong["missed"] = [
        "; ".join(f"{name} ({rank:g})" for name, rank in zip(*row, strict=True))
        for row in zip(wrong["missed"], late, strict=True)
    ]
    return evaluation.compare(*tables).merge(wrong, on="query")


def ap_picture(table: pd.DataFrame, before: str, after: str) -> dict[str, Any]:
    """Two methods or runs query by query, as `figures.ap_bars` takes them.

    Args:
        table: of `evaluation.compare`.
        before: name of the one.
        after: name of the other.

    Returns:
        Keyword arguments; the intervals are those of `evaluation.bootstrap`.
    """
    names = {"before": before, "after": after, "difference": "difference"}
    long = table.melt("query", ["before", "after"], "method", "ap")
    return {
        "per_query": long.assign(method=long["method"].map(names)),
        "intervals": {
            name: evaluation.bootstrap(table[column], table["landmark"])[1:3]
            for column, name in names.items()
        },
    }


def embedding(descriptors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Descriptors on a plane: t-SNE from the first two principal components.

    Source: van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 2008.

    Args:
        descriptors: (N, D), l2-normalised.
        seed: of t-SNE.

    Returns:
        (N, 2); neighbours are near each other, larger distances mean little.
    """
    number, _ = check_shape(descriptors, "N D", "descriptors")
    if number < 6:  # too few for t-SNE
        centred = descriptors - descriptors.mean(axis=0)
        left, spread, _ = np.linalg.svd(centred, full_matrices=False)
        return np.pad(left * spread, ((0, 0), (0, 2)))[:, :2]
    # Exact: as quick as the approximation for a page of photos, and the same bits
    # however many threads there are.
    perplexity = min(30, (number - 1) / 3)
    method = TSNE(perplexity=perplexity, random_state=seed, method="exact")
    return method.fit_transform(descriptors)


def embedding_picture(
    collection: Collection, method: Method, seed: int = 0, most: int = 150
) -> dict[str, Any]:
    """The collection on a map, as `figures.embedding_map` takes it.

    Args:
        collection: the photos.
        method: whose database descriptors are shown; not online aggregation, which
            has others for every query.
        seed: of t-SNE.
        most: photos on the map: first those of the landmarks, then some of the others.

    Returns:
        Keyword arguments.

    Raises:
        ValueError: if the method is online aggregation.
    """
    if method.aggregation in BY_QUERY:
        raise ValueError("Online descriptors differ from query to query: no one map.")
    data = collection.data
    landmark = evaluation.landmarks(data.queries)
    groups = {
        name: landmark[query.name]
        for query in data.queries
        for name in sorted({query.image, *query.positives})
    }
    rows = [row for row, name in enumerate(data.images) if name in groups]
    others = sorted(set(range(len(data.images))) - set(rows))
    rows = rows[:most]
    room = most - len(rows)
    if room > 0:
        rows = sorted(rows + others[:: max(1, -(-len(others) // room))])
    names = [data.images[row] for row in rows]
    _, descriptors = next(collection.descriptors(method, [0]))
    return {
        "points": embedding(descriptors[rows], seed),
        "photos": [read_image(data.path(name)) for name in names],
        "groups": [groups.get(name, "") for name in names],
        "credits": [data.credit(name) for name in names],
        "names": names,
    }


def rank_changes(data: Dataset, before: Result, after: Result) -> pd.DataFrame:
    """How positives moved between two methods, the largest gain first.

    Args:
        data: queries and ground truth.
        before: one result.
        after: another one.

    Returns:
        Columns query, image, before, after (`ranks`) and gain.
    """
    rows = []
    for query in data.queries:
        positives = evaluation.ground_truth(query)[0] - {query.image}
        old, new = (ranks(query, r.rankings[query.name]) for r in (before, after))
        rows += [
            (query.name, name, old[name], new[name])
            for name in sorted(positives & old.keys())
        ]
    table = pd.DataFrame(rows, columns=["query", "image", "before", "after"])
    table["gain"] = table["before"] - table["after"]
    return table.sort_values("gain", ascending=False, kind="stable", ignore_index=True)


def why_moved(
    collection: Collection, before: Result, after: Result, number: int, image: str
) -> pd.Series:
    """Why re-ranking moved an image: ranks, scores, the region and its classes.

    Args:
        collection: of the photos.
        before: without re-ranking.
        after: with it; the image is one of those that were re-ranked.
        number: of the query.
        image: photo of the database.

    Returns:
        `ranks` ("-" of junk), scores, the winning box in pixels of the photo (or "whole
        photo", or "none"), and the names of the classes that describe it.
    """
    query = collection.data.queries[number]
    facts: dict[str, Any] = {"query": query.name, "image": image}
    for when, result in (("before", before), ("after", after)):
        ranking = result.rankings[query.name]
        score = result.scores[query.name][ranking.index(image)]
        facts[f"rank {when}"] = ranks(query, ranking).get(image, "-")
        facts[f"score {when}"] = round(float(score), 3)
    picture = box_picture(collection, after.method, number, image)
    best = picture["best"]
    facts["region"] = best or "none"
    if best:
        facts["box"] = tuple(round(side) for side in picture["boxes"][best])
    names = collection.first.setup.network.class_names
    classes = collection.first.asked.top_classes[number][: after.method.rerank_classes]
    facts["classes"] = ", ".join(names[c] for c in classes)
    return pd.Series(facts)


def box_picture(
    collection: Collection, method: Method, number: int, image: str
) -> dict:
    """Boxes of a photo for a query, as `figures.boxes_on_photo` takes them (Fig. 3).

    Args:
        collection: of the photos.
        method: with re-ranking.
        number: of the query.
        image: photo of the database.

    Returns:
        Keyword arguments; boxes in pixels of the photo. `best` is None where the
        protocol knows no whole photo and no box was large enough.
    """
    photo = read_image(collection.data.path(image))
    classes = collection.first.asked.top_classes[number][
        : reranking.HEAT_MAP_CLASSES
    ].tolist()
    features, cams = class_maps(collection, image, classes)
    heat = reranking.heat_map(cams, features.shape[:2])
    size, grid = photo.shape[1::-1], heat.shape[::-1]
    protocol = collection.first.setup.protocol
    found = reranking.threshold_boxes(heat, protocol)
    cells = {f"{threshold:.0%}": box for threshold, box in found.items()}
    region = collection.match(method, number, [image])[image].box
    best = next((name for name, box in cells.items() if box == region), None)
    if region is None and protocol.rerank_fallback:
        best = "whole photo"
        cells[best] = (0, 0, *grid)
    return {
        "photo": photo,
        "boxes": {name: cells_to_box(box, size, grid) for name, box in cells.items()},
        "heat": heat,
        "best": best,
        "credit": collection.data.credit(image),
    }


def class_maps(
    collection: Collection, image: str, classes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Features (H, W, K) of a photo and normalised CAMs (h, w, C) of some classes."""
    features, cam_maps = collection.first.maps(image)
    setup = collection.first.setup
    flip, weights = setup.protocol.flip_negative_cams, setup.network.class_weights
    return features, np.asarray(reranking.query_cams(cam_maps, weights, classes, flip))


def frequent_classes(
    collection: Collection, top: int = 64
) -> tuple[list[str], np.ndarray]:
    """The classes most often among the queries' `top` most probable ones (Fig. 5a).

    Returns:
        `top` names, most frequent first, and their shares of the queries.
    """
    classes = collection.first.asked.top_classes[:, :top]
    frequent = aggregation.theme_classes(classes, top)
    names = collection.first.setup.network.class_names
    shares = aggregation.class_frequencies(classes, frequent)
    return [names[c] for c in frequent], shares


def pipeline_picture(
    collection: Collection, method: Method, number: int
) -> dict[str, Any]:
    """The method on one query, as `figures.pipeline` takes it (Fig. 1).

    Args:
        collection: of the photos.
        method: a class aggregation.
        number: of the query.

    Returns:
        Keyword arguments; the classes are those whose vectors make the descriptor.
    """
    data, query = collection.data, collection.data.queries[number]
    photo = read_image(data.path(query.image))
    names = collection.first.setup.network.class_names
    classes = collection.first.classes(method, number)
    _, cams = class_maps(collection, query.image, classes[:3])
    vectors = collection.first.asked.vectors(number, classes)
    shown = strip(data, rank(collection, method), number, top=7)
    rows = zip(shown["photos"], shown["relevance"], shown["credits"][1:], strict=True)
    found = [row for row in rows if row[1] != "query"][:6]
    credits = dict.fromkeys([data.credit(query.image), *(row[2] for row in found)])
    return {
        "photo": photo,
        "box": query.box,
        "heat": {names[c]: cams[..., i] for i, c in enumerate(classes[:3])},
        "vectors": vectors.astype(np.float32),
        "descriptor": next(collection.descriptors(method, [number]))[0],
        "results": [row[:2] for row in found],
        "class_names": [names[c] for c in classes],
        "credit": "; ".join(filter(None, credits)),
    }
