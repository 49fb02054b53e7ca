"""Average precision as one walk down the list, written from the benchmarks' rules."""


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


def revisited(ranking, labels, difficulty, depths):
    """AP and precisions of one query under the revisited protocol.

    Args:
        ranking: names, best first, all of them.
        labels: name -> "easy", "hard" or "unclear"; other names are negatives.
        difficulty: "easy", "medium" or "hard".
        depths: values of k.

    Returns:
        AP and a list of precisions, or None where nothing is to be found.
    """
    wanted = {"easy", "hard"} if difficulty == "medium" else {difficulty}
    ranks, rank = [], 0
    for name in ranking:
        label = labels.get(name)
        if label in wanted:
            ranks.append(rank)
        if label in wanted or label is None:
            rank += 1
    if not ranks:
        return None
    ap = revisited_average_precision(ranks, len(ranks))
    cuts = [min(k, ranks[-1] + 1) for k in depths]
    return ap, [sum(rank < cut for rank in ranks) / cut for cut in cuts]
