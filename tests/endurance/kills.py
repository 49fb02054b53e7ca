"""kill -9 in the middle of the work, the same command again, and nothing may differ.

A driver imports everything once; each run is a fork of it, which the driver kills after
a share of the time that a whole run took. The notebooks of a sweep are executed inside
that process, cell by cell as they are, because starting a kernel takes longer than all
that it does here; "command" is the real one, with kernels, and killed twice.
"""

import contextlib
import dataclasses
import faulthandler
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

CLASSES = 80  # the paper's tables ask for 64
PLAN = """\
notebooks: [method_table]
jobs: 1
parameters: {num_whitening_classes: 2, dimensions: 8, rerank_classes: 2}
grid: {power: [1.0, 2.0]}
rows:
  - {aggregation: online, num_classes: 4}
  - {aggregation: offline, num_classes: 4, rerank: 4}
"""
# Of the paper's sweeps: small photos, curves of two points, no seconds, which differ.
SHORTER = {
    r"resize: .*": "resize: 96x72",
    r"num_whitening_classes: \[.*": "num_whitening_classes: [1, 16]",
    r"num_classes: \[1, .*": "num_classes: [1, 4]",
    r"timed: true": "timed: false",
}
# Of a run rather than of what was computed.
VOLATILE = {"finished", "seconds", "peak_memory_mib", "commit", "seconds_query"}
COMMON = ["-p", "whitening_dataset=training", "-p", "resize=64x48"]
SWEEP = ["sweep", "plan.yaml", "-p", "dataset=photos", *COMMON]
SECONDS = 420  # for one kind of work
HANGS = 300  # seconds after which a run counts as hanging; its stacks come before


@dataclasses.dataclass(frozen=True)
class Work:
    """What is killed.

    Attributes:
        kills: how often.
        run: does all of it in a folder, which has photos/ and training/.
        results: what it leaves, as JSON or bytes by name; volatile values left out.
    """

    kills: int
    run: Callable[[Path], None]
    results: Callable[[Path], dict]


def kill_all(works: dict[str, Work], scale: float, limit: float) -> dict:
    """Kill and resume each work.

    Args:
        works: by name.
        scale: share of the kills.
        limit: seconds for each work; kills that do not fit are not tried.

    Returns:
        Figures: by work `kills`, `hit` (those that ended a process), `failures`,
        `leftovers` (temporary files that a killed process left) and `seconds`.
    """
    return {name: _kill(name, work, scale, limit) for name, work in works.items()}


