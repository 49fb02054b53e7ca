"""Sweeps: one notebook for every cell of a grid of parameters, through papermill.

Cells run in parallel, each worker's in one warm kernel: TensorFlow, the network, the
data and what was whitened stay loaded from cell to cell, the notebook's variables do
not. Extraction (notebook 2) comes first, once for each distinct setting. A cell is done
when its run.json has its parameters, so a sweep that was stopped goes on.
"""

import asyncio
import itertools
import json
import os
import re
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from tqdm.auto import tqdm

from cwr_utils import runs
from cwr_utils.runs import RunError

EXTRACT = "02_extract_features"
# What a sweep sets for each of its cells.
_CELL_FOLDERS = ("results_dir", "figures_dir")
_PARTS = ("notebooks", "jobs", "parameters", "grid", "cells")


@dataclass(frozen=True)
class Sweep:
    """Runs of the same notebooks with different parameters, from a YAML file.

    Attributes:
        name: of the file, and of the folder of the results.
        notebooks: to run for each cell, in order.
        jobs: cells at a time; None is one for each core.
        parameters: values that all cells share, unless a cell has its own.
        cells: cell name -> what is its own: each combination of the grid, then the
            cells that are listed one by one.
        fixed: parameters that cannot be overridden, because cells are named by them.
    """

    name: str
    notebooks: tuple[str, ...]
    jobs: int | None
    parameters: dict[str, Any]
    cells: dict[str, dict[str, Any]]
    fixed: frozenset[str]

    @classmethod
    def read(cls, path: str | Path) -> "Sweep":
        """Read notebooks/sweeps/<name>.yaml.

        Raises:
            RunError: if a notebook or parameter is unknown, a part is missing or of
                another kind, or two cells have the same name.
        """
        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RunError(f"Cannot read {path}: {error}") from error
        content = content if isinstance(content, dict) else {}
        notebooks, jobs = content.get("notebooks"), content.get("jobs")
        parameters = content.get("parameters") or {}
        grid, listed = content.get("grid", {}), content.get("cells") or []
        if not (
            isinstance(notebooks, list)
            and notebooks
            and (jobs is None or (type(jobs) is int and jobs > 0))
            and isinstance(parameters, dict)
            and isinstance(grid, dict)
            and all(isinstance(values, list) and values for values in grid.values())
            and isinstance(listed, list)
            and all(isinstance(cell, dict) and cell for cell in listed)
            and ("grid" in content or listed)
        ):
            raise RunError(
                f"{path} needs `notebooks`, a list, and `grid`, a list of values for "
                "each parameter, or `cells`, a list of mappings with one value for "
                "each parameter, or both; `parameters`, one value for each, and "
                "`jobs`, a number of cells at a time, may be there too."
            )
        own = [name for cell in listed for name in cell]
        names = [*content, *notebooks, *parameters, *grid, *own]
        known = [*_PARTS, *runs.NOTEBOOKS, *runs.SWEEP_NOTEBOOKS, *runs.PARAMETERS]
        unknown = [
            str(name) for name in names if name not in known or name in _CELL_FOLDERS
        ]
        if unknown:
            raise RunError(f"{path} names what no sweep takes: {', '.join(unknown)}.")
        if EXTRACT in notebooks:
            raise RunError(f"{path} lists {EXTRACT}, which runs first by itself.")
        combinations = [
            dict(zip(grid, values, strict=True))
            for values in itertools.product(*grid.values())
        ]
        chosen = [*(combinations if "grid" in content else []), *listed]
        cells = {_cell_name(cell): cell for cell in chosen}
        if len(cells) < len(chosen):
            raise RunError(f"{path}: two of its cells have the same cell name.")
        fixed = {*grid, *(set(own) - parameters.keys()), *_CELL_FOLDERS}
        return cls(
            path.stem, tuple(notebooks), jobs, parameters, cells, frozenset(fixed)
        )


def _cell_name(cell: Mapping[str, Any]) -> str:
    words = [f"{name}-{value}" for name, value in cell.items() if value is not None]
    return _file_name("_".join(words)) or "default"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)


