"""Damaged files through every door, in child processes that may die of it.

    python tests/endurance/fuzz.py [DOOR ...] [--scale 0.1]

A case is known by its door and number, which seed it: `--only 17` runs it alone.
"""

import argparse
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from doors import DOORS

HERE = Path(__file__).resolve()
SECONDS = 30  # that a case may take, on a busy machine
# What no damaged file may make the program do.
FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn"),
    *("subprocess.Popen", "socket.connect", "socket.getaddrinfo", "pickle.find_class"),
)


def fuzz(names=(), scale: float = 1.0, only: int | None = None) -> dict:
    """Run all cases of the doors.

    Returns:
        Figures: `cases`, `failures` (texts), `outcomes` by door, `seconds`.
    """
    begun, failures, outcomes = time.monotonic(), [], {}
    for name in names or DOORS:
        count = max(1, round(DOORS[name].cases * scale))
        first, last = (only, only + 1) if only is not None else (0, count)
        found: Counter = Counter()
        started = time.monotonic()
        while first < last:
            first, died = _run_child(name, first, last, found, failures)
            if died:
                failures.append(f"{name} {first - 1}: {died}")
        outcomes[name] = dict(found)
        spent = time.monotonic() - started
        print(
            f"  {name:12} {sum(found.values()):6,} {dict(found)} {spent:.0f} s",
            flush=True,
        )
    cases = sum(sum(found.values()) for found in outcomes.values())
    return {
        "cases": cases,
        "failures": failures,
        "outcomes": outcomes,
        "seconds": round(time.monotonic() - begun),
    }


def _run_child(name, first, last, found, failures) -> tuple[int, str]:
    """Cases from `first` on, in one process; the next case, and what it died of."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        command = [sys.executable, str(HERE), "--child", name, str(first), str(last)]
        errors = open(Path(folder, "stderr"), "w+b")  # noqa: SIM115
        child = subprocess.Popen(
            [*command, folder],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
        )
        number, done, event = first, False, {}
        for line in child.stdout:
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            if "begun" in event:
                number = event["begun"]
                done = number == last
                continue
            found[event["outcome"]] += 1
            if event["outcome"] == "FAILED":
                failures.append(f"{name} {number}: {event['why']}")
        child.wait()
        errors.seek(0)
        said = errors.read()[-2000:].decode(errors="replace")
        errors.close()
        if done and child.returncode == 0:
            return last, ""
        if "begun" not in event:
            raise RuntimeError(f"{name} cannot be prepared:\n{said}")
        found["DIED"] += 1
        return number + 1, f"the process ended with {child.returncode}\n{said}"


def _child(name: str, first: int, last: int, folder: Path) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    faulthandler.enable()
    warnings.simplefilter("ignore")
    door, ran = DOORS[name], []
    (folder / "work").mkdir()
    files, attempt = door.prepare(folder / "work")

    def watch(event, arguments):
        if watching and event in FORBIDDEN:
            ran.append(f"{event} {arguments!r:.100}")

    watching = False
    sys.addaudithook(watch)
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGALRM, _too_long)
    names = list(files)
    for number in range(first, last):
        print(json.dumps({"begun": number}), file=say)
        rng = np.random.default_rng([zlib.crc32(name.encode()), number])
        chosen = names[rng.integers(len(names))]
        path = folder / "work" / chosen
        path.write_bytes(door.mutate(files[chosen], list(files.values()), rng))
        event = {}
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
        signal.alarm(SECONDS)
        watching = True
        try:
            event["outcome"] = attempt(path, rng)
        except BaseException as error:
            event = {"outcome": "FAILED", "why": f"{chosen}: {_tell(error)}"}
        finally:
            watching = False
            signal.alarm(0)
        if ran or (folder / "ran").exists():
            event = {"outcome": "FAILED", "why": f"{chosen} ran {ran}"}
            ran.clear()
        print(json.dumps(event), file=say)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"begun": last}), file=say)


def _tell(error: BaseException) -> str:
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-4:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(last))
    return f"{type(error).__name__}: {str(error)[:300]} [{where}]"


def _too_long(signum, frame):
    raise TimeoutError(f"more than {SECONDS} s")


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        name, first, last, folder = sys.argv[2:]
        _child(name, int(first), int(last), Path(folder))
        return 0
    parser = argparse.ArgumentParser()
    parser.add_argument("doors", nargs="*")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--figures", type=Path)
    given = parser.parse_args()
    figures = fuzz(given.doors, given.scale, given.only)
    if given.figures:
        given.figures.write_text(json.dumps(figures))
    print("\n".join(figures["failures"]))
    print(f"{figures['cases']:,} cases, {len(figures['failures'])} failures")
    return int(bool(figures["failures"]))


if __name__ == "__main__":
    sys.exit(main())
