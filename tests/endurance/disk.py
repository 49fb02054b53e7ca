"""A disk that fills in the middle, and readers beside a writer.

The disk is played by a limit on the size of a file, which a process gives itself after
so many blocks or maps: whatever it then writes beyond some bytes is refused.
"""

import contextlib
import hashlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import kills

LEFT = (0, 60, 200)  # bytes of a file that the full disk still takes


def fill(scale: float = 1.0) -> dict:
    """Let the disk fill at every block in turn, then free it and go on.

    Returns:
        Figures: `cases`, `failures`, `seconds`.
    """
    begun, failures, cases = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory(prefix="disk-") as place:
        template, folder = Path(place, "template"), Path(place, "run")
        template.mkdir()
        kills._prepare(template)
        for name, (make, writes) in FULL.items():
            work = kills.Work(0, make(None, 0), kills.files_of("cache", "answer"))
            _fresh(template, folder)
            kills._run(work, folder)
            right = work.results(folder)
            steps = range(0, writes, 1 if scale >= 1 else writes - 1)
            for after, left in [(n, LEFT[n % len(LEFT)]) for n in steps]:
                _fresh(template, folder)
                cases += 1
                full = kills.Work(0, make(after, left), work.results)
                try:
                    kills._run(full, folder)
                    kills._run(work, folder)
                    kills._compare(work.results(folder), right)
                except (AssertionError, RuntimeError) as error:
                    failures.append(f"{name}, full after {after}: {error}")
    seconds = time.monotonic() - begun
    print(f"  {'full disk':20} {cases} cases, {len(failures)} failures", flush=True)
    return {"cases": cases, "failures": failures, "seconds": round(seconds)}


def _fresh(template: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)


@contextlib.contextmanager
def _fills(owner: type, method: str, after: int, left: int):
    """From call number `after` on, files of this process take few bytes more."""
    write, calls = getattr(owner, method), []
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def writing(*arguments, **options):
        if len(calls) == after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (left, most))
            sink = os.open(os.devnull, os.O_WRONLY)  # the log is a file too
            os.dup2(sink, 1)
            os.dup2(sink, 2)
        calls.append(None)
        return write(*arguments, **options)

    setattr(owner, method, writing)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def _store(describe, after, left):
    """What describes photos, on a disk that fills after so many blocks."""

    def run(folder: Path) -> None:
        from cwr_utils.store import DiskStore, StoreError

        if after is None:
            return describe(folder)
        with _fills(DiskStore, "write_block", after, left):
            try:
                describe(folder)
            except StoreError as error:
                assert "free disk space and run again" in str(error), error
            else:
                raise AssertionError("nothing noticed that the disk was full")

    return run


def _extract(folder: Path) -> None:
    import tiny

    from cwr_utils import datasets, extraction

    data = datasets.load(str(folder / "photos"))
    extraction.extract(data, tiny.setup(folder / "cache"), block=2)


def _index(folder: Path) -> None:
    from cwr_utils import search

    search.folder.BLOCK = 4
    kills._index(folder)


def _maps(after, left):
    def run(folder: Path) -> None:
        import tiny

        from cwr_utils import datasets
        from cwr_utils.extraction import ImageMaps
        from cwr_utils.extraction import maps as module

        if after is None:
            return kills._maps(folder)
        said: list[str] = []
        module.tqdm.write = said.append
        data = datasets.load(str(folder / "photos"))
        maps = ImageMaps(data, tiny.setup(folder / "cache"), cache_bytes=1)
        with _fills(module.MapFiles, "write", after, left):
            assert len(list(maps.many(data.images))) == len(data.images)
        assert len(said) == 1 and "No more maps are kept" in said[0], said

    return run


# What fills the disk, and how many writes it makes.
FULL = {
    "extraction": (partial(_store, _extract), 9),
    "index": (partial(_store, _index), 10),
    "maps": (_maps, 18),
}


