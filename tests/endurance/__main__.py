"""`make endurance`: what the workbook withstands, in at most 20 minutes on two cores.

    python tests/endurance [--scale 0.1]

Damaged files go through every door (`fuzz`) while work is killed and resumed (`kills`);
then disks fill and readers look on (`disk`). Seeds are fixed; moments are not, as they
are shares of the time that a run takes here. Figures go to results/runs/endurance.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import disk
import kills

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run the campaign; 1 if anything failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="share of the cases")
    parser.add_argument("--seconds", type=float, default=kills.SECONDS, help="a work")
    given, begun = parser.parse_args(), time.monotonic()
    scale = given.scale
    kills.imports()
    from cwr_utils.files import write_json
    from cwr_utils.runs import record

    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "fuzz.json")
        command = [sys.executable, str(HERE / "fuzz.py"), "--figures", str(found)]
        fuzz = subprocess.Popen([*command, "--scale", str(scale)])
        killed = kills.kill_all(kills.WORKS, scale, given.seconds)
        full, read = disk.fill(scale), disk.read(20 * scale)
        fuzz.wait()
        damaged = json.loads(found.read_text())
    parts = [*killed.values(), full, read, damaged]
    failures = [text for part in parts for text in part["failures"]]
    kinds = len(damaged["outcomes"])
    hits = {name: part["hit"] for name, part in killed.items()}
    rows = {
        "killed and resumed": ", ".join(f"{n} {hit}" for n, hit in hits.items()),
        "full disks": f"{full['cases']}, each resumed",
        "reads beside a writer": f"{read['reads']:,}, {read['complete']:,} complete",
        "damaged files": f"{damaged['cases']:,} of {kinds} kinds",
        "failures": str(len(failures)),
        "seconds": str(round(time.monotonic() - begun)),
    }
    print("\n" + "\n".join(f"{name:24}{value}" for name, value in rows.items()))
    print("\n".join(failures))
    content = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": record._commit(),
        "seconds": round(time.monotonic() - begun),
        "cores": os.cpu_count(),
        "kills": killed,
        "full_disk": full,
        "reader": read,
        "fuzz": damaged,
    }
    if scale >= 1:
        write_json(kills.ROOT / "results/runs/endurance/run.json", content)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
