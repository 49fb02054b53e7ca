import functools
import io
import itertools
import subprocess
import sys

import cv2
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from cwr_utils import figures
from cwr_utils.figures import canvas, photos, plots, style, text
from cwr_utils.figures.style import (
    BLUE,
    COLOURS,
    COLUMN,
    ORANGE,
    PAGE,
    RELEVANCE,
    _smaller_png,
)

LONG = "a_name_that_is_far_too_long_for_its_place_in_the_figure_number_17"


@pytest.fixture(autouse=True)
def printed():
    with mpl.rc_context():
        figures.use_style(screen=False)
        yield
        plt.close("all")


def photo(height=40, width=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


LANDSCAPE, PORTRAIT, PANORAMA = photo(), photo(60, 40), photo(10, 90)


def strip(**changes):
    row = {
        "query_photo": LANDSCAPE,
        "photos": [PORTRAIT, LANDSCAPE, PANORAMA, LANDSCAPE, LANDSCAPE],
        "relevance": ["positive", "negative", "junk", "query", "unknown"],
        "scores": [0.9, 0.8, 0.7, np.nan, 0.1],
    }
    return row | changes


def ap_table(methods=("a", "b")):
    rows = [
        {"query": f"q{i}", "method": method, "ap": 1 / (i + 1)}
        for i in range(4)
        for method in methods
    ]
    return pd.DataFrame(rows)


def ablation_table():
    return pd.DataFrame(
        [
            {
                "aggregation": kind,
                "num_classes": classes,
                "num_whitening_classes": size,
                "dimensions": 64 * classes,
                "mAP": classes / 100,
            }
            for kind in ("offline", "online")
            for classes in (1, 4, 64)
            for size in (1, 16)
        ]
    )


def method_table(number=20):
    names = ["Raw features", "Raw features + PCA", "R-MAC", "OfA, 1 class", LONG]
    names += [f"OnA, {i} classes + R100 + QE10" for i in range(number - len(names))]
    return pd.DataFrame({"method": names, "mAP": np.linspace(0.1, 1, len(names))})


def pipeline(**changes):
    names = ["dome", "castle", "palace", "church"]
    parts = {
        "photo": LANDSCAPE,
        "box": (5, 5, 50, 30),
        "heat": {name: np.eye(5, 7) for name in names[:3]},
        "vectors": np.ones((4, 64)),
        "descriptor": np.arange(-16, 16.0),
        "results": [(PORTRAIT, "positive"), (LANDSCAPE, "negative")],
        "class_names": names,
    }
    return figures.pipeline(**(parts | changes))


CASES = {
    "one photo": lambda: figures.photo_grid([LANDSCAPE]),
    "no column": lambda: figures.photo_grid([LANDSCAPE] * 3, columns=0),
    "photos": lambda: figures.photo_grid(
        [LANDSCAPE, PORTRAIT, PANORAMA] * 3,
        titles=[LONG] * 9,
        credits=["Jane Doe, CC BY-SA 4.0; " * 9] * 9,
        frames=["positive", "junk", "negative"] * 3,
    ),
    "tiny photo": lambda: figures.photo_grid([photo(1, 1)]),
    "cams": lambda: figures.cam_overlays(
        LANDSCAPE,
        {LONG: np.eye(3, 4), "b": np.zeros((3, 4)), "raw": np.full((3, 4), -2.0)},
        box=(0, 0, 60, 40),
        credit="Jane Doe, CC0 1.0",
        columns=2,
        probabilities=[0.9, 0.001, 0.0],
    ),
    "one cam": lambda: figures.cam_overlays(PORTRAIT, {"a": np.ones((2, 2))}),
    "some probabilities": lambda: figures.cam_overlays(
        PANORAMA, {"a": np.eye(2), "b": np.eye(2)}, probabilities={"a": 0.5}
    ),
    "grid": lambda: figures.grid_overlay(PORTRAIT, np.eye(4), (1, 1, 30, 30), "Me"),
    "whole grid": lambda: figures.grid_overlay(PANORAMA, np.ones((2, 9))),
    "boxes": lambda: figures.boxes_on_photo(
        LANDSCAPE,
        {"1%": (0, 0, 60, 40), LONG: (10, 10, 20, 20)},
        heat=np.eye(4, 6),
        best=LONG,
        credit="Me",
    ),
    "no boxes": lambda: figures.boxes_on_photo(PORTRAIT, {}, heat=np.zeros((4, 6))),
    "many boxes": lambda: figures.boxes_on_photo(
        LANDSCAPE, {f"{i}%": (i, i, 40, 39) for i in range(12)}
    ),
    "strip": lambda: figures.result_strip(
        **strip(names=[LONG] * 5, credits=["Me, CC0"] * 6, title=LONG)
    ),
    "plain strip": lambda: figures.result_strip(**strip(scores=None)),
    "query only": lambda: figures.result_strip(LANDSCAPE, [], [], None),
    "strips": lambda: figures.result_strips(
        [
            strip(title="N_C = 1", query_box=(1, 2, 30, 40)),
            strip(query_photo=PORTRAIT, photos=[LANDSCAPE] * 5, names=list("abcde")),
            {"query_photo": PANORAMA, "photos": [], "relevance": []},
        ]
    ),
    "pipeline": pipeline,
    "small pipeline": lambda: pipeline(
        photo=PORTRAIT,
        box=None,
        heat={"dome": np.zeros((3, 3))},
        vectors=np.zeros((1, 2)),
        class_names=["dome"],
        descriptor=np.array([np.nan]),
        results=[],
        credit="Me",
    ),
    "weights": lambda: figures.channel_weights(
        {"image": np.arange(9.0), LONG: np.zeros(9)}
    ),
    "one set of weights": lambda: figures.channel_weights({"image": np.zeros(3)}),
    "three sets": lambda: figures.channel_weights({n: np.ones(3) for n in "abc"}),
    "whitening": lambda: figures.whitening_spectrum(
        np.random.default_rng(0).normal(size=(30, 40)),
        np.random.default_rng(1).normal(size=(30, 1)),
    ),
    "methods": lambda: figures.method_bars(
        method_table(), {"R-MAC": 0.66, "OnA, in the paper": 0.736}
    ),
    "one method": lambda: figures.method_bars(method_table().head(1)),
    "percent": lambda: figures.method_bars(
        pd.DataFrame({"method": ["a", "b"], "mAP": [71.3, np.nan]})
    ),
    "ablation": lambda: figures.ablation_curves(ablation_table()),
    "dimensions": lambda: figures.ablation_curves(ablation_table(), x="dimensions"),
    "ablation beside the paper": lambda: figures.ablation_curves(
        ablation_table(), published=ablation_table().head(3), label="paper (Oxford5k)"
    ),
    "ap": lambda: figures.ap_bars(ap_table()),
    "ap with intervals": lambda: figures.ap_bars(
        ap_table(["a", LONG]), {"a": (0.2, 0.9), LONG: (0, 1), "difference": (-1, 1)}
    ),
    "ap of three": lambda: figures.ap_bars(ap_table(list("abc")), {"a": (0.2, 0.9)}),
    "map": lambda: figures.embedding_map(
        np.random.default_rng(0).normal(size=(30, 2)),
        [LANDSCAPE, PORTRAIT, PANORAMA] * 10,
        ["a", "b", ""] * 10,
        ["Jane Doe, CC BY-SA 4.0", "Me", ""] * 10,
        [LONG] * 30,
    ),
    "map of one": lambda: figures.embedding_map(np.zeros((1, 2)), [PORTRAIT]),
    "methods with intervals": lambda: figures.method_bars(
        method_table().assign(mAP_low=0.1, mAP_high=[*np.linspace(0.3, 1, 19), np.nan])
    ),
    "ap of one": lambda: figures.ap_bars(ap_table([LONG])),
    "no ap at all": lambda: figures.ap_bars(ap_table().assign(ap=np.nan)),
    "similarity": lambda: figures.similarity_matrix(
        np.eye(3), ["a", LONG, "c"], "$N_C$"
    ),
    "large similarity": lambda: figures.similarity_matrix(
        np.full((30, 30), -0.5), ["x"] * 30
    ),
    "one similarity": lambda: figures.similarity_matrix(np.ones((1, 1)), ["x"]),
    "classes": lambda: figures.class_frequencies([LONG, "b"], [0.9, 0.1]),
    "many names": lambda: figures.class_frequencies(
        [f"{n} {LONG}" for n in range(64)], np.linspace(1, 0, 64), {1: 0.83}
    ),
    "classes beside the paper": lambda: figures.class_frequencies(
        [LONG, "b"], [0.9, 0.1], {1: 0.83, 64: 0.31}, ["b"]
    ),
    "precision": lambda: figures.precision_recall(
        {"a": (np.array([0, 1]), np.array([1, 0.5])), LONG: (np.ones(20), np.ones(20))}
    ),
}


@functools.cache
def drawn(name, screen=False):
    """One of the cases, drawn once for all tests."""
    figures.use_style(screen)
    fig = CASES[name]()
    fig.canvas.draw()
    return fig


both_sizes = pytest.mark.parametrize("screen", [False, True], ids=["print", "screen"])


@both_sizes
@pytest.mark.parametrize("name", CASES)
def test_every_figure_draws_inside_its_page(name, screen):
    fig = drawn(name, screen)
    assert isinstance(fig, Figure)
    box, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    assert min(box.x0, box.y0) > -0.02
    assert box.x1 < width + 0.02 and box.y1 < height + 0.02


CHARTS = ("weights", "set", "whitening", "method", "percent", "ablation", "dim", "ap")
CHARTS += ("similarity", "classes", "precision")


@pytest.mark.parametrize("name", CASES)
def test_figures_are_printed_as_they_are_drawn(name):
    """Nothing is scaled to the paper, so the sizes of the letters are the true ones."""
    fig = drawn(name)
    chart = name != "large similarity" and any(word in name for word in CHARTS)
    chart &= "map" not in name
    assert fig.get_size_inches()[0] <= (COLUMN if chart else PAGE) + 1e-6
    sizes = [item.get_fontsize() for item in texts(fig)]
    assert min(sizes, default=9) >= (6 if chart else 5)


@both_sizes
@pytest.mark.parametrize("name", CASES)
def test_no_two_texts_overlap(name, screen):
    items = texts(drawn(name, screen))
    assert not [(items[i].get_text(), items[j].get_text()) for i, j in overlaps(items)]


def texts(fig):
    """Everything that is written in a figure and can be seen."""
    hidden = set()
    for axes in fig.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            away = [t for t in ticks if not low <= t.get_loc() <= high]
            gone = away if axes.axison else [axis]
            hidden |= {item for part in gone for item in part.findobj(Text)}
    found = set(fig.findobj(Text)) - hidden
    return [item for item in found if item.get_text().strip() and item.get_visible()]


def overlaps(items):
    boxes = [item.get_window_extent() for item in items if item.get_text()]
    return [
        (i, j)
        for i, one in enumerate(boxes)
        for j, other in enumerate(boxes[:i])
        if one.overlaps(other)
    ]


@pytest.mark.parametrize("number", [6, 40])
def test_labels_of_methods_and_values_do_not_overlap(number):
    fig = figures.method_bars(method_table(number), {"Paper": 0.7})
    fig.canvas.draw()
    axes = fig.axes[0]
    assert not overlaps(axes.get_yticklabels())
    assert not overlaps([*axes.texts, *axes.get_yticklabels()])
    assert not overlaps(axes.get_xticklabels())


@both_sizes
@pytest.mark.parametrize("number", [3, 20, 21, 64, 90])
def test_labels_of_classes_do_not_overlap(number, screen):
    figures.use_style(screen)
    names = [f"{LONG} {i}" for i in range(number)]
    fig = figures.class_frequencies(names, np.linspace(1, 0, number))
    fig.canvas.draw()
    labels = [label for axes in fig.axes for label in axes.get_yticklabels()]
    assert len(labels) == number and not overlaps(labels)


def test_published_points_have_the_colour_of_their_whitening():
    ours = pd.DataFrame(
        {"aggregation": "online", "num_classes": [1, 4, 1, 4]}
        | {"num_whitening_classes": [1, 1, 16, 16], "mAP": [0.1, 0.2, 0.3, 0.4]}
    )
    theirs = pd.DataFrame(
        {"aggregation": ["online", "online", "offline"], "num_classes": [1, 4, 4]}
        | {"num_whitening_classes": [16, 48, 1], "mAP": [0.7, 0.8, 0.9]}
    )
    axes = figures.ablation_curves(ours, published=theirs).axes[0]
    points = axes.collections[0]
    np.testing.assert_array_equal(points.get_offsets(), [[1, 0.7], [4, 0.8]])
    line = next(line for line in axes.lines if line.get_label() == "$N_{pca}$ = 16")
    assert to_hex(points.get_edgecolors()[0]) == line.get_color().lower()
    assert to_hex(points.get_edgecolors()[1]) == "#8a8a8a"


def grid(**values):
    """A row for each combination, with an mAP that no other has."""
    rows = [
        dict(zip(values, row, strict=True))
        for row in itertools.product(*values.values())
    ]
    usual = {"aggregation": "online", "num_whitening_classes": 16}
    table = pd.DataFrame([usual | row for row in rows])
    return table.assign(mAP=np.arange(1, len(table) + 1) / 100)


def curves(axes):
    """Label -> x and mAP of each line with points."""
    return {
        line.get_label(): (
            list(line.get_xdata()),
            [round(y, 2) for y in line.get_ydata()],
        )
        for line in axes.lines
        if len(line.get_xdata())
    }


def test_a_grid_has_a_line_for_each_value_of_its_other_parameters():
    """And never one that goes up and down through two of them."""
    table = grid(num_classes=[1, 4, 8], power=[1.0, 2.0]).sample(frac=1, random_state=0)
    axes = figures.ablation_curves(table).axes[0]
    assert curves(axes) == {
        "$p$ = 1": ([1, 4, 8], [0.01, 0.03, 0.05]),
        "$p$ = 2": ([1, 4, 8], [0.02, 0.04, 0.06]),
    }
    axes = figures.ablation_curves(table, x="power").axes[0]
    assert curves(axes)["$N_C$ = 4"] == ([1, 2], [0.03, 0.04])
    assert axes.get_xlabel().startswith("$p$") and axes.get_xscale() == "linear"
    table = grid(num_classes=[1, 8], layer=["a_b", "c"], rerank=[0, 100])
    assert list(curves(figures.ablation_curves(table).axes[0])) == [
        *("a_b, R = 0", "a_b, R = 100", "c, R = 0", "c, R = 100")
    ]


def test_names_stand_side_by_side():
    table = grid(layer=["block5", "block6"], num_classes=[4, 8])
    axes = figures.ablation_curves(table, x="layer").axes[0]
    axes.figure.canvas.draw()
    shown = [text.get_text() for text in axes.get_xticklabels()]
    assert shown == ["block5", "block6"]
    assert curves(axes)["$N_C$ = 8"][1] == [0.02, 0.04]


def test_a_number_from_zero_on_has_a_plain_axis():
    axes = figures.ablation_curves(grid(rerank=[0, 10, 100]), x="rerank").axes[0]
    assert axes.get_xscale() == "linear"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "10", "100"]


