"""Sweeps: files, cells, failures, resume; kernels that are ended."""

import json
import os
import re
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
import tiny
import yaml
from project import AGGREGATE, EVALUATE, EXTRACT, PREPARE, TABLE

from cwr_utils import __main__ as command
from cwr_utils import networks
from cwr_utils.identity import digest
from cwr_utils.runs import notebook, source, sweeps
from cwr_utils.runs.source import RunError

PLAN = {
    "notebooks": [EVALUATE],
    "jobs": 1,
    "parameters": {"rerank": 7},
    "grid": {"power": [1.0, 2.0]},
}


PLAIN = {"query_expansion": 0, "rerank": 0}


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
    files = sorted((source.ROOT / "notebooks" / "sweeps").glob("*.yaml"))
    assert files
    for file in files:
        plan = sweeps.Sweep.read(file)
        assert plan.cells


def test_cells_are_all_combinations_and_have_what_all_share(tmp_path):
    file = write_plan(tmp_path, grid={"power": [1.0, 2.0], "num_classes": [4, 8]})
    cells = sweeps.Sweep.read(file, {"seed": 3}).cells
    assert list(cells) == [
        "power-1.0_num_classes-4",
        "power-1.0_num_classes-8",
        "power-2.0_num_classes-4",
        "power-2.0_num_classes-8",
    ]
    assert cells["power-2.0_num_classes-4"] == {
        "rerank": 7,
        "seed": 3,
        "power": 2.0,
        "num_classes": 4,
        "rows": [{}],
    }


def test_listed_cells_come_after_the_grid_and_need_none(tmp_path):
    listed = [{"rerank": 5}, {"rerank": 5, "power": 3.0}]
    both = sweeps.Sweep.read(write_plan(tmp_path, cells=listed)).cells
    names = ["rerank-5", "rerank-5_power-3.0"]
    assert list(both) == ["power-1.0", "power-2.0", *names]
    assert both[names[1]]["rerank"] == 5 and both[names[1]]["power"] == 3.0
    alone = sweeps.Sweep.read(write_plan(tmp_path, cells=listed, grid=...)).cells
    assert list(alone) == names


def test_figure_4_has_10_cells_of_a_curve():
    plan = sweeps.Sweep.read(source.ROOT / "notebooks/sweeps/fig4.yaml")
    assert plan.notebooks == [TABLE]
    assert len(plan.cells) == 2 * 5
    curve = [{"num_classes": count} for count in (1, *range(4, 65, 4))]
    assert all(cell["rows"] == curve for cell in plan.cells.values())


def test_rows_and_points_of_a_curve_are_methods_of_every_cell(tmp_path):
    rows = [{"aggregation": "sum", "dimensions": 0}, {"aggregation": "offline"}]
    plan = {"notebooks": [TABLE], "rows": rows, "curve": {"num_classes": [1, 2]}}
    plan["parameters"] = {}
    both = sweeps.Sweep.read(write_plan(tmp_path, **plan)).cells
    assert list(both) == ["power-1.0", "power-2.0"]
    for cell in both.values():
        assert cell["rows"] == [
            {**PLAIN, "aggregation": "sum", "dimensions": 0, "num_classes": 1},
            {**PLAIN, "aggregation": "sum", "dimensions": 0, "num_classes": 2},
            {**PLAIN, "aggregation": "offline", "num_classes": 1},
            {**PLAIN, "aggregation": "offline", "num_classes": 2},
        ]
    alone = write_plan(tmp_path, **plan, grid=...)
    assert list(sweeps.Sweep.read(alone).cells) == ["default"]
    for name, value in {
        "aggregation": "max",
        "num_classes": 3,
        "dimensions": 2,
    }.items():
        with pytest.raises(RunError, match=f"each cell has its own {name}"):
            sweeps.Sweep.read(alone, {name: value})
    plan["parameters"] = {"dimensions": 4}
    cells = sweeps.Sweep.read(write_plan(tmp_path, **plan), {"dimensions": 5}).cells
    assert cells["power-1.0"]["dimensions"] == 5


