"""Sweeps without a kernel: files, cells, failures, resume; and with warm kernels."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import nbformat
import pandas as pd
import project
import pytest
import yaml
from project import EVALUATE, EXTRACT

from cwr_utils import __main__ as command
from cwr_utils import runs, sweeps

AGGREGATE = "03_aggregate_descriptors"
PLAN = {
    "notebooks": [EVALUATE],
    "jobs": 1,
    "parameters": {"rerank": 7},
    "grid": {"power": [1.0, 2.0]},
}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """An empty project with the real notebooks; its `Kernel`."""
    return project.make(tmp_path, monkeypatch)


def write_plan(folder, name="plan", **changes):
    plan = {k: v for k, v in (PLAN | changes).items() if v is not ...}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(plan, sort_keys=False))
    return file


# Files


def test_the_sweeps_of_the_workbook_can_be_read():
    files = sorted((runs.ROOT / "notebooks" / "sweeps").glob("*.yaml"))
    assert files
    for file in files:
        plan = sweeps.Sweep.read(file)
        assert plan.name == file.stem and plan.cells


def test_cells_are_all_combinations_with_folders_of_their_own(tmp_path):
    file = write_plan(tmp_path, grid={"power": [1.0, 2.0], "num_classes": [4, 8]})
    cells = sweeps.Sweep.read(file).cells
    assert list(cells) == [
        "power-1.0_num_classes-4",
        "power-1.0_num_classes-8",
        "power-2.0_num_classes-4",
        "power-2.0_num_classes-8",
    ]
    assert cells["power-2.0_num_classes-4"] == {
        "power": 2.0,
        "num_classes": 4,
    }


def test_listed_cells_come_after_the_grid_and_need_none(tmp_path):
    listed = [{"rerank": 5}, {"rerank": 5, "power": 3.0}]
    both = sweeps.Sweep.read(write_plan(tmp_path, cells=listed))
    names = ["rerank-5", "rerank-5_power-3.0"]
    assert list(both.cells) == ["power-1.0", "power-2.0", *names]
    assert both.cells["rerank-5_power-3.0"] == listed[1]
    alone = sweeps.Sweep.read(write_plan(tmp_path, cells=listed, grid=...))
    assert list(alone.cells) == names


def test_figure_4_has_170_cells_of_one_method():
    plan = sweeps.Sweep.read(runs.ROOT / "notebooks/sweeps/fig4.yaml")
    assert plan.notebooks == ("one_method",)
    assert len(plan.cells) == 2 * 17 * 5
    assert {cell["num_classes"] for cell in plan.cells.values()} == {
        1,
        *range(4, 65, 4),
    }


def test_cell_names_are_file_names_and_differ(tmp_path):
    grid = {
        "network": ["keras:ResNet50", "efficientnet-lite0"],
        "feature_layer": [None, "block/expand relu"],
        "resize": ["shorter:720", "../../etc"],
        "rerank": [True, -1],
    }
    names = list(sweeps.Sweep.read(write_plan(tmp_path, grid=grid)).cells)
    assert len(set(names)) == 16
    for name in names:
        assert set(name) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
        )
        assert not name.startswith(".")
    assert names[0] == "network-keras-ResNet50_resize-shorter-720_rerank-True"


def test_a_sweep_of_one_cell_has_a_name_too(tmp_path):
    for grid in ({}, {"feature_layer": [None]}):
        assert [*sweeps.Sweep.read(write_plan(tmp_path, grid=grid)).cells] == [
            "default"
        ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"notebooks": [EXTRACT]}, "lists 02_extract_features, which runs first by it"),
        ({"notebooks": [EVALUATE, "06_more"]}, "names what no sweep takes: 06_more"),
        ({"notebooks": [{EXTRACT: 1}]}, "names what no sweep takes"),
        ({"parameters": {"powr": 2.0}}, "names what no sweep takes: powr"),
        ({"grid": {"powr": [2.0], 3: [1]}}, "names what no sweep takes: powr, 3"),
        ({"paramters": {"power": 2.0}}, "names what no sweep takes: paramters"),
        ({"parameters": {"results_dir": "x"}}, "no sweep takes: results_dir"),
        ({"grid": {"figures_dir": ["x", "y"]}}, "no sweep takes: figures_dir"),
        ({"notebooks": EXTRACT}, "needs `notebooks`, a list, and `grid`"),
        ({"notebooks": []}, "needs `notebooks`, a list, and `grid`"),
        ({"notebooks": None}, "needs `notebooks`"),
        ({"grid": None}, "needs `notebooks`"),
        ({"grid": {"power": 2.0}}, "a list of values for each parameter"),
        ({"grid": {"resize": "64x48"}}, "a list of values for each parameter"),
        ({"grid": {"power": []}}, "a list of values for each parameter"),
        ({"grid": ["power"]}, "a list of values for each parameter"),
        ({"parameters": ["power"]}, "`parameters`, one value for each"),
        ({"grid": {"resize": ["a:b", "a/b"]}}, "have the same cell name"),
        ({"grid": {"power": [2.0, 2.0]}}, "have the same cell name"),
        ({"cells": [{"power": 2.0}]}, "have the same cell name"),
        ({"cells": [{"powr": 2.0}]}, "names what no sweep takes: powr"),
        ({"cells": [{"results_dir": "x"}]}, "no sweep takes: results_dir"),
        ({"cells": {"power": 2.0}}, "`cells`, a list of mappings"),
        ({"cells": [{}]}, "`cells`, a list of mappings"),
        ({"cells": ["power"]}, "`cells`, a list of mappings"),
        ({"cells": [], "grid": ...}, "needs `notebooks`"),
        ({"jobs": 0}, "`jobs`, a number of cells"),
        ({"jobs": "two"}, "`jobs`, a number of cells"),
    ],
)
def test_a_wrong_sweep_is_refused_and_its_file_named(tmp_path, changes, message):
    with pytest.raises(runs.RunError, match=rf"plan\.yaml.*{message}"):
        sweeps.Sweep.read(write_plan(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "- a", "words", "a: [", "\0"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(runs.RunError, match=r"plan\.yaml"):
        sweeps.Sweep.read(file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(runs.RunError, match=r"Cannot read .*plan\.yaml: .*No such"):
        sweeps.Sweep.read(tmp_path / "plan.yaml")


# Sweeps


def test_a_sweep_runs_its_notebooks_cell_by_cell_and_joins_the_tables(world):
    assert sweeps.run_sweep(write_plan(world.root)) == []
    assert world.cells == [
        (1.0, EXTRACT),
        (2.0, EXTRACT),
        (1.0, EVALUATE),
        (2.0, EVALUATE),
    ]
    for _, parameters in world.runs[2:]:
        assert parameters["rerank"] == 7
        place = f"plan/power-{parameters['power']}"
        assert parameters["results_dir"] == f"../results/{place}"
        assert parameters["figures_dir"] == f"../figures/{place}"
    joined = pd.read_csv(world.root / "results/plan/metrics.csv")
    assert joined["cell"].tolist() == ["power-1.0"] * 2 + ["power-2.0"] * 2
    assert joined["mAP"].tolist() == [0.5, 0.75] * 2


def test_a_finished_cell_is_skipped_and_keeps_its_table(world):
    file = write_plan(world.root)
    sweeps.run_sweep(file)
    world.runs.clear()
    (world.root / "results/plan/metrics.csv").unlink()
    assert sweeps.run_sweep(file) == []
    assert world.runs == []
    assert len(pd.read_csv(world.root / "results/plan/metrics.csv")) == 4


def test_new_cells_are_added_to_finished_ones(world):
    sweeps.run_sweep(write_plan(world.root))
    world.runs.clear()
    sweeps.run_sweep(write_plan(world.root, grid={"power": [1.0, 2.0, 3.0]}))
    assert {power for power, _ in world.cells} == {3.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"rerank": 8}},
        {"parameters": {}},  # back to the notebook's default
        {"parameters": {"rerank": 7, "dataset": "elsewhere/street"}},
        {"parameters": {"rerank": 7, "limit": 24}},
        {"notebooks": [AGGREGATE, EVALUATE]},
    ],
    ids=str,
)
def test_cells_whose_parameters_or_notebooks_changed_run_again(world, changes):
    sweeps.run_sweep(write_plan(world.root))
    world.runs.clear()
    file = write_plan(world.root, **changes)
    sweeps.run_sweep(file)
    assert len({cell for cell, _ in world.cells}) == 2
    world.runs.clear()
    sweeps.run_sweep(file)
    assert world.runs == []


def test_a_new_default_of_a_notebook_runs_its_cells_again(world, monkeypatch):
    file = write_plan(world.root)
    sweeps.run_sweep(file)
    world.runs.clear()
    defaults = runs.defaults
    changed = {"protocol": "paper"}
    monkeypatch.setattr(runs, "defaults", lambda name: defaults(name) | changed)
    sweeps.run_sweep(file)
    assert len(world.runs) == 4


def test_parameters_that_no_notebook_of_the_sweep_takes_change_nothing(world):
    sweeps.run_sweep(write_plan(world.root, notebooks=[AGGREGATE]))
    world.runs.clear()
    file = write_plan(world.root, notebooks=[AGGREGATE], parameters={"rerank": 9})
    sweeps.run_sweep(file)
    assert world.runs == []


def test_cells_that_differ_only_in_the_method_share_one_extraction(world):
    grid = {"power": [1.0, 2.0], "num_classes": [1, 4, 8]}
    sweeps.run_sweep(write_plan(world.root, notebooks=["one_method"], grid=grid))
    assert world.cells[:2] == [(1.0, EXTRACT), (2.0, EXTRACT)]
    assert world.cells[2:] == [(1.0, "one_method")] * 3 + [(2.0, "one_method")] * 3
    folders = {parameters["results_dir"] for _, parameters in world.runs[:2]}
    assert len(folders) == 2
    assert all(f.startswith("../results/extraction/monuments-eff") for f in folders)


def test_extraction_runs_again_only_where_a_store_is_gone(world):
    sweeps.run_sweep(write_plan(world.root))
    world.runs.clear()
    (world.root / "cache/store-2.0").rmdir()
    sweeps.run_sweep(write_plan(world.root, parameters={"rerank": 8}))
    assert world.cells == [(2.0, EXTRACT), (1.0, EVALUATE), (2.0, EVALUATE)]
    (world.root / "cache/store-1.0").rmdir()
    world.runs.clear()
    sweeps.run_sweep(write_plan(world.root, parameters={"rerank": 8}))
    assert world.runs == []  # all cells are done


def test_moved_folders_do_not_run_again(world):
    file = write_plan(world.root)
    sweeps.run_sweep(file, {"data_root": "/here/oxford"})
    world.runs.clear()
    sweeps.run_sweep(file, {"data_root": "/there/oxford"})
    assert world.runs == []
    sweeps.run_sweep(file, {"data_root": "/there/paris"})
    assert len(world.runs) == 4


def test_overrides_reach_all_cells(world):
    sweeps.run_sweep(write_plan(world.root), {"rerank": 3, "data_root": "photos"})
    assert len(world.runs) == 4
    assert {parameters["data_root"] for _, parameters in world.runs} == {"photos"}
    assert [parameters["rerank"] for _, parameters in world.runs[2:]] == [3, 3]


def test_what_a_listed_cell_has_of_its_own_is_not_overridden(world):
    cells = [{"aggregation": "sum"}, {"aggregation": "sum", "rerank": 0}]
    file = write_plan(world.root, cells=cells, grid=...)
    sweeps.run_sweep(file, {"rerank": 3, "power": 1.0})
    assert [parameters["rerank"] for _, parameters in world.runs[1:]] == [3, 0]
    with pytest.raises(runs.RunError, match="has its own aggregation"):
        sweeps.run_sweep(file, {"aggregation": "max"})


def test_results_and_figures_go_where_they_are_wanted(world):
    results, figures = world.root / "results/paper/x/one", world.root / "plots/one"
    file = write_plan(world.root)
    assert sweeps.run_sweep(file, results=results, figures=figures) == []
    assert len(pd.read_csv(results / "metrics.csv")) == 4
    extraction, _, cell, _ = (parameters for _, parameters in world.runs)
    assert extraction["results_dir"].startswith("../results/paper/x/extraction/")
    assert extraction["figures_dir"].startswith("../plots/extraction/")
    assert cell["results_dir"] == "../results/paper/x/one/power-1.0"
    assert cell["figures_dir"] == "../plots/one/power-1.0"
    assert command.main(["sweep", str(file), "--root", "paper/y"]) == 0
    assert (world.root / "results/paper/y/plan/metrics.csv").exists()


@pytest.mark.parametrize("name", ["power", "results_dir", "figures_dir"])
def test_what_makes_a_cell_its_own_cannot_be_overridden(world, name):
    """Or cells of one name would hold runs of another."""
    file = write_plan(world.root)
    with pytest.raises(runs.RunError, match=rf"Each cell of .* has its own {name}"):
        sweeps.run_sweep(file, {name: "1"})
    assert world.runs == []


def test_a_failing_cell_is_named_and_the_others_run(world):
    world.fails[EXTRACT, 1.0] = runs.RunError("02 failed in cell 3: no memory")
    failures = sweeps.run_sweep(write_plan(world.root))
    assert failures == ["power-1.0: 02 failed in cell 3: no memory"]
    assert world.cells == [(1.0, EXTRACT), (2.0, EXTRACT), (2.0, EVALUATE)]
    joined = pd.read_csv(world.root / "results/plan/metrics.csv")
    assert set(joined["cell"]) == {"power-2.0"}
    world.fails.clear()
    world.runs.clear()
    assert sweeps.run_sweep(write_plan(world.root)) == []
    assert {power for power, _ in world.cells} == {1.0}


def test_the_table_of_an_earlier_run_does_not_stand_for_a_cell_that_failed(world):
    sweeps.run_sweep(write_plan(world.root))
    world.fails[EVALUATE, 1.0] = runs.RunError("stopped")
    file = write_plan(world.root, parameters={"rerank": 8})
    sweeps.run_sweep(file)
    joined = pd.read_csv(world.root / "results/plan/metrics.csv")
    assert set(joined["cell"]) == {"power-2.0"}


def test_a_cell_that_stopped_after_its_table_is_not_its_earlier_run(world):
    """Its table is of other parameters than what was on record."""
    sweeps.run_sweep(write_plan(world.root))
    write_record = runs.Record.finish

    def stop(record, **facts):
        if record.notebook == EVALUATE:
            raise KeyboardInterrupt
        return write_record(record, **facts)

    world.value = 0.1
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.Record, "finish", stop)
        sweeps.run_sweep(write_plan(world.root, parameters={"rerank": 8}))
    world.value = 0.5
    sweeps.run_sweep(write_plan(world.root))
    joined = pd.read_csv(world.root / "results/plan/metrics.csv")
    assert joined["mAP"].tolist() == [0.5, 0.75] * 2


def test_ctrl_c_keeps_finished_cells_and_a_second_run_goes_on(world):
    world.fails[EVALUATE, 2.0] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweeps.run_sweep(write_plan(world.root))
    recorded = json.loads((world.root / "results/plan/power-1.0/run.json").read_text())
    assert set(recorded) == {EVALUATE}
    world.fails.clear()
    world.runs.clear()
    assert sweeps.run_sweep(write_plan(world.root)) == []
    assert world.cells == [(2.0, EVALUATE)]


def test_a_failing_extraction_fails_its_cells_in_one_message(world):
    world.fails[EXTRACT, 1.0] = runs.RunError("no memory")
    grid = {"power": [1.0, 2.0], "rerank": [1, 2, 3]}
    failures = sweeps.run_sweep(write_plan(world.root, grid=grid))
    assert failures == ["power-1.0_rerank-1 and 2 more: no memory"]
    assert len(pd.read_csv(world.root / "results/plan/metrics.csv")) == 6


def test_cells_run_side_by_side_and_one_failure_stops_no_other(world, monkeypatch):
    """Each of the two must have started before either can end."""
    both, play = threading.Barrier(2, timeout=30), runs.run_notebook

    def run(notebook, *arguments, **options):
        if notebook == EVALUATE:
            both.wait()
        return play(notebook, *arguments, **options)

    monkeypatch.setattr(runs, "run_notebook", run)
    world.fails[EVALUATE, 3.0] = runs.RunError("no memory")
    file = write_plan(world.root, grid={"power": [1.0, 2.0, 3.0, 4.0]})
    assert sweeps.run_sweep(file, jobs=2) == ["power-3.0: no memory"]
    joined = pd.read_csv(world.root / "results/plan/metrics.csv")
    assert joined["cell"].tolist()[::2] == ["power-1.0", "power-2.0", "power-4.0"]


def test_a_damaged_record_is_one_failure(world):
    file = write_plan(world.root)
    sweeps.run_sweep(file)
    damaged = world.root / "results/plan/power-1.0/run.json"
    damaged.write_text("{")
    world.runs.clear()
    (failure,) = sweeps.run_sweep(file)
    assert failure.startswith("power-1.0: ")
    assert f"{damaged} is damaged: delete it" in failure
    damaged.unlink()
    assert sweeps.run_sweep(file) == []
    assert {power for power, _ in world.cells} == {1.0}


def test_the_command_line_runs_sweeps(world, capsys):
    file = str(write_plan(world.root))
    assert command.main(["sweep", file, "-p", "limit=3"]) == 0
    assert {parameters["limit"] for _, parameters in world.runs} == {3}
    assert capsys.readouterr().out == "all cells are done\n"
    world.fails[EXTRACT, 2.0] = runs.RunError("02 failed: no memory")
    assert command.main(["sweep", file, "-p", "limit=4"]) == 1
    assert capsys.readouterr().out == "power-2.0: 02 failed: no memory\n"


def test_ctrl_c_says_how_to_go_on(world, capsys):
    world.fails[EXTRACT, 1.0] = KeyboardInterrupt()
    assert command.main(["sweep", str(write_plan(world.root))]) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(world, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(runs, "run_notebook", broken)
    monkeypatch.setattr(sweeps, "_extract", lambda *arguments: None)
    with pytest.raises(ZeroDivisionError):
        command.main(["sweep", str(write_plan(world.root)), "-j", "2"])


# Warm kernels

TOY = """
import json, os, signal, time
from pathlib import Path