def test_what_follows_from_the_lines_is_not_in_their_names():
    """A lowered D, as few whitening vectors support no more."""
    table = grid(num_classes=[1, 4], num_whitening_classes=[1, 16])
    lowered = table["num_whitening_classes"].map({1: 67, 16: 512})
    table = table.assign(dimensions=lowered, whitening="other photos")
    for part in (table, table.assign(whitening=lowered.astype(str))):
        names = list(curves(figures.ablation_curves(part).axes[0]))
        assert names == ["$N_{pca}$ = 1", "$N_{pca}$ = 16"]
    table = grid(num_classes=[1, 4], dimensions=[67, 512])
    names = list(curves(figures.ablation_curves(table).axes[0]))
    assert names == ["$D$ = 67", "$D$ = 512"]


def test_a_panel_may_lack_a_line():
    table = grid(num_classes=[1, 4], num_whitening_classes=[1, 16])
    other = table[table["num_whitening_classes"] == 16].assign(aggregation="offline")
    first, second = figures.ablation_curves(pd.concat([table, other])).axes
    assert len(curves(first)) == 2 and list(curves(second)) == ["$N_{pca}$ = 16"]
    lines = [{x.get_label(): x.get_color() for x in a.lines} for a in (first, second)]
    assert lines[0] == lines[1]


