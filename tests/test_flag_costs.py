"""Flags one at a time: against runs that are set up anew, and what is left alone."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny

from cwr_utils import extraction, flag_costs, protocol
from cwr_utils.extraction import ExtractionConf, ImageMaps
from cwr_utils.flag_costs import Run, at_scale, measure, methods
from cwr_utils.protocol import FLAGS, PRESETS
from cwr_utils.retrieval import Method, open_retrieval

# Boxes of five cells need a grid that is somewhat finer than that of other tests.
CONF = ExtractionConf(resize="96x72")
METHODS = methods(Method("online", 3, 3, 12, rerank_classes=3), 6, 2)
DATABASE = ["resize", "stretch_query_images", "flip_negative_cams"]


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "Describer", tiny.describer)
        yield


def describe(data, others, cache, conf, **options):
    """Extract all stores and open them."""
    network = tiny.network()
    for part in (data, others):
        path = extraction.store_path(cache, part, network, conf)
        extraction.extract(part, network, path / "database", conf)
    path = extraction.store_path(cache, data, network, conf)
    folder = path / extraction.query_folder(conf)
    extraction.extract_queries(data, network, folder, conf)
    return open_retrieval(data, others, network, conf, cache, **options)


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
    cache = tmp_path_factory.mktemp("cache")
    return Run(describe(*parts, cache, CONF), parts[1], CONF, cache)


@pytest.fixture(scope="module")
def table(run):
    return measure(run, METHODS, all_flags=True).set_index("flag")


def gains(table, flag):
    return table.loc[flag, [method.label for method in METHODS]].astype(float)


def test_the_first_row_is_the_run_and_all_flags_and_presets_follow(table, run):
    assert list(table.index) == ["mAP of this run", *FLAGS, "paper", "authors_code"]
    first = [run.stores.row(run.stores.run(method))["mAP"] for method in METHODS]
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
    base = replace(run.stores.protocol, resize="1024x720")
    wanted = {**dict(protocol.variants(base)), **presets}[flag]
    size = "shorter:72" if wanted.resize == "shorter:720" else "96x72"
    if flag == "mean_order":
        assert gains(table, flag).isna().all()
        assert table.loc[flag, "note"] == "no effect here: of vgg16-cam only"
        return
    conf = ExtractionConf.with_protocol(wanted, size)
    anew = describe(*parts, tmp_path, conf, protocol=wanted)
    for method in METHODS:
        change = (
            anew.row(anew.run(method))["mAP"]
            - run.stores.row(run.stores.run(method))["mAP"]
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
    switched = run.under(replace(run.protocol, **{flag: value}))
    assert switched.database is run.stores.database
    before, after = (s.queries.read(array) for s in (run.stores, switched))
    assert not np.allclose(before, after, atol=1e-3)


def test_photos_are_described_anew_only_when_asked(run, table, monkeypatch):
    monkeypatch.setattr(flag_costs, "extract", None)
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


def test_what_cannot_matter_is_said(run):
    data = run.stores.dataset
    whole = tuple(replace(query, box=None) for query in data.queries)
    stores = run.stores.under(run.stores.protocol)
    stores.dataset = replace(data, queries=whole)
    idle = replace(run, stores=stores)
    for flag in ("query_classes", "scale_query_box", "keep_partial_cells"):
        value = getattr(PRESETS["authors_code"], flag)
        assert flag_costs.why_idle(flag, value, run) == ""
        why = flag_costs.why_idle(flag, value, idle)
        assert why == "no effect here: no query has a box"
    squares = "no effect here: no square photo changes its shape"
    flag = "rerank_squares_upright"
    assert flag_costs.why_idle(flag, True, run) == ""
    kept = replace(run, conf=replace(CONF, resize="shorter:72"))
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
    flipped = run.under(replace(run.protocol, flip_negative_cams=True))
    assert flipped.maps is run.stores.maps
    resized = run.under(replace(run.protocol, resize="shorter:72"))
    assert isinstance(resized.maps, ImageMaps) and resized.maps is not run.stores.maps
