"""Sweeps: the same notebooks for every cell of a grid of parameters.

A cell is one run of each notebook, in a kernel of its own; points of a curve and rows
of a table are no cells but methods inside one run. Extraction (notebook 2) comes first,
once for each distinct setting. A cell is done when what is on record has the identity
that its run would have now: a sweep that was stopped goes on, and one whose photos,
ground truth, weights or notebooks changed runs again.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from cwr_utils import files, identity
from cwr_utils.retrieval import Collection, Experiment
from cwr_utils.runs import notebook, record, source, tables
from cwr_utils.runs.grid import Sweep
from cwr_utils.runs.source import EXTRACT, RunError
from cwr_utils.runs.workbench import Loader
from cwr_utils.store import StoreError


@dataclass(frozen=True)
class _Cell:
    """Notebooks to run with folders of their own, and what would be on record now.

    Attributes:
        place: in results/runs and figures/runs.
        parameters: of its notebooks, but for the folders.
        expected: notebook -> facts.
    """

    place: Path
    parameters: dict[str, Any]
    expected: dict[str, dict[str, Any]]

    @property
    def results(self) -> Path:
        """Folder of its tables and record."""
        return source.ROOT / "results/runs" / self.place

    def is_done(self) -> bool:
        """Whether its notebooks are on record as they would be now."""
        runs = record.read_runs(self.results / "run.json")
        return all(
            runs.get(name, {}).get("identity") == identity.digest(facts)
            for name, facts in self.expected.items()
        )

    def run(self, threads: int = 0) -> None:
        """Run its notebooks.

        Raises:
            RunError: if one fails, or what they read has changed meanwhile.
        """
        # A cell that stops half-way must not pass for its earlier run.
        (self.results / "run.json").unlink(missing_ok=True)
        parameters = self.parameters | record.folders({}, self.place.as_posix())
        for name, facts in self.expected.items():
            executed = self.results / "executed"
            notebook.run_notebook(name, parameters, executed, threads)
            there = record.read_runs(self.results / "run.json")[name]["facts"]
            if changed := identity.differences(there, facts):
                raise RunError(f"{name} did not run as planned: {'; '.join(changed)}.")


def run_sweep(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    jobs: int | None = None,
    place: str | Path | None = None,
) -> list[str]:
    """Run every cell of a sweep that is not done; go on when one fails.

    Args:
        path: the YAML file.
        overrides: parameters for all cells, for example `data_root`. What a cell has
            of its own stays.
        jobs: cells at a time; what the file says, or one for each core, if None.
        place: of the sweep in results/runs and figures/runs, its name if None. Each
            cell has a folder in it; what extraction says goes to the folder
            `extraction` beside it.

    Returns:
        One text a failure. The tables of all cells that are done are joined in
        metrics.csv.

    Raises:
        RunError: if the file is wrong, or overrides what makes a cell its own.
    """
    # Kernels side by side share a GPU, also with this process, which only looks.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    plan, place = Sweep.read(path, overrides or {}), Path(place or Path(path).stem)
    failures: dict[str, Exception] = {}
    cells = _prepare(plan, place, failures)
    todo = [name for name, cell in cells.items() if not cell.is_done()]
    cores = os.cpu_count() or 1
    jobs = min(jobs or plan.jobs or cores, max(1, len(todo)))

    def attempt(name: str) -> None:
        with _noted(failures, name):
            cells[name].run(max(1, cores // jobs))

    tasks = {name: partial(attempt, name) for name in todo}
    notebook.side_by_side(tasks, jobs, place.name)
    good = {name: cell.results for name, cell in cells.items() if name not in failures}
    _join(good, source.ROOT / "results/runs" / place / "metrics.csv")
    return [f"{name}: {error}" for name, error in failures.items()]


def report(place: str | Path, begun: float) -> None:
    """Print the table of a sweep, how long it took and where everything is.

    Args:
        place: of the sweep in results/runs and figures/runs.
        begun: seconds of the monotonic clock.
    """
    results = source.ROOT / "results/runs" / place
    figures = source.ROOT / "figures/runs" / place
    path = results / "metrics.csv"
    table = tables.read_table(path) if path.exists() else None
    places = {"all rows": path} if table is not None else {}
    places |= {"a folder a cell": results, "figures": figures}
    tables.report(table, places, begun)


def _prepare(plan: Sweep, place: Path, failures: dict) -> dict[str, _Cell]:
    """The cells whose stores are there, which are described if need be."""
    loader, groups, cells = Loader(), {}, {}
    for name, parameters in plan.cells.items():
        setting = source.complete(EXTRACT, parameters)
        key = json.dumps([v for k, v in setting.items() if k not in source.FOLDERS])
        groups.setdefault(key, (setting, {}))[1][name] = parameters
    for setting, group in groups.values():
        new = []
        with _noted(failures, *group):
            experiment = loader.experiment(setting)
            for name, parameters in group.items():
                expected = _facts(plan.notebooks, parameters, experiment)
                cell = _Cell(place / name, parameters, expected)
                with _noted(failures, name):
                    for used in plan.notebooks:
                        loader.experiment(source.complete(used, parameters))
                    new += [] if cell.is_done() else [name]
                    cells[name] = cell
        with _noted(failures, *new):
            if new:
                _extract(setting, experiment, place.parent / "extraction")
    return {name: cell for name, cell in cells.items() if name not in failures}


def _facts(notebooks: Sequence[str], parameters: Mapping, experiment: Experiment):
    return {
        name: record.facts(name, source.complete(name, parameters), experiment.facts)
        for name in notebooks
    }


def _extract(setting: Mapping[str, Any], experiment: Experiment, place: Path) -> None:
    """Run notebook 2, unless it ran on the same and its stores are whole."""
    expected = _facts([EXTRACT], setting, experiment)
    digest = identity.digest(expected[EXTRACT])
    words = record.label(setting["dataset"]), experiment.setup.network.name, digest[:8]
    name = files.file_name("-".join(words))
    cell = _Cell(place / name, dict(setting), expected)
    with suppress(StoreError):
        Collection.open(experiment)
        if cell.is_done():
            return
    cell.run()


@contextmanager
def _noted(failures: dict[str, Exception], *names: str) -> Iterator[None]:
    """Note an error that says what to do as the failure of cells, and go on."""
    try:
        yield
    except (RunError, StoreError, ValueError) as error:
        failures |= dict.fromkeys(names, error)


def _join(folders: Mapping[str, Path], path: Path) -> None:
    """Join the tables of cells; no table where there are none."""
    paths = {name: folder / "metrics.json" for name, folder in folders.items()}
    found = {n: tables.read_table(file) for n, file in paths.items() if file.exists()}
    if found:
        joined = pd.concat(found, names=["cell", None]).reset_index("cell")
        tables.write_table(path, joined)
    else:
        path.unlink(missing_ok=True)
