"""A million photos on one machine: written, opened and asked, in many ways.

The class vectors are those of the demo's photos with noise: some that all vectors of a
photo share, so that it has neighbours, and some of each. Costs are measured, mAP is
not: see docs/million.md for that on real photos.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import forget, timed

from cwr_utils import datasets, grouping, networks, ranking
from cwr_utils.arrays import l2_normalize
from cwr_utils.extraction import Setup
from cwr_utils.grouping import GroupedIndex, Groups
from cwr_utils.retrieval import Collection, Experiment, Method
from cwr_utils.runs import peak_memory
from cwr_utils.search import METHOD
from cwr_utils.store import DiskStore

DATA = Path(__file__).resolve().parents[2] / "data"
QUERIES, TOP = 4, 100
SMALL = "PQ256x4fs"  # 128 bytes a descriptor
EVERY = "groups of all photos"
SHARED, OWN = 0.6, 0.6  # lengths of the noise beside vectors of length 1
NOISES = 2**14


@pytest.fixture(scope="module")
def source(full_size, tmp_path_factory):
    """Real photos, described, and the method."""
    folder = tmp_path_factory.mktemp("real")
    if full_size:
        photos, others = (
            datasets.load(name, DATA) for name in ("monuments", "monuments_whitening")
        )
        network = networks.load("efficientnet-lite0")
        setup = Setup(network, folder, resize="384x270", power=2.0)
        experiment = Experiment(photos, others, setup)
        experiment.extract()
        fields = {"aggregation": "grouped", "groups": 32, "bits": 4}
        return Collection.open(experiment), Method(**{**vars(METHOD), **fields})
    experiment = tiny.described(folder, tiny.setup(folder / "cache", power=2.0))
    method = Method("grouped", 4, num_whitening_classes=3, dimensions=9, groups=5)
    return Collection.open(experiment), method


class Million:
    """Synthetic photos: the records of their groups on disk, offline in memory."""

    def __init__(self, collection: Collection, method: Method, count: int, path: Path):
        """Generate and write them."""
        self.collection, self.method, self.path = collection, method, path
        space = collection.first.space(method)
        self.weights = space.aggregator.weights(np.ones(method.num_classes))
        real = collection.first.spaces.grouped_index(method)
        kept = real.store.read("classes")
        vectors = [
            real.parts([row], classes)[0] for row, classes in enumerate(kept.tolist())
        ]
        self._vectors, self._classes = np.stack(vectors), kept
        rng = np.random.default_rng(0)
        size = NOISES, method.dimensions
        self._noise = l2_normalize(rng.standard_normal(size, np.float32))
        groups = Groups(kept.shape[1], method.bits)
        specs = grouping.record_specs(groups, method.dimensions)
        names = {f"photo{number}": str(number) for number in range(count)}
        store = DiskStore.create(path, {"bits": method.bits}, names, specs)
        self.offline = np.empty((count, method.dimensions), np.float16)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(partial(self._write, store), range(len(store.blocks))))

    def _write(self, store: DiskStore, number: int) -> None:
        rows = store.blocks[number]
        vectors, classes = self.photos(len(rows), number)
        kept = grouping.quantize(vectors, self.method.bits)
        store.write_block(number, {"classes": classes, "vectors": kept})
        self.offline[rows.start : rows.stop] = self._described(vectors)

    def photos(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, G, D) vectors of length 1 and (n, G) classes of new photos."""
        rng = np.random.default_rng([seed, 1])
        like = rng.integers(len(self._vectors), size=count)
        shape = self._vectors[like].shape[:2]
        shared, own = (
            self._noise[rng.integers(NOISES, size=size)] for size in ((count, 1), shape)
        )
        vectors = self._vectors[like] + SHARED * shared + OWN * own
        return l2_normalize(vectors), self._classes[like]

    def _described(self, vectors: np.ndarray) -> np.ndarray:
        """(n, D) by each photo's own most probable classes."""
        first = vectors[:, : self.method.num_classes]
        return l2_normalize(np.einsum("ncd,c->nd", first, self.weights))

    def queries(self) -> tuple[np.ndarray, list[list[int]]]:
        """(Q, D) descriptors of other photos, and the classes of each."""
        vectors, classes = self.photos(QUERIES, 10**9)
        first = classes[:, : self.method.num_classes]
        return self._described(vectors).astype(np.float32), first.tolist()

    def open(self) -> GroupedIndex:
        """The index, as a new process opens it, with what it reads once for all."""
        weights = self.collection.first.setup.network.class_weights
        store = DiskStore.open(self.path)
        bits, dimensions = self.method.bits, self.method.dimensions
        index = GroupedIndex(store, bits, dimensions, weights)
        index.stand_ins([0], [0])
        return index


