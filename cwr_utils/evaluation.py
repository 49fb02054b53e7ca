"""Average precision with junk, as the Oxford and Paris benchmarks define it.

Rankings are sequences of image names, best first. A query is anything with `name`,
`image`, `positives` and `junk` (sets of names), such as `datasets.Query`. Pure NumPy:
the numbers of a run can be checked on a machine that has no deep-learning library.

Source of the classic rule: Philbin et al., "Object retrieval with large vocabularies
and fast spatial matching", CVPR 2007 (its program `compute_ap`); of the revisited one:
Radenovic et al., "Revisiting Oxford and Paris", CVPR 2018.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

DEPTHS = (1, 5, 10)  # the k of P@k, as published tables have them
DIFFICULTIES = ("easy", "medium", "hard")
COLUMNS = (
    "query",
    "ap",
    *(f"p@{k}" for k in DEPTHS),
    "positives",
    "first_false_positive",
    "last_positive",
    "landmark",
)
DRAWS = 10_000


def average_precision(positive_ranks: Sequence[int] | np.ndarray, num_positives: int):
    """Area under the precision-recall curve, joined by straight lines.

    ``AP = sum_j (j / r_j + (j + 1) / (r_j + 1)) / (2 P)`` over the found positives
    j = 0, 1, ... at ranks r_j; the first fraction is 1 where r_j = 0. This is the
    trapezoid rule of the benchmarks. scikit-learn's `average_precision_score` sums
    rectangles and gives other, mostly higher values.

    Args:
        positive_ranks: 0-based ranks of the positives that were found, counted
            without junk, in any order.
        num_positives: P >= 1. A positive that is in no ranking still counts here.

    Returns:
        AP in 0..1, a float.

    Raises:
        ValueError: if P < 1, ranks repeat or are negative, or there are more than P.
    """
    ranks = _checked_ranks(positive_ranks, num_positives)
    found = np.arange(ranks.size)
    left = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    right = (found + 1) / (ranks + 1)
    return float(np.sum(left + right) / (2 * num_positives))


def precision_at(
    positive_ranks: Sequence[int] | np.ndarray, num_positives: int, k: int
) -> float:
    """P@k of the revisited protocol: the share of positives in the first k' ranks.

    k' is k, or the 1-based rank of the last positive where that is smaller, so that a
    query with fewer than k positives can reach 1. The classic protocol has no P@k;
    where this workbook gives one for its sets, it is this.

    Args:
        positive_ranks: as for `average_precision`.
        num_positives: P >= 1. A positive that is in no ranking comes after all that
            are, and k' is k.
        k: 1-based, counted without junk.

    Returns:
        0..1.

    Raises:
        ValueError: if k < 1, and as `average_precision`.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1; got {k}.")
    ranks = _checked_ranks(positive_ranks, num_positives)
    depth = min(int(ranks[-1]) + 1, k) if ranks.size == num_positives else k
    return float(np.count_nonzero(ranks < depth) / depth)


def ranks_without_junk(
    ranking: Sequence[str], positives: Set[str], junk: Set[str]
) -> np.ndarray:
    """Find the positives in a ranking from which junk is taken out.

    Junk moves nothing: the items behind it rank as if it were not there.

    Args:
        ranking: image names, best first, each at most once.
        positives: names to be found.
        junk: names to be passed over.

    Returns:
        0-based ranks of the positives that occur, ascending, int64.

    Raises:
        ValueError: if a name is both positive and junk, or is ranked twice.
    """
    return np.flatnonzero(_hits(ranking, positives, junk))


