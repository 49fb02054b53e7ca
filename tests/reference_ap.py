"""Average precision as one walk down the list, written from the benchmarks' rules."""

import math


def average_precision(ranking, positives, junk):
    """AP of one ranked list: trapezoids under precision over recall.

    Junk advances neither the rank nor the precision. Recall starts at 0, precision
    at 1, and recall is measured against all positives, ranked or not.
    """
    area = 0.0
    old_recall, old_precision = 0.0, 1.0
    hits, rank = 0, 0
    for name in ranking:
        if name in junk:
            continue
        rank += 1
        if name in positives:
            hits += 1
        recall = hits / len(positives)
        precision = hits / rank
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


def revisited_average_precision(positive_ranks, num_positives):
    """The same area in closed form, from the 0-based ranks of the positives."""
    area = 0.0
    for j, rank in enumerate(positive_ranks):
        left = 1.0 if rank == 0 else j / rank
        right = (j + 1) / (rank + 1)
        area += (left + right) / 2 / num_positives
    return area


def precision_at(ranking, positives, junk, k):
    """Share of positives in the first k ranks, or up to the last positive."""
    kept = [name for name in ranking if name not in junk]
    last = max(kept.index(name) for name in positives) + 1
    depth = min(last, k)
    return sum(name in positives for name in kept[:depth]) / depth


def compute_ap(query, ranking):
    """The official program: a query's ground truth and a ranked list, as files.

    Args:
        query: path of the ground-truth files without `_good.txt` and the like.
        ranking: path of the ranked list, one name a line.

    It takes lines as they are: a name that ends in CR or `.jpg` is another name.
    """

    def lines(path):
        return path.read_bytes().decode().split("\n")

    def truth(kind):
        return set(lines(query.with_name(f"{query.name}_{kind}.txt"))) - {""}

    ranked = lines(ranking)
    if ranked[-1] == "":
        ranked.pop()
    return average_precision(ranked, truth("good") | truth("ok"), truth("junk"))


SETUPS = {  # which lists of the ground truth are to be found, and which passed over
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def compute_map(rankings, truths, difficulty, depths):
    """The official program of the revisited protocol, whole.

    Args:
        rankings: for each query the numbers of all images, best first.
        truths: for each query its lists `easy`, `hard` and `junk` of such numbers.
        difficulty: "easy", "medium" or "hard".
        depths: values of k.

    Returns:
        mAP, AP of each query, mP@k of each depth, P@k of each query and depth. A query
        with nothing to find has NaN, and the means are over the others.
    """
    wanted, passed = SETUPS[difficulty]
    aps, precisions = [], []
    for ranking, truth in zip(rankings, truths, strict=True):
        to_find = [image for kind in wanted for image in truth[kind]]
        junk = [image for kind in passed for image in truth[kind]]
        if not to_find:
            aps.append(math.nan)
            precisions.append([math.nan] * len(depths))
            continue
        ranks = []
        for place, image in enumerate(ranking):
            if image in to_find:
                before = sum(other in junk for other in ranking[:place])
                ranks.append(place - before)
        aps.append(revisited_average_precision(ranks, len(to_find)))
        row = []
        for k in depths:
            depth = min(max(ranks) + 1, k)
            row.append(sum(rank + 1 <= depth for rank in ranks) / depth)
        precisions.append(row)
    scored = [number for number, ap in enumerate(aps) if not math.isnan(ap)]
    mean_ap = sum(aps[number] for number in scored) / len(scored)
    means = [
        sum(precisions[number][column] for number in scored) / len(scored)
        for column in range(len(depths))
    ]
    return mean_ap, aps, means, precisions
