"""All notebooks through papermill on a slice of the demo, as a person runs them."""

import json

import nbformat
import pandas as pd
import pytest

from cwr_utils.runs import comparison, demo, notebook, record, source
from cwr_utils.runs.source import RunError
from cwr_utils.runs.workbench import Loader

PARAMETERS = {
    "limit": 24,
    "resize": "320x240",
    "num_whitening_classes": 8,
    "dimensions": 48,
    "rerank": 3,
}


def parameters(folder):
    return {
        **demo.preset(),
        **PARAMETERS,
        "cache_dir": str(folder / "cache"),
        "results_dir": str(folder / "results"),
        "figures_dir": str(folder / "figures"),
    }


@pytest.fixture(scope="module")
def workbook(tmp_path_factory):
    """Folder with everything that the six notebooks wrote."""
    folder = tmp_path_factory.mktemp("workbook")
    for name in source.NOTEBOOKS:
        notebook.run_notebook(name, parameters(folder), folder / "executed")
    return folder


def test_every_notebook_runs_without_error_or_warning(workbook):
    for name in source.NOTEBOOKS:
        executed = nbformat.read(workbook / "executed" / f"{name}.ipynb", as_version=4)
        outputs = [o for cell in executed.cells for o in cell.get("outputs", [])]
        assert outputs, name
        kinds = {output.output_type for output in outputs}
        assert "error" not in kinds, name
        text = "".join(o.text for o in outputs if o.output_type == "stream")
        assert "Warning" not in text, text
        # Progress bars are blank where no kernel runs.
        assert "widget-view" not in json.dumps(outputs), name


def test_metrics_are_the_rows_that_the_design_promises(workbook):
    table = pd.DataFrame(json.loads((workbook / "results/metrics.json").read_text()))
    assert {"method", "mAP", "queries", "images", "whitening", "note"} <= set(table)
    assert table["mAP"].between(0, 1).all()
    assert table["slug"].is_unique
    assert {"offline", "online", "theme"} <= set(table["aggregation"])
    assert (table["rerank"] > 0).any()
    assert (table["query_expansion"] > 0).any()


def test_the_table_follows_from_the_per_query_rows(workbook):
    table = pd.DataFrame(json.loads((workbook / "results/metrics.json").read_text()))
    per_query = pd.read_csv(workbook / "results/per_query.csv")
    assert {"query", "ap", "positives", "first_false_positive", "last_positive"} <= set(
        per_query
    )
    means = per_query.groupby("slug")["ap"].mean()
    for row in table.itertuples():
        assert means[row.slug] == pytest.approx(row.mAP)


def test_rankings_hold_every_image_once(workbook):
    files = list((workbook / "results/rankings").glob("*/*.txt"))
    images = pd.DataFrame(json.loads((workbook / "results/metrics.json").read_text()))
    assert len(files) == len(images) * images["queries"][0]
    for file in files:
        names = file.read_text().split("\n")[:-1]
        assert len(set(names)) == len(names) == images["images"][0]


def test_provenance_is_recorded_for_every_notebook(workbook):
    recorded = json.loads((workbook / "results/run.json").read_text())
    assert tuple(recorded) == source.NOTEBOOKS
    for run in recorded.values():
        assert run["seconds"] >= 0
        assert run["peak_memory_mib"] > 10
        assert run["parameters"]["limit"] == 24
        assert run["versions"]["keras"]
        assert len(run["facts"]["dataset_sha256"]) == 64


def test_figures_come_as_png_and_pdf(workbook):
    pngs = {path.stem for path in (workbook / "figures").glob("*.png")}
    pdfs = {path.stem for path in (workbook / "figures").glob("*.pdf")}
    assert pngs == pdfs
    assert {"cams", "fig3_boxes", "fig4_sensitivity", "pipeline", "methods"} <= pngs


def test_a_second_run_extracts_nothing(workbook, tmp_path):
    again = {**parameters(workbook), "results_dir": str(tmp_path)}
    target = notebook.run_notebook("02_extract_features", again, tmp_path)
    cells = json.loads(target.read_text())["cells"]
    shown = json.dumps([cell.get("outputs") for cell in cells])
    assert shown.count("extraction skipped") == 6
    assert str(workbook) not in shown  # an executed copy is passed on


def test_what_is_on_record_is_what_a_sweep_expects(workbook, monkeypatch, tmp_path):
    """Seen from another folder, without running anything."""
    monkeypatch.chdir(tmp_path)
    recorded = record.read_runs(workbook / "results/run.json")
    loader = Loader()
    for name in source.NOTEBOOKS[1:]:
        given = source.complete(name, parameters(workbook))
        facts = record.facts(name, given, loader.experiment(given).facts)
        assert recorded[name]["identity"] == record.identity.digest(facts)
        assert str(workbook) not in json.dumps(recorded[name])


@pytest.fixture(scope="module")
def experiment(workbook):
    """What the notebooks ran, opened from here."""
    given = source.complete(source.NOTEBOOKS[4], parameters(workbook))
    return Loader().experiment(given)


ROWS = [
    {"aggregation": "sum", "dimensions": 0},
    {"aggregation": "online"},
    {"aggregation": "offline", "num_classes": 1},
    {"aggregation": "offline", "num_classes": 8},
]


@pytest.fixture(scope="module")
def table(workbook, tmp_path_factory):
    """Folder and rows of a table of methods, with times."""
    folder = tmp_path_factory.mktemp("table")
    own = {"rows": ROWS, "timed": True, "query_expansion": 0, "rerank": 0}
    own |= {"results_dir": str(folder), "cap_dimensions": True}
    notebook.run_notebook("method_table", parameters(workbook) | own, folder)
    return folder, json.loads((folder / "metrics.json").read_text())


def test_a_table_of_methods_scores_as_notebook_04(workbook, table):
    _, rows = table
    assert [row["method"] for row in rows] == [
        "Raw features",
        "OnA, 8 classes by rank",
        "OfA, 1 class by rank",
        "OfA, 8 classes by rank",
    ]
    assert all(row.pop("seconds_query") > 0 for row in rows)
    evaluated = json.loads((workbook / "results/metrics.json").read_text())
    there = {row["slug"]: row for row in evaluated}
    for row in rows:
        for column in ("mAP", "mAP_low", "whitening_vectors", "setting"):
            assert row[column] == there[row["slug"]][column]


def test_rows_of_one_experiment_are_collected_and_others_named(
    workbook, experiment, tmp_path
):
    ours, left_out = comparison.collect(workbook / "results", experiment)
    assert left_out == [] and set(ours["sweep"]) == {"metrics", "ablation"}
    with pytest.raises(RunError, match=r"rows left out \(power: 2.0 there, 1.0 here\)"):
        other = source.complete(
            source.NOTEBOOKS[4], parameters(workbook) | {"power": 1.0}
        )
        comparison.collect(workbook / "results", Loader().experiment(other))


def test_a_failing_notebook_names_the_cell_and_the_error(tmp_path):
    with pytest.raises(RunError, match=r"00_prepare_data failed in cell \d+.*nope"):
        notebook.run_notebook(
            "00_prepare_data",
            {"dataset": "nope", "results_dir": str(tmp_path)},
            tmp_path,
        )
    assert (tmp_path / "00_prepare_data.ipynb").exists()
