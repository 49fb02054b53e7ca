"""All notebooks through papermill on a slice of the demo, as a person runs them."""

import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cwr_utils import runs, sweeps

PARAMETERS = {
    "limit": 24,
    "resize": "320x240",
    "num_whitening_classes": 8,
    "dimensions": 48,
    "rerank": 3,
}


def parameters(folder):
    demo = runs.datasets.load_demo(runs.ROOT / "data").name
    return {
        **runs.PRESETS[demo],
        **PARAMETERS,
        "cache_dir": str(folder / "cache"),
        "results_dir": str(folder / "results"),
        "figures_dir": str(folder / "figures"),
    }


@pytest.fixture(scope="module")
def workbook(tmp_path_factory):
    """Folder with everything that the six notebooks wrote."""
    folder = tmp_path_factory.mktemp("workbook")
    for name in runs.NOTEBOOKS:
        runs.run_notebook(name, parameters(folder), folder / "executed")
    return folder


def test_every_notebook_runs_without_error_or_warning(workbook):
    for name in runs.NOTEBOOKS:
        notebook = nbformat.read(workbook / "executed" / f"{name}.ipynb", as_version=4)
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
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
    assert tuple(recorded) == runs.NOTEBOOKS
    for run in recorded.values():
        assert run["seconds"] >= 0
        assert run["peak_memory_mib"] > 10
        assert run["parameters"]["limit"] == 24
        assert run["versions"]["keras"]
        assert len(run["dataset_sha256"]) == 64


def test_figures_come_as_png_and_pdf(workbook):
    pngs = {path.stem for path in (workbook / "figures").glob("*.png")}
    pdfs = {path.stem for path in (workbook / "figures").glob("*.pdf")}
    assert pngs == pdfs
    assert {"cams", "fig3_boxes", "fig4_sensitivity", "pipeline", "methods"} <= pngs


def test_a_second_run_extracts_nothing(workbook, tmp_path):
    again = {**parameters(workbook), "results_dir": str(tmp_path)}
    target, _ = runs.run_notebook("02_extract_features", again, tmp_path)
    assert target.read_text().count("extraction skipped") == 3


def test_one_method_scores_the_same_in_any_kernel_and_in_notebook_04(
    workbook, tmp_path
):
    """A warm kernel has run another cell before; a cold one starts from nothing."""
    chosen = {**parameters(workbook), "query_expansion": 0, "rerank": 0}
    other = {**chosen, "aggregation": "offline", "num_classes": 8}
    places = {name: str(tmp_path / name) for name in ("other", "warm", "cold")}
    with sweeps.WarmKernel(threads=2) as kernel:
        kernel.run("one_method", other | {"results_dir": places["other"]}, tmp_path)
        kernel.run("one_method", chosen | {"results_dir": places["warm"]}, tmp_path)
    runs.run_notebook("one_method", chosen | {"results_dir": places["cold"]}, tmp_path)
    rows = {}
    for name, place in places.items():
        (rows[name],) = json.loads((Path(place) / "metrics.json").read_text())
        assert rows[name].pop("seconds_query") > 0
    assert rows["warm"] == rows["cold"] != rows["other"]
    table = json.loads((workbook / "results/metrics.json").read_text())
    assert rows["cold"] in table
    recorded = json.loads((tmp_path / "warm/run.json").read_text())["one_method"]
    evaluated = json.loads((workbook / "results/run.json").read_text())
    assert recorded["dataset_sha256"] == evaluated[runs.NOTEBOOKS[4]]["dataset_sha256"]


def test_a_failing_notebook_names_the_cell_and_the_error(tmp_path):
    with pytest.raises(
        runs.RunError, match=r"00_prepare_data failed in cell \d+.*nope"
    ):
        runs.run_notebook(
            "00_prepare_data",
            {"dataset": "nope", "results_dir": str(tmp_path)},
            tmp_path,
        )
    assert (tmp_path / "00_prepare_data.ipynb").exists()
