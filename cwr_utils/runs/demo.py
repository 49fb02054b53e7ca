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
from cwr_utils.runs.source import NOTEBOOKS, RunError

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
    """Run notebooks one after another.

    Args:
        notebooks: their names.
        parameters: for all of them, which share their folders.
        executed: folder for the executed notebooks; beside the results if None.
    """
    parameters = {**parameters, **record.folders(parameters)}
    results = source.place(parameters["results_dir"])
    for name in notebooks:
        notebook.run_notebook(name, parameters, executed or results / "executed")


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
    results, figures = (source.place(parameters[name]) for name in source.FOLDERS)
    tasks = {
        n: partial(notebook.run_notebook, n, parameters, results / "executed")
        for n in READS
    }
    notebook.side_by_side(tasks, SIDE_BY_SIDE, "notebooks", READS)
    table = tables.read_table(results / "metrics.json")
    used = sorted(set(table["whitening"]) - {""})
    print(f"\n{table['note'][0]}\nwhitening: {', '.join(used) or 'none'}\n")
    print(tables.format_table(table).to_string(index=False))
    print(
        f"\n{time.monotonic() - begun:.0f} s. Tables and executed notebooks: "
        f"{os.path.relpath(results)}   figures: {os.path.relpath(figures)}"
    )


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