def test_two_values_of_one_point_are_refused_and_the_difference_is_named():
    table = grid(num_classes=[1, 4], seed=[0, 1])
    with pytest.raises(ValueError, match="4 rows .* differ in seed: draw a part"):
        figures.ablation_curves(table)
    with pytest.raises(ValueError, match="differ in nothing but mAP"):
        figures.ablation_curves(table.drop(columns="seed"))
    # The same value twice is one point: notebook 3 has it for an N_pca of 1.
    table = grid(num_classes=[1, 4])
    axes = figures.ablation_curves(pd.concat([table, table])).axes[0]
    assert curves(axes) == {"$N_{pca}$ = 16": ([1, 4], [0.01, 0.02])}


def test_a_legend_of_many_long_names_stays_inside_the_page():
    layers = [f"block{n}b_expand_relu" for n in range(4, 8)]
    table = grid(num_classes=[1, 8], layer=layers, power=[1.0, 2.0])
    fig = figures.ablation_curves(table)
    fig.canvas.draw()
    box = fig.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= fig.bbox.x1 and box.y0 >= 0
    assert fig.axes[0].get_window_extent().height > 60


@pytest.mark.parametrize("kinds", [["online"], ["offline", "online"]])
def test_a_long_legend_stays_inside_the_page(kinds):
    ours = pd.DataFrame({"num_whitening_classes": [1, 16, 32, 48, 64], "mAP": 0.5})
    ours = pd.concat(ours.assign(aggregation=kind, num_classes=4) for kind in kinds)
    fig = figures.ablation_curves(ours, published=ours, label="paper (oxford105k)")
    fig.canvas.draw()
    (legend,) = fig.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= fig.bbox.x1


