"""`make paper`: the sweeps of the paper on one data set and network, and its tables."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cwr_utils import datasets, networks, paper, runs, sweeps
from cwr_utils.datasets import oxford_paris

SWEEPS = ("table1a", "table1b", "table2a", "table2b", "fig4", "fig5")
# Data set -> where its whitening is fitted unless another set is named.
WHITENING = {name: entry[2] for name, entry in paper.DATASETS.items()} | {
    "monuments": "monuments_whitening",
    "street": "street",
}
# D as in the authors' code: every channel of the pooled layer, 512 for VGG-16.
DIMENSIONS = {"keras:ResNet50": 2048, "densenet161": 2208}
# Tables of `collect` that hold the points of curves.
CURVES = ("fig4", "fig5", "ablation")
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
        name: of the folder below results/paper and figures/paper.
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
        raise runs.RunError(f"Say which data set and which network:\n{EXAMPLES}")
    loader, root, label = _source(dataset, data_root)
    whitening = whitening or WHITENING.get(loader, "")
    if not whitening:
        known = ", ".join(WHITENING)
        raise runs.RunError(
            f"No whitening set belongs to {dataset}; those that have one are {known}. "
            "Name other photos, never the ones under test: WHITENING=FOLDER."
        )
    other, other_root, _ = _source(whitening, whitening_root)
    runs.load_data(loader, root, other, other_root)
    if weights and Path(weights).is_file():
        weights = os.path.abspath(weights)
    try:
        networks.load(network, weights)
    except ValueError as error:
        raise runs.RunError(str(error)) from error
    folder = f"{label}-{network.replace(':', '-')}"
    folder += "-random" if weights is None else ""
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
    return Plan(folder, parameters)


def run(chosen: Plan, jobs: int | None = None) -> list[str]:
    """Run all sweeps, and notebook 05 on their tables; go on when a cell fails.

    Args:
        chosen: from `plan`.
        jobs: cells at a time, where the sweep's file does not say how many.

    Returns:
        One text a failed cell.
    """
    results = runs.ROOT / "results" / "paper" / chosen.name
    figures = runs.ROOT / "figures" / "paper" / chosen.name
    files = {n: runs.ROOT / "notebooks" / "sweeps" / f"{n}.yaml" for n in SWEEPS}
    failures = []
    for name, file in files.items():
        failures += sweeps.run_sweep(
            file,
            chosen.parameters,
            # A file that says how many has a reason: Table 1b measures time.
            jobs=sweeps.Sweep.read(file).jobs or jobs,
            results=results / name,
            figures=figures / name,
        )
    parameters = {
        **sweeps.Sweep.read(files["table2b"]).parameters,
        **chosen.parameters,
        "aggregation": "online",
        "results_dir": f"../results/paper/{chosen.name}",
        "figures_dir": f"../figures/paper/{chosen.name}",
    }
    runs.run_notebook("05_paper_figures", parameters, results / "executed")
    compared = runs.read_table(results / "comparison.csv")
    print(paper.summary(compared).to_string(index=False))
    print(f"tables: {os.path.relpath(results)}   figures: {os.path.relpath(figures)}")
    return failures


def collect(results_dir: str | Path) -> pd.DataFrame:
    """All rows that were measured for a results folder.

    Args:
        results_dir: of `run`, with a folder a sweep; or that of notebooks 03 and 04,
            as in the demo.

    Returns:
        Rows of `Retrieval.row` and `sweep`, the name of the table that has them.
    """
    folder = Path(results_dir)
    files = {name: folder / name / "metrics.csv" for name in SWEEPS}
    files = {name: file for name, file in files.items() if file.exists()} or {
        "metrics": folder / "metrics.json",
        "ablation": folder / "ablation.csv",
    }
    tables = [runs.read_table(file).assign(sweep=name) for name, file in files.items()]
    rows = pd.concat(tables, ignore_index=True)
    rows["whitening"] = rows["whitening"].fillna("")
    return rows


def heading(ours: pd.DataFrame) -> str:
    """One line that says what "ours" is."""
    first = ours.iloc[0]
    return (
        f"Ours: {paper.network_label(first['network'], first['weights_sha256'])}, "
        f"{first['layer']}, {first['resize']}, exponent {first['power']:g}, protocol "
        f"`{first['protocol']}`; {first['note']}; whitening fitted on "
        f"{', '.join(sorted(set(ours['whitening']) - {''})) or 'nothing'}."
    )


def write_tables(compared: pd.DataFrame, title: str, folder: str | Path) -> None:
    """Write the comparison, whole and a table at a time, as CSV, Markdown and LaTeX.

    Args:
        compared: of `paper.compare`.
        title: of `heading`.
        folder: where comparison.csv and table1a.csv, .md, .tex ... go.
    """
    folder = Path(folder)
    runs.write_table(folder / "comparison.csv", compared)
    for name, caption in paper.TABLES.items():
        stem = f"table{name}" if name[0].isdigit() else name
        notes = paper.notes(compared, name)
        shown = paper.shown(compared, name)
        write_table(folder / stem, shown, caption, [title, *notes])


def write_classes(
    names: Sequence[str], shares: Sequence[float], title: str, folder: str | Path
) -> None:
    """Write Fig. 5a: the paper's most frequent classes beside ours.

    Args:
        names: of our classes, most frequent first.
        shares: of the queries that have them among their top classes.
        title: of `heading`.
        folder: where fig5a.csv, .md and .tex go.
    """
    theirs = dict(enumerate(paper.FIG5A_CLASSES, start=1))
    rows = [
        {
            "rank": rank,
            "paper": theirs.get(rank, "-"),
            "paper, share": paper.FIG5A_SHARES.get(rank, "-"),
            "ours": name,
            "one of the paper's 16": "yes" if name in paper.FIG5A_CLASSES else "no",
            "ours, share": f"{share:.2f}",
        }
        for rank, (name, share) in enumerate(zip(names, shares, strict=True), start=1)
    ]
    caption = "Fig. 5a: most frequent classes of the queries; the paper's are of Paris"
    write_table(Path(folder) / "fig5a", pd.DataFrame(rows), caption, [title])


def write_table(
    path: Path, table: pd.DataFrame, caption: str, notes: Sequence[str]
) -> None:
    """Write one table as `path`.csv, .md and .tex, the notes below the last two."""
    runs.write_table(path.with_suffix(".csv"), table)
    lines = [f"**{caption}**", "", runs.to_markdown(table, "---"), *_spaced(notes)]
    runs.write_text(path.with_suffix(".md"), "\n".join(lines))
    latex = table.to_latex(index=False, escape=True, caption=caption)
    comments = [f"% {note}\n" for note in notes]
    runs.write_text(path.with_suffix(".tex"), latex + "".join(comments))


def _spaced(notes: Sequence[str]) -> list[str]:
    return [line for note in notes for line in (note, "")]


def _source(dataset: str, root: str) -> tuple[str, str, str]:
    """(dataset, data_root) as notebooks take them, and a name for folders."""
    if dataset in datasets.available():
        place = Path(root) if root else runs.ROOT / "data"
        return dataset, os.path.abspath(place), dataset
    # Not `resolve`: the name of a link is what tables call it.
    folder = Path(os.path.abspath(dataset))
    loader = oxford_paris.recognise(folder)
    return loader or str(folder), str(folder), folder.name
