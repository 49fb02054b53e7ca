"""What a person wants to see of a result: the arguments of the figures, from stores.

Reads photos and recomputes maps of single images; draws nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cwr_utils import evaluation, reranking
from cwr_utils.datasets import Dataset
from cwr_utils.images import cells_to_box, read_image
from cwr_utils.retrieval import Method, Result, Retrieval


def relevance(query, image: str, self_match: bool) -> str:
    """How an image counts for a query: "positive", "negative", "junk" or "query"."""
    positives, junk = evaluation.ground_truth(query, self_match)
    if image == query.image:
        return "query"
    return "positive" if image in positives else "junk" if image in junk else "negative"


def strip(stores: Retrieval, result: Result, number: int, top: int = 10) -> dict:
    """The first images of a ranking, as `figures.result_strip` takes them.

    Args:
        stores: where the result comes from.
        result: of any method.
        number: of the query.
        top: images to show.

    Returns:
        Keyword arguments.
    """
    data = stores.dataset
    query = data.queries[number]
    names = result.rankings[query.name][:top]
    ap = stores.evaluate(result).set_index("query")["ap"][query.name]
    return {
        "query_photo": read_image(data.path(query.image)),
        "photos": [read_image(data.path(name)) for name in names],
        "relevance": [relevance(query, name, stores.self_match) for name in names],
        "scores": result.scores[query.name][:top],
        "names": names,
        "credits": [data.credit(name) for name in (query.image, *names)],
        "query_box": query.box,
        "title": f"{query.name}: {result.method.label}, AP {ap:.2f}",
    }


def rank_changes(data: Dataset, before: Result, after: Result) -> pd.DataFrame:
    """How positives moved between two methods, the largest gain first.

    Args:
        data: queries and ground truth.
        before: one result.
        after: another one.

    Returns:
        Columns query, image, before, after (ranks from 1, junk left out) and gain.
    """
    rows = []
    for query in data.queries:
        positives, junk = evaluation.ground_truth(query, self_match=False)
        ranks = [
            {
                name: rank
                for rank, name in enumerate(
                    (n for n in result.rankings[query.name] if n not in junk), start=1
                )
            }
            for result in (before, after)
        ]
        rows += [
            (query.name, name, ranks[0][name], ranks[1][name])
            for name in sorted(positives)
            if name in ranks[0]
        ]
    table = pd.DataFrame(rows, columns=["query", "image", "before", "after"])
    table["gain"] = table["before"] - table["after"]
    return table.sort_values("gain", ascending=False, kind="stable", ignore_index=True)


def why_moved(
    stores: Retrieval, before: Result, after: Result, number: int, image: str
) -> pd.Series:
    """Why re-ranking moved an image: ranks, scores, the region and its classes.

    Args:
        stores: with maps.
        before: without re-ranking.
        after: with it; the image is one of those that were re-ranked.
        number: of the query.
        image: photo of the database.

    Returns:
        Ranks from 1 in the whole list, scores, the winning box in pixels of the photo
        (or "whole photo", or "none"), and the names of the classes that describe it.
    """
    query = stores.dataset.queries[number].name
    facts: dict[str, Any] = {"query": query, "image": image}
    for when, result in (("before", before), ("after", after)):
        row = result.rankings[query].index(image)
        facts[f"rank {when}"] = row + 1
        facts[f"score {when}"] = round(float(result.scores[query][row]), 3)
    picture = box_picture(stores, after.method, number, image)
    best = picture["best"]
    facts["region"] = best or "none"
    if best:
        facts["box"] = tuple(round(side) for side in picture["boxes"][best])
    names = stores.require_maps().network.class_names
    classes = stores.top_classes[number][: after.method.rerank_classes]
    facts["classes"] = ", ".join(names[c] for c in classes)
    return pd.Series(facts)


def box_picture(stores: Retrieval, method: Method, number: int, image: str) -> dict:
    """Boxes of a photo for a query, as `figures.boxes_on_photo` takes them (Fig. 3).

    Args:
        stores: with maps.
        method: with re-ranking.
        number: of the query.
        image: photo of the database.

    Returns:
        Keyword arguments; boxes in pixels of the photo. `best` is None where the
        protocol knows no whole photo and no box was large enough.
    """
    photo = read_image(stores.dataset.path(image))
    classes = stores.top_classes[number][: reranking.HEAT_MAP_CLASSES].tolist()
    features, cams = class_maps(stores, image, classes)
    heat = reranking.heat_map(cams, features.shape[:2])
    size, grid = photo.shape[1::-1], heat.shape[::-1]
    cells = {
        f"{threshold:.0%}": box
        for threshold in stores.protocol.rerank_thresholds
        for box in reranking.cam_boxes(
            heat, [threshold], largest=stores.protocol.rerank_largest
        )
    }
    region = stores.match_region(method, number, image).box
    best = next((name for name, box in cells.items() if box == region), None)
    if region is None and stores.protocol.rerank_fallback:
        best = "whole photo"
        cells[best] = (0, 0, *grid)
    return {
        "photo": photo,
        "boxes": {name: cells_to_box(box, size, grid) for name, box in cells.items()},
        "heat": heat,
        "best": best,
        "credit": stores.dataset.credit(image),
    }


def class_maps(
    stores: Retrieval, image: str, classes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Features (H, W, K) of a photo and normalised CAMs (h, w, C) of some classes."""
    maps = stores.require_maps()
    features, cam_maps = maps(image, stores.protocol.rerank_squares_upright)
    flip = stores.protocol.flip_negative_cams
    cams = reranking.query_cams(cam_maps, maps.network.class_weights, classes, flip)
    return features, np.asarray(cams)


def pipeline_picture(stores: Retrieval, method: Method, number: int) -> dict[str, Any]:
    """The method on one query, as `figures.pipeline` takes it (Fig. 1).

    Args:
        stores: with maps.
        method: a class aggregation.
        number: of the query.

    Returns:
        Keyword arguments; the classes are those whose vectors make the descriptor.
    """
    data, query = stores.dataset, stores.dataset.queries[number]
    photo = read_image(data.path(query.image))
    names = stores.require_maps().network.class_names
    themed = method.aggregation == "theme"
    classes = stores.theme if themed else stores.top_classes[number].tolist()
    classes = classes[: method.num_classes]
    _, cams = class_maps(stores, query.image, classes[:3])
    vectors = stores.queries.read("class_vectors", [number])[0]
    shown = strip(stores, stores.run(method), number, top=6)
    rows = zip(shown["photos"], shown["relevance"], shown["credits"][1:], strict=True)
    found = [row for row in rows if row[1] != "query"][:5]
    credits = dict.fromkeys([data.credit(query.image), *(row[2] for row in found)])
    return {
        "photo": photo,
        "box": query.box,
        "heat": {names[c]: cams[..., i] for i, c in enumerate(classes[:3])},
        "vectors": vectors[classes].astype(np.float32),
        "descriptor": stores.describe(method, number)[0],
        "results": [row[:2] for row in found],
        "class_names": [names[c] for c in classes],
        "credit": "; ".join(filter(None, credits)),
    }
