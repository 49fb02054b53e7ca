"""All notebooks on one data set: the demo, a run of one's own, what is published."""

import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cwr_utils import datasets
from cwr_utils.runs import notebook, record, source, tables
from cwr_utils.runs.source import NOTEBOOKS, SWEEP_NOTEBOOKS, RunError

# Notebook -> those whose files it reads. The demo runs two at a time, as a notebook
# spends half of its time starting up, in this order: what others wait for comes first.
READS = {
    NOTEBOOKS[2]: (),
    NOTEBOOKS[0]: (),
    NOTEBOOKS[4]: NOTEBOOKS[2:3],
    NOTEBOOKS[3]: NOTEBOOKS[2:3],
    NOTEBOOKS[1]: (),
    NOTEBOOKS[6]: NOTEBOOKS[2:3],
    NOTEBOOKS[5]: NOTEBOOKS[3:5],
}
SIDE_BY_SIDE = 2
# Demo -> where its whitening is fitted.
WHITENING = {"monuments": "monuments_whitening", "street": "street"}


def run(
    notebooks: Sequence[str],
    parameters: Mapping[str, Any],
    executed: str | Path | None = None,
) -> None:
    """Run notebooks one after another, and say what came out.

    What can be known before is checked before the first one.

    Args:
        notebooks: their names.
        parameters: for all of them, which share their folders; paths are absolute, as
            `source.parse` makes them.
        executed: folder for the executed notebooks; beside the results if None.

    Raises:
        RunError: if the parameters name what is not there or cannot be, or a notebook
            fails.
    """
    from cwr_utils.runs.workbench import Loader  # which loads Keras

    begun = time.monotonic()
    loader = Loader()
    for name in notebooks:
        loader.check(name, parameters)
    parameters = {**parameters, **record.folders(parameters)}
    executed = Path(executed or source.place(parameters["results_dir"]) / "executed")
    for name in notebooks:
        notebook.run_notebook(name, parameters, executed)
    tabled = {NOTEBOOKS[4], *SWEEP_NOTEBOOKS} & {*notebooks}
    _report(parameters, executed, begun, bool(tabled))


def demo(limit: int = 0) -> None:
    """Run all notebooks on the embedded photographs and say what came out.

    Args:
        limit: photos of a slice for a quick run; 0 is all.
    """
    begun = time.monotonic()
    # Two notebooks share the cores: more threads would only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    parameters = {**preset(), "limit": limit}
    # Fetched here, once: two notebooks would both do it.
    datasets.load(parameters["whitening_dataset"], source.ROOT / "data")
    parameters |= record.folders(parameters)
    executed = source.place(parameters["results_dir"]) / "executed"
    tasks = {n: partial(notebook.run_notebook, n, parameters, executed) for n in READS}
    notebook.side_by_side(tasks, SIDE_BY_SIDE, "notebooks", READS)
    _report(parameters, executed, begun)


def _report(
    parameters: Mapping[str, Any], executed: Path, begun: float, tabled: bool = True
) -> None:
    results, figures = (source.place(parameters[name]) for name in source.FOLDERS)
    table = tables.read_table(results / "metrics.json") if tabled else None
    places = {"tables": results, "figures": figures, "executed notebooks": executed}
    tables.report(table, places, begun)


def preset() -> dict[str, Any]:
    """The parameters of the demo that can be had here."""
    name = datasets.load_demo(source.ROOT / "data").name
    return {"dataset": name, "whitening_dataset": WHITENING[name]}


def publish(names: Sequence[str] = ()) -> None:
    """Copy finished runs to where they are under version control.

    Folders of a run are called as in results/runs, but for the digits that tell two
    folders of one name apart.

    Args:
        names: of folders in results/runs; if there is none, the demo is run and
            published with its executed notebooks.

    Raises:
        RunError: if there is no such run, or it is not finished.
    """
    if not names:
        demo()
        names = [record.run_name(preset())]
        executed = source.ROOT / "results/runs" / names[0] / "executed"
        _copy(executed, source.ROOT / "results/executed" / names[0])
    for name in names:
        results = source.ROOT / "results/runs" / name
        finished = ("run.json", "metrics.csv", "table.md")  # the last of benchmarks
        if not any((results / file).exists() for file in finished):
            raise RunError(f"No finished run is in {results}.")
        shown = re.sub(r"-[0-9a-f]{8}(?![^-_/])", "", name)
        for part in ("results", "figures"):
            _copy(source.ROOT / part / "runs" / name, source.ROOT / part / shown)


def _copy(place: Path, target: Path) -> None:
    """Copy a folder but for rankings and executed notebooks, over what is there."""
    if place.exists():
        others = shutil.ignore_patterns("rankings", "executed", ".*")
        shutil.copytree(place, target, ignore=others, dirs_exist_ok=True)
