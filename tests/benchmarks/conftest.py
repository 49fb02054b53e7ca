"""Two ways of doing the same work, timed in turns; `make bench` keeps the ratio.

Without ``--benchmark-enable`` every benchmark runs once at a tiny size, as a test.
Times are never asserted, results always.
"""

import json
import os
import re
import statistics
import time
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
from pytest_benchmark.plugin import get_cpu_info

RESULTS = Path(__file__).resolve().parents[2] / "results" / "runs" / "benchmarks"
VERSIONS = ["numpy", "keras", "tensorflow", "tensorstore", "opencv-python-headless"]


def pytest_configure(config):
    config.full_size = config.getoption("benchmark_enable", False)


@pytest.fixture(scope="session")
def full_size(pytestconfig):
    """Whether this is `make bench`."""
    return pytestconfig.full_size


@pytest.fixture
def compare(benchmark, full_size, request):
    """Time `ours` and `other` in turns: machines drift. Then write what came out."""

    def run(what, ours, other, *, rounds=5, target, names, before=None, **facts):
        """Write one comparison.

        Args:
            what: title of the row.
            ours: the function of this project.
            other: what it is compared with.
            rounds: repetitions of both.
            target: what the ratio ours / other should be, as text.
            names: of the two, for the table.
            before: called before each of both, not timed.
            facts: anything else that was measured; a function is called at the end.
        """
        times = []
        before = before or (lambda: None)

        def setup():
            before()
            start = time.perf_counter()
            other()
            times.append(time.perf_counter() - start)
            before()

        warm = int(full_size and rounds > 1)
        benchmark.pedantic(ours, setup=setup, rounds=rounds, warmup_rounds=warm)
        if not full_size:
            return
        mine = benchmark.stats.stats.data
        times = times[warm:]
        write(
            request.node.name,
            {
                "what": what,
                "target": target,
                "seconds": {
                    names[0]: {"best": min(mine), "median": statistics.median(mine)},
                    names[1]: {"best": min(times), "median": statistics.median(times)},
                },
                "ratio_of_medians": statistics.median(mine) / statistics.median(times),
                "ratio_of_bests": min(mine) / min(times),
                "rounds": rounds,
                **{k: v() if callable(v) else v for k, v in facts.items()},
            },
        )

    return run


@pytest.fixture
def measure(benchmark, full_size, request):
    """Run a function once that times itself, and write the facts that it returns."""

    def run(what, function, target=""):
        facts = benchmark.pedantic(function, rounds=1)
        if full_size:
            write(request.node.name, {"what": what, "target": target, **facts})
        return facts

    return run


