"""Average precision as one walk down the list, written from the benchmark's rule."""


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
