"""Offline search at the sizes of Oxford105k and of a million, and what FAISS saves."""

import numpy as np
import pytest
from conftest import seconds

from cwr_utils import ranking
from cwr_utils.arrays import l2_normalize
from cwr_utils.runs import peak_memory

QUERIES, TOP, DIMENSIONS = 55, 100, 512


def descriptors(count, seed):
    """Unit vectors around 2,000 centres, half of their length is noise."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal(
        (2000, DIMENSIONS), dtype=np.float32
    )
    result = np.empty((count, DIMENSIONS), np.float32)
    for start in range(0, count, 10_000):
        part = slice(start, min(start + 10_000, count))
        size = (part.stop - start, DIMENSIONS)
        near = centres[rng.integers(0, len(centres), size[0])]
        result[part] = l2_normalize(near + rng.standard_normal(size, np.float32))
    return result


@pytest.fixture(scope="module")
def database(full_size):
    return descriptors(105_063 if full_size else 500, 1)


@pytest.fixture(scope="module")
def queries():
    return descriptors(QUERIES, 2)


@pytest.mark.parametrize("count", [1, QUERIES])
def test_bench_search(compare, database, queries, count):
    found = {}

    def bare():
        """The product and NumPy's selection of the top, not even sorted."""
        scores = queries[:count] @ database.T
        found["bare"] = np.argpartition(-scores, TOP, axis=1)[:, :TOP]

    def full_sort():
        ranking.order(ranking.similarities(queries[:count], database))

    compare(
        f"{count} queries, top {TOP} of {len(database):,} descriptors, against product "
        "and partial sort",
        lambda: found.update(ours=ranking.search(queries[:count], database, TOP)[1]),
        bare,
        rounds=10,
        target="<= 1.5",
        names=("search", "bare"),
        full_sort_ms=lambda: 1e3 * seconds(full_sort, 2),
    )
    for ours, expected in zip(found["ours"], found["bare"], strict=True):
        assert len(np.intersect1d(ours, expected)) >= TOP - 1  # ties by rounding


def test_bench_search_of_a_million(measure, full_size, queries):
    def search():
        count = 1_000_000 if full_size else 2000
        database = descriptors(count, 3)
        database[[5, count - 1]] = queries[:2]
        _, found = ranking.search(queries, database, TOP)
        assert found[0, 0] == 5 and found[1, 0] == count - 1
        half = database.astype(np.float16)
        times = {
            f"{len(q)} queries, {d.dtype}, s": seconds(
                lambda q=q, d=d: ranking.search(q, d, TOP), 3
            )
            for q in (queries[:1], queries)
            for d in (database, half)
        }
        return {
            "descriptors": f"{count:,} x {DIMENSIONS}",
            "GiB of float32": database.nbytes / 2**30,
            "times": times,
            "peak of the whole process, both copies, GiB": peak_memory() / 2**10,
        }

    measure("Exact search of a million descriptors", search, "within 24 GiB")


@pytest.mark.parametrize(
    ("factory", "probes"),
    [
        ("HNSW32", None),
        ("IVF1024,Flat", 8),
        ("IVF1024,Flat", 64),
        ("IVF1024,PQ64x4fs", 64),
    ],
)
def test_bench_index(compare, database, queries, full_size, factory, probes):
    faiss = pytest.importorskip("faiss", reason="the `index` extra is not installed")
    if not full_size:
        factory, probes = "IVF4,Flat" if probes else "HNSW8", probes and 4
    index = []
    built = seconds(lambda: index.append(ranking.faiss_index(database, factory)))
    if probes:
        faiss.extract_index_ivf(index[0]).nprobe = probes
    elif full_size:
        index[0].hnsw.efSearch = 128
    exact = ranking.search(queries, database, TOP)[1]
    found = index[0].search(queries, TOP)[1]
    compare(
        f"FAISS {factory}" + (f", {probes} cells" if probes else ", efSearch 128"),
        lambda: index[0].search(queries, TOP),
        lambda: ranking.search(queries, database, TOP),
        rounds=5,
        target="quicker than exact, at the recall below",
        names=("index", "exact search"),
        build_s=built,
        recall_at_100=ranking.recall(found, exact),
        recall_at_10=ranking.recall(found[:, :10], exact[:, :10]),
        index_MiB=lambda: faiss.serialize_index(index[0]).nbytes / 2**20,
    )
    assert ranking.recall(found, exact) > 0.1
