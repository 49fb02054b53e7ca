"""Extraction and groups on Dask: workers may die, the stores are those of one process.

The script of docs/cluster.md runs here too, against a SLURM of three small programs.
"""

import os
import signal
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny

from cwr_utils import grouping, jobs, whitening
from cwr_utils.extraction import extract
from cwr_utils.grouping import Groups
from cwr_utils.store import JoinedStore, Store

distributed = pytest.importorskip(
    "distributed", reason="the `cluster` extra is not installed"
)

SETUP = tiny.setup()
PAGE = Path(__file__).resolve().parents[1] / "docs" / "cluster.md"


def files(store):
    """Relative path -> bytes of every shard."""
    shards = sorted(p for p in store.path.glob("*/c/**/*") if p.is_file())
    return {str(p.relative_to(store.path)): p.read_bytes() for p in shards}


@contextmanager
def two_workers():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


class Killer:
    """Kills, after the first jobs, a worker that does one."""

    def __init__(self, client):
        self.client, self.done, self.killed = client, [], []

    def __call__(self, what):
        self.done.append(what)
        if self.killed or len(self.done) < 3:
            return
        busy = [worker for worker, keys in self.client.processing().items() if keys]
        processes = self.client.run(os.getpid, workers=busy)
        self.killed.append(processes[busy[0]])
        os.kill(self.killed[0], signal.SIGKILL)


def test_a_killed_worker_leaves_no_trace(tmp_path):
    data = tiny.dataset(tmp_path / "photos", distractors=18)
    options = {"batch": 1, "block": 1}
    alone = extract(data, SETUP, tmp_path / "alone", **options)
    path = tmp_path / "dask"
    with two_workers() as client, client.get_executor() as executor:
        kill = Killer(client)

        def note(number):
            kill(number)
            if len(kill.done) == 3:
                assert Store.open(path).missing_blocks()

        together = extract(
            data, SETUP, path, **options, executor=executor, on_block=note
        )
    assert len(kill.killed) == 1
    assert sorted(kill.done) == list(range(len(data.images)))
    assert files(together) == files(alone)


def described(folder):
    """Class vectors of some photos in one store and of others in a second one."""
    data = tiny.dataset(folder / "photos", distractors=18)
    path, options = folder / "store", {"batch": 1, "block": 2}
    extract(replace(data, images=data.images[:9], queries=()), SETUP, path, **options)
    store = extract(data, SETUP, path, **options)
    assert isinstance(store, JoinedStore)
    vectors = store.read("class_vectors").astype("f4")
    fitted = whitening.fit(vectors.reshape(-1, vectors.shape[-1]), "generated").keep(5)
    return store, fitted


def derived(store, fitted, place, monkeypatch, **options):
    """`grouping.derive` into a folder of its own, a photo a block."""
    with monkeypatch.context() as patch:
        patch.setattr(grouping, "groups_path", lambda *_: place)
        patch.setattr(grouping, "begin_part", partial(grouping.begin_part, block=1))
        return grouping.derive(store, fitted, Groups(3, 4), **options)


def test_groups_of_a_killed_worker_are_made_again(tmp_path, monkeypatch):
    store, fitted = described(tmp_path)
    alone = derived(store, fitted, tmp_path / "alone", monkeypatch)
    with two_workers() as client, client.get_executor() as executor:
        kill, hand_out = Killer(client), jobs.hand_out

        def noting(executor, work, parts, done):
            hand_out(executor, work, parts, lambda *both: (done(*both), kill(both)))

        monkeypatch.setattr(grouping, "hand_out", noting)
        place = tmp_path / "dask"
        together = derived(store, fitted, place, monkeypatch, executor=executor)
    assert len(kill.killed) == 1 and len(kill.done) == len(store)
    assert files(together) == files(alone) and len(files(alone)) == 2 * len(store)
    np.testing.assert_array_equal(together.read("classes"), alone.read("classes"))
