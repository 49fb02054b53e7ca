"""Why more classes hurt, and the walk from one setting to another."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from cwr_utils import evaluation, figures, redundancy
from cwr_utils.names import CLASS_WEIGHTINGS
from cwr_utils.retrieval import Collection, Method, rank
from cwr_utils.runs import walk

METHOD = Method("online", 3, num_whitening_classes=3, dimensions=10)
pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beyond")
    sizes = ("96x72", "64x48")
    return tiny.described(
        folder, *(tiny.setup(folder / "cache", resize=s) for s in sizes)
    )


@pytest.fixture
def opened(experiment):
    return Collection.open(experiment)


def test_mean_cosine_by_hand():
    right = [[1.0, 0.0], [0.0, 2.0]]  # a right angle: 0
    same = [[3.0, 0.0], [1.0, 0.0]]
    assert redundancy.mean_cosine(np.array([right, same])) == pytest.approx([0, 1])
    three = np.array([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])  # 0, -1 and 0
    assert redundancy.mean_cosine(three) == pytest.approx(-1 / 3)


def test_empty_vectors_do_not_count():
    vectors = np.array(
        [[[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], [[1.0, 0], [0, 0], [0, 0]]]
    )
    found = redundancy.mean_cosine(vectors)
    assert found[0] == pytest.approx(1) and np.isnan(found[1])


@given(st.integers(0, 2**16), st.integers(2, 6))
def test_mean_cosine_is_the_naive_loop(seed, count):
    vectors = np.random.default_rng(seed).normal(size=(2, count, 4))
    for photo, got in zip(vectors, redundancy.mean_cosine(vectors), strict=True):
        unit = photo / np.linalg.norm(photo, axis=1, keepdims=True)
        pairs = [
            unit[i] @ unit[j] for i in range(count) for j in range(count) if i != j
        ]
        assert got == pytest.approx(np.mean(pairs), abs=1e-5)


def test_each_setup_has_a_row_of_parallels(opened):
    table = redundancy.parallel(opened, METHOD, classes=4)
    assert table["resize"].tolist() == ["96x72", "64x48"]
    top = opened.first.database.read("top_classes")[:, :4]
    vectors = np.stack(
        [
            opened.first.database.class_vectors(t, slice(i, i + 1))[0]
            for i, t in enumerate(top)
        ]
    )
    fitted = opened.first.spaces.fitted(METHOD)
    assert table["raw"][0] == pytest.approx(
        np.nanmean(redundancy.mean_cosine(vectors)), abs=1e-4
    )
    whitened = fitted(vectors)
    assert table["whitened"][0] == pytest.approx(
        np.nanmean(redundancy.mean_cosine(whitened)), abs=1e-4
    )
    unit = whitened[:, 0]
    pairs = (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]
    assert table["other photos"][0] == pytest.approx(pairs.mean(), abs=1e-4)


def test_the_first_rank_is_one_class_and_the_others_are_worth_their_own(opened):
    table = redundancy.by_rank(opened, METHOD, [1, 3]).set_index("rank")
    alone = replace(opened.experiment, also=())
    one = replace(METHOD, aggregation="offline", num_classes=1)
    single = Collection.open(alone)
    expected = evaluation.mean_average_precision(
        evaluation.evaluate(rank(single, one).rankings, single.data.queries)
    )
    assert table["mAP"][1] == pytest.approx(expected)
    assert table["cosine"][1] == pytest.approx(1, abs=1e-5)
    assert table["cosine"][3] < 1


def test_counts_and_weights_are_rows_of_methods(opened):
    table = redundancy.by_count(opened, METHOD, [1, 3])
    assert len(table) == 6 and table["identity"].nunique() == 6
    first = table[table["num_classes"] == 1]
    assert first["mAP"].nunique() == 1  # one class weighs what it will
    assert set(table["aggregation"]) == {"offline"}


def test_a_walk_measures_each_step_and_its_gain(experiment):
    alone = replace(experiment, also=())
    steps = [
        walk.Step("one size", alone, METHOD),
        walk.Step("two sizes", experiment, METHOD),
        walk.Step("D", experiment, replace(METHOD, dimensions=1000)),
    ]
    table = walk.walk(steps)
    assert table["step"].tolist() == ["one size", "two sizes", "D"]
    assert np.isnan(table["gain"][0])
    np.testing.assert_allclose(table["gain"][1:], np.diff(table["mAP"]), atol=1e-9)
    assert table["dimensions"][2] <= 18  # what the whitening photos support
    assert table["descriptor_bytes"].tolist()[:2] == [40, 80]
    assert table["store_bytes"][1] > table["store_bytes"][0]
    assert table["seconds_photo"][1] > table["seconds_photo"][0] > 0
    assert (table["seconds_query"] > 0).all()
    shown = walk.shown(table)
    assert shown["gain, points"][0] == "" and shown["gain, points"][1][0] in "+-"
    assert isinstance(shown, pd.DataFrame) and len(shown) == 3


def test_the_steps_lead_from_the_paper_to_the_method(experiment):
    best = replace(
        METHOD,
        whitening_exponent=0.35,
        class_weighting="rank",
        rerank=3,
        rerank_classes=3,
        query_expansion=2,
        refine="dba:photos=2",
    )
    found = walk.steps(experiment, best)
    assert found[0].experiment.setup.power == 1.0
    assert found[0].method.class_weighting == "equal"
    assert found[0].method.aggregation == "offline" and not found[0].method.rerank
    assert found[-1] == walk.Step("re-ranking and expansion", experiment, best)
    pairs = list(zip(found, found[1:], strict=False))
    assert all((a.experiment, a.method) != (b.experiment, b.method) for a, b in pairs)
    one = walk.steps(replace(experiment, also=()), best)
    assert [s.label for s in one] == [
        s.label for s in found if not s.label.startswith("together")
    ]


# Figures


def test_figures_of_the_notebook_draw_what_the_tables_say(experiment, opened):
    ranks = redundancy.by_rank(opened, METHOD, [1, 2, 4])
    alone, same = figures.classes_alone(ranks).axes[0].get_lines()
    np.testing.assert_allclose(alone.get_ydata(), ranks["mAP"])
    np.testing.assert_allclose(same.get_ydata(), ranks["cosine"])
    counts = redundancy.by_count(opened, METHOD, [1, 3])
    (axes,) = figures.class_weights(counts).axes
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels == [f"weights: {name}" for name in CLASS_WEIGHTINGS]
    table = walk.walk(walk.steps(experiment, METHOD)[:3])
    (axes,) = figures.walk(table).axes
    texts = [text.get_text() for text in axes.texts]
    assert [text.split()[0] for text in texts] == [f"{v:.3f}" for v in table["mAP"]]
    assert "ms" in texts[0] and texts[1].split()[1][0] in "+-"
    assert max(axes.get_xticks()) <= 1
    plt.close("all")


@pytest.mark.parametrize("draw", ["classes_alone", "class_weights", "walk"])
def test_a_table_without_its_columns_is_refused(draw):
    with pytest.raises(ValueError, match="needs the columns .*mAP"):
        getattr(figures, draw)(pd.DataFrame({"rank": [1]}))


def test_a_line_for_each_kind_of_group_and_a_point_for_the_rest():
    grouped = [
        {"aggregation": "grouped", "groups": g, "bits": b, "bytes_photo": 128.0 * g * b}
        for b in (4, 8)
        for g in (32, 8)
    ]
    others = [{"aggregation": "offline", "bytes_photo": 4096}]
    table = pd.DataFrame([*others, *grouped]).assign(method="any", dimensions=256)
    table["mAP"] = np.linspace(0.5, 0.9, 5)
    (axes,) = figures.store_sizes(table).axes
    assert [line.get_label() for line in axes.lines] == [
        "any, D 256",
        "groups, 4 bits, D 256",
        "groups, 8 bits, D 256",
    ]
    assert axes.lines[0].get_xdata().tolist() == [4]
    assert axes.lines[2].get_xdata().tolist() == [8, 32]
    assert axes.lines[2].get_ydata().tolist() == [0.9, 0.8]
    assert axes.get_xscale() == "log"
    without = table[table["aggregation"] == "offline"].drop(columns=["groups", "bits"])
    assert len(figures.store_sizes(without).axes[0].lines) == 1
    plt.close("all")


def test_a_table_of_methods_is_drawn_as_what_it_has():
    table = pd.DataFrame(
        {
            "aggregation": ["offline", "grouped", "grouped", "grouped"],
            "groups": [np.nan, 8, 8, 8],
            "bits": [np.nan, 4, 4, 4],
            "cascade": [np.nan, np.nan, 5, 50],
            "bytes_photo": [4096, 8192, 12288, 12288],
            "mAP": [0.5, 0.6, 0.7, 0.8],
        }
    ).assign(method="any", dimensions=256, refine=None)
    pictures = figures.of_methods(table)
    assert list(pictures) == ["store_sizes", "cascade"]
    points = [line.get_xdata() for line in pictures["store_sizes"].axes[0].lines]
    assert list(map(len, points)) == [1, 1]
    (line,) = pictures["cascade"].axes[0].lines
    assert line.get_xdata().tolist() == [5, 50]
    assert line.get_ydata().tolist() == [0.7, 0.8]
    without = table.drop(columns="cascade")[:2]
    assert list(figures.of_methods(without)) == ["store_sizes"]
    assert figures.of_methods(without[:1]) == {}
    plt.close("all")


def test_lines_of_re_rankers_are_named_and_the_one_without_too():
    table = pd.DataFrame(
        {
            "aggregation": ["online"] * 4,
            "cascade": [5, 50, 5, 50],
            "refine": [None, None, "dba", "dba"],
            "mAP": [0.1, 0.2, 0.3, 0.4],
        }
    )
    (axes,) = figures.ablation_curves(table, "cascade").axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    assert lines == {
        "neighbours = DBA": [0.3, 0.4],
        "neighbours = none": [0.1, 0.2],
    }
    plt.close("all")