def peak_from_here() -> None:
    """Let `peak_memory` forget what was (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_bench_million(measure, full_size, source, tmp_path):
    faiss = pytest.importorskip("faiss", reason="the `index` extra is not installed")
    count, cells = (1_000_000, 1024) if full_size else (300, 4)
    depths = (100, 1000, 10_000) if full_size else (30, 100, 300)
    needed = 1.2 * count * (source[0].photo_bytes(source[1]) + 100)
    if shutil.disk_usage(tmp_path).free < needed:
        pytest.skip(f"the disk has no room for {needed / 1e9:.0f} GB")
    rows: list[dict[str, Any]] = []
    answers: dict[str, list[np.ndarray]] = {}

    def bench():
        peak_from_here()
        built, million = timed(lambda: Million(*source, count, tmp_path / "store"))
        facts: dict[str, Any] = {
            "photos": f"{count:,}, one network, {million.method.label}",
            "bytes of a record": source[0].photo_bytes(million.method),
            "generated and written, s": built,
            "GB on disk": DiskStore.open(million.path).disk_bytes() / 1e9,
            "peak meanwhile, GiB": peak_memory() / 2**10,
        }
        forget(million.path)
        facts["opened, s"], index = timed(million.open)
        queries, classes = million.queries()
        half = million.offline
        offline = half.astype(np.float32)

        def closer(number, some):
            """Similarities of some photos by their groups."""
            described = index.describe(some, classes[number], million.weights)
            return described @ queries[number]

        def exact(number, top, database=offline):
            return ranking.search(queries[number][None], database, top)[1][0]

        def cascade(number, first):
            return first[ranking.order(closer(number, first), TOP)]

        def every(number):
            parts = np.array_split(np.arange(count), -(-count // 2**16))
            scores = np.concatenate([closer(number, part) for part in parts])
            return ranking.order(scores, TOP)

        def way(name, ask, held, **more):
            """Ask every query when the disk has forgotten the store."""
            peak_from_here()
            times, answers[name] = [], []
            for number in range(QUERIES):
                forget(million.path)
                took, found = timed(partial(ask, number))
                times.append(took)
                answers[name].append(found)
            row = {"way": name, "s": np.median(times), "GB held": held / 1e9}
            rows.append({**row, "peak, GiB": peak_memory() / 2**10, **more})

        way("offline, exact", lambda n: exact(n, TOP), offline.nbytes)
        way("offline, half precision", lambda n: exact(n, TOP, half), half.nbytes)
        for depth in depths:
            name = f"cascade, exact, L = {depth:,}"
            way(name, lambda n, d=depth: cascade(n, exact(n, d)), offline.nbytes)
        factories = ["SQ8", f"IVF{cells},SQ8", f"IVF{cells},{SMALL}"]
        for factory in factories[: 2 + full_size]:
            build, approximate = timed(
                lambda f=factory: ranking.faiss_index(offline, f)
            )
            if "IVF" in factory:
                faiss.extract_index_ivf(approximate).nprobe = max(4, cells // 32)
            held = faiss.serialize_index(approximate).nbytes

            def near(number, top, approximate=approximate):
                return approximate.search(queries[number][None], top)[1][0]

            more = {"built, s": build}
            way(f"offline, {factory}", lambda n, f=near: f(n, TOP), held, **more)
            name = f"cascade, {factory}, L = {depths[1]:,}"
            way(name, lambda n, f=near: cascade(n, f(n, depths[1])), held, **more)
        way(EVERY, every, 0)
        for row in rows:
            kind = "offline, exact" if row["way"].startswith("offline") else EVERY
            for top in (10, TOP):
                found, truth = (
                    [rows[:top] for rows in answers[name]]
                    for name in (row["way"], kind)
                )
                row[f"recall@{top}"] = ranking.recall(found, truth)
        return {**facts, "ways": rows}

    facts = measure("A million photos", bench, "cascade of 1,000 in 0.5 s, 24 GiB")
    assert len(facts["ways"]) == 7 + 2 * full_size + len(depths)
    recalls = {row["way"]: row[f"recall@{TOP}"] for row in facts["ways"]}
    assert recalls[EVERY] == recalls["offline, exact"] == 1
    deeper = [recalls[f"cascade, exact, L = {depth:,}"] for depth in depths]
    assert deeper == sorted(deeper)
    if not full_size:  # of all photos: only rounding is between the two
        assert deeper[-1] > 0.95