def test_nothing_is_measured_unasked(tmp_path):
    """The notebook's own defaults are those of the demo's ladder."""
    read, plan = sweeps.Sweep.read, {"notebooks": [TABLE], "parameters": {}}
    cells = read(write_plan(tmp_path, **plan)).cells
    assert [cell["rows"] for cell in cells.values()] == [[PLAIN]] * 2
    (method,) = source.methods(source.complete(TABLE, cells["power-1.0"]))
    assert method.label == "OnA, 8 classes by rank"
    asked = read(write_plan(tmp_path, **plan), {"rerank": 5}).cells["power-1.0"]
    assert asked["rows"] == [{"query_expansion": 0}] and asked["rerank"] == 5
    plan |= {"cells": [{"rerank": 3}, {"num_classes": 2}], "grid": ...}
    rows = [cell["rows"] for cell in read(write_plan(tmp_path, **plan)).cells.values()]
    assert rows == [[{"query_expansion": 0}], [PLAIN]]
    plan |= {"cells": ..., "rows": [{"query_expansion": 2}, {}]}
    (cell,) = read(write_plan(tmp_path, **plan)).cells.values()
    assert cell["rows"] == [{"query_expansion": 2, "rerank": 0}, PLAIN]


def test_paths_in_a_file_start_from_its_folder(tmp_path, monkeypatch):
    (tmp_path / "plans").mkdir()
    given = {"dataset": "../photos", "whitening_dataset": "street"}
    cells = [{"cache_dir": "/c"}, {"cache_dir": "c"}]
    plan = write_plan(tmp_path / "plans", parameters=given, grid=..., cells=cells)
    monkeypatch.chdir(tmp_path)
    for path in (plan, plan.relative_to(tmp_path)):
        first, second = sweeps.Sweep.read(path).cells.values()
        assert first["dataset"] == second["dataset"] == str(tmp_path / "photos")
        assert first["whitening_dataset"] == "street"
        assert (first["cache_dir"], second["cache_dir"]) == (
            "/c",
            str(tmp_path / "plans/c"),
        )
    assert list(sweeps.Sweep.read(plan).cells) == ["cache_dir--c", "cache_dir-c"]


def test_a_file_of_nothing_but_brackets_is_refused(tmp_path):
    file = tmp_path / "deep.yaml"
    file.write_text("[" * 2000)
    with pytest.raises(RunError, match=r"deep\.yaml: "):
        sweeps.Sweep.read(file)


def test_values_become_what_the_parameter_is(tmp_path):
    """Or one that is written in another way would run again."""
    given = {"power": "1e-3", "weights": "none", "limit": 3}
    plan = write_plan(tmp_path, parameters=given, grid={"rerank": [1]})
    (cell,) = sweeps.Sweep.read(plan).cells.values()
    assert (cell["power"], cell["weights"]) == (0.001, None)
    plan = write_plan(tmp_path, grid={"power": [1]})
    (cell,) = sweeps.Sweep.read(plan).cells.values()
    assert type(cell["power"]) is float


def test_cell_names_are_file_names_and_differ(tmp_path):
    grid = {
        "network": ["keras:ResNet50", "efficientnet-lite0"],
        "feature_layer": [None, "block/expand relu"],
        "resize": ["shorter:720", "native"],
        "whitening_dataset": ["a/../b", "../../etc"],
    }
    names = list(sweeps.Sweep.read(write_plan(tmp_path, grid=grid)).cells)
    assert len(set(names)) == 16
    for name in names:
        assert set(name) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
        )
        assert not name.startswith(".")
    assert names[0] == (
        "network-keras-ResNet50_resize-shorter-720_whitening_dataset-a-..-b"
    )


