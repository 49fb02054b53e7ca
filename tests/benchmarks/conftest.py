"""Two ways of doing the same work, timed in turns; `make bench` keeps the ratio.

Without ``--benchmark-enable`` every benchmark runs once at a tiny size, as a test.
Times are never asserted, results always.
"""

import json
import re
import statistics
import time
from importlib import metadata
from pathlib import Path

import pytest
from pytest_benchmark.plugin import get_cpu_info

RESULTS = Path(__file__).resolve().parents[2] / "results" / "benchmarks"
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

    def run(what, ours, other, *, rounds=5, target, names=("ours", "other"), **facts):
        """Write one comparison.

        Args:
            what: title of the row.
            ours: the function of this project.
            other: what it is compared with.
            rounds: repetitions of both.
            target: what the ratio ours / other should be, as text.
            names: of the two, for the table.
            facts: anything else that was measured; a function is called at the end.
        """
        times = []

        def setup():
            start = time.perf_counter()
            other()
            times.append(time.perf_counter() - start)

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


def seconds(function, rounds=1):
    """Best time of a function."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


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
    (RESULTS / "table.md").write_text("\n".join(lines + others) + "\n")


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
    for key, value in rest.items():
        text = f"{value:.4g}" if isinstance(value, float) else value
        if isinstance(value, dict):
            text = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in value.items()
            )
        lines.append(f"- {key.replace('_', ' ')}: {text}")
    return lines
