"""Re-rankers at the size of Oxford: what depends on no query, once or every time."""

import numpy as np
import pytest
from conftest import seconds
from test_bench_search import descriptors

from cwr_utils.rerankers import RERANKERS, Chain, rerank

QUERIES = 3


@pytest.fixture(scope="module")
def database(full_size):
    return descriptors(5063 if full_size else 200, 1)


@pytest.mark.parametrize("name", RERANKERS)
def test_bench_rerankers(compare, database, name):
    how, queries, found = Chain.parse(name), descriptors(QUERIES, 2), {}
    prepared = how.prepare(database)

    def anew():
        scores = [rerank(how, query[None], database)[0] for query in queries]
        found["anew"] = np.array(scores)

    compare(
        f"{name}, {QUERIES} queries among {len(database):,} photos, against preparing "
        "for each",
        lambda: found.update(once=prepared.scores(queries)),
        anew,
        rounds=3,
        target="<= 1",
        names=("prepared once", "for each query"),
        prepare_s=lambda: seconds(lambda: how.prepare(database), 2),
    )
    np.testing.assert_allclose(found["once"], found["anew"], atol=1e-4)