def run_sweep(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    jobs: int | None = None,
    results: Path | None = None,
    figures: Path | None = None,
) -> list[str]:
    """Run every cell of a sweep that is not done; go on when one fails.

    Args:
        path: the YAML file.
        overrides: parameters for all cells, for example `data_root`. What a cell has
            of its own stays.
        jobs: cells at a time; what the file says, or one for each core, if None.
        results: folder of the sweep, results/<name> if None. Each cell has a folder in
            it; what extraction says goes to the folder `extraction` beside it.
        figures: folder for figures, laid out likewise; figures/<name> if None.

    Returns:
        One text a failure. The tables of all cells that are done are joined in
        <results>/metrics.csv.

    Raises:
        RunError: if the file is wrong, or overrides what makes a cell its own.
    """
    plan = Sweep.read(path)
    overrides = overrides or {}
    if own := sorted(overrides.keys() & plan.fixed):
        raise RunError(f"Each cell of {path} has its own {' and '.join(own)}.")
    results = Path(results or runs.ROOT / "results" / plan.name)
    figures = Path(figures or runs.ROOT / "figures" / plan.name)
    cells = {
        name: {
            **plan.parameters,
            **overrides,
            **own,
            "results_dir": _from_notebooks(results / name),
            "figures_dir": _from_notebooks(figures / name),
        }
        for name, own in plan.cells.items()
    }
    defaults = {name: runs.defaults(name) for name in (EXTRACT, *plan.notebooks)}
    expected = {name: defaults[name] for name in plan.notebooks}
    failures, done, todo = {}, [], []
    for name, parameters in cells.items():
        try:
            finished = _is_done(results / name, expected, parameters)
            (done if finished else todo).append(name)
        except RunError as error:
            failures[name] = error
    ready = {}
    for setting, names in _by_extraction(cells, todo, defaults[EXTRACT]):
        try:
            _extract(setting, defaults[EXTRACT], results.parent, figures.parent)
            ready |= {name: cells[name] for name in names}
        except RunError as error:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            failures[names[0] + others] = error
    total = len(done) + len(ready)
    with tqdm(total=total, initial=len(done), desc=plan.name, unit="cell") as bar:
        failed = _run_cells(plan.notebooks, ready, results, jobs or plan.jobs, bar)
    good = {*done, *ready} - failed.keys()
    _join(results, [name for name in cells if name in good])
    return [f"{name}: {error}" for name, error in (failures | failed).items()]


def _by_extraction(
    cells: Mapping[str, Mapping], names: Sequence[str], default: Mapping[str, Any]
) -> list[tuple[dict[str, Any], list[str]]]:
    """Settings of notebook 2, without folders, and the cells that need each."""
    groups: dict[str, list[str]] = {}
    for name in names:
        setting = {k: cells[name].get(k, v) for k, v in default.items()}
        setting = {k: v for k, v in setting.items() if k not in _CELL_FOLDERS}
        groups.setdefault(json.dumps(setting), []).append(name)
    return [(json.loads(text), names) for text, names in groups.items()]


def _extract(
    setting: Mapping[str, Any], default: Mapping, results: Path, figures: Path
) -> None:
    """Run notebook 2 with a setting, unless its stores are there."""
    recorded = [runs.recorded_value(name, value) for name, value in setting.items()]
    digest = sha256(json.dumps(recorded).encode()).hexdigest()
    words = (Path(setting["dataset"]).name, setting["network"], digest[:8])
    folder = Path("extraction", _file_name("-".join(words)))
    parameters = {
        **setting,
        "results_dir": _from_notebooks(results / folder),
        "figures_dir": _from_notebooks(figures / folder),
    }
    if not _is_extracted(results / folder, default, parameters):
        (results / folder / "run.json").unlink(missing_ok=True)
        runs.run_notebook(EXTRACT, parameters, results / folder / "executed")


def _is_extracted(folder: Path, default: Mapping, setting: Mapping) -> bool:
    """Whether notebook 2 ran with this setting, and its stores are still there."""
    if not _is_done(folder, {EXTRACT: default}, setting):
        return False
    recorded = runs.read_runs(folder / "run.json")[EXTRACT]
    cache = runs.ROOT / "notebooks" / setting["cache_dir"]
    return all((cache / store).exists() for store in recorded.get("stores", ["?"]))


