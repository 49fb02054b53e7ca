"""Papermill runs of the notebooks, the demo, and the provenance of every result.

Each notebook records what it did in `run.json` of its results folder: parameters,
versions, commit, data set checksum, seconds, peak memory, device.
"""

import ast
import base64
import fcntl
import io
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import yaml
from PIL import Image
from tqdm.auto import tqdm
from traitlets.config import Config

import cwr_utils
from cwr_utils import datasets, networks, protocol
from cwr_utils.backend import keras
from cwr_utils.extraction import Setup
from cwr_utils.networks import CamNetwork
from cwr_utils.retrieval import Collection, Experiment

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = (
    "00_prepare_data",
    "01_load_cam_model",
    "02_extract_features",
    "03_aggregate_descriptors",
    "04_evaluate_and_rerank",
    "05_paper_figures",
)
# Notebook -> those whose files it reads. The demo runs two at a time, as a notebook
# spends half of its time starting up, in this order: what others wait for comes first.
READS = {
    NOTEBOOKS[2]: (),
    NOTEBOOKS[0]: (),
    NOTEBOOKS[4]: NOTEBOOKS[2:3],
    NOTEBOOKS[3]: NOTEBOOKS[2:3],
    NOTEBOOKS[1]: (),
    NOTEBOOKS[5]: NOTEBOOKS[3:5],
}
SIDE_BY_SIDE = 2
# Notebooks that only sweeps run.
SWEEP_NOTEBOOKS = ("one_method",)
# What a notebook takes; the same name means the same thing everywhere.
PARAMETERS = (
    "dataset",
    "data_root",
    "whitening_dataset",
    "whitening_root",
    "limit",
    "network",
    "weights",
    "precision",
    "feature_layer",
    "resize",
    "power",
    "protocol",
    "aggregation",
    "num_classes",
    "num_whitening_classes",
    "dimensions",
    "cap_dimensions",
    "query_expansion",
    "rerank",
    "rerank_classes",
    "all_flags",
    "cache_dir",
    "results_dir",
    "figures_dir",
    "seed",
)
PACKAGES = ("tensorflow", "keras", "numpy", "opencv-python-headless", "scikit-learn")

_WIDGET = "application/vnd.jupyter.widget-view+json"

# Characters of base64 above which a picture in an executed notebook gets a palette.
LARGE_PICTURE = 200_000

# Parameters that turn the notebooks' defaults into other runs.
PRESETS: dict[str, dict[str, Any]] = {
    "monuments": {"whitening_dataset": "monuments_whitening"},
    "street": {
        "dataset": "street",
        "whitening_dataset": "street",
        "results_dir": "../results/street",
        "figures_dir": "../figures/street",
    },
}


class RunError(RuntimeError):
    """A notebook that failed; says which, in which cell, and why."""


@dataclass
class Record:
    """Provenance of one notebook's run, written by `finish`.

    Attributes:
        notebook: its name.
        results_dir: folder of `run.json`.
        parameters: the values that it ran with.
        started: seconds of a monotonic clock.
    """

    notebook: str
    results_dir: Path
    parameters: dict[str, Any]
    started: float = field(default_factory=time.monotonic)

    def finish(self, **facts) -> Path:
        """Add this run to `run.json`, whole or not at all.

        Args:
            facts: what the notebook wants recorded besides: data set checksum,
                network, counts.

        Returns:
            The file.

        Raises:
            RunError: if the file is damaged.
        """
        path = self.results_dir / "run.json"
        run = {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.started, 1),
            "peak_memory_mib": peak_memory(),
            "parameters": self.parameters,
            **facts,
            **_environment(),
        }
        folder = os.open(self.results_dir, os.O_RDONLY)
        try:  # two notebooks of one run may end at the same time
            fcntl.flock(folder, fcntl.LOCK_EX)
            runs = {**read_runs(path), self.notebook: run}
            write_json(path, dict(sorted(runs.items())))
        finally:
            os.close(folder)
        return path


def start(notebook: str, namespace: Mapping[str, Any]) -> Record:
    """Begin the record of a notebook's run.

    Args:
        notebook: its name.
        namespace: the notebook's `globals()`; known parameters are picked from it. Of
            folders outside the project only the last part is kept.

    Raises:
        RunError: if `run.json` is damaged: better now than in `finish`.
    """
    # A notebook may import a module by the name of a parameter that it does not take.
    parameters = {
        name: namespace[name]
        for name in PARAMETERS
        if name in namespace and not isinstance(namespace[name], ModuleType)
    }
    results_dir = Path(parameters["results_dir"])
    results_dir.mkdir(parents=True, exist_ok=True)
    read_runs(results_dir / "run.json")
    recorded = {key: recorded_value(key, value) for key, value in parameters.items()}
    return Record(notebook, results_dir, recorded)


