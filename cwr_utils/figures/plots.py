"""Figures of numbers: tables of methods, ablations, AP, spectra, similarities."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cwr_utils.arrays import check_shape, l2_normalize
from cwr_utils.figures.style import (
    BLACK,
    BLUE,
    COLOURS,
    COLUMN,
    DASHES,
    GREY,
    HEAT,
    MARKERS,
    ORANGE,
    PAGE,
    SKY,
    SOFT,
    VERMILLION,
    on_screen,
    room,
    two_sizes,
)
from cwr_utils.figures.text import fit_line, plain_text, text_width
from cwr_utils.rerankers import Chain

# What a grid may vary: as lines are called, and along an axis.
_PARAMETERS = {
    "num_whitening_classes": ("$N_{pca}$", "$N_{pca}$, classes of a whitening photo"),
    "num_classes": ("$N_C$", "$N_C$, classes in a descriptor"),
    "dimensions": ("$D$", "$D$, dimensions after whitening"),
    "network": ("", "network"),
    "layer": ("", "layer"),
    "resize": ("", "size of the photo"),
    "precision": ("", "precision"),
    "power": ("$p$", "$p$, exponent of the class vectors"),
    "protocol": ("", "protocol"),
    "query_expansion": ("QE", "QE, photos that expand the query"),
    "rerank": ("R", "R, photos that are re-ranked"),
    "rerank_classes": ("box classes", "classes that describe a box"),
    "whitening_exponent": ("exponent", "exponent of the whitening"),
    "shrinkage": ("shrinkage", "shrinkage of the whitening"),
    "class_weighting": ("weights", "weights of the classes"),
    "refine": ("neighbours", "re-rankers by the neighbours"),
    "groups": ("G", "G, classes that a photo keeps"),
    "bits": ("bits", "bits of a component"),
    "cascade": ("L", "L, photos that are described by the query"),
    "dataset": ("", "data set"),
    "whitening": ("whitened on", "photos of the whitening"),
}
# Those that a sweep may lower or name by itself.
_CONSEQUENCES = ("dimensions", "whitening")
_RESULTS = ("mAP", "slug", "identity", "setting", "method", "note", "cell", "seconds")
_AGGREGATIONS = {
    "offline": "Offline aggregation (OfA)",
    "online": "Online aggregation (OnA)",
    "grouped": "OnA from groups of classes",
    "theme": "Theme list",
}
_FAMILIES = {
    "global": "#B5B5B5",
    "global + PCA": "#7F7F7F",
    "regions": ORANGE,
    "class vectors, offline": SKY,
    "class vectors, theme": VERMILLION,
    "class vectors, online": BLUE,
}

_FAMILY_STARTS = {
    "class vectors, online": ("ona", "online"),
    "class vectors, offline": ("ofa", "offline"),
    "class vectors, theme": "theme",
    "regions": ("r-mac", "rmac"),
}


@two_sizes
def channel_weights(weights: Mapping[str, np.ndarray]) -> Figure:
    """Channel weights (Eq. 3), sorted, and one set against the other.

    Args:
        weights: label -> (K,), for example of the full image and of the query region.
            The scatter plot is drawn for exactly two.
    """
    arrays = {
        name: np.asarray(values, np.float64)
        for name, values in weights.items()
        if check_shape(values, "K", f"weights[{name!r}]")
    }
    if not arrays:
        raise ValueError("`weights` is empty: there is nothing to draw.")
    pair = len(arrays) == 2 and len({len(values) for values in arrays.values()}) == 1
    fig, panels = chart(2.2 + 2.4 * pair, panels=1 + pair)
    axes = panels[0]
    for number, (name, values) in enumerate(arrays.items()):
        style = {"linestyle": DASHES[number % len(DASHES)]}
        axes.plot(np.sort(values)[::-1], label=fit_line(name, 1.4, 7), **style)
    axes.set(xlabel="channel, sorted by weight", ylabel="weight (Eq. 3)")
    axes.legend()
    if pair:
        axes = panels[1]
        (first, x), (second, y) = arrays.items()
        axes.scatter(x, y, s=5, alpha=0.5, color=BLUE, linewidths=0)
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        axes.plot([low, high], [low, high], "--", color=GREY, label="equal")
        axes.legend(loc="upper left")
        first, second = (fit_line(name, 1.2, 7.5) for name in (first, second))
        axes.set(xlabel=f"weight, {first}", ylabel=f"weight, {second}")
        axes.set_title("each dot is a channel")
    return fig


@two_sizes
def whitening_spectrum(before: np.ndarray, after: np.ndarray) -> Figure:
    """What whitening does to the spread of vectors and to their similarities.

    Args:
        before: (n, K) vectors.
        after: (n, D), the same vectors whitened.
    """
    number, _ = check_shape(before, "n K", "before")
    check_shape(after, f"{number} D", "after")
    if number < 2:
        raise ValueError(f"`before` needs at least 2 vectors to compare; got {number}.")
    fig, (left, right) = chart(3.8, panels=2)
    lowest = 0.0
    for label, array, colour, dash in (
        ("before", before, ORANGE, "--"),
        ("after", after, BLUE, "-"),
    ):
        vectors = np.asarray(array, np.float64)
        variances = np.linalg.eigvalsh(np.atleast_2d(np.cov(vectors.T)))[::-1]
        # n vectors span n - 1 axes; the others hold rounding errors.
        spread = np.sqrt(np.clip(variances[: number - 1], 0, None))
        spread[spread < 1e-6 * spread.max()] = np.nan
        left.plot(1 + np.arange(len(spread)), spread, dash, color=colour, label=label)
        # A thousand vectors are half a million pairs: more change nothing to see.
        some = l2_normalize(vectors[:: -(-number // 1000)])
        pairs = (some @ some.T)[np.triu_indices(len(some), 1)]
        lowest = min(lowest, float(pairs.min()))
        counts, edges = np.histogram(np.clip(pairs, -1, 1), np.linspace(-1, 1, 101))
        counts = counts / counts.max()
        right.stairs(counts, edges, fill=True, alpha=0.3, color=colour)
        style = {"color": colour, "linestyle": dash, "linewidth": 1.2}
        right.stairs(counts, edges, **style)
    left.set_yscale("log")
    left.set(xlabel="principal axis", ylabel="standard deviation")
    right.set(xlabel="cosine similarity of two vectors", ylabel="pairs (peak = 1)")
    right.set(xlim=(max(-1, lowest - 0.05), 1.02), ylim=(0, 1.05))
    left.legend()
    return fig


@two_sizes
def method_bars(
    table: pd.DataFrame, reference: Mapping[str, float] | None = None
) -> Figure:
    """Draw mAP of methods as horizontal bars, in the order of the table.

    Args:
        table: columns `method` and `mAP`; with `mAP_low` and `mAP_high` the interval
            is drawn as a line.
        reference: published values. A name that is a method of the table is drawn as a
            diamond on its bar, any other as a hollow bar of its own.
    """
    check_columns(table, ("method", "mAP"))
    names = [str(name) for name in table["method"]]
    values = table["mAP"].to_numpy(np.float64)
    reference = dict(reference or {})
    others = {name: value for name, value in reference.items() if name not in names}
    labels = [fit_line(name, room(1.5), 6) for name in [*names, *others]]
    everything = np.concatenate([values, list(reference.values())])
    if not len(labels):
        raise ValueError("`table` has no rows: there is no method to draw.")
    scale = 1.0 if np.nanmax(np.nan_to_num(everything)) <= 1 else 100.0
    fig, (axes,) = chart(0.85 + 0.15 * len(labels))
    rows = np.arange(len(labels))
    families = [_family(name) for name in names]
    for family in dict.fromkeys(families):
        mine = [row for row, other in enumerate(families) if other == family]
        style: Any = {"label": family, "color": _FAMILIES[family]}
        axes.barh(rows[mine], np.nan_to_num(values[mine]), 0.72, **style)
    if others:
        style = {"hatch": "////", "linewidth": 0.6, "label": "published"}
        style |= {"facecolor": "none", "edgecolor": BLACK}
        axes.barh(rows[len(names) :], list(others.values()), 0.72, **style)
    marks = {name: reference[name] for name in reference if name in names}
    if marks:
        style = {"color": BLACK, "markersize": 4.5, "markeredgewidth": 0.6}
        style |= {"markeredgecolor": "white", "label": None if others else "published"}
        axes.plot(list(marks.values()), list(map(names.index, marks)), "D", **style)
    if {"mAP_low", "mAP_high"} <= set(table):
        ends = table[["mAP_low", "mAP_high"]].to_numpy(np.float64)
        style = {"linewidth": 0.9, "label": "95 % interval"}
        axes.hlines(rows[: len(names)], *ends.T, color=BLACK, **style)
    for row, value in enumerate([*values, *others.values()]):
        text = "n/a" if np.isnan(value) else f"{value:.{3 if scale == 1 else 1}f}"
        _write_beside(axes, row, text, 2)
    _name_rows(axes, labels)
    axes.set(xlim=(0, scale), xlabel="mAP" if scale == 1 else "mAP (%)")
    axes.set_xticks(np.linspace(0, scale, 6))
    axes.grid(axis="y", visible=False)
    columns = 4 if on_screen() else 2
    fig.legend(loc="outside upper center", ncols=columns, fontsize=6)
    return fig


@two_sizes
def ablation_curves(
    table: pd.DataFrame,
    x: str = "num_classes",
    published: pd.DataFrame | None = None,
    label: str = "paper",
) -> Figure:
    """Draw mAP against a parameter: a panel an aggregation, a line all others (Fig. 4).

    Args:
        table: columns `aggregation`, `mAP`, `x` and those of the other parameters that
            vary, as in the metrics.csv of a sweep.
        x: what to draw mAP against: "num_classes" (N_C), "dimensions" (D) or any other
            parameter; names stand side by side, numbers on an axis.
        published: points of others with these columns and `num_whitening_classes`,
            drawn hollow, in the colour of their N_pca; grey where no line is of that
            one alone.
        label: what the legend calls them.

    Raises:
        ValueError: if a column is missing, `x` no parameter, the table empty, or two
            values stand for one point; says what differs between them.
    """
    if x not in _PARAMETERS:
        known = ", ".join(_PARAMETERS)
        raise ValueError(f"`x` must be one of {known}; got {x!r}.")
    check_columns(table, ("aggregation", "mAP", x))
    if table.empty:
        raise ValueError("`table` has no rows: there is no curve to draw.")
    keys = _line_keys(table, x)
    table = table.drop_duplicates(["aggregation", x, *keys, "mAP"])
    _refuse_repeated(table, ["aggregation", x, *keys])
    lines = dict(_lines(table, keys))
    styles = {label: line_style(number) for number, label in enumerate(lines)}
    kinds = list(dict.fromkeys(table["aggregation"]))
    handles = len(lines) + (published is not None)
    names = (re.sub("[${}_]", "", name) for name in (*lines, label))
    widest = max(text_width(name, 6.5) for name in names)
    columns = max(1, min(handles, int(COLUMN / (widest + 0.55))))
    legend = 0.13 * max(0, -(-handles // columns) - 2)
    height = 0.8 + 1.45 * len(kinds) + legend
    fig, panels = chart(height, panels=len(kinds), share=True)
    for axes, kind in zip(panels, kinds, strict=True):
        for name, part in lines.items():
            line = part[part["aggregation"] == kind].sort_values(x)
            axes.plot(line[x], line["mAP"], **styles[name], label=name)
        if published is not None:
            theirs = published[published["aggregation"] == kind]
            counts = theirs["num_whitening_classes"]
            names = [_line_name({counts.name: count}) for count in counts]
            colours = [styles[n]["color"] if n in styles else GREY for n in names]
            style = {"marker": "D", "s": 26, "linewidths": 1.1, "zorder": 3}
            style |= {"facecolors": "none", "edgecolors": colours}
            axes.scatter(theirs[x], theirs["mAP"], **style)
        axes.set(xlabel=_PARAMETERS[x][1], ylabel="mAP")
        axes.set_title(plain_text(_AGGREGATIONS.get(kind, kind)))
        axes.label_outer()
    _scale_axis(list(panels), table[x])
    shown, names = panels[0].get_legend_handles_labels()
    if published is not None:
        style = {"facecolors": "none", "edgecolors": BLACK}
        shown.append(panels[0].scatter([], [], marker="D", s=26, **style))
        names.append(plain_text(label))
    fig.legend(shown, names, loc="outside lower center", ncols=columns)
    return fig


def _line_keys(table: pd.DataFrame, x: str) -> list[str]:
    """Parameters by which the lines of a table are told apart: those that vary."""
    varied = [
        name
        for name in _PARAMETERS
        if name in table and name != x and _varies(table, ["aggregation", x], name)
    ]
    for name in _CONSEQUENCES:
        others = [other for other in varied if other != name]
        if name in varied and others and not _varies(table, others, name):
            varied = others
    usual = "num_whitening_classes"
    return varied or ([usual] if usual in table and usual != x else [])


def _varies(table: pd.DataFrame, within: Sequence[str], name: str) -> bool:
    groups = table.groupby(list(within), dropna=False)[name]
    return bool((groups.nunique(dropna=False) > 1).any())


def _refuse_repeated(table: pd.DataFrame, keys: Sequence[str]) -> None:
    """Refuse two values for one point: a line would go up and down through both."""
    twice = table[table.duplicated(list(keys), keep=False)]
    if len(twice):
        others = [n for n in twice if n not in keys and not n.startswith(_RESULTS)]
        differ = [n for n in others if _varies(twice, keys, n)]
        raise ValueError(
            f"{len(twice)} rows of `table` share a point with another row; they differ "
            f"in {', '.join(differ) or 'nothing but mAP'}: draw a part of the table."
        )


def _lines(
    table: pd.DataFrame, keys: Sequence[str]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Label and rows of each line, in the order of its values."""
    if not keys:
        yield "mAP", table
        return
    for values, part in table.groupby(list(keys), dropna=False):
        yield _line_name(dict(zip(keys, values, strict=True))), part