def _run_cells(
    notebooks: Sequence[str],
    todo: Mapping[str, dict],
    results: Path,
    jobs: int | None,
    bar: tqdm,
) -> dict[str, RunError]:
    """Run cells in warm kernels."""
    cores = os.cpu_count() or 1
    jobs = min(jobs or cores, len(todo))
    waiting, running, failures = deque(todo), [], {}
    stopped = threading.Event()

    def work(kernel: WarmKernel) -> None:
        with kernel:
            while not stopped.is_set():
                try:
                    name = waiting.popleft()
                except IndexError:
                    return
                running.append(name)
                bar.set_postfix_str(", ".join(running))
                try:
                    _run_cell(notebooks, todo[name], results / name, kernel)
                except RunError as error:
                    failures[name] = error
                running.remove(name)
                bar.update()

    kernels = [WarmKernel(max(1, cores // jobs)) for _ in range(jobs)]
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        workers = [pool.submit(work, kernel) for kernel in kernels]
        try:
            wait(workers, return_when=FIRST_EXCEPTION)
            for worker in workers:
                worker.result()
        except BaseException:  # Ctrl-C, or a fault of ours in one worker
            stopped.set()
            while wait(workers, timeout=0.2).not_done:
                for kernel in kernels:
                    kernel.kill()
            raise
    return failures


def _run_cell(
    notebooks: Sequence[str], parameters: Mapping, folder: Path, kernel: "WarmKernel"
) -> None:
    # A cell that stops half-way must not pass for its earlier run.
    (folder / "run.json").unlink(missing_ok=True)
    for notebook in notebooks:
        kernel.run(notebook, parameters, folder / "executed")


def _join(results: Path, names: Sequence[str]) -> None:
    """Join the tables of cells; no table where there are none."""
    files = {name: results / name / "metrics.json" for name in names}
    tables = {
        name: runs.read_table(file) for name, file in files.items() if file.exists()
    }
    if tables:
        joined = pd.concat(tables, names=["cell", None]).reset_index("cell")
        runs.write_table(results / "metrics.csv", joined)
    else:
        (results / "metrics.csv").unlink(missing_ok=True)


def _is_done(
    folder: Path, expected: Mapping[str, Mapping], parameters: Mapping[str, Any]
) -> bool:
    """Whether run.json records all notebooks with these parameters and defaults."""
    recorded = runs.read_runs(folder / "run.json")
    return all(
        recorded.get(notebook, {}).get("parameters")
        == {
            name: runs.recorded_value(name, parameters.get(name, value))
            for name, value in defaults.items()
        }
        for notebook, defaults in expected.items()
    )


def _from_notebooks(folder: Path) -> str:
    """A folder as a parameter: in the project, from where the notebooks run."""
    folder, root = folder.resolve(), runs.ROOT.resolve()
    if folder.is_relative_to(root):
        return f"../{folder.relative_to(root).as_posix()}"
    return str(folder)


class WarmKernel:
    """One kernel for one notebook after another; a new one where it died.

    Modules stay loaded; variables, history and working folder are as in a new kernel.
    """

    def __init__(self, threads: int):
        """Nothing starts before the first notebook.

        Args:
            threads: of a matrix product or a forward pass.
        """
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
        self._environment = {**os.environ, **dict.fromkeys(names, str(threads))}
        self._client: PapermillNotebookClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> "WarmKernel":
        """Make a folder for the sockets."""
        self._sockets = tempfile.TemporaryDirectory(prefix="cwr-")
        return self

    def __exit__(self, *error) -> None:
        """End the kernel."""
        self.close()
        self._sockets.cleanup()
        if self._loop is not None:
            self._loop.close()

    def run(self, name: str, parameters: Mapping[str, Any], output: Path) -> None:
        """Run a notebook; arguments and errors are those of `runs.run_notebook`."""
        runs.run_notebook(
            name,
            parameters,
            output,
            engine_name=_ENGINE,
            warm=self,
            progress_bar=False,
        )

    def execute(self, notebook, kernel_name: str, resources: dict) -> None:
        """Execute a notebook, from the thread of the first one.

        Args:
            notebook: papermill's `NotebookExecutionManager`.
            kernel_name: of the kernel's specification.
            resources: of nbclient; the working folder is in it.

        Raises:
            RuntimeError: if the kernel dies.
        """
        last = self._client
        client = self._client = PapermillNotebookClient(
            notebook,
            km=last.km if last else None,
            kernel_name=kernel_name,
            resources=resources,
            shutdown_kernel="immediate",
            config=runs.kernel_config(self._sockets.name),
        )
        client.kc = last.kc if last else None
        folder = resources["metadata"]["path"]
        reset = f"import os; os.chdir({folder!r}); get_ipython().reset()"
        try:
            with client.setup_kernel(cleanup_kc=False, env=self._environment):
                self._loop = asyncio.get_event_loop()  # nbclient's, of this thread
                channels: Any = client.kc
                client.wait_for_reply(channels.execute(reset, silent=True))
                client.execute(cleanup_kc=False)
        except RuntimeError:
            self.close()
            raise

    def kill(self) -> None:
        """End the kernel at once, from any thread; what it runs fails."""
        manager = self._client and self._client.km
        process = manager and manager.provisioner
        if process and process.pid:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the kernel; the next notebook starts another one."""
        client, self._client = self._client, None
        if client is not None and client.kc is not None:
            with client.setup_kernel(cleanup_kc=True):
                pass


class _WarmEngine(NBClientEngine):
    """Papermill's engine for a `WarmKernel`."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man, kernel_name, *, warm, resources, **options
    ):
        warm.execute(nb_man, kernel_name, resources)


_ENGINE = "cwr_warm_kernel"
papermill_engines.register(_ENGINE, _WarmEngine)