@dataclass(frozen=True)
class Workbench:
    """What the notebooks after 00 work with, made from their parameters.

    Attributes:
        record: of this notebook's run.
        experiment: what they name.
    """

    record: Record
    experiment: Experiment

    @property
    def data(self) -> datasets.Dataset:
        """The data set under test."""
        return self.experiment.data

    @property
    def training(self) -> datasets.Dataset | None:
        """Photos to fit the whitening on."""
        return self.experiment.training

    @property
    def setup(self) -> Setup:
        """How photos are described."""
        return self.experiment.setup

    @property
    def network(self) -> CamNetwork:
        """The CAM network."""
        return self.setup.network

    def open_collection(self, **changes) -> Collection:
        """Open the stores of notebook 2; `changes` are those of the experiment."""
        return Collection.open(replace(self.experiment, **changes))


def open_workbench(notebook: str, namespace: Mapping[str, Any]) -> Workbench:
    """Load what a notebook's parameters name, and begin its record.

    Args:
        notebook: its name.
        namespace: the notebook's `globals()`.
    """
    return _load(start(notebook, namespace), namespace)


def _load(record: Record, namespace: Mapping[str, Any]) -> Workbench:
    data, training = load_data(
        namespace["dataset"],
        namespace["data_root"],
        namespace["whitening_dataset"],
        namespace["whitening_root"],
        namespace["limit"],
    )
    network = networks.load(
        namespace["network"],
        namespace["weights"],
        namespace["seed"],
        namespace["precision"],
    )
    setup = Setup(
        network,
        namespace.get("cache_dir", "../cache"),
        layer=namespace["feature_layer"],
        resize=namespace["resize"],
        power=namespace["power"],
        protocol=protocol.get(namespace["protocol"]),
    )
    return Workbench(record, Experiment(data, training, setup))


def recorded_value(name: str, value: Any) -> Any:
    """A parameter without paths of this machine."""
    if name in ("dataset", "data_root", "whitening_dataset", "whitening_root"):
        return Path(str(value)).name
    if (name.endswith("_dir") or name == "weights") and Path(str(value)).is_absolute():
        return Path(str(value)).name
    return value


