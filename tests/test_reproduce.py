"""`make paper` up to the notebooks, which run elsewhere, and the tables it writes."""

import shutil
import subprocess

import pandas as pd
import pytest
import tiny
from test_oxford_paris import make_oxford
from test_paper import FULL

from cwr_utils import paper, reproduce, runs, sweeps
from cwr_utils.__main__ import main
from cwr_utils.datasets import DatasetError

ROWS = pd.DataFrame(
    [
        FULL | {"slug": "a", "note": "5,063 images", "mAP": 0.715},
        FULL | {"slug": "b", "note": "5,063 images", "mAP": 0.5, "num_classes": 8},
    ]
)


@pytest.fixture
def photos(tmp_path):
    """Two folders of photos: one with groups, one without."""
    for name, place in (("ours", 0), ("others", 100)):
        (tmp_path / name).mkdir()
        for number in range(4):
            tiny.write(tmp_path / name / f"{number}.png", tiny.view(place, number))
    (tmp_path / "ours/groups.csv").write_text("image,group\n0,a\n1,a\n2,b\n3,b\n")
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    """Networks that load at once; the list of those asked for."""
    asked = []
    monkeypatch.setattr(
        reproduce.networks, "load", lambda name, weights: asked.append((name, weights))
    )
    return asked


# What a person types


@pytest.mark.parametrize(("dataset", "network"), [("", ""), ("monuments", "")])
def test_without_data_set_or_network_it_says_what_to_give(dataset, network):
    with pytest.raises(runs.RunError) as error:
        reproduce.plan(dataset, network)
    assert "make paper DATASET=monuments NETWORK=efficientnet-lite0" in str(error.value)


def test_the_command_says_it_too(capsys):
    assert main(["paper"]) == 1
    assert "make paper DATASET=monuments" in capsys.readouterr().err


def test_a_folder_needs_a_whitening_set(photos, no_network):
    with pytest.raises(runs.RunError, match="No whitening set belongs to .*WHITENING="):
        reproduce.plan(str(photos / "ours"), "efficientnet-lite0")


def test_two_folders_are_a_plan(photos, no_network, monkeypatch):
    monkeypatch.chdir(photos)
    found = reproduce.plan("ours", "keras:ResNet50", whitening="others", weights=None)
    assert found.name == "ours-keras-ResNet50-random"
    assert found.parameters["dataset"] == str(photos / "ours")
    assert found.parameters["whitening_dataset"] == str(photos / "others")
    assert found.parameters["feature_layer"] == "conv5_block3_out"
    assert found.parameters["dimensions"] == 2048
    assert found.parameters["protocol"] == "authors_code"
    assert no_network == [("keras:ResNet50", None)]
    assert set(found.parameters) <= set(runs.PARAMETERS)


def test_the_default_layer_is_kept_where_the_paper_has_no_such_network(
    photos, no_network
):
    folders = str(photos / "ours"), str(photos / "others")
    found = reproduce.plan(folders[0], "efficientnet-lite0", whitening=folders[1])
    assert found.name == "ours-efficientnet-lite0"
    assert found.parameters["feature_layer"] is None
    assert "dimensions" not in found.parameters  # the sweep's own


def test_missing_photos_are_found_before_the_work(tmp_path, no_network):
    with pytest.raises(DatasetError, match="oxford5k is not complete"):
        reproduce.plan("oxford5k", "vgg16-cam", data_root=str(tmp_path))
    assert not no_network


def test_an_unknown_network_is_one_message(photos):
    folders = str(photos / "ours"), str(photos / "others")
    with pytest.raises(runs.RunError, match="unknown network 'vgg'"):
        reproduce.plan(folders[0], "vgg", whitening=folders[1])


@pytest.mark.parametrize(
    ("prefix", "loader", "whitening"),
    [("oxc1_", "oxford5k", "paris6k"), ("paris_", "paris6k", "oxford5k")],
)
def test_a_folder_in_the_layout_of_oxford_is_oxford(
    tmp_path, monkeypatch, no_network, prefix, loader, whitening
):
    root = tmp_path / "part"
    make_oxford(root, prefix=prefix)
    asked = []
    monkeypatch.setattr(reproduce.runs, "load_data", lambda *a: asked.append(a))
    found = reproduce.plan(str(root), "vgg16-cam")
    data = str(runs.ROOT / "data")
    assert asked == [(loader, str(root), whitening, data)]
    assert found.name == "part-vgg16-cam"