def timed(function):
    """Seconds of a call, and what came out."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def seconds(function, rounds=1):
    """Best time of a function."""
    return min(timed(function)[0] for _ in range(rounds))


def forget(path):
    """Have the operating system drop the pages of all files in a folder."""
    for file in filter(Path.is_file, path.rglob("*")):
        number = os.open(file, os.O_RDONLY)
        os.fsync(number)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)


def write(name, facts):
    """One JSON file a benchmark, with the machine and the versions."""
    cpu = get_cpu_info()
    facts["machine"] = {"cpu": cpu.get("brand_raw"), "cores": cpu.get("count")}
    facts["versions"] = {name: metadata.version(name) for name in VERSIONS}
    facts["date"] = time.strftime("%Y-%m-%d")
    name = re.sub(r"\W+", "-", name.removeprefix("test_bench_")).strip("-")
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=1, default=float)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def pytest_sessionfinish(session):
    """One readable table of all files, those of earlier runs included."""
    if not session.config.full_size:
        return
    lines = ["# Benchmarks", "", "Written by `make bench`; one JSON file a row.", ""]
    lines += ["| what | times | ratio | target |", "|---|---|---:|---|"]
    others = []
    for path in sorted(RESULTS.glob("*.json")):
        facts = json.loads(path.read_text())
        if "seconds" in facts:
            times = "; ".join(
                f"{name} {_time(value['median'])}"
                for name, value in facts["seconds"].items()
            )
            row = [facts["what"], times, f"{facts['ratio_of_medians']:.3g}"]
            lines.append(f"| {' | '.join(row)} | {facts['target']} |")
        others += _details(path.stem, facts)
    machine = facts["machine"]
    lines += ["", f"Machine of the last: {machine['cpu']}, {machine['cores']} cores."]
    (RESULTS / "table.md").write_text("\n".join(lines + plan() + others) + "\n")


def plan():
    """What a collection of some size takes, from the files of this machine."""
    names = ["extraction-efficientnet-lite0-96", "extraction-vgg16-cam-12"]
    names += ["online_query_from_disk", "online_query_warm", "search-1"]
    names += ["search_of_a_million"]
    files = [RESULTS / f"{name}.json" for name in names]
    if not all(file.exists() for file in files):
        return []
    lite, vgg, disk, warm, search, million = (json.loads(f.read_text()) for f in files)
    each = [f["seconds"]["disk to store"]["median"] / f["photos"] for f in (lite, vgg)]
    online = [f["seconds"]["query"]["median"] / 5063 for f in (disk, warm)]
    offline = search["seconds"]["search"]["median"] / 105_063
    lines = ["", "## The plan for your size", ""]
    lines += ["D = 512, all 1,000 classes kept, one machine as below. *m*: measured at"]
    lines += [
        "this size; *e*: extrapolated in proportion from the measured rate. Store"
    ]
    lines += [
        "sizes are those of the class vectors, nearly all of it; `classes=64`, for"
    ]
    lines += ["offline aggregation only, makes that 0.064 of it."]
    lines += [
        "",
        "| | 1,000 | 5,063 | 105,063 | 1,000,000 |",
        "|---|---:|---:|---:|---:|",
    ]
    sizes = (1000, 5063, 105_063, 1_000_000)

    def row(title, cell):
        lines.append(f"| {title} | {' | '.join(map(cell, sizes))} |")

    for name, channels, rate in zip(
        ("EfficientNet-Lite0, block6a (672)", "VGG-16-CAM, conv5_1 (512)"),
        (672, 512),
        each,
        strict=True,
    ):
        row(f"{name}: store, GB *e*", lambda n, k=channels: f"{n * k * 2e-6:,.1f}")
        row(f"{name}: hours, CPU *e*", lambda n, r=rate: f"{n * r / 3600:,.1f}")
    row("VGG-16-CAM, conv5_1 (512): hours, GPU", _gpu_hours)
    row("descriptors in memory, float32, GB *e*", lambda n: f"{n * 2048e-9:,.2f}")
    # `OnlineIndex` keeps classes in 1 GiB, or one class, and needs sums and a result.
    row(
        "memory of an online query, 512 channels, GB *e*",
        lambda n: f"{max(1.07, n * 1024e-9) + n * 3 * 2048e-9:,.1f}",
    )
    row(
        "offline query, exact, one at a time",
        lambda n: (
            f"{_time(million['times']['1 queries, float32, s'])} *m*"
            if n == 1_000_000
            else f"{_time(n * offline)} *{'m' if n == 105_063 else 'e'}*"
        ),
    )
    # A query's 64 classes must fit into `cache_bytes` to be found in memory.
    for title, rate in zip(("from disk", "in memory"), online, strict=True):
        row(
            f"online query, 64 classes, 512 channels, {title}",
            lambda n, r=rate, memory=title == "in memory": (
                f"needs {n * 65_536e-9:,.0f} GB"
                if memory and n > 5063
                else f"{_time(n * r)} *{'m' if n == 5063 else 'e'}*"
            ),
        )
    return lines


def _gpu_hours(count):
    """Cell of the plan, from `test_bench_device` where that ran on a GPU."""
    file = RESULTS / "device.json"
    facts = json.loads(file.read_text()) if file.exists() else {"device": "cpu"}
    if facts["device"].startswith("cpu"):
        return "not measured"
    return f"{count / facts['photos a second']['end to end'] / 3600:,.1f} *e*"


def _time(value):
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def _details(name, facts):
    """The rest of a file as a list."""
    known = {"seconds", "ratio_of_medians", "ratio_of_bests", "rounds", "machine"}
    known |= {"versions", "date", "what", "target"}
    rest = {key: value for key, value in facts.items() if key not in known}
    if not rest:
        return []
    lines = ["", f"**{facts['what']}** ({name}.json)"]
    lines += [f"(target: {facts['target']})"] if facts["target"] else []
    lines.append("")
    tables = {key: rest.pop(key) for key in [*rest] if isinstance(rest[key], list)}
    for key, value in rest.items():
        text = f"{value:.4g}" if isinstance(value, float) else value
        if isinstance(value, dict):
            text = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in value.items()
            )
        lines.append(f"- {key.replace('_', ' ')}: {text}")
    for rows in tables.values():
        table = pd.DataFrame(rows).map(_cell)
        lines += ["", f"| {' | '.join(table)} |", "|---" * table.shape[1] + "|"]
        lines += [f"| {' | '.join(row)} |" for row in table.to_numpy()]
    return lines


def _cell(value):
    """A number as a table shows it; nothing where it was not measured."""
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else f"{value:.3g}"
