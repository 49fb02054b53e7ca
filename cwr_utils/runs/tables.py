"""Tables of methods: measured, written, read again, joined and shown."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cwr_utils import evaluation, files, identity, retrieval
from cwr_utils.retrieval import Method, Result
from cwr_utils.runs.source import RunError

if TYPE_CHECKING:  # tables of numbers need no network
    from cwr_utils.retrieval import Collection, Experiment

MOST_ROWS = 60  # of a table on a screen
_PRECISIONS = [f"mP@{k}" for k in evaluation.DEPTHS]


def timed(collection: "Collection", method: Method) -> tuple[Result, float]:
    """What a method finds, and the seconds a query: to describe and to rank.

    It has the stores to itself, so that no time is another one's; its whitening is
    fitted before.
    """
    for member in collection.members:
        member.spaces.fitted(method)
    alone = collection.fresh()
    begun = time.monotonic()
    result = retrieval.rank(alone, method)
    return result, (time.monotonic() - begun) / len(collection.data.queries)


def time_queries(collection: "Collection", methods: Iterable[Method]) -> pd.Series:
    """Seconds a query of each method, by `Method.slug`; see `timed`."""
    seconds = {method.slug: timed(collection, method)[1] for method in methods}
    return pd.Series(seconds, name="seconds_query")


def side_by_side(
    rows: pd.DataFrame, experiment: "Experiment"
) -> tuple[pd.DataFrame, list[str]]:
    """The rows that were measured in one experiment, and why the others are not.

    Args:
        rows: of `retrieval.row`.
        experiment: the one whose rows may stand side by side.

    Returns:
        Its rows; a text for the rows of each other experiment.
    """
    facts = experiment.facts
    here = {"protocol": experiment.setup.protocol.name, **experiment.shown}
    here = {name: here[name] for name in rows if name in here}
    rows = rows.assign(setting=rows.get("setting"))
    same = rows["setting"] == identity.digest(facts)
    texts = []
    for _, others in rows[~same].groupby("setting", dropna=False, sort=False):
        there = others.iloc[:1].to_dict("records")[0]
        reasons = identity.differences({name: there[name] for name in here}, here)
        why = "; ".join(reasons) or "made by an earlier version or with other flags"
        texts.append(f"{len(others)} rows left out ({why}).")
    return rows[same], texts


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table by the ending of its name: CSV, or JSON as a list of rows."""
    if Path(path).suffix == ".json":
        files.write_json(path, json.loads(table.to_json(orient="records")))
    else:
        files.write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table that an earlier notebook wrote.

    Raises:
        RunError: if it is not there; says which notebook writes it.
    """
    path = Path(path)
    if not path.exists():
        raise RunError(f"No {path}: run notebooks 03 and 04 with this results_dir.")
    if path.suffix == ".json":
        return pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
    return pd.read_csv(path)


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table of methods that a person reads, to three places."""
    measures = ("mAP", "mAP_low", "mAP_high", *_PRECISIONS)
    numbers = [name for name in measures if name in table]
    # One cell needs no name: nothing tells its rows from others.
    cells = ["cell"] if "cell" in table and table["cell"].nunique() > 1 else []
    shown = table[[*cells, "method", "dimensions"]].copy()
    shown["dimensions"] = [value or "-" for value in shown["dimensions"]]
    # Where no query has positives, JSON has null and pandas an object.
    shown[numbers] = table[numbers].astype(float).map("{:.3f}".format)
    if "mAP_low" in table:
        interval = shown.pop("mAP_low") + " to " + shown.pop("mAP_high")
        shown.insert(3, "95 %", interval)
    return shown.rename(columns={"dimensions": "D"})


def format_difficulties(table: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Easy, Medium and Hard as papers print them: a row a method, to three places.

    Args:
        table: of `retrieval.by_difficulty`.
        published: of `paper.anchors_by_difficulty`, to stand below.

    Returns:
        By method; columns are pairs of a difficulty and a measure, then D and source.
        "-" is what is not known.
    """
    rows = pd.concat([table, published], ignore_index=True)
    rows = rows.fillna({"slug": "", "source": "-"})
    keys = ["method", "slug", "dimensions", "source"]
    wide = rows.pivot(index=keys, columns="difficulty", values=["mAP", *_PRECISIONS])
    wide = wide.swaplevel(axis=1).reindex(pd.MultiIndex.from_frame(rows[keys]).unique())
    pairs = product(evaluation.DIFFICULTIES, ["mAP", *_PRECISIONS])
    shown = wide.reindex(columns=pd.MultiIndex.from_tuples(pairs)).astype(float)
    shown = shown.map("{:.3f}".format).replace("nan", "-")
    shown = shown.rename(columns=str.capitalize, level=0)
    names, _, dimensions, source = map(wide.index.get_level_values, keys)
    shown["", "D"] = [int(value) or "-" for value in dimensions]
    shown["", "source"] = source
    return shown.set_axis(names.rename(None))


def report(
    table: pd.DataFrame | None, places: Mapping[str, Path], begun: float
) -> None:
    """Print how a run ended: its table, how long it took and where everything is.

    Args:
        table: of methods, or None if the run made none; the first and last rows of a
            long one are shown.
        places: what it is -> where.
        begun: seconds of the monotonic clock.
    """
    if table is not None:
        used = sorted(set(table["whitening"].dropna()) - {""})
        print(f"\n{table['note'].iloc[0]}\nwhitening: {', '.join(used) or 'none'}\n")
        print(format_table(table).to_string(index=False, max_rows=MOST_ROWS))
    shown = [f"{what}: {os.path.relpath(place)}" for what, place in places.items()]
    print(f"\n{time.monotonic() - begun:.0f} s", *shown, sep="\n")


def to_markdown(table: pd.DataFrame, last: str = "---:") -> str:
    """A small table in Markdown, the last column aligned to the right or by `last`."""
    head = "| " + " | ".join(map(str, table.columns)) + " |"
    rule = "|" + "---|" * (len(table.columns) - 1) + f"{last}|"
    rows = [
        "| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)
    ]
    return "\n".join([head, rule, *rows]) + "\n"