def test_numbers_of_classes_do_not_overlap():
    counts = [1, *range(4, 65, 4)]
    ours = pd.DataFrame({"aggregation": "online", "num_classes": counts, "mAP": 0.5})
    fig = figures.ablation_curves(ours.assign(num_whitening_classes=1))
    fig.canvas.draw()
    assert not overlaps(fig.axes[0].get_xticklabels())
    shown = [text.get_text() for text in fig.axes[0].get_xticklabels()]
    assert shown == ["1", "4", "8", "16", "32", "64"]


def test_classes_of_the_paper_are_told_apart():
    fig = figures.class_frequencies(
        ["dome", "lake"], [0.9, 0.5], {1: 0.8, 64: 0.3}, ["dome"]
    )
    _, ours, theirs = fig.axes[0].collections
    assert ours.get_offsets().tolist() == [[0.9, 0], [0.5, 1]]
    first, second = map(to_hex, ours.get_facecolors())
    assert (first, second) == (ORANGE.lower(), BLUE.lower())
    assert theirs.get_offsets().tolist() == [[0.8, 0]]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "named in the paper",
        "share in the paper",
    ]


def test_classes_go_on_from_column_to_column():
    """All are there, in order from top to bottom, with their own values."""
    names, shares = [f"n{i}" for i in range(60)], np.linspace(1, 0.1, 60)
    fig = figures.class_frequencies(names, shares, {31: 0.5})
    labels, values = [], []
    for axes in fig.axes:
        labels += [label.get_text() for label in axes.get_yticklabels()]
        values += axes.collections[1].get_offsets()[:, 0].tolist()
    assert labels == names and values == pytest.approx(shares)
    published = [axes.collections[2].get_offsets().tolist() for axes in fig.axes]
    assert published == [[], [[0.5, 10]], []]


