"""Figures of notebook 06: what single classes are worth, and a walk of settings."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cwr_utils.figures.plots import ablation_curves, chart, check_columns, line_style
from cwr_utils.figures.style import BLACK, BLUE, GREY, ORANGE, PAGE, room, two_sizes
from cwr_utils.figures.text import fit_line


@two_sizes
def classes_alone(table: pd.DataFrame) -> Figure:
    """Draw what the class at each rank is worth alone, and how like the first it is.

    Args:
        table: columns rank, mAP and cosine, see `redundancy.by_rank`.
    """
    check_columns(table, ("rank", "mAP", "cosine"))
    fig, (axes,) = chart(2.2)
    for number, (name, label) in enumerate(
        (("mAP", "mAP of this class alone"), ("cosine", "cosine with the first class"))
    ):
        axes.plot(table["rank"], table[name], **line_style(number), label=label)
    _log_ticks(axes, table["rank"])
    axes.set(xlabel="rank of the class in each photo's list", ylabel="mAP, cosine")
    axes.legend()
    return fig


@two_sizes
def class_weights(table: pd.DataFrame) -> Figure:
    """Draw mAP by the number of classes, a line for each way to weigh them.

    Args:
        table: columns num_classes, class_weighting and mAP.
    """
    check_columns(table, ("num_classes", "class_weighting", "mAP"))
    fig, (axes,) = chart(2.2)
    lines = table.groupby("class_weighting", sort=False)
    for number, (name, rows) in enumerate(lines):
        label = {"label": f"weights: {name}"}
        axes.plot(rows["num_classes"], rows["mAP"], **line_style(number) | label)
    _log_ticks(axes, table["num_classes"].unique())
    axes.set(xlabel="$N_C$, classes in a descriptor", ylabel="mAP, offline")
    axes.legend()
    return fig


@two_sizes
def walk(table: pd.DataFrame) -> Figure:
    """Draw the mAP of each step with its interval, and what describing a photo costs.

    Args:
        table: of `runs.walk.walk`, first step first.
    """
    columns = ("step", "mAP", "mAP_low", "mAP_high", "gain", "seconds_photo")
    check_columns(table, columns)
    fig, (axes,) = chart(0.6 + 0.22 * len(table), width=PAGE)
    rows = np.arange(len(table))[::-1]
    axes.hlines(rows, table["mAP_low"], table["mAP_high"], color=GREY, linewidth=1)
    gains = table["gain"].fillna(0)
    colours = np.where(gains >= 0, BLUE, ORANGE)
    axes.scatter(table["mAP"], rows, c=colours, s=22, zorder=3)
    right = float(table["mAP_high"].fillna(table["mAP"]).max())
    for row, (_, step) in zip(rows, table.iterrows(), strict=True):
        text = f"{step['mAP']:.3f}"
        if np.isfinite(step["gain"]):
            text += f"  {100 * step['gain']:+.1f}"
        text += f"  {1000 * step['seconds_photo']:.0f} ms"
        axes.annotate(
            text, (right, row), (4, 0), textcoords="offset points", va="center",
            fontsize=6, color=BLACK,
        )  # fmt: skip
    axes.set_yticks(rows, [fit_line(str(step), room(1.5), 6) for step in table["step"]])
    axes.set(xlabel="mAP; beside it the gain in points and the time a photo")
    axes.margins(y=0.08)
    axes.set_xlim(right=right + 0.35 * (right - table["mAP_low"].min()))
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1])
    axes.grid(axis="y", visible=False)
    return fig


def of_methods(table: pd.DataFrame) -> dict[str, Figure]:
    """What a table of methods can be drawn as, by the names of the pictures.

    Args:
        table: of `retrieval.tabulate`, with bytes_photo.

    Returns:
        `store_sizes` where photos are described by groups, and "cascade", mAP by L,
        where there are cascades.
    """
    depths = table["cascade"] if "cascade" in table else pd.Series(0, table.index)
    cascades = depths > 0
    without, pictures = table[~cascades], {}
    if "grouped" in set(without["aggregation"]):
        pictures["store_sizes"] = store_sizes(without)
    if cascades.any():
        pictures["cascade"] = ablation_curves(table[cascades], "cascade")
    return pictures


@two_sizes
def store_sizes(table: pd.DataFrame) -> Figure:
    """Draw mAP by the bytes that are kept of a photo: what a smaller store costs.

    Args:
        table: columns method, aggregation, dimensions, mAP and bytes_photo, and for
            rows that are "grouped" groups and bits; those of one D and of as many bits
            are a line.
    """
    columns = ("method", "aggregation", "dimensions", "mAP", "bytes_photo")
    check_columns(table, columns)
    fig, (axes,) = chart(2.6)
    grouped = table["aggregation"] == "grouped"
    for number, (_, row) in enumerate(table[~grouped].iterrows()):
        look = line_style(number) | {"linestyle": "none", "markersize": 6}
        label = f"{row['method']}, D {row['dimensions']}"
        axes.plot([row["bytes_photo"] / 1024], [row["mAP"]], **look | {"label": label})
    first, lines = int((~grouped).sum()), table[grouped]
    if len(lines):
        check_columns(table, ("groups", "bits"))
        curves = lines.groupby(["dimensions", "bits"], sort=False)
        for number, ((dimensions, bits), rows) in enumerate(curves, start=first):
            rows = rows.sort_values("bytes_photo")
            label = {"label": f"groups, {bits:g} bits, D {dimensions}"}
            x, y = rows["bytes_photo"] / 1024, rows["mAP"]
            axes.plot(x, y, **line_style(number) | label)
    axes.set_xscale("log", base=2)
    low, high = np.log2(axes.get_xlim()).round()
    ticks = 2.0 ** np.arange(low, high + 1, 2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="KiB kept of a photo", ylabel="mAP")
    axes.legend()
    return fig


def _log_ticks(axes, values) -> None:
    places = [int(v) for v in sorted(values) if not int(v) & (int(v) - 1)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
