"""`make paper`: the sweeps of the paper on one data set and network, and its tables."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwr_utils import datasets, files, networks, paper
from cwr_utils.datasets import oxford_paris
from cwr_utils.runs import data, demo, notebook, record, source, sweeps, tables
from cwr_utils.runs.comparison import BEYOND, SWEEPS
from cwr_utils.runs.source import RunError

# Data set -> where its whitening is fitted unless another set is named.
WHITENING = {n: entry[2] for n, entry in paper.DATASETS.items()} | demo.WHITENING
# D as in the authors' code: every channel of the pooled layer, 512 for VGG-16.
DIMENSIONS = {"keras:ResNet50": 2048, "densenet161": 2208}
EXAMPLES = """\
  make paper DATASET=monuments NETWORK=efficientnet-lite0
  make paper DATASET=oxford5k NETWORK=vgg16-cam
  make paper DATASET=FOLDER NETWORK=keras:ResNet50 WHITENING=OTHER_FOLDER
DATASET: a name or a folder. DATA_ROOT, WHITENING_ROOT: where the photos of a name are,
data/ if not given. WEIGHTS=none: random ones, or a file. JOBS: cells at a time."""


@dataclass(frozen=True)
class Plan:
    """What `make paper` runs.

    Attributes:
        name: of the folder below results/runs/paper and figures/runs/paper.
        parameters: of the notebooks, for all cells of all sweeps.
    """

    name: str
    parameters: dict[str, Any]


def plan(
    dataset: str,
    network: str,
    data_root: str = "",
    whitening: str = "",
    whitening_root: str = "",
    weights: str | None = "imagenet",
    protocol: str = "authors_code",
) -> Plan:
    """Turn what a person typed into parameters, and check that it can be run.

    Folders start from the working folder. A folder laid out like Oxford5k or Paris6k
    is read as that. Where the whitening photos cannot support the paper's D, cells
    take a lower one.

    Args:
        dataset: name or folder.
        network: name, as `networks.load` takes it. The pooled layer is the paper's
            where the paper has this network, else the network's default.
        data_root: where the photos of a name are; data/ if empty.
        whitening: name or folder; of `WHITENING` if empty.
        whitening_root: as `data_root`.
        weights: "imagenet", None for random ones, or a file.
        protocol: the published numbers are those of "authors_code".

    Raises:
        RunError: if the data set or the network is not given or cannot be loaded, or
            no whitening set belongs to the data set.
        DatasetError: if photos are missing.
    """
    if not dataset or not network:
        raise RunError(f"Say which data set and which network:\n{EXAMPLES}")
    loader, root, label = _source(dataset, data_root)
    whitening = whitening or WHITENING.get(loader, "")
    if not whitening:
        known = ", ".join(WHITENING)
        raise RunError(
            f"No whitening set belongs to {dataset}; those that have one are {known}. "
            "Name other photos, never the ones under test: WHITENING=FOLDER."
        )
    other, other_root, _ = _source(whitening, whitening_root)
    data.load_data(loader, root, other, other_root)
    weights = source.located("weights", weights)
    network = source.located("network", network)
    try:
        networks.load(network, weights)
    except ValueError as error:
        raise RunError(str(error)) from error
    random = "-random" if weights is None else ""
    parameters = {
        "dataset": loader,
        "data_root": root,
        "whitening_dataset": other,
        "whitening_root": other_root,
        "network": network,
        "weights": weights,
        "feature_layer": paper.LAYERS.get(network),
        "protocol": protocol,
        "cap_dimensions": True,
        **({"dimensions": DIMENSIONS[network]} if network in DIMENSIONS else {}),
    }
    shown = record.label(network, "network")
    return Plan(files.file_name(f"{label}-{shown}{random}"), parameters)


def run(chosen: Plan, jobs: int | None = None) -> list[str]:
    """Run all sweeps, and notebook 05 on their tables; go on when a cell fails.

    The rows beyond the paper are of the corrected protocol and the default layer.

    Args:
        chosen: from `plan`.
        jobs: cells at a time.

    Returns:
        One text a failed cell.
    """
    place = Path("paper", chosen.name)
    folder, failures = source.ROOT / "notebooks" / "sweeps", []
    paths = {name: folder / f"{name}.yaml" for name in (*SWEEPS, BEYOND)}
    for name, path in paths.items():
        given = chosen.parameters
        if name == BEYOND:
            given = {**given, "protocol": "corrected", "feature_layer": None}
            given.pop("dimensions", None)
        failures += sweeps.run_sweep(path, given, jobs=jobs, place=place / name)
    parameters = {
        **sweeps.Sweep.read(paths["table2b"], chosen.parameters).cells["default"],
        "aggregation": "online",
        **record.folders({}, place.as_posix()),
    }
    results = source.ROOT / "results/runs" / place
    notebook.run_notebook(source.NOTEBOOKS[5], parameters, results / "executed")
    compared = tables.read_table(results / "comparison.csv")
    print(paper.summary(compared).to_string(index=False))
    print(f"tables: {os.path.relpath(results)}   figures beside them in figures/")
    return failures


def _source(dataset: str, root: str) -> tuple[str, str, str]:
    """(dataset, data_root) as notebooks take them, and a name for folders."""
    if dataset in datasets.available():
        place = Path(root) if root else source.ROOT / "data"
        return dataset, os.path.abspath(place), dataset
    # Not `resolve`: the name of a link is what tables call it.
    folder = os.path.abspath(dataset)
    loader = oxford_paris.recognise(Path(folder))
    return loader or folder, folder, record.label(folder)