def test_labels_of_queries_do_not_overlap():
    table = pd.DataFrame(
        {"query": [f"q{i}" for i in range(60)], "method": "a", "ap": 1}
    )
    fig = figures.ap_bars(table)
    fig.canvas.draw()
    assert not overlaps(fig.axes[0].get_yticklabels())


def test_captions_of_results_do_not_overlap():
    row = strip(photos=[LANDSCAPE] * 10, relevance=["positive"] * 10, names=[LONG] * 10)
    fig = figures.result_strips([row | {"scores": [0.123] * 10, "title": LONG}] * 2)
    fig.canvas.draw()
    assert not overlaps(fig.texts)


def test_a_query_without_positives_comes_last_and_says_so():
    table = ap_table()
    table.loc[table["query"] == "q1", "ap"] = np.nan
    axes = figures.ap_bars(table).axes[0]
    order = [label.get_text() for label in axes.get_yticklabels()]
    assert order == ["q0", "q2", "q3", "q1"]
    notes = [note.get_text() for note in axes.texts]
    assert notes == ["no positives", "+0.00", "+0.00", "+0.00", "gain"]


def test_two_methods_are_sorted_by_their_difference():
    table = pd.DataFrame(
        {
            "query": ["a", "b", "c"] * 2,
            "method": ["one"] * 3 + ["two"] * 3,
            "ap": [1.0, 0.2, 0.5, 0.75, 0.9, 0.5],
        }
    )
    intervals = {"one": (0.3, 0.9), "two": (0.5, 1.0), "difference": (-0.1, 0.4)}
    axes = figures.ap_bars(table, intervals).axes[0]
    order = [label.get_text() for label in axes.get_yticklabels()]
    assert order == ["b", "c", "a", "mAP, 95 % interval"]
    notes = [note.get_text() for note in axes.texts]
    assert notes == ["+0.70", "+0.00", "\N{MINUS SIGN}0.25", "+0.15", "gain"]
    assert "+0.150" in axes.get_xlabel() and "-0.100 to +0.400" in axes.get_xlabel()


def test_the_same_value_of_two_methods_does_not_hide_one():
    axes = figures.ap_bars(ap_table()).axes[0]
    first, second = (line.get_xydata() for line in axes.lines[:2])
    np.testing.assert_array_equal(first[:, 0], second[:, 0])
    assert (np.abs(first[:, 1] - second[:, 1]) > 0.3).all()


def test_intervals_are_drawn_where_the_table_has_them():
    table = method_table(6).assign(mAP_low=0.05, mAP_high=0.95)
    axes = figures.method_bars(table).axes[0]
    (lines,) = axes.collections
    assert [line.tolist() for line in lines.get_segments()] == [
        [[0.05, row], [0.95, row]] for row in range(6)
    ]


def test_a_map_keeps_neighbours_and_covers_nothing():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 2))
    places = photos._free_cells(points, 12, 9)
    assert len({tuple(place) for place in places}) == 50
    assert (places >= 0).all() and (places < [12, 9]).all()
    order = [np.corrcoef(points[:, axis], places[:, axis])[0, 1] for axis in (0, 1)]
    assert min(order) > 0.9
    crowded = photos._free_cells(np.zeros((6, 2)), 3, 2)
    assert len({tuple(place) for place in crowded}) == 6


def test_a_line_joins_photos_of_one_landmark():
    points = np.array([[0, 0], [1, 0], [9, 9], [5, 5]])
    shown = [LANDSCAPE] * 4
    groups, names = ["a", "b", "a", ""], ["one", "two", "three", "four"]
    fig = figures.embedding_map(points, shown, groups, names=names)
    (axes,) = fig.axes
    (line,) = axes.lines
    centres = [np.mean(np.reshape(im.get_extent(), (2, 2)), 1) for im in axes.images]
    ends = sorted(line.get_xydata().tolist())
    np.testing.assert_allclose(ends, sorted([centres[0].tolist(), centres[2].tolist()]))
    # Behind the photos, in the colour of their frames; "b" is another group.
    assert all(image.get_zorder() > line.get_zorder() for image in axes.images)
    colours = [to_hex(frame.get_edgecolor()) for frame in axes.patches]
    assert colours == [COLOURS[0].lower(), COLOURS[1].lower(), COLOURS[0].lower()]
    assert to_hex(line.get_color()) == colours[0]
    assert [text.get_text() for text in fig.texts] == names