def _line_name(values: Mapping[str, Any]) -> str:
    parts = []
    for name, value in values.items():
        shown = f"{value:g}" if isinstance(value, float) else plain_text(value)
        if name == "refine":
            shown = "none" if pd.isna(value) else Chain.parse(str(value)).label
        symbol = _PARAMETERS[name][0]
        parts.append(f"{symbol} = {shown}" if symbol else shown)
    return ", ".join(parts)


def _scale_axis(panels: Sequence[Axes], values: pd.Series) -> None:
    """Numbers over a wide range on a logarithmic axis, with a tick for each value."""
    if not pd.api.types.is_numeric_dtype(values):
        return
    places = sorted(values.unique())
    wide = places[0] > 0 and places[-1] >= 8 * places[0]
    if len(places) > 8:  # their names would run into each other
        places = [n for n in places if n == int(n) and not int(n) & (int(n) - 1)]
    for axes in panels:
        if wide:
            axes.set_xscale("log", base=2)
            axes.set_xlim(values.min() / 1.2, values.max() * 1.2)
        if wide or len(places) == values.nunique():
            axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()


@two_sizes
def ap_bars(
    per_query: pd.DataFrame, intervals: Mapping[str, tuple[float, float]] | None = None
) -> Figure:
    """AP of each query; methods are dots joined by a line.

    Two methods are sorted by their difference, which is written at the right; one, or
    more than two, by their mean.

    Args:
        per_query: columns `query`, `method`, `ap`; an AP of NaN (a query without
            positives) is written as such.
        intervals: method -> ends of the interval of its mAP, and "difference" -> those
            of the difference, for a last row with the means.

    Raises:
        ValueError: if columns are missing, a query and method occur twice, or there are
            more methods than colours.
    """
    check_columns(per_query, ("query", "method", "ap"))
    methods = list(dict.fromkeys(per_query["method"]))
    if not 1 <= len(methods) <= len(COLOURS):
        raise ValueError(
            f"`per_query` must have 1 to {len(COLOURS)} methods; got {len(methods)}."
        )
    if per_query.duplicated(["query", "method"]).any():
        raise ValueError("`per_query` has two rows for one query and method.")
    wide = per_query.pivot(index="query", columns="method", values="ap")[methods]
    two = len(methods) == 2
    keys = pd.DataFrame({"mean": wide.mean(axis=1)})
    keys.insert(0, "first", wide[methods[-1]] - wide[methods[0]] if two else 0)
    keys = keys.sort_values(["first", "mean"], ascending=False, kind="stable")
    wide = wide.loc[keys.index]
    means = wide.mean().to_numpy(np.float64)
    values = wide.to_numpy(np.float64)
    labels = [fit_line(query, room(1.2), 6, keep=3) for query in wide.index]
    if intervals:
        values = np.vstack([values, means])
        labels.append("mAP, 95 % interval")
    fig, (axes,) = chart(0.85 + (0.15 if on_screen() else 0.13) * len(labels))
    rows = np.arange(len(labels), dtype=float)
    known = ~np.isnan(values).all(axis=1)
    if len(methods) > 1:
        low = np.nanmin(values[known], axis=1)
        high = np.nanmax(values[known], axis=1)
        axes.hlines(rows[known], low, high, color="#BBBBBB", linewidth=1.6)
    for number, method in enumerate(methods):
        name = fit_line(method, room(2.0), 6.5) + f" (mAP {means[number]:.3f})"
        style: Any = {"color": COLOURS[number], "label": name}
        # Side by side where values are the same: none hides another.
        beside = rows + 0.36 * (number / max(len(methods) - 1, 1) - 0.5)
        if len(methods) == 1:
            axes.barh(rows, np.nan_to_num(values[:, 0]), 0.7, **style)
        else:
            style |= {"markersize": 3.5, "markeredgecolor": "white"}
            style |= {"markeredgewidth": 0.3, "clip_on": False}
            axes.plot(values[:, number], beside, MARKERS[number], **style)
        if intervals and method in intervals:
            place = rows[-1] if len(methods) == 1 else beside[-1]
            axes.hlines(place, *intervals[method], color=BLACK, linewidth=0.9)
    for row in rows[~known]:
        axes.text(0.02, row, "no positives", va="center", fontsize=6, color=SOFT)
    differences = values[:, -1] - values[:, 0]
    if two:
        for row, value in zip(rows[known], differences[known], strict=True):
            text = f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
            _write_beside(axes, row, text, 5)
        _write_beside(axes, -1, "gain", 5, color=SOFT)
    if intervals:
        axes.axhline(rows[-1] - 0.5, color=SOFT, linewidth=0.6)
    _name_rows(axes, labels)
    axes.set(xlim=(0, 1), xlabel="average precision")
    if two and intervals and "difference" in intervals:
        low, high = intervals["difference"]
        text = f"average precision; mean gain {differences[-1]:+.3f}"
        axes.set_xlabel(f"{text}\n(95 % interval {low:+.3f} to {high:+.3f})")
    fig.legend(loc="outside upper center", ncols=1, fontsize=6.5)
    return fig


