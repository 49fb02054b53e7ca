"""What a notebook's run leaves on record, and where: its folders, facts and identity.

`run.json` of a results folder has, for each notebook that wrote there, its parameters,
the facts that its numbers depend on, their digest, versions, commit, seconds, peak
memory and device. Two runs are the same if their digests are; folders only have names.
"""

import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

import cwr_utils
from cwr_utils import figures, files, identity
from cwr_utils.datasets import Dataset
from cwr_utils.runs import source, tables
from cwr_utils.runs.source import RunError

PACKAGES = ("tensorflow", "keras", "numpy", "opencv-python-headless", "scikit-learn")


@dataclass
class Record:
    """Provenance of one notebook's run, written by `finish`.

    Attributes:
        notebook: its name.
        parameters: all of them.
        results_dir: folder of its tables and of `run.json`.
        figures_dir: folder of its figures.
        started: seconds of a monotonic clock.
    """

    notebook: str
    parameters: dict[str, Any]
    results_dir: Path
    figures_dir: Path
    started: float = field(default_factory=time.monotonic)

    def table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table into the results, see `tables.write_table`."""
        tables.write_table(self.results_dir / name, table)

    def figure(self, figure: Figure, name: str) -> None:
        """Write a figure, see `figures.save_figure`."""
        figures.save_figure(figure, name, self.figures_dir)

    def finish(self, contents: Mapping[str, Any], **more: Any) -> None:
        """Add this run to `run.json`, whole or not at all.

        Args:
            contents: facts of what the parameters name: `Experiment.facts`, or
                `contents` of a notebook without a network.
            more: what the notebook wants recorded besides.

        Raises:
            RunError: if the file is damaged.
        """
        known = facts(self.notebook, self.parameters, contents)
        run = {
            "identity": identity.digest(known),
            "facts": known,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.started, 1),
            "peak_memory_mib": peak_memory(),
            "parameters": {k: _shown(k, v) for k, v in self.parameters.items()},
            **more,
            **_environment(),
        }
        path = self.results_dir / "run.json"
        with files.locked(self.results_dir):  # two notebooks may end at the same time
            runs = {**read_runs(path), self.notebook: run}
            files.write_json(path, dict(sorted(runs.items())))


def start(notebook: str, namespace: Mapping[str, Any]) -> Record:
    """Begin the record of a notebook's run.

    Args:
        notebook: its name.
        namespace: the notebook's `globals()`; its parameters are picked from it.

    Raises:
        RunError: if a parameter is of another kind, or `run.json` is damaged: better
            now than in `finish`.
    """
    parameters = source.complete(notebook, namespace)
    own = folders(parameters)
    results_dir, figures_dir = (source.place(own[name]) for name in source.FOLDERS)
    results_dir.mkdir(parents=True, exist_ok=True)
    read_runs(results_dir / "run.json")
    return Record(notebook, parameters, results_dir, figures_dir)


def facts(
    notebook: str, parameters: Mapping[str, Any], contents: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that the numbers of a run depend on.

    Args:
        notebook: its name.
        parameters: all of them, see `source.complete`.
        contents: see `Record.finish`; they stand for the parameters that are paths.
    """
    settings = {k: v for k, v in parameters.items() if k not in source.PLACES}
    own = {"notebook": notebook, "code_sha256": source.code_sha256(notebook)}
    return {**settings, **contents, **own, "package_version": cwr_utils.__version__}


def contents(data: Dataset, training: Dataset) -> dict[str, Any]:
    """Facts of two data sets: every photo and the ground truth."""
    return {"dataset_sha256": data.checksum(), "training_sha256": training.checksum()}


def read_runs(path: Path) -> dict[str, Any]:
    """Content of a `run.json`; empty where there is none.

    Raises:
        RunError: if it is damaged.
    """
    try:
        runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        whole = all("parameters" in run for run in runs.values())
    except (ValueError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise RunError(f"{path} is damaged: delete it and run its notebooks again.")
    return runs


def folders(parameters: Mapping[str, Any], name: str = "") -> dict[str, str]:
    """The folders of a run as parameters; where one is None, one of the run's own.

    That is below results/runs or figures/runs, which are not under version control.

    Args:
        parameters: of the run.
        name: of its own folders; `run_name` if empty.
    """
    name = name or run_name(parameters)
    own = {
        key: source.ROOT / key.removesuffix("_dir") / "runs" for key in source.FOLDERS
    }
    return {key: parameters.get(key) or str(own[key] / name) for key in source.FOLDERS}


def run_name(parameters: Mapping[str, Any]) -> str:
    """A readable name: the data set, and what differs from the notebooks' defaults.

    Only of what notebooks 03, 04 and 05 all take, as they share their folders.
    """
    first, *others = map(source.defaults, source.NOTEBOOKS[3:])
    shared = [name for name in first if all(name in other for other in others)]
    words = [label(parameters.get("dataset", first["dataset"]))]
    for name in shared:
        value = source.typed(name, parameters.get(name, first[name]))
        if value == first[name] or name in ("dataset", "cache_dir", *source.FOLDERS):
            continue
        is_number = isinstance(value, int | float)
        words.append(name + (f"{value:g}" if is_number else f"_{label(value, name)}"))
    return files.file_name("-".join(words))


def label(value: Any, parameter: str = "dataset") -> str:
    """What folders call a parameter's value; a path has what tells it apart."""
    if not source.is_path(parameter, value):
        return str(value)
    if parameter in source.TOGETHER and len(several := source.parts(value)) > 1:
        return " + ".join(label(part, parameter) for part in several)
    folder = source.place(value.removeprefix(source.PRESET))
    return f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def peak_memory() -> int:
    """MiB that this process had at most."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `getrusage`: that begins with the peak of the process that started this.
        lines = status.read_text().splitlines()
        peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
        return round(int(peak) / 2**10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _shown(name: str, value: Any) -> Any:
    """A parameter without a path of this machine."""
    if not source.is_path(name, value):
        return value
    if name in source.TOGETHER and " + " in value:
        return " + ".join(_shown(name, part) for part in source.parts(value))
    if name == "network":
        return Path(value).name
    place, notebooks = source.place(value), source.ROOT / "notebooks"
    inside = place.is_relative_to(source.ROOT)
    return os.path.relpath(place, notebooks) if inside else place.name


def _environment() -> dict[str, Any]:
    versions = {"cwr_utils": cwr_utils.__version__, "python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in PACKAGES}
    device = {"machine": platform.machine(), "cores": os.cpu_count()}
    if keras := sys.modules.get("keras"):  # not for a run that has no network
        device["backend"] = keras.backend.backend()
        device["devices"] = list(map(str, keras.distribution.list_devices()))
    return {"versions": versions, "commit": _commit(), "device": device}


def _commit() -> str:
    git = shutil.which("git")
    if not git:
        return "unknown (no git)"

    def ask(*arguments):
        command = [git, "-C", str(source.ROOT), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return answer.stdout.strip()

    commit = ask("describe", "--always", "--abbrev=12") or "unknown (no checkout)"
    # Not the published results, which change no number.
    changed = ask("status", "--porcelain", "-uno", "--", "cwr_utils", "notebooks")
    return f"{commit}-dirty" if changed else commit