def test_a_sweep_of_one_cell_has_a_name_too(tmp_path):
    for grid in ({}, {"feature_layer": [None]}):
        assert [*sweeps.Sweep.read(write_plan(tmp_path, grid=grid)).cells] == [
            "default"
        ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"notebooks": [EVALUATE, "06_more"]}, "notebooks.1: '06_more' is not one of"),
        ({"notebooks": [EXTRACT]}, "'02_extract_features' is not one of"),
        ({"notebooks": [PREPARE]}, "'00_prepare_data' is not one of"),
        ({"notebooks": [{EXTRACT: 1}]}, "notebooks.0: .* is not one of"),
        ({"notebooks": EVALUATE}, "notebooks: .* is not of type 'array'"),
        ({"notebooks": []}, "notebooks: "),
        ({"notebooks": ...}, "the file: 'notebooks' is a required property"),
        ({"parameters": {"powr": 2.0}}, "`powr`: did you mean power?"),
        ({"parameters": {"power": "two"}}, "`power` must be a number; got 'two'"),
        ({"parameters": {"power": [2.0]}}, r"`power` must be a number; got \[2.0\]"),
        ({"parameters": {"dataset": 2019}}, "`dataset` must be a text; got 2019"),
        ({"grid": {"powr": [2.0], 3: [1]}}, "`powr`: did you mean power?"),
        ({"grid": {3: [1]}}, "No notebook takes `3`: known: dataset"),
        ({"paramters": {"power": 2.0}}, "the file: .*'paramters' was unexpected"),
        ({"parameters": {"results_dir": "x"}}, "a sweep sets results_dir itself"),
        ({"parameters": {"rows": [{}]}}, "a sweep sets rows itself"),
        ({"grid": {"figures_dir": ["x", "y"]}}, "a sweep sets figures_dir itself"),
        ({"grid": None}, "grid: None is not of type 'object'"),
        ({"grid": {"power": 2.0}}, "grid.power: 2.0 is not of type 'array'"),
        ({"grid": {"power": []}}, "grid.power: "),
        ({"grid": ["power"]}, "grid: .* is not of type 'object'"),
        ({"parameters": ["power"]}, "parameters: .* is not of type 'object'"),
        ({"grid": {"resize": ["a:b", "a/b"]}}, "have the same cell name"),
        ({"grid": {"power": [2.0, 2.0]}}, "have the same cell name"),
        ({"cells": [{"power": 2.0}]}, "have the same cell name"),
        ({"cells": [{"powr": 2.0}]}, "`powr`: did you mean power?"),
        ({"cells": {"power": 2.0}}, "cells: .* is not of type 'array'"),
        ({"cells": ["power"]}, "cells.0: 'power' is not of type 'object'"),
        ({"cells": [], "grid": ...}, "cells: "),
        ({"rows": [{"num_classes": 2}]}, "none of its notebooks takes `rows`"),
        (
            {"notebooks": [TABLE], "rows": [{"power": 2.0}]},
            "A method has no `power`: known: aggregation",
        ),
        ({"notebooks": [TABLE], "curve": {"num_clases": [2]}}, "did you mean num_cla"),
        (
            {"notebooks": [TABLE], "curve": {"num_classes": 2}},
            "curve.num_classes: 2 is",
        ),
        ({"jobs": 0}, "jobs: 0 is less than the minimum of 1"),
        ({"grid": {"aggregation": ["onlin"]}}, "`onlin`: did you mean online?"),
        ({"parameters": {"protocol": "papers"}}, "`papers`: did you mean paper?"),
        ({"parameters": {"resize": "640"}}, "A resize policy is .*; got '640'"),
        ({"parameters": {"limit": -1}}, "`limit` must be at least 0; got -1"),
        (
            {"notebooks": [TABLE], "rows": [{"num_classes": 0}]},
            "`num_classes` must be at least 1; got 0",
        ),
        ({"jobs": "two"}, "jobs: 'two' is not of type 'integer'"),
    ],
)
def test_a_wrong_sweep_is_refused_with_its_file_and_field(tmp_path, changes, message):
    message = message.replace("?", "[?]")
    with pytest.raises(RunError, match=rf"plan\.yaml.*{message}"):
        sweeps.Sweep.read(write_plan(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "- a", "words", "a: [", "\0"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(RunError, match=r"plan\.yaml"):
        sweeps.Sweep.read(file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RunError, match=rf"no file {tmp_path}/plan\.yaml\. In .*known"):
        sweeps.Sweep.read(tmp_path / "plan.yaml")
    with pytest.raises(RunError, match=rf"no file {tmp_path}/fig5\.yml.*mean fig5[?]"):
        sweeps.Sweep.read(tmp_path / "fig5.yml")


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
        place = f"runs/plan/power-{parameters['power']}"
        assert parameters["results_dir"] == str(world.root / "results" / place)
        assert parameters["figures_dir"] == str(world.root / "figures" / place)
    joined = pd.read_csv(world.root / "results/runs/plan/metrics.csv")
    assert joined["cell"].tolist() == ["power-1.0"] * 2 + ["power-2.0"] * 2
    assert joined["mAP"].tolist() == [0.5, 0.75] * 2


def test_a_finished_cell_is_skipped_and_keeps_its_table(world):
    file = write_plan(world.root)
    sweeps.run_sweep(file)
    world.runs.clear()
    (world.root / "results/runs/plan/metrics.csv").unlink()
    assert sweeps.run_sweep(file) == []
    assert world.runs == []
    assert len(pd.read_csv(world.root / "results/runs/plan/metrics.csv")) == 4


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
        {"parameters": {"rerank": 7, "dataset": "street"}},
        {"parameters": {"rerank": 7, "limit": 2}},
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


@pytest.mark.parametrize("cell", [2, 6], ids=["a default", "code"])
def test_a_notebook_that_changed_runs_its_cells_again(world, cell):
    file = write_plan(world.root)
    sweeps.run_sweep(file)
    world.runs.clear()
    path = source.path(EVALUATE)
    content = json.loads(path.read_text())
    assert content["cells"][cell]["cell_type"] == "code"
    content["cells"][cell]["source"].append("\nrerank_classes = 5")
    path.write_text(json.dumps(content))
    sweeps.run_sweep(file)
    assert world.cells == [(1.0, EVALUATE), (2.0, EVALUATE)]


def test_parameters_that_no_notebook_of_the_sweep_takes_change_nothing(world):
    sweeps.run_sweep(write_plan(world.root, notebooks=[AGGREGATE]))
    world.runs.clear()
    file = write_plan(world.root, notebooks=[AGGREGATE], parameters={"rerank": 9})
    sweeps.run_sweep(file)
    assert world.runs == []


def test_cells_that_differ_only_in_the_method_share_one_extraction(world):
    grid = {"power": [1.0, 2.0], "num_classes": [1, 4, 8]}
    sweeps.run_sweep(write_plan(world.root, notebooks=[TABLE], grid=grid))
    assert world.cells[:2] == [(1.0, EXTRACT), (2.0, EXTRACT)]
    assert world.cells[2:] == [(1.0, TABLE)] * 3 + [(2.0, TABLE)] * 3
    folders = {parameters["results_dir"] for _, parameters in world.runs[:2]}
    assert len(folders) == 2
    start = str(world.root / "results/runs/extraction/monuments-tiny")
    assert all(folder.startswith(start) for folder in folders)


def test_extraction_runs_again_only_where_a_store_is_gone(world):
    sweeps.run_sweep(write_plan(world.root))
    world.runs.clear()
    first, second = world.described
    world.stores.remove(second)
    sweeps.run_sweep(write_plan(world.root, parameters={"rerank": 8}))
    assert world.cells == [(2.0, EXTRACT), (1.0, EVALUATE), (2.0, EVALUATE)]
    world.stores.remove(first)
    world.runs.clear()
    sweeps.run_sweep(write_plan(world.root, parameters={"rerank": 8}))
    assert world.runs == []  # all cells are done


# What a run is known by


def of_folder(world, path, **overrides):
    """mAP in the tables of a sweep over a folder of photos, and how many cells ran."""
    world.runs.clear()
    file = write_plan(world.root, grid=..., parameters={"rerank": 7})
    assert sweeps.run_sweep(file, {"dataset": str(path), **overrides}) == []
    joined = pd.read_csv(world.root / "results/runs/plan/metrics.csv")
    ran = [name for name, _ in world.runs if name == EVALUATE]
    return joined["mAP"][0], len(ran)


def test_another_folder_of_the_same_name_is_another_run(world):
    first = project.photos(world.root / "a/photos", place=0)
    other = project.photos(world.root / "b/photos", place=50)
    assert of_folder(world, first) == (0.5, 1)
    world.value = 0.1
    assert of_folder(world, other) == (0.1, 1)
    assert of_folder(world, other) == (0.1, 0)


def test_a_folder_that_moved_is_the_same_run(world):
    first = project.photos(world.root / "a/photos")
    assert of_folder(world, first) == (0.5, 1)
    (world.root / "c").mkdir()
    assert of_folder(world, first.rename(world.root / "c/photos")) == (0.5, 0)


def test_another_ground_truth_is_another_run(world):
    folder = project.photos(world.root / "photos", groups=1)
    assert of_folder(world, folder) == (0.5, 1)
    (folder / "groups.csv").write_text("image,group\n0,a\n1,a\n2,b\n3,b\n")
    world.value = 0.1
    assert of_folder(world, folder) == (0.1, 1)


def test_another_whitening_set_of_the_same_name_is_another_run(world):
    folder = project.photos(world.root / "photos")
    for place, count in ((50, 1), (60, 1), (60, 0)):
        others = world.root / f"{place}/others"
        if not others.exists():
            project.photos(others, place=place)
        ran = of_folder(world, folder, whitening_dataset=str(others))[1]
        assert ran == count


def test_another_weights_file_of_the_same_name_is_another_run(world, monkeypatch):
    files = [world.root / name / "best.weights.h5" for name in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text("")
    of_file = {str(file): tiny.network(seed) for seed, file in enumerate(files)}
    monkeypatch.setattr(networks, "load", lambda name, file, *rest: of_file[file])
    folder = project.photos(world.root / "photos")
    found = [of_folder(world, folder, weights=str(f))[1] for f in (*files, files[1])]
    assert found == [1, 1, 0]


def test_a_record_of_other_facts_does_not_count_though_its_parameters_agree(world):
    sweeps.run_sweep(write_plan(world.root))
    path = world.root / "results/runs/plan/power-1.0/run.json"
    recorded = json.loads(path.read_text())
    recorded[EVALUATE]["identity"] = "0" * 64
    path.write_text(json.dumps(recorded))
    world.runs.clear()
    sweeps.run_sweep(write_plan(world.root))
    assert world.cells == [(1.0, EVALUATE)]


def test_photos_that_change_while_a_cell_runs_are_a_failure_that_says_so(world):
    folder = project.photos(world.root / "photos")

    def changing(name, *rest):
        if name == EVALUATE:
            tiny.write(folder / "5.png", tiny.view(70, 0))
        world(name, *rest)

    file = write_plan(world.root, grid=..., parameters={"dataset": str(folder)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebook, "run_notebook", changing)
        (failure,) = sweeps.run_sweep(file)
    assert "04_evaluate_and_rerank did not run as planned: dataset_sha256: " in failure
    assert not (world.root / "results/runs/plan/metrics.csv").exists()


def test_what_is_loaded_is_loaded_once(world, monkeypatch):
    loaded = []
    load = networks.load
    monkeypatch.setattr(networks, "load", lambda *a: loaded.append(a) or load(*a))
    monkeypatch.setattr(notebook, "run_notebook", lambda *a: None)
    with pytest.raises(KeyError):  # nothing is on record after a run that is none
        sweeps.run_sweep(write_plan(world.root, grid={"power": [1.0, 2.0, 3.0]}))
    assert [name for name, *_ in loaded] == ["efficientnet-lite2", "efficientnet-lite0"]


def test_overrides_reach_all_cells(world):
    sweeps.run_sweep(write_plan(world.root), {"rerank": 3, "seed": 5})
    assert len(world.runs) == 4
    assert {parameters["seed"] for _, parameters in world.runs} == {5}
    assert [parameters["rerank"] for _, parameters in world.runs[2:]] == [3, 3]


def test_what_a_listed_cell_has_of_its_own_is_not_overridden(world):
    cells = [{"aggregation": "theme"}, {"aggregation": "theme", "rerank": 0}]
    file = write_plan(world.root, cells=cells, grid=...)
    sweeps.run_sweep(file, {"rerank": 3, "power": 1.0})
    assert [parameters["rerank"] for _, parameters in world.runs[1:]] == [3, 0]
    with pytest.raises(RunError, match="each cell has its own aggregation"):
        sweeps.run_sweep(file, {"aggregation": "online"})


def test_a_sweep_can_be_put_into_another_folder(world):
    file = write_plan(world.root)
    assert sweeps.run_sweep(file, place="paper/x/one") == []
    assert len(pd.read_csv(world.root / "results/runs/paper/x/one/metrics.csv")) == 4
    extraction, _, cell, _ = (parameters for _, parameters in world.runs)
    place = "runs/paper/x"
    for part in ("results", "figures"):
        folder = world.root / part / place
        assert extraction[f"{part}_dir"].startswith(f"{folder}/extraction/")
        assert cell[f"{part}_dir"] == str(folder / "one/power-1.0")
    assert command.main(["sweep", str(file), "--root", "paper/y"]) == 0
    assert (world.root / "results/runs/paper/y/plan/metrics.csv").exists()


@pytest.mark.parametrize("name", ["power", "results_dir", "figures_dir", "rows"])
def test_what_makes_a_cell_its_own_cannot_be_overridden(world, name):
    """Or cells of one name would hold runs of another."""
    file = write_plan(world.root)
    message = f"plan.yaml: (each cell has its own {name}|a sweep sets {name} itself)"
    with pytest.raises(RunError, match=message):
        sweeps.run_sweep(file, {name: "1"})
    assert world.runs == []


def test_a_failing_cell_is_named_and_the_others_run(world):
    world.fails[EXTRACT, 1.0] = RunError("02 failed in cell 3: no memory")
    failures = sweeps.run_sweep(write_plan(world.root))
    assert failures == ["power-1.0: 02 failed in cell 3: no memory"]
    assert world.cells == [(1.0, EXTRACT), (2.0, EXTRACT), (2.0, EVALUATE)]
    joined = pd.read_csv(world.root / "results/runs/plan/metrics.csv")
    assert set(joined["cell"]) == {"power-2.0"}
    world.fails.clear()
    world.runs.clear()
    assert sweeps.run_sweep(write_plan(world.root)) == []
    assert {power for power, _ in world.cells} == {1.0}


def test_the_table_of_an_earlier_run_does_not_stand_for_a_cell_that_failed(world):
    sweeps.run_sweep(write_plan(world.root))
    world.fails[EVALUATE, 1.0] = RunError("stopped")
    file = write_plan(world.root, parameters={"rerank": 8})
    sweeps.run_sweep(file)
    joined = pd.read_csv(world.root / "results/runs/plan/metrics.csv")
    assert set(joined["cell"]) == {"power-2.0"}


def test_a_cell_that_stopped_after_its_table_is_not_its_earlier_run(world):
    """Its table is of other parameters than what was on record."""
    sweeps.run_sweep(write_plan(world.root))
    world.value = 0.1
    world.fails[EVALUATE, 1.0] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweeps.run_sweep(write_plan(world.root, parameters={"rerank": 8}))
    world.fails.clear()
    world.value = 0.5
    sweeps.run_sweep(write_plan(world.root))
    joined = pd.read_csv(world.root / "results/runs/plan/metrics.csv")
    assert joined["mAP"].tolist() == [0.5, 0.75] * 2


def test_ctrl_c_keeps_finished_cells_and_a_second_run_goes_on(world):
    world.fails[EVALUATE, 2.0] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweeps.run_sweep(write_plan(world.root))
    recorded = json.loads(
        (world.root / "results/runs/plan/power-1.0/run.json").read_text()
    )
    assert set(recorded) == {EVALUATE}
    world.fails.clear()
    world.runs.clear()
    assert sweeps.run_sweep(write_plan(world.root)) == []
    assert world.cells == [(2.0, EVALUATE)]


def test_a_failing_extraction_fails_its_cells(world):
    world.fails[EXTRACT, 1.0] = RunError("no memory")
    grid = {"power": [1.0, 2.0], "rerank": [1, 2, 3]}
    failures = sweeps.run_sweep(write_plan(world.root, grid=grid))
    assert failures == [f"power-1.0_rerank-{n}: no memory" for n in (1, 2, 3)]
    assert len(pd.read_csv(world.root / "results/runs/plan/metrics.csv")) == 6


def test_cells_run_side_by_side_and_one_failure_stops_no_other(world, monkeypatch):
    """Each of the two must have started before either can end."""
    both = threading.Barrier(2, timeout=30)

    def run(name, *arguments):
        if name == EVALUATE:
            both.wait()
        return world(name, *arguments)

    monkeypatch.setattr(notebook, "run_notebook", run)
    world.fails[EVALUATE, 3.0] = RunError("no memory")
    file = write_plan(world.root, grid={"power": [1.0, 2.0, 3.0, 4.0]})
    assert sweeps.run_sweep(file, jobs=2) == ["power-3.0: no memory"]
    joined = pd.read_csv(world.root / "results/runs/plan/metrics.csv")
    assert joined["cell"].tolist()[::2] == ["power-1.0", "power-2.0", "power-4.0"]


def test_a_damaged_record_is_one_failure(world):
    file = write_plan(world.root)
    sweeps.run_sweep(file)
    damaged = world.root / "results/runs/plan/power-1.0/run.json"
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
    assert command.main(["sweep", file, "-p", "seed=3"]) == 0
    assert {parameters["seed"] for _, parameters in world.runs} == {3}
    out = capsys.readouterr().out
    assert out.startswith("\ngenerated patterns\nwhitening: other photos\n\n")
    assert len(re.findall(r"power-[12]\.0 +OnA, 4 classes 256 0\.750", out)) == 2
    assert re.search(
        r"\n\d+ s\nall rows: results/runs/plan/metrics.csv\n"
        "a folder a cell: results/runs/plan\nfigures: figures/runs/plan\n"
        "all cells are done\n$",
        out,
    )
    world.fails[EXTRACT, 2.0] = RunError("02 failed: no memory")
    assert command.main(["sweep", file, "-p", "seed=4"]) == 1
    assert capsys.readouterr().out.endswith("\npower-2.0: 02 failed: no memory\n")


def test_ctrl_c_says_how_to_go_on(world, capsys):
    world.fails[EXTRACT, 1.0] = KeyboardInterrupt()
    assert command.main(["sweep", str(write_plan(world.root))]) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(world, monkeypatch):
    def broken(name, *arguments):
        if name != EXTRACT:
            raise ZeroDivisionError
        world(name, *arguments)

    monkeypatch.setattr(notebook, "run_notebook", broken)
    with pytest.raises(ZeroDivisionError):
        command.main(["sweep", str(write_plan(world.root)), "-j", "2"])


def test_data_that_cannot_be_loaded_is_a_failure_of_the_cells_that_want_it(world):
    world.absent.add("paris6k")
    grid = {"dataset": ["monuments", "paris6k"], "rerank": [1, 2]}
    first, second = sweeps.run_sweep(write_plan(world.root, grid=grid))
    assert first.startswith("dataset-paris6k_rerank-1: apt cannot fetch")
    assert second.startswith("dataset-paris6k_rerank-2: apt cannot fetch")
    joined = pd.read_csv(world.root / "results/runs/plan/metrics.csv")
    assert len(joined) == 4


# Real kernels

TOY = """
import json, os, signal, time
from pathlib import Path

if num_classes == 1:
    raise ValueError("no such thing")
if num_classes == 2:
    os.kill(os.getpid(), signal.SIGKILL)
if num_classes == 3 and not Path("asleep").exists():
    Path("asleep").write_text(str(os.getpid()))
    time.sleep(100)
run = json.loads(Path(f"../planned-{num_classes}.json").read_text())
folder = Path(results_dir)
folder.mkdir(parents=True, exist_ok=True)
row = {"row": num_classes, "threads": os.environ["OPENBLAS_NUM_THREADS"]}
(folder / "metrics.json").write_text(json.dumps([row]))
(folder / "run.json").write_text(json.dumps({"method_table": run}))
"""
COMMAND = """
import pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job

import test_sweeps
from cwr_utils import __main__

test_sweeps.play_all_but_the_kernels(pathlib.Path(sys.argv[1]))
sys.exit(__main__.main(["sweep", sys.argv[2], "-j", "2"]))
"""


class Loader:
    """Plays `Loader`: an experiment that is described."""

    facts = {"dataset_sha256": "a"}

    def experiment(self, parameters):
        return self


def play_all_but_the_kernels(folder, patch=setattr):
    """The toy finds what would be on its record in a file: it imports no package."""
    facts_of = sweeps._facts

    def note(notebooks, parameters, experiment):
        facts = facts_of(notebooks, parameters, experiment)
        if TABLE in facts:
            run = {"identity": digest(facts[TABLE]), "facts": facts[TABLE]}
            path = folder / f"planned-{parameters['num_classes']}.json"
            path.write_text(json.dumps({"parameters": {}, **run}))
        return facts

    patch(source, "ROOT", folder)
    patch(sweeps, "Loader", Loader)
    patch(sweeps, "_extract", lambda *arguments: None)
    patch(sweeps, "_facts", note)


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Folder of a project with a notebook that loads little, and no extraction."""
    shutil.copytree(source.ROOT / "notebooks", tmp_path / "notebooks")
    cell = nbformat.v4.new_code_cell(TOY)
    path = tmp_path / "notebooks/sweeps" / f"{TABLE}.ipynb"
    toy = nbformat.read(path, as_version=4)
    first = next(cell for cell in toy.cells if cell.cell_type == "code")
    toy.cells = [first, cell]
    nbformat.write(toy, path)
    play_all_but_the_kernels(tmp_path, monkeypatch.setattr)
    return tmp_path


def toy_plan(folder, *values):
    grid = {"num_classes": list(values)}
    return write_plan(folder, notebooks=[TABLE], grid=grid, parameters={}, jobs=2)


def test_cells_run_in_kernels_of_their_own_whose_faults_stay_theirs(toys):
    first, second = sweeps.run_sweep(toy_plan(toys, 4, 1, 2))
    assert "method_table failed in cell 3: ValueError: no such thing" in first + second
    assert "num_classes-2: method_table stopped: Kernel died" in first + second
    table = pd.read_csv(toys / "results/runs/plan/metrics.csv")
    assert table["row"].tolist() == [4]
    assert table["threads"].tolist() == [max(1, os.cpu_count() // 2)]


def test_ctrl_c_ends_running_cells_at_once_and_the_next_sweep_goes_on(toys):
    file = toy_plan(toys, 4, 3)
    folders = [os.path.dirname(__file__), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(toys), str(file)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )
    asleep = toys / "notebooks/asleep"
    finished = toys / "results/runs/plan/num_classes-4/run.json"
    while not (asleep.exists() and finished.exists()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command goes on" in shown
    assert "Traceback" not in shown
    with pytest.raises(ProcessLookupError):
        os.kill(int(asleep.read_text()), 0)
    assert not (toys / "results/runs/plan/num_classes-3/run.json").exists()
    before = finished.read_text()
    assert sweeps.run_sweep(file) == []
    assert len(pd.read_csv(toys / "results/runs/plan/metrics.csv")) == 2
    assert finished.read_text() == before