@two_sizes
def similarity_matrix(
    matrix: np.ndarray, labels: Sequence[str], title: str = ""
) -> Figure:
    """Cosine similarities of descriptors, for example of one photo for several N_C.

    Args:
        matrix: (n, n).
        labels: of rows and columns.
        title: above the matrix.
    """
    number = len(labels)
    check_shape(matrix, f"{number} {number}", "matrix")
    matrix = np.asarray(matrix, np.float64)
    if not np.isfinite(matrix).any():
        raise ValueError("`matrix` has no number in it: there is nothing to draw.")
    shown = [fit_line(label, 0.9, 6, keep=3) for label in labels]
    words = max((text_width(label, 6) for label in shown), default=0)
    # One column, unless the rows would be lower than their letters.
    wide = 5.0 if on_screen() else COLUMN
    side = max(wide - words - 0.8, 0.11 * number)
    fig, (axes,) = chart(side + words + 0.35, side + words + 0.8)
    # From the lowest tenth, so that small differences show.
    low = min(0.9, np.floor(10 * np.nanmin(matrix)) / 10)
    drawn = axes.imshow(matrix, vmin=low, vmax=1, cmap=HEAT, interpolation="nearest")
    axes.grid(False)
    axes.set_xticks(range(number), shown, rotation=90, fontsize=6)
    axes.set_yticks(range(number), shown, fontsize=6)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if number <= 8:
        for (row, column), value in np.ndenumerate(matrix):
            dark = value < low + 0.6 * (1 - low)
            style = {"ha": "center", "va": "center", "fontsize": 6}
            style["color"] = "white" if dark else BLACK
            axes.text(column, row, f"{value:.2f}", **style)
    if title:
        fig.suptitle(fit_line(title, side + words + 0.7, 7.5), size=7.5)
    bar = fig.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("cosine similarity")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return fig