assert "left" not in globals(), "a variable of another run"
assert Path.cwd().name == "notebooks", "the folder of another run"
left = os.chdir("..")
if rerank == 1:
    raise ValueError("no such thing")
if rerank == 2:
    os.kill(os.getpid(), signal.SIGKILL)
if rerank == 3 and not Path("asleep").exists():
    Path("asleep").write_text(str(os.getpid()))
    time.sleep(100)
folder = Path("notebooks", results_dir)
row = {"rerank": rerank, "process": os.getpid()}
(folder / "metrics.json").write_text(json.dumps([row]))
parameters = {"rerank": rerank, "results_dir": results_dir}
run = {"one_method": {"parameters": parameters}}
(folder / "run.json").write_text(json.dumps(run))
"""
COMMAND = """
import pathlib, sys
from cwr_utils import __main__, runs, sweeps

runs.ROOT = pathlib.Path(sys.argv[1])
sweeps._extract = lambda *arguments: None
sys.exit(__main__.main(["sweep", sys.argv[2], "-j", "2"]))
"""


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Folder of a project with a notebook that loads nothing, and no extraction."""
    cells = [
        nbformat.v4.new_code_cell("rerank = 0\nresults_dir = ''"),
        nbformat.v4.new_code_cell(TOY),
    ]
    cells[0].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    notebook.metadata["language_info"] = {"name": "python"}
    (tmp_path / "notebooks/sweeps").mkdir(parents=True)
    nbformat.write(notebook, tmp_path / "notebooks/sweeps/one_method.ipynb")
    shutil.copy(runs.notebook_path(EXTRACT), tmp_path / "notebooks")
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(sweeps, "_extract", lambda *arguments: None)
    return tmp_path


