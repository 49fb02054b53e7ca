"""Ours beside the paper's: the rows that may be compared, and the tables of them."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cwr_utils import files, paper
from cwr_utils.retrieval import Experiment
from cwr_utils.runs import tables
from cwr_utils.runs.source import RunError

SWEEPS = ("table1a", "table1b", "table2a", "table2b", "fig4", "fig5")
# Of settings that are not the paper's: `beyond` alone shows it.
BEYOND = "beyond"
# Tables of `collect` that hold the points of curves.
CURVES = ("fig4", "fig5", "ablation")


def collect(
    results_dir: str | Path, experiment: Experiment
) -> tuple[pd.DataFrame, list[str]]:
    """All rows in a results folder that were measured in one experiment.

    Args:
        results_dir: of `make paper`, with a folder a sweep; or that of notebooks 03 and
            04, as in the demo.
        experiment: what the rows must be of.

    Returns:
        Rows of `retrieval.row` and `sweep`, the name of the table that has them; a
        text for each kind of rows that are left out, which says why.

    Raises:
        RunError: if there is no table, or no row of this experiment.
    """
    folder = Path(results_dir)
    paths = {name: folder / name / "metrics.csv" for name in SWEEPS}
    paths = {name: path for name, path in paths.items() if path.exists()} or {
        "metrics": folder / "metrics.json",
        "ablation": folder / "ablation.csv",
    }
    read = [tables.read_table(path).assign(sweep=name) for name, path in paths.items()]
    rows = pd.concat(read, ignore_index=True)
    rows, left_out = tables.side_by_side(rows, experiment)
    if rows.empty:
        raise RunError(
            f"No row in {folder} is of this notebook's parameters: "
            f"{' '.join(left_out)} Run notebooks 03 and 04 with these parameters."
        )
    return rows.fillna({"whitening": ""}), left_out


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
    tables.write_table(folder / "comparison.csv", compared)
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


def beyond(folder: str | Path, dataset: str) -> pd.DataFrame:
    """Our rows that are not of the paper's settings, above published ones, and a file.

    Args:
        folder: where beyond.csv, .md and .tex go; the sweep's rows are in beyond/.
        dataset: as `paper.anchors` names the columns: without one of its own, anchors
            show those of Oxford5k and Paris6k.

    Returns:
        Columns method, D, mAP in %, its interval, images, and source; empty where the
        sweep has not run.
    """
    folder = Path(folder)
    path = folder / BEYOND / "metrics.csv"
    if not path.exists():
        return pd.DataFrame()
    rows, anchors = tables.read_table(path), paper.anchors()
    ours = pd.DataFrame(
        {
            "method": rows["method"],
            "D": rows["dimensions"],
            "mAP": (100 * rows["mAP"]).map("{:.1f}".format),
            "95 %": [
                f"{100 * low:.1f} to {100 * high:.1f}"
                for low, high in zip(rows["mAP_low"], rows["mAP_high"], strict=True)
            ],
            "photos": rows["images"],
            "source": "ours",
        }
    )
    columns = [dataset] if dataset in anchors else ["oxford5k", "paris6k"]
    published = [
        pd.DataFrame(
            {
                "method": anchors["system"],
                "D": anchors["dimensions"],
                "mAP": anchors[name].map("{:.1f}".format),
                "photos": f"all of {name}",
                "source": anchors["source"],
            }
        )[anchors[name].notna()]
        for name in columns
    ]
    table = pd.concat([ours, *published], ignore_index=True).fillna("-")
    first = rows.iloc[0]
    notes = [
        f"Ours: {first['network']} at {first['resize']}, protocol "
        f"`{first['protocol']}`; {first['note']}; whitening fitted on "
        f"{first['whitening']}.",
        paper.ANCHORS_NOTE,
    ]
    write_table(folder / BEYOND, table, "Beyond the paper, mAP in %", notes)
    return table


def write_table(
    path: Path, table: pd.DataFrame, caption: str, notes: Sequence[str]
) -> None:
    """Write one table as `path`.csv, .md and .tex, the notes below the last two."""
    tables.write_table(path.with_suffix(".csv"), table)
    lines = [f"**{caption}**", "", tables.to_markdown(table, "---")]
    lines += [line for note in notes for line in (note, "")]
    files.write_text(path.with_suffix(".md"), "\n".join(lines))
    latex = table.to_latex(index=False, escape=True, caption=caption)
    comments = [f"% {note}\n" for note in notes]
    files.write_text(path.with_suffix(".tex"), latex + "".join(comments))