@two_sizes
def class_frequencies(
    names: Sequence[str],
    shares: Sequence[float],
    published: Mapping[int, float] | None = None,
    marked: Collection[str] = (),
) -> Figure:
    """Share of queries that have each class among their top classes (Fig. 5a).

    Args:
        names: classes, most frequent first.
        shares: in [0, 1], one for each name.
        published: shares of others by rank (from 1), drawn as diamonds.
        marked: classes to draw in another colour, for example those of the paper.
    """
    values = np.asarray(shares, np.float64)
    check_shape(values, f"{len(names)}", "shares")
    if not len(names):
        raise ValueError("`names` is empty: there is no class to draw.")
    # More than fit into a column stand in several, from top to bottom.
    columns = min(3, -(-len(names) // (12 if on_screen() else 26)))
    rows = -(-len(names) // columns)
    width = PAGE if on_screen() or columns > 1 else COLUMN
    size = (width, 0.75 + 0.14 * rows)
    fig, panels = plt.subplots(1, columns, figsize=size, layout="constrained")
    theirs = {k - 1: v for k, v in (published or {}).items() if k <= len(names)}
    for number, axes in enumerate(np.atleast_1d(panels)):
        part = range(number * rows, min((number + 1) * rows, len(names)))
        colours = [ORANGE if names[i] in marked else BLUE for i in part]
        places = np.arange(len(part))
        axes.hlines(places, 0, values[part], color="#CCCCCC", linewidth=1)
        axes.scatter(values[part], places, s=16, color=colours, zorder=3)
        known = [i for i in part if i in theirs]
        style: Any = {"facecolors": "none", "edgecolors": BLACK, "zorder": 4}
        xs, ys = [theirs[i] for i in known], [i - part.start for i in known]
        axes.scatter(xs, ys, s=26, marker="D", **style)
        _name_rows(axes, [fit_line(names[i], 1.1, 6) for i in part])
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set(xlim=(0, 1.04), xlabel="share of queries")
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
    handles = []
    for present, marker, label, style in (
        (marked, "o", "named in the paper", {"color": ORANGE}),
        (
            theirs,
            "D",
            "share in the paper",
            {"color": BLACK, "markerfacecolor": "none"},
        ),
    ):
        if present:
            line: Any = {"marker": marker, "linestyle": "", "label": label}
            handles.append(Line2D([], [], **line, **style))
    if handles:
        fig.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=6.5)
    return fig


@two_sizes
def precision_recall(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Figure:
    """Precision against recall, up to the last positive that is found.

    Args:
        curves: label -> (recall, precision), two arrays of one length.
    """
    if not curves:
        raise ValueError("`curves` is empty: there is nothing to draw.")
    fig, (axes,) = chart(2.2 + 0.15 * len(curves))
    for number, (name, (recall, precision)) in enumerate(curves.items()):
        (size,) = check_shape(np.asarray(recall), "n", f"recall of {name}")
        check_shape(np.asarray(precision), f"{size}", f"precision of {name}")
        # Behind the last positive the curve only falls: no area, nothing to see.
        size = 1 + int(np.argmax(np.asarray(recall) >= recall[-1]))
        style = line_style(number) | {"label": fit_line(name, room(2.6), 7)}
        if size > 15:
            style["marker"] = None
        axes.plot(recall[:size], precision[:size], clip_on=False, **style)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    fig.legend(loc="outside upper center", ncols=1)
    return fig


def chart(
    height: float, width: float | None = None, panels: int = 1, share: bool = False
):
    """A Figure and its axes: one below the other in print, side by side on a screen.

    Args:
        height: inches in print, of all panels.
        width: inches; a column in print and a page on a screen if None.
        panels: how many.
        share: whether they have the same axes.
    """
    rows, columns = panels, 1
    if on_screen() and panels > 1:
        rows, columns, height = 1, panels, max(2.4, height / panels)
    size = (width or (PAGE if on_screen() else COLUMN), height)
    style: Any = {"figsize": size, "layout": "constrained", "squeeze": False}
    fig, axes = plt.subplots(rows, columns, sharex=share, sharey=share, **style)
    return fig, axes.ravel()


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Names at the left of horizontal bars, the first one on top."""
    axes.set_yticks(range(len(labels)), labels, fontsize=6)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _write_beside(axes: Axes, row: float, text: str, gap: float, **style) -> None:
    """Text at the right of a row, some points outside the axes."""
    style |= {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(text, (1, row), (gap, 0), va="center", fontsize=6, **style)


def line_style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes, by which lines are told apart."""
    kinds = {"color": COLOURS, "marker": MARKERS, "linestyle": DASHES}
    return {name: kind[number % len(kind)] for name, kind in kinds.items()}


def _family(method: str) -> str:
    for family, starts in _FAMILY_STARTS.items():
        if method.lower().startswith(starts):
            return family
    return "global + PCA" if "pca" in method.lower() else "global"


def check_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table that lacks columns.

    Raises:
        ValueError: names those that are missing, and those that are there.
    """
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(
            f"The table needs the columns {', '.join(columns)}; it lacks "
            f"{', '.join(missing)} and has {', '.join(map(str, table.columns))}."
        )