def toy_plan(folder, *values):
    grid = {"rerank": list(values)}
    return write_plan(folder, notebooks=["one_method"], grid=grid, parameters={})


def test_cells_share_a_kernel_and_nothing_else(toys):
    """Not its variables, its working folder or its faults."""
    failures = sweeps.run_sweep(toy_plan(toys, 4, 1, 5, 2, 6))
    assert len(failures) == 2
    assert "one_method failed in cell 3: ValueError: no such thing" in failures[0]
    assert failures[1].startswith("rerank-2: one_method stopped: Kernel died")
    table = pd.read_csv(toys / "results/plan/metrics.csv").set_index("rerank")
    assert table.index.tolist() == [4, 5, 6]
    first, second, third = table["process"]
    assert first == second != third
    assert sweeps.run_sweep(toy_plan(toys, 4, 5, 6)) == []
    again = pd.read_csv(toys / "results/plan/metrics.csv").set_index("rerank")
    assert again["process"].tolist() == [first, second, third]


def test_ctrl_c_ends_running_cells_at_once_and_the_next_sweep_goes_on(toys):
    file = toy_plan(toys, 4, 3)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(toys), str(file)],
        stderr=subprocess.PIPE,
        text=True,
    )
    finished = toys / "results/plan/rerank-4/run.json"
    while not ((toys / "asleep").exists() and finished.exists()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command goes on" in shown
    assert "Traceback" not in shown
    with pytest.raises(ProcessLookupError):
        os.kill(int((toys / "asleep").read_text()), 0)
    assert not (toys / "results/plan/rerank-3/run.json").exists()
    before = json.loads(finished.with_name("metrics.json").read_text())
    assert sweeps.run_sweep(file) == []
    assert len(pd.read_csv(toys / "results/plan/metrics.csv")) == 2
    assert json.loads(finished.with_name("metrics.json").read_text()) == before