def read_runs(path: Path) -> dict[str, Any]:
    """Content of a `run.json`; empty where there is none.

    Raises:
        RunError: if it is damaged.
    """
    try:
        runs = json.loads(path.read_text()) if path.exists() else {}
        whole = all("parameters" in run for run in runs.values())
    except (ValueError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise RunError(f"{path} is damaged: delete it and run its notebooks again.")
    return runs


def load_data(
    dataset: str,
    data_root: str,
    whitening_dataset: str,
    whitening_root: str,
    limit: int = 0,
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The data set under test and the one to fit the whitening on.

    Args:
        dataset: name or folder, as `datasets.load` takes it.
        data_root: where its photos are.
        whitening_dataset: another name or folder. The name of `dataset` itself holds
            its distractors out of the database and fits on those.
        whitening_root: where those photos are.
        limit: photos of a slice for a quick run; 0 is all.

    Returns:
        Both data sets.

    Raises:
        DatasetError: if there is nothing to search for or to fit the whitening on, or
            two folders have the same name.
    """
    loaded = datasets.load(dataset, data_root)
    if not loaded.queries:
        raise datasets.DatasetError(
            f"{loaded.name} has no queries: {loaded.note}. They come from a groups.csv "
            "(columns image, group: photos of one group show the same thing) or a "
            "queries.csv (columns image, and x1, y1, x2, y2 for a box) in the folder."
        )
    training = datasets.load(whitening_dataset, whitening_root)
    if training.name == loaded.name:
        first, second = (part.path(part.images[0]) for part in (loaded, training))
        if not first.samefile(second):
            raise datasets.DatasetError(
                f"Two folders are called {loaded.name!r}, the name of their stores: "
                "rename one of them."
            )
        loaded, training = loaded.hold_out_distractors()
        if not training.images:
            raise datasets.DatasetError(
                f"Every photo of {dataset!r} is in the ground truth of a query, "
                "which leaves none to fit the whitening on: name another "
                "`whitening_dataset`."
            )
    if limit:
        loaded, training = loaded.take(limit), training.take(limit)
    return loaded, training


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table by the ending of its name: CSV, or JSON as a list of rows."""
    if Path(path).suffix == ".json":
        write_json(path, json.loads(table.to_json(orient="records")))
    else:
        write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table that an earlier notebook wrote.

    Raises:
        RunError: if it is not there; says which notebook writes it.
    """
    path = Path(path)
    if not path.exists():
        raise RunError(f"No {path}: run notebooks 03 and 04 with this results_dir.")
    if path.suffix == ".json":
        return pd.DataFrame(json.loads(path.read_text()))
    return pd.read_csv(path)


def run_notebook(
    name: str,
    parameters: Mapping[str, Any],
    output: str | Path,
    line: int = 0,
    **engine: Any,
) -> tuple[Path, float]:
    """Execute a notebook through papermill.

    Args:
        name: of a file in notebooks/ or notebooks/sweeps/, without the ending.
        parameters: those it does not know are left out.
        output: folder for the executed copy.
        line: of the screen where the progress bar over its cells stands.
        engine: further arguments of `papermill.execute_notebook`: another engine.

    Returns:
        The executed copy, and the seconds it took.

    Raises:
        RunError: if there is no such notebook, or a cell fails; the executed copy
            shows where.
    """
    import papermill  # takes a second, which notebooks that keep records save

    source = notebook_path(name)
    target = Path(output) / f"{name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    known = papermill.inspect_notebook(str(source))
    chosen = {key: value for key, value in parameters.items() if key in known}
    begun = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="cwr-") as sockets:
            options = {
                "kernel_name": "python3",
                "progress_bar": {"desc": name, "unit": "cell", "position": line},
                "config": kernel_config(sockets),
                # Not papermill's `cwd`: that moves this whole process.
                "resources": {"metadata": {"path": str(ROOT / "notebooks")}},
            }
            papermill.execute_notebook(
                str(source), str(target), chosen, **{**options, **engine}
            )
    except papermill.PapermillExecutionError as error:
        raise RunError(
            f"{name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"The executed copy shows where: {target}"
        ) from error
    except RuntimeError as error:  # nbclient's DeadKernelError
        raise RunError(
            f"{name} stopped: {error}. Often memory ran out; `limit` takes a slice.\n"
            f"The executed copy shows where: {target}"
        ) from error
    slim(target)
    return target, time.monotonic() - begun


def notebook_path(name: str) -> Path:
    """The source of a notebook.

    Raises:
        RunError: if there is none of that name.
    """
    if name in NOTEBOOKS:
        return ROOT / "notebooks" / f"{name}.ipynb"
    if name in SWEEP_NOTEBOOKS:
        return ROOT / "notebooks" / "sweeps" / f"{name}.ipynb"
    known = ", ".join((*NOTEBOOKS, *SWEEP_NOTEBOOKS))
    raise RunError(f"{name!r} is none of the notebooks {known}.")


def defaults(notebook: str) -> dict[str, Any]:
    """Parameter -> value in the notebook's cell of parameters."""
    import papermill

    found = papermill.inspect_notebook(str(notebook_path(notebook)))
    return {name: ast.literal_eval(cell["default"]) for name, cell in found.items()}


def kernel_config(folder: str | Path) -> Config:
    """Sockets of the file system: no port to listen in on, no warning of that."""
    return Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})