def _kill(name: str, work: Work, scale: float, limit: float) -> dict:
    begun = time.monotonic()
    failures, hit, leftovers = [], 0, 0
    rng = random.Random(zlib.crc32(name.encode()))
    count = max(1, round(work.kills * scale))
    # One moment in each part of the run, so that they are spread over all of it.
    timed = count - count // 4
    shares = [(number + rng.random()) / timed for number in range(timed)]
    with tempfile.TemporaryDirectory(prefix="kill-") as place:
        template, folder = Path(place, "template"), Path(place, "run")
        template.mkdir()
        Path(place, "files").write_text("1")
        _prepare(template)

        def fresh():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(template, folder)

        fresh()
        seconds = _run(work, folder)
        right = work.results(folder)
        if seconds < 20:  # the first run warms caches
            fresh()
            seconds = min(seconds, _run(work, folder))
            _compare(work.results(folder), right)
        files = int(Path(place, "files").read_text())
        moments = [{"seconds": share * seconds} for share in shares]
        moments += [{"file": rng.randrange(files)} for _ in range(count // 4)]
        for tried, moment in enumerate(moments):
            if time.monotonic() - begun > limit:
                count = tried
                break
            ended = 0.0
            while ended is not None:  # or it was quicker than before
                fresh()
                ended = _run(work, folder, **moment)
                if ended is not None and "seconds" in moment:
                    moment["seconds"] *= min(0.9, ended / seconds)
                elif ended is not None:
                    break
            hit += ended is None
            leftovers += len(_temporary(folder))
            try:
                _run(work, folder)
                _compare(work.results(folder), right)
                left = left_behind(folder)
                assert not left, f"left behind: {left}"
            except (AssertionError, RuntimeError) as error:
                failures.append(f"{name}, killed at {moment}: {error}")
    told = f"{hit} of {count} killed, {len(failures)} failures, {seconds:.1f} s a run"
    print(f"  {name:20} {told}, {leftovers} temporary files left", flush=True)
    return {
        "kills": count,
        "hit": hit,
        "failures": failures,
        "leftovers": leftovers,
        "seconds": round(time.monotonic() - begun),
    }


def _prepare(folder: Path) -> None:
    """Photos of four places, other ones to fit whitening on, and a plan."""
    import tiny

    for name, places, first in (("photos", 3, 0), ("training", 4, 50)):
        data = tiny.dataset(folder / name, places=places, views=4, first_place=first)
        lines = [f"{image}.png,{image.split('_')[0]}\n" for image in data.images]
        lines = [line for line in lines if not line.startswith("other")]
        (folder / name / "groups.csv").write_text("image,group\n" + "".join(lines))
    (folder / "plan.yaml").write_text(PLAN)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for file in (folder / "notebooks/sweeps").glob("*.yaml"):
        text = file.read_text()
        for old, new in SHORTER.items():
            text = re.sub(old, new, text)
        file.write_text(text)


def _run(work: Work, folder: Path, seconds: float = 0, file: int = -1) -> float | None:
    """Do the work in a fork; its seconds, or None if it was killed.

    Args:
        work: what to do.
        folder: where.
        seconds: after which it is killed; 0 is never.
        file: number of the one before whose appearance it is killed.

    Raises:
        RuntimeError: if it fails.
    """
    begun, log = time.monotonic(), folder.parent / "log"

    def do() -> None:
        os.chdir(folder)
        count = _count_files(file)
        work.run(folder)
        (folder.parent / "files").write_text(str(next(count)))

    child = fork(do, log)
    status, limit = None, seconds or HANGS
    while status is None and time.monotonic() - begun < limit:
        time.sleep(0.005)
        ended, code = os.waitpid(child, os.WNOHANG)
        status = code if ended else None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    said = log.read_text(errors="replace")[-5000:]
    if status is None:
        os.waitpid(child, 0)
        if not seconds:
            raise RuntimeError(f"it hangs: {said}")
    elif status == 0:
        return time.monotonic() - begun
    elif file < 0 or status != signal.SIGKILL:
        raise RuntimeError(f"it failed: {said}")
    return None


def fork(work: Callable[[], None], log: Path) -> int:
    """Start work in a fork, as a process group of its own; its process id.

    Args:
        work: what to do; the process then ends with 0, or with 1 after an error.
        log: for what it says, errors and, after most of `HANGS`, its stacks.

    Raises:
        RuntimeError: if this process has a second thread. The fork would not have it,
            but every lock that it held, for ever.
    """
    threads = Path("/proc/self/task")  # those of libraries too
    if threads.exists() and (count := len(os.listdir(threads))) > 1:
        raise RuntimeError(f"Only a process of one thread may fork; this has {count}.")
    child = os.fork()
    if child:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(child, child)  # whichever of the two comes first
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        with log.open("wb") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        faulthandler.dump_traceback_later(0.9 * HANGS)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def left_behind(place: Path, patience: float = 10) -> list[str]:
    """Processes that still work below a folder after so many seconds.

    Not those of a process group: kernels have their own, and end when they notice that
    nobody is there.
    """
    begun = time.monotonic()
    while found := list(_below(place.resolve())):
        if time.monotonic() - begun > patience:
            break
        time.sleep(0.1)
    return found


def _below(place: Path):
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if (process / "cwd").readlink().is_relative_to(place):
                command = (process / "cmdline").read_text().replace("\0", " ")
                yield f"{process.name} ({command})"


def _count_files(last: int):
    """Count files and folders that appear whole, and die before one of them does."""
    numbers, replace = itertools.count(), os.replace

    def replacing(*arguments):
        if next(numbers) == last:
            os.killpg(0, signal.SIGKILL)
        replace(*arguments)

    os.replace = replacing
    return numbers


def _temporary(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.endswith((".part", ".__lock"))]


def _compare(found: dict, right: dict) -> None:
    assert found.keys() == right.keys(), f"files {sorted(found.keys() ^ right.keys())}"
    differ = [name for name in right if found[name] != right[name]]
    assert not differ, f"other content: {differ}"


def files_of(*parts: str):
    """Digests of the files of some folders; tables without what is volatile."""

    def results(folder: Path) -> dict:
        found = {}
        for path in sorted(p for part in parts for p in (folder / part).rglob("*")):
            name = str(path.relative_to(folder))
            temporary = any(part.startswith(".") for part in path.parts[-2:])
            if path.is_dir() or temporary or path.name.endswith(".__lock"):
                continue
            # Times of runs, and when each photo was last changed.
            of_times = path.name in ("extraction.csv", "files.json")
            if "executed" in path.parts or of_times:
                continue
            found[name] = hashlib.sha256(_steady(path)).hexdigest()
        return found

    return results


def _steady(path: Path) -> bytes:
    if path.suffix == ".json":
        return json.dumps(_without(json.loads(path.read_text()))).encode()
    if path.name == "metrics.csv":
        import pandas as pd

        return (
            pd.read_csv(path, dtype=str)
            .drop(columns=VOLATILE, errors="ignore")
            .to_csv()
            .encode()
        )
    return path.read_bytes()


def _without(content):
    if isinstance(content, dict):
        return {k: _without(v) for k, v in content.items() if k not in VOLATILE}
    if isinstance(content, list):
        return [_without(item) for item in content]
    return content


# What is killed


def _project(folder: Path) -> None:
    """This process works in a project of its own, with a small network.

    Figures are coarse: drawing would take most of the time and is not compared.
    """
    import tiny

    from cwr_utils import networks
    from cwr_utils.figures import style
    from cwr_utils.runs import notebook, source

    style.PHOTO_DPI = style.STYLE["savefig.dpi"] = 20
    tiny.CLASSES = CLASSES
    source.ROOT = folder
    networks.load = lambda *_, **__: tiny.network()
    notebook.run_notebook = _execute


def _execute(name, parameters, output, threads=0):
    """The code cells of a notebook, one after another, in this process."""
    import matplotlib.pyplot as plt

    from cwr_utils.runs import source

    known = source.defaults(name)
    chosen = {k: source.typed(k, v) for k, v in parameters.items() if k in known}
    cells = json.loads(source.path(name).read_text())["cells"]
    namespace: dict = {"__name__": "notebook", **known, **chosen}
    for cell in [cell for cell in cells if cell["cell_type"] == "code"][1:]:
        exec("".join(cell["source"]), namespace)
        plt.close("all")


def _sweep(folder: Path) -> None:
    _project(folder)
    from cwr_utils import __main__ as command

    assert command.main(SWEEP) == 0


def _command(folder: Path) -> None:
    """The real one, of a copy of the package, which has its results beside it.

    Its kernels are in sessions of their own: they outlive it for a moment, and the next
    run begins beside them.
    """
    if not (folder / "cwr_utils").exists():
        shutil.copytree(ROOT / "cwr_utils", folder / "cwr_utils")
    # Sockets of kernels stay where they are when nobody is left to remove them.
    own = {"PYTHONPATH": str(folder), "TMPDIR": str(folder.parent)}
    command = [sys.executable, "-m", "cwr_utils", *SWEEP]
    os.execve(sys.executable, command, {**os.environ, **own})


def _paper(folder: Path) -> None:
    _project(folder)
    from cwr_utils import __main__ as command

    arguments = ["paper", "--dataset", "photos", "--network", "tiny"]
    assert command.main([*arguments, "--whitening", "training", "-j", "1"]) == 0


def _index(folder: Path) -> None:
    import tiny

    from cwr_utils import search

    found = search.index(
        folder / "photos",
        whitening=folder / "training",
        network=tiny.network(),
        resize="64x48",
        cache_dir=folder / "cache",
    )
    answer = found.search("place0_0.png")
    (folder / "answer").mkdir(exist_ok=True)
    (folder / "answer/ranking.csv").write_text(answer.table.to_csv())


def _maps(folder: Path) -> None:
    import tiny

    from cwr_utils import datasets
    from cwr_utils.extraction import ImageMaps

    data = datasets.load(str(folder / "photos"))
    maps = ImageMaps(data, tiny.setup(folder / "cache"), cache_bytes=1)
    digest = hashlib.sha256()
    for features, cam_maps in maps.many(data.images):
        digest.update(features.tobytes() + cam_maps.tobytes())
    (folder / "cache/all.txt").write_text(digest.hexdigest())


WORKS = {
    "sweep": Work(20, _sweep, files_of("cache", "results")),
    "index": Work(20, _index, files_of("cache", "answer")),
    "paper": Work(20, _paper, files_of("cache", "results")),
    "command": Work(2, _command, files_of("cache", "results")),
    "maps": Work(20, _maps, files_of("cache")),
}


def main() -> int:
    """Kill those that are named, or all."""
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("works", nargs="*")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args()
    imports()
    chosen = {name: WORKS[name] for name in given.works or WORKS}
    figures = kill_all(chosen, given.scale, given.seconds)
    failures = [text for figure in figures.values() for text in figure["failures"]]
    print("\n".join(failures))
    return int(bool(failures))


def imports() -> None:
    """Before any fork, so that none of them spends seconds on it; computes nothing.

    TensorFlow and TensorStore begin no thread before they compute. BLAS would, so it
    has one in each fork.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import cwr_utils.__main__
    import cwr_utils.search  # noqa: F401

    del os.environ["OPENBLAS_NUM_THREADS"]  # other commands have theirs


if __name__ == "__main__":
    sys.exit(main())