def read(seconds: float = 20) -> dict:
    """Read a store, and maps, while another process writes them, again and again.

    Returns:
        Figures: `reads`, `complete` (those that found a block or a map), `failures`,
        `seconds`.
    """
    begun, failures, reads, complete = time.monotonic(), [], 0, 0
    with tempfile.TemporaryDirectory(prefix="read-") as place:
        template, folder, right = (Path(place, n) for n in ("template", "run", "right"))
        template.mkdir()
        kills._prepare(template)
        shutil.copytree(template, right)
        kills._run(kills.Work(0, _write, kills.files_of()), right)
        while time.monotonic() - begun < seconds:
            _fresh(template, folder)
            # Each in a process of its own: threads of a store do not survive a fork.
            logs = Path(place, "reader"), Path(place, "writer")
            reader = kills.fork(lambda: _read(folder, right), logs[0])
            writer = kills.fork(lambda: _write(folder), logs[1])
            _, status = os.waitpid(writer, 0)
            Path(place, "done").touch()
            _, other = os.waitpid(reader, 0)
            Path(place, "done").unlink()
            if status or other:
                said = [log.read_text(errors="replace")[-1500:] for log in logs]
                failures.append(f"reader {other}, writer {status}: {said}")
                continue
            found = json.loads(Path(place, "found").read_text())
            reads, complete = reads + found["reads"], complete + found["complete"]
            failures += found["wrong"]
    spent = round(time.monotonic() - begun)
    told = f"{reads:,} reads ({complete:,} complete), {len(failures)} failures"
    print(f"  {'reader and writer':20} {told}", flush=True)
    return {
        "reads": reads,
        "complete": complete,
        "failures": failures,
        "seconds": spent,
    }


def _read(folder: Path, right: Path) -> None:
    """Read until the writer has ended; leaves what was found in a file."""
    (store,) = [p.parent.relative_to(right) for p in right.rglob("store.json")]
    paths = list((right / "cache").rglob("*.npz"))
    maps = paths[0].parent.relative_to(right)
    values = _whole(right / store)
    digests = {path.name: _map(path.parent, path.name) for path in paths}
    reads, complete, wrong = 0, 0, []
    done = folder.parent / "done"
    while not (ended := done.exists()) or not reads:
        found, other = _look(folder / store, values)
        reads, complete, wrong = reads + 1, complete + found, wrong + other
        for name, right_one in digests.items():
            digest = _map(folder / maps, name)
            reads, complete = reads + 1, complete + (digest is not None)
            wrong += [] if digest in (None, right_one) else [name]
    assert ended
    found = {"reads": reads, "complete": complete, "wrong": wrong}
    (folder.parent / "found").write_text(json.dumps(found))


def _write(folder: Path) -> None:
    _extract(folder)
    kills._maps(folder)


def _whole(place: Path) -> dict:
    from cwr_utils.store import DiskStore

    store = DiskStore.open(place).require_complete()
    return {name: store.read(name) for name in store.arrays}


def _look(place: Path, right: dict) -> tuple[int, list[str]]:
    """Complete blocks that a reader sees, and arrays that are not the right ones."""
    from cwr_utils.store import DiskStore, StoreError

    found, wrong = 0, []
    try:
        store = DiskStore.open(place)
        missing = store.missing_blocks()
        for number, rows in enumerate(store.blocks):
            part = slice(rows.start, rows.stop)
            for name, values in right.items():
                try:
                    same = bool((store.read(name, part) == values[part]).all())
                    found += same
                    wrong += [] if same else [f"{name} of block {number}"]
                except StoreError:
                    if number not in missing:
                        raise
    except StoreError as error:
        if "No store at" not in str(error):
            wrong.append(f"a complete block: {error}")
    return found, wrong


def _map(folder: Path, name: str) -> str | None:
    from cwr_utils.extraction.maps import MapFiles

    maps = MapFiles(folder).read(name.removesuffix(".npz"))
    if maps is None:
        return None
    return hashlib.sha256(b"".join(array.tobytes() for array in maps)).hexdigest()


def main() -> int:
    """Both."""
    kills.imports()
    failures = fill()["failures"] + read()["failures"]
    print("\n".join(failures))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