def evaluate(
    rankings: Mapping[str, Sequence[str]],
    queries: Iterable[Any],
    self_match: bool | None = None,
) -> pd.DataFrame:
    """Score every query's ranking.

    Args:
        rankings: query name -> image names, best first. Rankings of other queries are
            passed over.
        queries: those to score.
        self_match: True counts the query's own image as a positive, as the classic
            protocol does (a free hit at rank 1); False makes it junk, whatever the
            ground truth says about it. None is what the official program does: the
            ground truth is taken as it is, query by query, and an own image that is
            in none of its lists is a wrong answer like any other.

    Returns:
        One row a query, in order. `ap`: 0..1, NaN where there are no positives (such a
        query is not part of the mean). `p@1`, `p@5`, `p@10`: see `precision_at`, NaN
        where `ap` is. `positives`: their number.
        `first_false_positive`: its 1-based rank without junk, NaN if there is none.
        `last_positive`: the same for the last positive, NaN where one is missing.
        `landmark`: see `landmarks`.

    Raises:
        ValueError: if a query has no ranking, or a ranking names an image twice.
    """
    rows = []
    queries = list(queries)
    landmark = landmarks(queries)
    for query, hits in _scored(rankings, queries, self_match):
        num_positives = len(ground_truth(query, self_match)[0])
        ranks, misses = np.flatnonzero(hits), np.flatnonzero(~hits)
        scores = [np.nan] * (1 + len(DEPTHS))
        if num_positives:
            scores = [precision_at(ranks, num_positives, k) for k in DEPTHS]
            scores.insert(0, average_precision(ranks, num_positives))
        complete = 0 < num_positives == ranks.size
        rows.append(
            (
                query.name,
                *scores,
                num_positives,
                misses[0] + 1 if misses.size else np.nan,
                ranks[-1] + 1 if complete else np.nan,
                landmark[query.name],
            )
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    others = ("query", "landmark")
    floats = dict.fromkeys((name for name in COLUMNS if name not in others), float)
    return table.astype({**floats, "positives": int})


def ground_truth(
    query: Any, self_match: bool | None = None
) -> tuple[set[str], set[str]]:
    """Positives and junk of a query once its own image is settled.

    Args:
        query: with `image`, `positives` and `junk`.
        self_match: whether the query's own image is a positive; else it is junk. None
            leaves it where the ground truth has it.

    Returns:
        Two sets of image names.
    """
    if self_match is None:
        return set(query.positives), set(query.junk)
    own = {query.image}
    if self_match:
        return set(query.positives) | own, set(query.junk) - own
    return set(query.positives) - own, set(query.junk) | own


def mean_average_precision(per_query: pd.DataFrame) -> float:
    """Mean of the APs that `evaluate` gives, over the queries with positives (mAP).

    Returns:
        0..1; NaN where no query has positives.
    """
    return float(per_query["ap"].mean())


def mean_precision_at(per_query: pd.DataFrame, k: int) -> float:
    """Mean of the P@k that `evaluate` gives, over the queries with positives (mP@k).

    Args:
        per_query: of `evaluate`.
        k: one of `DEPTHS`.

    Returns:
        0..1; NaN where no query has positives.

    Raises:
        ValueError: if the table does not have that k.
    """
    if f"p@{k}" not in per_query:
        raise ValueError(f"`k` must be one of {DEPTHS}, the depths scored; got {k}.")
    return float(per_query[f"p@{k}"].mean())


def landmarks(queries: Iterable[Any]) -> dict[str, str]:
    """Tell which queries ask for the same thing.

    A query's `landmark` says so. Queries without one are taken together where they
    share an image (their own or a positive), and the name tells: "b (shares photos)".
    That may join too many: two landmarks can be in one photo.

    Args:
        queries: with `name`, `image` and `positives`, and `landmark` where it is known.

    Returns:
        Query name -> name of its landmark, in order. An unnamed one is called by its
        first query.
    """
    found: dict[str, str] = {}
    groups: list[tuple[set[str], list[str]]] = []
    for query in queries:
        found[query.name] = getattr(query, "landmark", "")
        if found[query.name]:
            continue
        images, names = {query.image, *query.positives}, [query.name]
        joined = [group for group in groups if group[0] & images]
        groups = [group for group in groups if group not in joined]
        images = images.union(*(group[0] for group in joined))
        groups.append((images, [n for group in joined for n in group[1]] + names))
    for _, names in groups:
        shared = " (shares photos)" if len(names) > 1 else ""
        found |= dict.fromkeys(names, names[0] + shared)
    return found


class Interval(NamedTuple):
    """A mean over queries, and how far chance alone could move it.

    Attributes:
        mean: of all queries.
        low: lower end of the interval, NaN where it cannot be had.
        high: upper end.
        groups: landmarks that were resampled.
    """

    mean: float
    low: float
    high: float
    groups: int

    def __str__(self) -> str:
        """As a table shows it."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    values: Sequence[float] | np.ndarray | pd.Series,
    groups: Sequence[str] | np.ndarray | pd.Series,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a mean over queries, whole landmarks at a time.

    The queries of one landmark succeed or fail together: drawn one by one, they would
    pass for more evidence than there is. The interval says how much the mean depends on
    which landmarks were chosen; with ten of them or fewer it is rather too short.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 8, 13.

    Args:
        values: (Q,) APs, or differences of two methods' APs (a paired bootstrap); NaN
            is left out.
        groups: (Q,) landmark of each query.
        level: share of the draws inside the interval.
        seed: of the draws; the same for all methods of a table.

    Returns:
        The interval; without ends where there are fewer than two landmarks.
    """
    values = np.asarray(values, float)
    known = ~np.isnan(values)
    values, groups = values[known], np.asarray(groups)[known]
    _, group = np.unique(groups, return_inverse=True)
    counts = np.bincount(group)
    if len(counts) < 2:
        mean = float(values.mean()) if values.size else np.nan
        return Interval(mean, np.nan, np.nan, len(counts))
    # How often each landmark is drawn, instead of the draws themselves.
    times = np.random.default_rng(seed).multinomial(
        len(counts), np.full(len(counts), 1 / len(counts)), DRAWS
    )
    means = times @ np.bincount(group, values) / (times @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), len(counts))


