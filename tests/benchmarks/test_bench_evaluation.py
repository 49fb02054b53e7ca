"""How long scoring takes at the size of Oxford105k; `make bench` prints the times."""

from dataclasses import dataclass

import numpy as np

from cwr_utils import evaluation

IMAGES, QUERIES, POSITIVES = 105_000, 5, 50


@dataclass(frozen=True)
class Query:
    name: str
    image: str
    positives: frozenset
    junk: frozenset


def test_bench_evaluate(benchmark):
    rng = np.random.default_rng(0)
    names = [f"image{i:06d}" for i in range(IMAGES)]
    queries, rankings = [], {}
    for number in range(QUERIES):
        ranking = [names[i] for i in rng.permutation(IMAGES)]
        chosen = ranking[: 2 * POSITIVES]
        rankings[str(number)] = ranking
        positives, junk = frozenset(chosen[::2]), frozenset(chosen[1::2])
        queries.append(Query(str(number), chosen[0], positives, junk))
    table = benchmark(evaluation.evaluate, rankings, queries, True)
    assert evaluation.mean_average_precision(table) == 1