def test_relevance_is_told_by_symbols_too():
    fig = figures.result_strip(**strip())
    shown = [item.get_text() for item in fig.texts]
    for number, kind in enumerate(strip()["relevance"], start=1):
        assert f"{number} {RELEVANCE[kind][1]}".strip() in shown
    symbols = [symbol for _, symbol in RELEVANCE.values()]
    assert len(set(symbols)) == len(symbols)


def test_credits_of_a_strip_are_written_once_each():
    credits = ["query by A", "by B", "by B", "", "by C", "by D"]
    row = strip(names=["n1", "n1", "n2", "n3", "n4"], credits=credits)
    fig = figures.result_strips([row, row])
    note = " ".join(item.get_text() for item in fig.texts if ": " in item.get_text())
    assert note == "Photos: query: query by A; n1: by B; n3: by C; n4: by D."


def test_a_box_is_drawn_in_pixels_of_a_large_photo():
    large = photo(900, 1600)
    fig = figures.cam_overlays(large, {"a": np.eye(4)}, box=(100, 200, 1500, 800))
    for axes in fig.axes[:2]:
        (x0, x1), (y1, y0) = axes.get_xlim(), axes.get_ylim()
        assert (x0, y0, x1, y1) == pytest.approx((0, 0, 1600, 900))
        assert axes.patches[0].get_bbox().bounds == (100, 200, 1400, 600)
        for image in axes.images:
            assert tuple(image.get_extent()) == (0, 1600, 900, 0)
            assert max(image.get_array().shape[:2]) <= 720


def test_maps_share_one_scale():
    fig = figures.cam_overlays(LANDSCAPE, {"a": np.eye(3), "b": 5 * np.eye(3)})
    limits = {axes.images[-1].get_clim() for axes in fig.axes[1:3]}
    assert limits == {(0.0, 5.0)}


def test_a_map_without_positive_value_says_so():
    fig = figures.cam_overlays(LANDSCAPE, {"a": np.eye(3), "zero": np.zeros((3, 3))})
    notes = [[item.get_text() for item in axes.texts] for axes in fig.axes[:3]]
    assert notes == [[], [], ["no positive value"]]


def test_published_values_lie_on_their_bar_or_get_one():
    table = pd.DataFrame({"method": ["R-MAC", "GeM"], "mAP": [0.6, 0.5]})
    axes = figures.method_bars(table, {"GeM": 0.7, "Paper": 0.4}).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["R-MAC", "GeM", "Paper"]
    assert axes.lines[0].get_xydata().tolist() == [[0.7, 1]]
    assert [note.get_text() for note in axes.texts] == ["0.600", "0.500", "0.400"]


# Colours ----------------------------------------------------------------------------

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of
# Color Vision Deficiency", 2009: linear RGB as seen without one kind of cone.
EYES = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
PALETTES = {
    "lines": COLOURS,
    "relevance": sorted({colour for colour, _ in RELEVANCE.values()}),
    "families": list(plots._FAMILIES.values()),
}