def slim(path: Path) -> None:
    """Make an executed notebook fit to be kept.

    Widgets go, which are blank without a kernel (progress bars; of an explorer its
    picture stays), as do paths of this machine, and large pictures get a palette of 256
    colours.
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for name in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        # Of explorers the picture stays that stands in for them.
        cell.outputs = [
            output
            for output in cell.outputs
            if output.get("data", {}).pop(_WIDGET, None) is None
            or any(kind.startswith("image/") for kind in output["data"])
        ]
        for output in cell.outputs:
            picture = output.get("data", {}).get("image/png", "")
            if len(picture) > LARGE_PICTURE:
                output["data"]["image/png"] = _with_palette(picture)
    nbformat.write(notebook, path)


def _with_palette(picture: str) -> str:
    """A PNG in base64, with 256 colours."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        small = io.BytesIO()
        image.convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def parse_parameters(texts: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE texts; a value is read as YAML, so 8, 0.5 and null work.

    Raises:
        RunError: if a text has no "=", names no parameter, or is not YAML.
    """
    parameters = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or name not in PARAMETERS:
            raise RunError(
                f"{text!r} is not NAME=VALUE with a name of {', '.join(PARAMETERS)}."
            )
        try:
            parameters[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RunError(f"{text!r} has a value that is not YAML: {error}") from error
    return parameters


def run(
    notebooks: Sequence[str],
    parameters: Mapping[str, Any],
    executed: str | Path | None = None,
) -> None:
    """Run notebooks one after another.

    Args:
        notebooks: their names.
        parameters: for all of them. Another `dataset` gets folders of its own for
            results and figures, unless these are given too.
        executed: folder for the executed notebooks; beside the results if None.
    """
    folders = default_folders(str(parameters.get("dataset", "monuments")))
    parameters = {**folders, **parameters}
    results = (ROOT / "notebooks" / parameters["results_dir"]).resolve()
    for notebook in notebooks:
        run_notebook(notebook, parameters, executed or results / "executed")


def default_folders(dataset: str) -> dict[str, str]:
    """Parameters for the results and figures of a data set (a name or a folder)."""
    name = Path(dataset).name
    return {
        "results_dir": f"../results/{name}",
        "figures_dir": f"../figures/{name}",
    }


def demo(executed: str | Path | None = None, limit: int = 0) -> None:
    """Run all notebooks on the embedded photographs and say what came out.

    Args:
        executed: folder for the executed notebooks; beside the results if None.
        limit: photos of a slice for a quick run; 0 is all.
    """
    begun = time.monotonic()
    # Two notebooks share the cores: more threads would only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    name = datasets.load_demo(ROOT / "data").name
    parameters = {**PRESETS[name], "limit": limit}
    # Fetched here, once: two notebooks would both do it.
    datasets.load(parameters["whitening_dataset"], ROOT / "data")
    if limit:
        name = f"{name}-{limit}"
        parameters |= default_folders(name)
    results = ROOT / "results" / name
    executed = Path(executed or results / "executed")
    run_workbook(parameters, executed)
    table = read_table(results / "metrics.json")
    print(f"\n{table['note'][0]}\nwhitening: {_whitening_line(table)}\n")
    print(format_table(table).to_string(index=False))
    print(
        f"\n{time.monotonic() - begun:.0f} s. Tables: {_short(results)}   figures: "
        f"{_short(ROOT / 'figures' / name)}   executed notebooks: {_short(executed)}"
    )


def run_workbook(parameters: Mapping[str, Any], executed: Path) -> None:
    """Run all notebooks, two at a time, each after those that it reads from.

    Args:
        parameters: for all of them.
        executed: folder for the executed notebooks.

    Raises:
        RunError: of the first notebook that fails; no other one is started.
    """
    waiting, running, done = list(READS), {}, set()
    lines = list(range(1, SIDE_BY_SIDE + 1))  # of the screen, for progress bars
    bar = tqdm(total=len(READS), desc="notebooks")
    with bar, ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        while waiting or running:
            for name in [n for n in waiting if done.issuperset(READS[n])]:
                if lines:
                    line = lines.pop(0)
                    job = pool.submit(run_notebook, name, parameters, executed, line)
                    running[job] = name, line
                    waiting.remove(name)
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                job.result()
                name, line = running.pop(job)
                done.add(name)
                lines.append(line)
                bar.update()


def publish() -> None:
    """Run the demo and keep the executed notebooks under results/executed/."""
    name = datasets.load_demo(ROOT / "data").name
    demo(ROOT / "results" / "executed" / name)


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table of methods that a person reads, mAP to three places."""
    numbers = [name for name in ("mAP", "mAP_low", "mAP_high") if name in table]
    shown = table[["method", "dimensions"]].copy()
    shown["dimensions"] = [value or "-" for value in shown["dimensions"]]
    # Where no query has positives, JSON has null and pandas an object.
    shown[numbers] = table[numbers].astype(float).map("{:.3f}".format)
    if "mAP_low" in table:
        shown["95 %"] = shown.pop("mAP_low") + " to " + shown.pop("mAP_high")
    return shown.rename(columns={"dimensions": "D"})


def to_markdown(table: pd.DataFrame, last: str = "---:") -> str:
    """A small table in Markdown, the last column aligned to the right or by `last`."""
    head = "| " + " | ".join(map(str, table.columns)) + " |"
    rule = "|" + "---|" * (len(table.columns) - 1) + f"{last}|"
    rows = [
        "| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)
    ]
    return "\n".join([head, rule, *rows]) + "\n"


def _whitening_line(table: pd.DataFrame) -> str:
    used = table[table["whitening"] != ""]
    return ", ".join(sorted(set(used["whitening"]))) or "none"


def _short(path: Path) -> str:
    return os.path.relpath(path)


def write_text(path: str | Path, text: str) -> None:
    """Write a text, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)


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


def _environment() -> dict[str, Any]:
    versions = {"cwr_utils": cwr_utils.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        versions[package] = metadata.version(package)
    return {
        "versions": versions,
        "commit": _commit(),
        "device": _device(),
    }


def _commit() -> str:
    git = shutil.which("git")
    if not git:
        return "unknown (no git)"

    def ask(*arguments):
        command = [git, "-C", str(ROOT), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return answer.stdout.strip()

    commit = ask("describe", "--always", "--abbrev=12") or "unknown (no checkout)"
    # Not results/ and figures/: they are tracked, and every run changes them.
    changed = ask("status", "--porcelain", "-uno", "--", "cwr_utils", "notebooks")
    return f"{commit}-dirty" if changed else commit


def _device() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "backend": keras.backend.backend(),
        "devices": [str(device) for device in keras.distribution.list_devices()],
    }
