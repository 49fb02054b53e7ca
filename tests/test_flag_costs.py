"""Flags one at a time: against runs that are set up anew, and what is left alone."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny

from cwr_utils import extraction, flag_costs, protocol, retrieval
from cwr_utils.extraction import ImageMaps
from cwr_utils.flag_costs import at_scale, measure, methods, under
from cwr_utils.protocol import FLAGS, PRESETS
from cwr_utils.retrieval import Collection, Experiment, Method, rank

# Boxes of five cells need a grid that is somewhat finer than that of other tests.
SIZE = "96x72"
METHODS = methods(Method("online", 3, 3, 12, rerank_classes=3), 6, 2)
DATABASE = ["resize", "stretch_query_images", "flip_negative_cams"]
pytestmark = pytest.mark.usefixtures("compile_once")


def describe(data, others, cache, resize=SIZE, **flags):
    """Extract all stores and open them."""
    setup = tiny.setup(cache, resize=resize, **flags)
    experiment = Experiment(data, others, setup)
    experiment.extract()
    return Collection.open(experiment)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Hard queries: a corner of a photo; and photos to fit the whitening on."""
    folder = tmp_path_factory.mktemp("flags")
    data = tiny.dataset(folder / "photos", places=4, views=3, distractors=6)
    corners = [replace(q, box=(40.0, 30.0, 72.0, 70.0)) for q in data.queries]
    others = tiny.dataset(folder / "other", "other", 0, 0, 18, first_place=100)
    return replace(data, queries=tuple(corners)), others


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    return describe(*parts, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def table(run):
    return measure(run, METHODS, all_flags=True).set_index("flag")


def gains(table, flag):
    return table.loc[flag, [method.label for method in METHODS]].astype(float)


def test_the_first_row_is_the_run_and_all_flags_and_presets_follow(table, run):
    assert list(table.index) == ["mAP of this run", *FLAGS, "paper", "authors_code"]
    first = [retrieval.row(run, rank(run, method))["mAP"] for method in METHODS]
    np.testing.assert_allclose(gains(table, "mAP of this run"), first)
    assert table.loc["rerank_largest", ["point", "here", "switched to"]].tolist() == [
        *("E16", "cells", "contour")
    ]
    assert table.loc["resize", ["here", "switched to"]].tolist() == [
        *("96x72", "shorter:72")
    ]


@pytest.mark.parametrize(
    "flag",
    [
        *("mean_order", "resize", "query_classes", "rerank_thresholds"),
        *("rerank_moves_index", "authors_code"),
    ],
)
def test_a_gain_is_that_of_a_run_set_up_anew(table, run, parts, tmp_path, flag):
    presets = {name: PRESETS[name] for name in ("paper", "authors_code")}
    # At 96x72 the run has the authors' aspect already.
    base = replace(run.first.setup.protocol, resize="1024x720")
    wanted = {**dict(protocol.variants(base)), **presets}[flag]
    size = "shorter:72" if wanted.resize == "shorter:720" else "96x72"
    if flag == "mean_order":
        assert gains(table, flag).isna().all()
        assert table.loc[flag, "note"] == "no effect here: of vgg16-cam only"
        return
    anew = describe(*parts, tmp_path, size, protocol=wanted)
    for method in METHODS:
        change = (
            retrieval.row(anew, rank(anew, method))["mAP"]
            - retrieval.row(run, rank(run, method))["mAP"]
        )
        assert gains(table, flag)[method.label] == pytest.approx(change, abs=1e-9)
    assert table.loc[flag, "note"] == ""


def test_some_flags_of_photos_and_of_the_search_change_a_number(table):
    """Or the comparisons above would prove nothing."""
    changed = {flag for flag in FLAGS if gains(table, flag).fillna(0).any()}
    assert {FLAGS[flag]["stage"] for flag in changed} == {"database", "search"}


@pytest.mark.parametrize(
    ("flag", "value", "array"),
    [
        ("query_classes", "same pass", "probabilities"),
        ("scale_query_box", False, "class_vectors"),
        ("keep_partial_cells", False, "class_vectors"),
    ],
)
def test_flags_of_queries_change_the_queries_and_not_the_photos(
    run, flag, value, array
):
    switched = under(run, replace(run.first.setup.protocol, **{flag: value}))
    assert switched.first.database is run.first.database
    before, after = (s.first.asked.store.read(array) for s in (run, switched))
    assert not np.allclose(before, after, atol=1e-3)


def test_photos_are_described_anew_only_when_asked(run, table, monkeypatch):
    monkeypatch.setattr("cwr_utils.retrieval.experiment.extract", None)
    few = measure(run, METHODS, all_flags=False).set_index("flag")
    for flag in DATABASE:
        assert gains(few, flag).isna().all()
        assert few.loc[flag, "note"] == f"not switched: {flag}"
    for flag in set(FLAGS) - {*DATABASE, "mean_order"}:
        pd.testing.assert_series_equal(gains(few, flag), gains(table, flag))
    assert few.loc["paper", "note"] == "not switched: resize"
    left_out = "not switched: stretch_query_images, flip_negative_cams"
    assert few.loc["authors_code", "note"] == left_out


def test_a_second_time_reads_what_the_first_one_stored(run, table, monkeypatch):
    monkeypatch.setattr(extraction.Describer, "__call__", None)
    monkeypatch.setattr(extraction.Describer, "describe_query", None)
    again = measure(run, METHODS, all_flags=True).set_index("flag")
    pd.testing.assert_frame_equal(again, table)


def test_what_cannot_matter_is_said(run, parts, tmp_path):
    data, others = parts
    whole = tuple(replace(query, box=None) for query in data.queries)
    idle = describe(replace(data, queries=whole), others, tmp_path)
    for flag in ("query_classes", "scale_query_box", "keep_partial_cells"):
        value = getattr(PRESETS["authors_code"], flag)
        assert flag_costs.why_idle(flag, value, run) == ""
        why = flag_costs.why_idle(flag, value, idle)
        assert why == "no effect here: no query has a box"
    squares = "no effect here: no square photo changes its shape"
    flag = "rerank_squares_upright"
    assert flag_costs.why_idle(flag, True, run) == ""
    kept = describe(data, others, tmp_path, "shorter:72")
    assert flag_costs.why_idle(flag, True, kept) == squares


@pytest.mark.parametrize(
    ("resize", "here", "expected"),
    [
        ("1024x720", "640x480", "640x480"),
        ("shorter:720", "640x480", "shorter:480"),
        ("shorter:720", "longer:1024", "longer:1024"),
        ("1024x720", "shorter:720", "1024x720"),
        ("1024x720", "shorter:480", "688x480"),
        ("1024x720", "longer:1024", "1024x720"),
        ("1024x720", "native", "1024x720"),
    ],
)
def test_an_aspect_is_taken_to_the_scale_of_the_run(resize, here, expected):
    assert at_scale(resize, here) == expected


def test_maps_are_shared_unless_the_photos_have_another_size(run):
    kept = under(run, replace(run.first.setup.protocol, rerank_fallback=False))
    assert kept.first.maps is run.first.maps
    resized = under(run, replace(run.first.setup.protocol, resize="shorter:72"))
    assert (
        isinstance(resized.first.maps, ImageMaps)
        and resized.first.maps is not run.first.maps
    )