def seen(colours, eye):
    """(n, 3) CIELAB values of colours as an eye sees them."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.transpose(EYES[eye]), 0, 1)
    rgb = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    return cv2.cvtColor(rgb[None].astype(np.float32), cv2.COLOR_RGB2Lab)[0]


def least_difference(colours, eye):
    lab = seen(colours, eye)
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("palette", PALETTES)
def test_colours_can_be_told_apart_without_one_kind_of_cone(palette, eye):
    assert least_difference(PALETTES[palette], eye) > 15  # CIELAB; 2.3 is just visible


def test_the_simulated_eye_confuses_red_and_green():
    pair = ["#c04040", "#5c7f3f"]
    assert least_difference(pair, "all cones") > 60
    assert least_difference(pair, "deuteranopia") < 15


def test_the_heat_map_rises_in_lightness_for_every_eye():
    colours = [to_hex(colour) for colour in mpl.colormaps[figures.HEAT](np.arange(256))]
    for eye in EYES:
        assert (np.diff(seen(colours[::16], eye)[:, 0]) > 0).all()


# Saving -----------------------------------------------------------------------------


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        path = figures.save_figure(CASES["strip"](), "strip", tmp_path / folder)
        assert path == tmp_path / folder / "strip.png"
    for name in ("strip.png", "strip.pdf"):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "strip.pdf",
        "strip.png",
    ]


def test_saving_in_another_process_gives_the_same_bytes(tmp_path):
    code = (
        "import sys; from cwr_utils import figures; figures.use_style(); "
        "fig = figures.class_frequencies(['dome', 'pier'], [0.5, 0.25]); "
        "figures.save_figure(fig, 'f', sys.argv[1])"
    )
    for seed in ("1", "2"):
        env = {"PYTHONHASHSEED": seed, "MPLBACKEND": "Agg"}
        run = [sys.executable, "-c", code, str(tmp_path / seed)]
        subprocess.run(run, check=True, env=env, cwd=figures.__path__[0] + "/../..")
    for name in ("f.png", "f.pdf"):
        one, other = (tmp_path / seed / name for seed in ("1", "2"))
        assert one.read_bytes() == other.read_bytes()


CHART_CASES = [name for name in CASES if any(word in name for word in CHARTS)]


@pytest.mark.parametrize("name", CHART_CASES)
def test_a_chart_is_wide_on_a_screen_and_saved_for_print(name, tmp_path):
    """What is saved is to the byte what is drawn for print; no figure stays open."""
    figures.use_style(screen=False)
    printed = figures.save_figure(CASES[name](), "print", tmp_path)
    figures.use_style()
    fig = CASES[name]()
    if "map" not in name and "similarity" not in name:
        assert fig.get_size_inches()[0] == pytest.approx(PAGE, abs=0.01)
    before = plt.get_fignums()
    saved = figures.save_figure(fig, "saved", tmp_path)
    assert plt.get_fignums() == before
    assert saved.read_bytes() == printed.read_bytes()
    assert style.on_screen()


def test_panels_stand_side_by_side_on_a_screen():
    for screen in (False, True):
        figures.use_style(screen)
        first, second = (axes.get_subplotspec() for axes in CASES["whitening"]().axes)
        assert (first.rowspan == second.rowspan) == screen
        assert (first.colspan == second.colspan) != screen


def test_saved_files_hold_no_date_and_embed_their_letters(tmp_path):
    path = figures.save_figure(CASES["classes"](), "f", tmp_path)
    with Image.open(path) as image:
        assert not image.info.keys() & {"Software", "Creation Time"}
    pdf = path.with_suffix(".pdf").read_bytes()
    assert b"Date" not in pdf
    # TrueType: publishers refuse Type 3.
    assert b"/CIDFontType2" in pdf and b"/FontFile2" in pdf
    assert b"/Type3" not in pdf


@pytest.mark.parametrize("name", ["", "a/b", "a/"])
def test_a_figure_name_has_no_folder(name, tmp_path):
    with pytest.raises(ValueError, match="plain file name"):
        figures.save_figure(plt.figure(), name, tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = figures.save_figure(CASES["classes"](), "f", tmp_path)
    before = path.read_bytes()

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.save_figure(CASES["weights"](), "f", tmp_path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f.pdf", "f.png"]


def test_large_pictures_get_fewer_colours_on_white_paper():
    picture = np.full((700, 900, 3), 255, np.uint8)
    picture[5:, 5:] = photo(695, 895)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    packed = _smaller_png(buffer.getvalue())
    assert len(packed) < len(buffer.getvalue()) / 2
    small = Image.open(io.BytesIO(packed))
    assert small.mode == "P"
    assert small.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


# Text -------------------------------------------------------------------------------


def test_file_names_are_no_formulas():
    assert text.plain_text("cost_$5_and_$6") == r"cost_\$5_and_\$6"
    assert text.plain_text(text.plain_text("$5")) == r"\$5"
    assert text.plain_text("by $N_C$ for $1") == r"by $N_C$ for \$1"
    figures.photo_grid([LANDSCAPE], titles=["a$b^$c_ 建筑 \N{WHITE SMILING FACE}"])
    plt.gcf().canvas.draw()


def test_text_is_shortened_to_its_place():
    short = text.fit_line(LONG, 1.0, 7, keep=3)
    assert short.endswith("…_17")
    assert text.text_width(short, 7) <= 1.0
    assert text.fit_line("dome", 1.0, 7) == "dome"
    assert text.fit_line("dome", 0.0, 7) == "…"
    assert text.fit_line("$5", 1.0, 7) == r"\$5"


def test_text_is_shortened_by_any_measure():
    assert text.shorten("abcdef", 6, len) == "abcdef"
    assert text.shorten("abcdef", 5, len) == "abcd…"
    assert text.shorten("abcdef", 5, len, keep=2) == "ab…ef"
    assert text.shorten("ab_, cdef", 6, len) == "ab…"


def test_text_is_wrapped_and_nothing_is_lost_where_it_fits():
    words = "one two three four five six seven"
    lines = text.wrap_text(words, 0.8, 7, lines=10)
    assert " ".join(lines) == words
    assert all(text.text_width(line, 7) <= 0.8 for line in lines)
    two = text.wrap_text(words, 0.8, 7, lines=2)
    assert len(two) == 2 and two[1].endswith("…")
    assert text.wrap_text("", 1, 7) == []


# Errors -----------------------------------------------------------------------------

ERRORS = {
    "no photo": (lambda: figures.photo_grid([]), "at least one photo"),
    "grey photo": (lambda: figures.photo_grid([np.zeros((4, 4))]), "(H, W, 3)"),
    "float photo": (lambda: figures.photo_grid([np.zeros((4, 4, 3))]), "uint8"),
    "titles": (lambda: figures.photo_grid([LANDSCAPE], ["a", "b"]), "`titles`"),
    "frame": (lambda: figures.photo_grid([LANDSCAPE], frames=["good"]), "'good'"),
    "no cam": (lambda: figures.cam_overlays(LANDSCAPE, {}), "`cams` is empty"),
    "cam": (lambda: figures.cam_overlays(LANDSCAPE, {"a": np.ones(3)}), "`a` must"),
    "mask": (lambda: figures.grid_overlay(LANDSCAPE, np.ones(3)), "`mask` must"),
    "outside": (
        lambda: figures.grid_overlay(LANDSCAPE, np.eye(3), (0, 0, 99, 99)),
        "outside its image",
    ),
    "best": (
        lambda: figures.boxes_on_photo(LANDSCAPE, {"a": (0, 0, 9, 9)}, best="b"),
        "`best` must be one of a",
    ),
    "no rows": (lambda: figures.result_strips([]), "`rows` is empty"),
    "relevance": (
        lambda: figures.result_strip(**strip(relevance=["positive"])),
        "`relevance` must have one entry for each of the 5",
    ),
    "kind": (lambda: figures.result_strip(**strip(relevance=["fine"] * 5)), "'fine'"),
    "scores": (lambda: figures.result_strip(**strip(scores=[1.0])), "`scores`"),
    "vectors": (lambda: pipeline(vectors=np.ones((2, 9))), "(4, K)"),
    "classes": (lambda: pipeline(heat={"dog": np.eye(3)}), "got dog"),
    "weights": (lambda: figures.channel_weights({"a": np.eye(3)}), "weights['a']"),
    "no weights": (lambda: figures.channel_weights({}), "`weights` is empty"),
    "after": (
        lambda: figures.whitening_spectrum(np.ones((5, 2)), np.ones((4, 2))),
        "`after` must have shape (5, D)",
    ),
    "one vector": (
        lambda: figures.whitening_spectrum(np.ones((1, 2)), np.ones((1, 2))),
        "at least 2",
    ),
    "columns": (lambda: figures.method_bars(pd.DataFrame({"a": [1]})), "lacks"),
    "no method": (lambda: figures.method_bars(method_table().head(0)), "no rows"),
    "no ablation": (
        lambda: figures.ablation_curves(ablation_table().head(0)),
        "no rows",
    ),
    "axis": (lambda: figures.ablation_curves(ablation_table(), x="a"), "`x` must"),
    "methods": (
        lambda: figures.ap_bars(ap_table([str(i) for i in range(len(COLOURS) + 1)])),
        "1 to 7 methods",
    ),
    "twice": (lambda: figures.ap_bars(ap_table(["a", "a"])), "two rows"),
    "matrix": (lambda: figures.similarity_matrix(np.eye(3), ["a"]), "(1, 1)"),
    "empty matrix": (
        lambda: figures.similarity_matrix(np.full((1, 1), np.nan), ["a"]),
        "no number",
    ),
    "shares": (lambda: figures.class_frequencies(["a"], [0.1, 0.2]), "`shares`"),
    "no class": (lambda: figures.class_frequencies([], []), "`names` is empty"),
    "no curve": (lambda: figures.precision_recall({}), "`curves` is empty"),
    "precision": (
        lambda: figures.precision_recall({"a": (np.ones(3), np.ones(2))}),
        "precision of a",
    ),
}


@pytest.mark.parametrize(("draw", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_input_is_named(draw, message):
    with pytest.raises(ValueError) as error:
        draw()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("size", "space", "fitted"),
    [
        ((90, 60), (30, 40), (30, 20)),  # (width, height): the width decides
        ((60, 90), (30, 30), (20, 30)),
        ((90, 1), (30, 30), (30, 1)),  # never without a pixel
        ((9, 6), (30, 40), (9, 6)),
    ],
)
def test_a_photo_is_shrunk_to_its_space_and_not_enlarged(size, space, fitted):
    small = canvas.fit_photo(photo(*size[::-1]), *space)
    assert small.shape == (*fitted[::-1], 3)


def test_a_photo_is_enlarged_if_asked_and_keeps_its_colours():
    plain = np.full((6, 9, 3), 77, np.uint8)
    large = canvas.fit_photo(plain, 30, 40, enlarge=True)
    assert large.shape == (20, 30, 3) and (large == 77).all()
    assert canvas.fit_photo(plain, 9, 9) is plain
    # A photo is averaged where it shrinks, not sampled: stripes become grey.
    stripes = np.zeros((40, 40, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (canvas.fit_photo(stripes, 10, 10) == 100).all()


def test_figures_do_not_load_keras():
    code = "import sys, cwr_utils.figures; sys.exit('keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cells_suit_their_photos():
    assert canvas.common_ratio([PANORAMA]) == 2.5
    assert canvas.common_ratio([LANDSCAPE, LANDSCAPE, PANORAMA]) == 1.5
    assert canvas.common_ratio([PORTRAIT, PORTRAIT, LANDSCAPE]) == 0.75
