"""Extraction on Dask: workers may die, the store is that of one process."""

import os
import signal

import pytest
import tiny

from cwr_utils.extraction import extract
from cwr_utils.store import Store

distributed = pytest.importorskip(
    "distributed", reason="the `cluster` extra is not installed"
)

SETUP = tiny.setup()


def files(store):
    """Relative path -> bytes of every shard."""
    shards = sorted(p for p in store.path.glob("*/c/**/*") if p.is_file())
    return {str(p.relative_to(store.path)): p.read_bytes() for p in shards}


def test_a_killed_worker_leaves_no_trace(tmp_path):
    data = tiny.dataset(tmp_path / "photos", distractors=18)
    options = {"batch": 1, "block": 1}
    alone = extract(data, SETUP, tmp_path / "alone", **options)
    path, killed, written = tmp_path / "dask", [], []
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):

        def kill(number):
            """After the first blocks, kill a worker that computes one."""
            written.append(number)
            if killed or len(written) < 3:
                return
            busy = [worker for worker, keys in client.processing().items() if keys]
            processes = client.run(os.getpid, workers=busy)
            killed.append(processes[busy[0]])
            os.kill(killed[0], signal.SIGKILL)
            assert Store.open(path).missing_blocks()

        with client.get_executor() as executor:
            together = extract(
                data, SETUP, path, **options, executor=executor, on_block=kill
            )
    assert len(killed) == 1
    assert sorted(written) == list(range(len(data.images)))
    assert files(together) == files(alone)