def test_make_passes_everything_on(tmp_path):
    given = {
        "DATASET": "a folder",
        "NETWORK": "keras:ResNet50",
        "WHITENING": "b",
        "DATA_ROOT": "c",
        "WHITENING_ROOT": "d",
        "WEIGHTS": "none",
        "PROTOCOL": "paper",
        "JOBS": "3",
    }
    words = [f"{name}={value}" for name, value in given.items()]
    recipe = subprocess.run(
        ["make", "-n", "-o", ".venv/.complete", "paper", *words],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for value in given.values():
        assert f'"{value}"' in recipe


# What runs


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A project whose sweeps write `ROWS`; the notebooks and cells that ran."""
    shutil.copytree(runs.ROOT / "notebooks", tmp_path / "notebooks")
    ran = []

    def run_sweep(path, overrides, *, jobs, results, figures):
        ran.append((path.stem, dict(overrides), jobs))
        runs.write_table(results / "metrics.csv", ROWS)
        return ["a cell: no memory"] if path.stem == "table2b" else []

    def run_notebook(name, parameters, output):
        ran.append((name, parameters))
        folder = tmp_path / "notebooks" / parameters["results_dir"]
        rows = reproduce.collect(folder)
        reproduce.write_tables(paper.compare(rows), reproduce.heading(rows), folder)

    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(sweeps, "run_sweep", run_sweep)
    monkeypatch.setattr(runs, "run_notebook", run_notebook)
    return ran


def test_all_sweeps_run_then_the_tables_are_written(world, tmp_path, capsys):
    failures = reproduce.run(reproduce.Plan("x-y", {"network": "n", "limit": 3}), 2)
    assert failures == ["a cell: no memory"]
    *swept, (notebook, parameters) = world
    assert [name for name, _, _ in swept] == list(reproduce.SWEEPS)
    assert all(overrides == {"network": "n", "limit": 3} for _, overrides, _ in swept)
    jobs = {name: count for name, _, count in swept}
    assert jobs["table1b"] == 1  # it measures time
    assert jobs["fig4"] == 2
    assert notebook == "05_paper_figures"
    assert parameters["network"] == "n" and parameters["resize"] == "1024x720"
    out = capsys.readouterr().out
    assert paper.TABLES["2b"] in out
    for name in ("table1a", "table1b", "table2a", "table2b", "fig4", "fig5b"):
        for suffix in ("csv", "md", "tex"):
            assert (tmp_path / f"results/paper/x-y/{name}.{suffix}").exists()


def test_the_sweeps_are_there_and_take_every_override(photos, no_network):
    folders = str(photos / "ours"), str(photos / "others")
    for network in ("efficientnet-lite0", "keras:ResNet50"):
        plan = reproduce.plan(folders[0], network, whitening=folders[1])
        for name in reproduce.SWEEPS:
            sweep = sweeps.Sweep.read(runs.ROOT / f"notebooks/sweeps/{name}.yaml")
            assert not sweep.fixed & plan.parameters.keys()


# What is written


def test_rows_come_from_the_sweeps_or_from_the_notebooks(tmp_path):
    runs.write_table(tmp_path / "metrics.json", ROWS[:1])
    runs.write_table(tmp_path / "ablation.csv", ROWS[1:].assign(whitening=""))
    found = reproduce.collect(tmp_path)
    assert list(found["sweep"]) == ["metrics", "ablation"]
    assert list(found["whitening"]) == ["paris6k", ""]  # not NaN, as CSV has it
    runs.write_table(tmp_path / "fig4/metrics.csv", ROWS)
    assert list(reproduce.collect(tmp_path)["sweep"]) == ["fig4", "fig4"]


def test_without_any_table_it_says_what_to_run(tmp_path):
    with pytest.raises(runs.RunError, match="run notebooks 03 and 04"):
        reproduce.collect(tmp_path)


def test_the_heading_says_what_ours_is():
    line = reproduce.heading(ROWS)
    for word in ("vgg16-cam", "conv5_1", "1024x720", "authors_code", "paris6k"):
        assert word in line
    random = reproduce.heading(ROWS.assign(weights_sha256="random:seed=0:1a"))
    assert "random weights" in random


def test_a_table_says_the_same_in_three_forms(tmp_path):
    rows = paper.compare(ROWS)
    reproduce.write_tables(rows, "Ours: this.", tmp_path)
    cells = pd.read_csv(tmp_path / "table1b.csv").set_index("method")
    assert cells.loc["64 CAMs", "verdict"] == "reproduced"
    assert cells.loc["8 CAMs", "verdict"] == "not reproduced"
    text = (tmp_path / "table1b.md").read_text()
    assert "| 64 CAMs | 1.5 | - | 0.712 | 0.715 | +0.3 | reproduced |  |" in text
    assert "Ours: this." in text and "[a] Table 1b" in text
    latex = (tmp_path / "table1b.tex").read_text()
    assert "64 CAMs & 1.5 & - & 0.712 & 0.715 & +0.3 & reproduced &  \\\\" in latex
    whole = pd.read_csv(tmp_path / "comparison.csv")
    assert len(whole) == len(rows)


def test_classes_stand_beside_the_papers(tmp_path):
    names = ["dome", "lakeside", *(f"class {n}" for n in range(62))]
    reproduce.write_classes(names, [0.9, 0.5, *[0.1] * 62], "Ours.", tmp_path)
    rows = pd.read_csv(tmp_path / "fig5a.csv")
    assert list(rows["paper"][:2]) == ["vault", "bell cote"]
    assert list(rows["one of the paper's 16"][:2]) == ["yes", "no"]
    assert list(rows["paper, share"].iloc[[0, 1, 63]]) == ["0.83", "-", "0.31"]
