"""Extraction and groups on Dask: workers may die, the stores are those of one process.

The script of docs/cluster.md runs here too, against a SLURM of two small programs.
"""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from cwr_utils import derived, grouping, jobs, search, whitening
from cwr_utils.extraction import extract
from cwr_utils.extraction import photos as photographs
from cwr_utils.grouping import Groups
from cwr_utils.retrieval import Method
from cwr_utils.store import DiskStore, JoinedStore

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
                assert DiskStore.open(path).missing_blocks()

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


def groups_of(store, fitted, place, monkeypatch, **options):
    """`grouping.derive` into a folder of its own, a photo a block."""
    with monkeypatch.context() as patch:
        patch.setattr(derived, "derived_path", lambda *_: place)
        patch.setattr(store, "block", 1)
        return grouping.derive(store, fitted, Groups(3, 4), **options)


def test_groups_of_a_killed_worker_are_made_again(tmp_path, monkeypatch):
    store, fitted = described(tmp_path)
    alone = groups_of(store, fitted, tmp_path / "alone", monkeypatch)
    with two_workers() as client, client.get_executor() as executor:
        kill, hand_out = Killer(client), jobs.hand_out

        def noting(executor, work, parts, done):
            hand_out(executor, work, parts, lambda *both: (done(*both), kill(both)))

        monkeypatch.setattr(derived, "hand_out", noting)
        place = tmp_path / "dask"
        together = groups_of(store, fitted, place, monkeypatch, executor=executor)
    assert len(kill.killed) == 1 and len(kill.done) == len(store)
    assert files(together) == files(alone) and len(files(alone)) == 2 * len(store)
    np.testing.assert_array_equal(together.read("classes"), alone.read("classes"))


SBATCH = """#!/bin/sh
# Starts a job at once, as a group of processes of its own.
cd {folder}
cp "$1" job$$
setsid sh job$$ >log$$ 2>&1 &
echo $! >group$$
echo "Submitted batch job $$"
"""
SCANCEL = """#!/bin/sh
kill -KILL -- "-$(cat {folder}/group$1)"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with the jobs of a SLURM that is none; all end with the test."""
    folder, programs = tmp_path / "slurm", tmp_path / "programs"
    for place in (folder, programs):
        place.mkdir()
    for name, text in {"sbatch": SBATCH, "scancel": SCANCEL}.items():
        (programs / name).write_text(text.format(folder=folder))
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, tiny_and_package())))
    yield folder
    for group in running(folder):
        os.killpg(group, signal.SIGKILL)


def tiny_and_package():
    here = Path(__file__).resolve().parent
    return here, here.parent


def running(folder):
    """Groups of the jobs that have not ended."""
    groups = [int(file.read_text()) for file in folder.glob("group*")]
    table = subprocess.run(
        ["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True
    ).stdout
    alive = {int(row.split()[0]) for row in table.splitlines() if "Z" not in row}
    return [group for group in groups if group in alive]


def test_the_script_for_slurm(tmp_path, slurm, monkeypatch):
    pytest.importorskip("dask_jobqueue", reason="the `cluster` extra is not installed")
    dask = pytest.importorskip("dask")
    if not shutil.which("setsid"):
        pytest.skip("there is no setsid, by which a job ends whole")
    photos = tiny.dataset(tmp_path / "photos", distractors=9).paths
    tiny.dataset(tmp_path / "other_photos", "other", 0, 0, 12, first_place=100)
    monkeypatch.chdir(tmp_path)
    options = {
        "cache_dir": "there",
        "network": tiny.network(),
        "resize": tiny.RESIZE,
        "method": Method("grouped", 4, num_whitening_classes=3, dimensions=9, groups=3),
    }
    page = PAGE.read_text()
    (script,) = re.findall(r"```python\n(from dask_jobqueue.*?)```", page, re.S)
    script = script.replace("jobs=16", "jobs=2").replace(
        "executor=executor", "executor=executor, **options"
    )
    assert script.count("**options") == 1
    names = {"options": options}
    own = {"host": "127.0.0.1", "dashboard_address": ""}
    settings = {"scheduler-options": own, "python": sys.executable}
    with dask.config.set({f"jobqueue.slurm.{n}": v for n, v in settings.items()}):
        with monkeypatch.context() as elsewhere:  # nothing is computed here
            elsewhere.setattr(derived, "_write_blocks", None)
            elsewhere.setattr(photographs, "_extract_here", None)
            exec(script, names)
    assert len(list(slurm.glob("job*"))) >= 2
    deadline = time.monotonic() + 60
    while running(slurm) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(slurm)
    found = names["index"].collection
    options["cache_dir"] = "here"
    alone = search.index("photos", whitening="other_photos", **options).collection
    assert files(alone.first.database) == files(found.first.database)
    groups = (
        c.first.spaces.grouped_index(options["method"]).store for c in (alone, found)
    )
    assert files(next(groups)) == files(next(groups))
    assert len(alone.first.database) == len(photos)