def compare(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Set two tables of `evaluate`, of two methods or two runs, side by side.

    Args:
        before: one row a query; rows of one `slug` of a per_query.csv will do.
        after: the same queries.

    Returns:
        Columns query, landmark, before, after (APs) and difference, the largest gain
        first. Tables without landmarks get them from names that end in a number.

    Raises:
        ValueError: if the two are not of the same queries, or name one twice.
    """
    names = [list(table["query"]) for table in (before, after)]
    if any(len(set(found)) < len(found) for found in names):
        raise ValueError("a table has several rows for one query: choose one method.")
    if different := sorted(set(names[0]) ^ set(names[1])):
        raise ValueError(
            "only runs with the same queries can be compared; in one of them only: "
            f"{different[:5]}."
        )
    if "landmark" not in before:
        before = before.assign(
            landmark=before["query"].str.replace(r"_\d+$", "", regex=True)
        )
    table = before[["query", "landmark"]].copy()
    table["before"] = before["ap"].to_numpy(float)
    table["after"] = after.set_index("query")["ap"].loc[names[0]].to_numpy(float)
    table["difference"] = table["after"] - table["before"]
    return table.sort_values(
        "difference", ascending=False, kind="stable", ignore_index=True
    )


def errors(
    rankings: Mapping[str, Sequence[str]],
    queries: Iterable[Any],
    self_match: bool | None = None,
) -> pd.DataFrame:
    """List where each ranking goes wrong.

    Args:
        rankings: query name -> image names, best first.
        queries: those to look at.
        self_match: as in `evaluate`.

    Returns:
        One row a query. `first_wrong`: the first image that is neither positive nor
        junk, "" if there is none; `first_wrong_rank`: its 1-based rank without junk.
        `missed`: positives ranked behind it, and `missed_ranks`, NaN for one that is
        not ranked: lists.

    Raises:
        ValueError: as `evaluate`.
    """
    rows = []
    for query, hits in _scored(rankings, queries, self_match):
        positives, junk = ground_truth(query, self_match)
        ranked = [name for name in rankings[query.name] if name not in junk]
        wrong = int(np.argmin(hits)) if not hits.all() else len(ranked)
        late = wrong + np.flatnonzero(hits[wrong:])
        missed = {ranked[rank]: rank + 1 for rank in late.tolist()}
        missed |= dict.fromkeys(sorted(positives - set(ranked)), np.nan)
        found = wrong < len(ranked)
        rows.append(
            (
                query.name,
                ranked[wrong] if found else "",
                wrong + 1 if found else np.nan,
                list(missed),
                list(missed.values()),
            )
        )
    columns = ["query", "first_wrong", "first_wrong_rank", "missed", "missed_ranks"]
    return pd.DataFrame(rows, columns=columns)


def precision_recall(
    ranking: Sequence[str], positives: Set[str], junk: Set[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Trace the curve whose area, by the trapezoid rule, is the average precision.

    Args:
        ranking: L image names without junk, plus junk.
        positives: names to be found.
        junk: names to be passed over.

    Returns:
        Recall and precision, (L + 1,) each: before the first image (0 and 1), then
        after each one. Without positives the recall is NaN, as the AP is.

    Raises:
        ValueError: as `ranks_without_junk`.
    """
    hits = np.cumsum(_hits(ranking, positives, junk))
    recall = np.concatenate([[0.0], hits]) / (len(positives) or np.nan)
    precision = np.concatenate([[1.0], hits / np.arange(1, hits.size + 1)])
    return recall, precision


def revisited_ground_truth(
    easy: Set[str], hard: Set[str], unclear: Set[str], difficulty: str
) -> tuple[frozenset[str], frozenset[str]]:
    """Choose positives and junk for one query of Revisited Oxford or Paris.

    Args:
        easy: names labelled so; likewise `hard` and `unclear`.
        hard: see `easy`.
        unclear: see `easy`; always junk.
        difficulty: one of `DIFFICULTIES`; medium is easy and hard.

    Returns:
        (positives, junk). What the difficulty does not ask for is junk, not wrong.

    Raises:
        ValueError: if there is no such difficulty.
    """
    choices = {
        "easy": (easy, unclear | hard),
        "medium": (easy | hard, unclear),
        "hard": (hard, unclear | easy),
    }
    if difficulty not in choices:
        raise ValueError(
            f"`difficulty` must be one of {DIFFICULTIES}; got {difficulty!r}."
        )
    positives, junk = choices[difficulty]
    return frozenset(positives), frozenset(junk)


def write_rankings(rankings: Mapping[str, Sequence[str]], folder: str | Path) -> None:
    """Write ``<folder>/<query>.txt``, names one a line: what `compute_ap` reads.

    Lines end in LF on every system: CRLF makes the official program score 0.

    Raises:
        ValueError: if a name has a line break in it or would leave the folder.
    """
    folder = Path(folder)
    for query, ranking in rankings.items():
        path = folder / f"{query}.txt"
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"query name {query!r} leads out of {folder}.")
        broken = [name for name in ranking if not name or {"\n", "\r"} & set(name)]
        if broken:
            raise ValueError(f"{query}: names with line breaks or empty: {broken}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{name}\n" for name in ranking)
        path.write_text(text, encoding="utf-8", newline="\n")


def _checked_ranks(positive_ranks, num_positives: int) -> np.ndarray:
    """Ranks of positives, ascending, int64."""
    ranks = np.sort(np.asarray(positive_ranks, dtype=np.int64))
    if num_positives < 1:
        raise ValueError(
            f"`num_positives` must be at least 1; got {num_positives}. AP is undefined "
            "without positives: leave such a query out."
        )
    if ranks.size > num_positives:
        raise ValueError(f"{ranks.size} ranks for {num_positives} positives.")
    if ranks.size and (ranks[0] < 0 or np.any(np.diff(ranks) == 0)):
        raise ValueError(f"ranks must be distinct and >= 0; got {ranks.tolist()}.")
    return ranks


def _hits(ranking, positives, junk) -> np.ndarray:
    """Whether each ranked image that is not junk is a positive, bool (L,)."""
    both = set(positives) & set(junk)
    if both:
        raise ValueError(f"both positive and junk: {sorted(both)[:5]}.")
    if len(set(ranking)) != len(ranking):
        names, counts = np.unique(np.asarray(ranking), return_counts=True)
        raise ValueError(f"ranked more than once: {names[counts > 1].tolist()[:5]}.")
    return np.array([name in positives for name in ranking if name not in junk], bool)


def _scored(rankings, queries, self_match):
    """Yield each query with its hits; complain of missing rankings before any."""
    queries = list(queries)
    missing = [query.name for query in queries if query.name not in rankings]
    if missing:
        raise ValueError(
            f"no ranking for {len(missing)} of {len(queries)} queries: {missing[:5]}."
        )
    for query in queries:
        positives, junk = ground_truth(query, self_match)
        try:
            hits = _hits(rankings[query.name], positives, junk)
        except ValueError as error:
            raise ValueError(f"query {query.name}: {error}") from error
        yield query, hits
