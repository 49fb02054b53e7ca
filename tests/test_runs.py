"""Runs of notebooks without a kernel: parameters, records, folders, command line."""

import base64
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import project
import pytest
import tiny
from PIL import Image
from project import AGGREGATE, EVALUATE, EXTRACT, PREPARE, TABLE, metrics

from cwr_utils import __main__ as command
from cwr_utils import datasets, files, paper
from cwr_utils.datasets import DatasetError
from cwr_utils.runs import data, notebook, record, source, tables
from cwr_utils.runs import demo as demos
from cwr_utils.runs.source import RunError


@pytest.fixture
def world(tmp_path, monkeypatch):
    """An empty project with the real notebooks; its `Kernel`."""
    return project.make(tmp_path, monkeypatch)


# Parameters


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("limit=24", 24),
        ("power=0.5", 0.5),
        ("power=1", 1.0),
        ("power=1e-3", 0.001),
        ("feature_layer=null", None),
        ("feature_layer=None", None),
        ("weights=none", None),
        ("feature_layer=", None),
        ("network=keras:ResNet50", "keras:ResNet50"),
        ("resize=1024x720", "1024x720"),
        ("dataset=/photos of 2020=best", "/photos of 2020=best"),
        ("dataset=/photos/Rome #2", "/photos/Rome #2"),
        ("dataset=/2019-05-01", "/2019-05-01"),
        ("feature_layer=2019-05-01", "2019-05-01"),
        ("feature_layer=007", "007"),
        ("feature_layer=a: b", "a: b"),
        ("all_flags=true", True),
        ("all_flags=False", False),
        (
            "rows=[{num_classes: 4, dimensions: 8}]",
            [{"num_classes": 4, "dimensions": 8}],
        ),
    ],
)
def test_a_parameter_is_read_as_its_kind(text, value):
    """A text is no YAML, in which " #2" would be a comment and 1e-3 a text."""
    (found,) = source.parse([text]).values()
    assert found == value and type(found) is type(value)


def test_the_last_of_two_values_counts():
    found = source.parse(["seed=1", "limit=2", "seed=3"])
    assert found == {"seed": 3, "limit": 2}
    assert source.parse([]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limit", "'limit' is not NAME=VALUE"),
        ("limits=3", "No notebook takes `limits`: did you mean limit?"),
        ("=3", "No notebook takes ``: known: dataset, data_root"),
        ("limit=few", "`limit` must be a whole number; got 'few'"),
        ("limit=2.5", "`limit` must be a whole number; got '2.5'"),
        ("power=2,0", "`power` must be a number; got '2,0'"),
        ("power=nan", "`power` must be a number; got 'nan'"),
        ("power=none", "`power` must be a number; got 'none'"),
        ("all_flags=1", "`all_flags` must be true or false; got '1'"),
        ("rows=3", "`rows` must be a list of mappings, .*; got '3'"),
        ("rows=[3]", "`rows` must be a list of mappings, .*"),
        ("rows=[a", "`rows` must be a list of mappings, .*"),
        ("rows=" + "[" * 999, "`rows` must be a list of mappings, .*"),
        (
            "rows=[{num_clases: 3}]",
            "A method has no `num_clases`: did you mean num_classes?",
        ),
        ("rows=[{num_classes: x}]", "`num_classes` must be a whole number; got 'x'"),
    ],
)
def test_what_is_no_parameter_is_refused(text, message):
    with pytest.raises(RunError, match=message.replace("?", "[?]").replace("``", "``")):
        source.parse([text])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("limit", True), ("power", False), ("dataset", 7), ("limit", None)],
        ("power", 10**400),
    ],
)
def test_values_from_a_file_have_kinds_too(name, value):
    with pytest.raises(RunError, match=f"`{name}` must be a .*; got {value!r}"):
        source.typed(name, value)
    assert source.typed("power", 2) == 2.0 and type(source.typed("power", 2)) is float
    assert source.typed("weights", None) is None


def test_a_wrong_value_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(RunError, match="`limit` must be a whole number"):
        notebook.run_notebook(PREPARE, {"limit": "few"}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_defaults_are_those_of_the_parameters_cell():
    assert source.defaults(PREPARE)["limit"] == 0
    assert source.defaults(TABLE)["rows"] == [{}]
    assert source.parameters().keys() >= source.defaults(EVALUATE).keys()


# Identity


FACTS = {"dataset_sha256": "a", "weights_sha256": "b"}


def test_facts_of_a_run_are_contents_and_settings_and_no_place(tmp_path):
    given = source.complete(EVALUATE, {"dataset": "/x/photos", "rerank": 3})
    facts = record.facts(EVALUATE, given, FACTS)
    assert facts["rerank"] == 3 and facts["dataset_sha256"] == "a"
    assert facts["package_version"] and len(facts["code_sha256"]) == 64
    moved = {"dataset": "/y/photos", "cache_dir": "/z", "results_dir": "/r"}
    other = source.complete(EVALUATE, {**moved, "rerank": 3})
    assert record.facts(EVALUATE, other, FACTS) == facts
    for changed in (
        record.facts(EVALUATE, source.complete(EVALUATE, {"rerank": 4}), FACTS),
        record.facts(EVALUATE, given, FACTS | {"dataset_sha256": "c"}),
        record.facts(EVALUATE, given, FACTS | {"weights_sha256": "c"}),
        record.facts(AGGREGATE, given, FACTS),
    ):
        assert changed != facts


def test_the_code_of_a_notebook_counts_its_prose_and_defaults_do_not(world):
    path = source.path(AGGREGATE)
    before, text = source.code_sha256(AGGREGATE), path.read_text()
    content = json.loads(text)
    kinds = [cell["cell_type"] for cell in content["cells"]]
    for number, same in ((0, True), (kinds.index("code"), True), (-2, False)):
        changed = json.loads(text)
        changed["cells"][number]["source"].append("\n# changed")
        path.write_text(json.dumps(changed))
        assert (source.code_sha256(AGGREGATE) == before) == same


# Records


def namespace(folder, name=EXTRACT, **changes):
    """What the first cells of a notebook leave behind."""
    changes = {"results_dir": str(folder / "results"), "data": object(), **changes}
    return source.defaults(name) | changes


def test_a_record_says_with_what_and_for_how_long(tmp_path):
    started = record.start(EXTRACT, namespace(tmp_path, limit=3))
    started.started -= 12.34
    started.finish(FACTS, images=np.int64(18))
    run = json.loads((tmp_path / "results/run.json").read_text())[EXTRACT]
    assert 12.3 <= run["seconds"] < 14
    assert run["parameters"]["limit"] == 3 and "data" not in run["parameters"]
    assert run["facts"]["dataset_sha256"] == "a" and run["images"] in (18, "18")
    assert run["identity"] == record.identity.digest(run["facts"])
    assert run["peak_memory_mib"] > 10
    assert run["finished"].endswith("+00:00")
    assert set(run["versions"]) == {"cwr_utils", "python", *record.PACKAGES}
    assert run["versions"]["numpy"] == np.__version__
    assert run["versions"]["keras"] == importlib.metadata.version("keras")
    assert run["commit"]
    assert run["device"]["cores"] >= 1 and run["device"]["devices"]


def test_a_record_is_merged_over_notebooks_in_their_order(tmp_path):
    for name, limit in ((EVALUATE, 1), (EXTRACT, 2), (EVALUATE, 3)):
        record.start(name, namespace(tmp_path, name, limit=limit)).finish(FACTS)
    recorded = json.loads((tmp_path / "results/run.json").read_text())
    assert list(recorded) == [EXTRACT, EVALUATE]
    assert [run["parameters"]["limit"] for run in recorded.values()] == [2, 3]


def test_no_path_of_this_machine_is_recorded(tmp_path):
    home = tmp_path / "home"
    folders = {
        "dataset": str(home / "photos"),
        "data_root": str(home / "oxford5k"),
        "whitening_dataset": str(home / "others/"),
        "whitening_root": "../../elsewhere",
        "cache_dir": str(home / "cache"),
        "weights": str(home / "own.weights.h5"),
        "figures_dir": str(home / "figures"),
    }
    record.start(EXTRACT, namespace(home, **folders)).finish(FACTS)
    text = (home / "results/run.json").read_text()
    assert str(tmp_path) not in text
    parameters = json.loads(text)[EXTRACT]["parameters"]
    assert parameters["dataset"] == "photos"
    assert parameters["whitening_dataset"] == "others"
    assert parameters["whitening_root"] == "elsewhere"
    assert parameters["weights"] == "own.weights.h5"
    assert parameters["results_dir"] == "results"


def test_a_folder_inside_the_project_is_recorded_as_it_was_given(world):
    default = source.defaults(EXTRACT)
    run = record.start(EXTRACT, default | {"results_dir": "results/mine"})
    assert run.results_dir == world.root / "results/mine"
    run.finish(FACTS)
    shown = json.loads((run.results_dir / "run.json").read_text())[EXTRACT][
        "parameters"
    ]
    assert shown["results_dir"] == "../results/mine"
    assert shown["cache_dir"] == "../cache" and shown["figures_dir"] is None
    assert shown["dataset"] == "monuments" and shown["weights"] == "imagenet"
    assert shown.keys() == default.keys()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"02": 3}', '{"02": {}}'])
def test_a_damaged_record_is_found_before_the_work(tmp_path, text):
    path = tmp_path / "results/run.json"
    path.parent.mkdir()
    started = record.start(EXTRACT, namespace(tmp_path))
    path.write_text(text)
    with pytest.raises(RunError, match=r"run\.json is damaged: delete it"):
        record.start(EXTRACT, namespace(tmp_path))
    with pytest.raises(RunError, match=r"run\.json is damaged: delete it"):
        started.finish(FACTS)
    assert path.read_text() == text


def test_a_record_is_kept_while_two_notebooks_end_together(tmp_path):
    names = [PREPARE, EXTRACT, AGGREGATE, EVALUATE]
    started = [record.start(name, namespace(tmp_path, name)) for name in names]
    threads = [threading.Thread(target=run.finish, args=[FACTS]) for run in started]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert list(record.read_runs(tmp_path / "results/run.json")) == names


# Folders


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "monuments"),
        ({"power": 1.0}, "monuments-power1"),
        ({"power": 2.0, "limit": 0}, "monuments"),  # the defaults
        ({"limit": 24, "weights": None}, "monuments-limit24-weights_None"),
        ({"network": "keras:ResNet50"}, "monuments-network_keras-ResNet50"),
        # Notebooks 03 and 05 do not take it.
        ({"rerank": 3, "all_flags": True}, "monuments"),
        ({"cache_dir": "/elsewhere"}, "monuments"),
    ],
)
def test_a_run_is_called_by_what_is_not_the_default(parameters, name):
    assert record.run_name(parameters) == name
    assert record.folders(parameters) == {
        "results_dir": str(source.ROOT / "results/runs" / name),
        "figures_dir": str(source.ROOT / "figures/runs" / name),
    }


def test_folders_of_one_name_are_apart_whatever_way_they_are_written(world):
    here = record.run_name({"dataset": str(world.root / "a/photos")})
    assert here.startswith("photos-") and len(here) == len("photos-") + 8
    assert here != record.run_name({"dataset": str(world.root / "b/photos")})
    assert here == record.run_name({"dataset": "a/../a/photos/"})
    others = [{"data_root": "/a/data"}, {"data_root": "/b/data"}, {}]
    assert len({record.run_name(other) for other in others}) == 3


def test_the_name_of_a_run_is_the_name_of_a_file():
    texts = {"network": "../..:x" * 30, "feature_layer": "a/b" * 30}
    names = {record.run_name(texts | {"limit": limit}) for limit in range(3)}
    assert len(names) == 3
    for name in names:
        assert len(name) < 200 and "/" not in name and ":" not in name


def test_all_notebooks_of_a_run_share_their_folders(world):
    demos.run(source.NOTEBOOKS, {"power": 1.0, "dataset": "street"})
    given = [parameters["results_dir"] for _, parameters in world.runs]
    assert set(given) == {str(world.root / "results/runs/street-power1")}
    assert len(given) == 7
    one = record.start(EVALUATE, source.defaults(EVALUATE) | {"power": 1.0})
    assert one.results_dir == world.root / "results/runs/monuments-power1"
    assert one.figures_dir == world.root / "figures/runs/monuments-power1"


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    command = ["git", "-C", folder, *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_commit_is_dirty_only_where_code_changed(tmp_path, monkeypatch):
    """Published results are tracked, and change no number."""
    monkeypatch.setattr(source, "ROOT", tmp_path)
    assert record._commit() == "unknown (no checkout)"
    git(tmp_path, "init")
    for name in ("cwr_utils", "results"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a")
    commit = record._commit()
    assert len(commit) == 12 and int(commit, 16)
    (tmp_path / "results/file").write_text("2")
    assert record._commit() == commit
    (tmp_path / "cwr_utils/file").write_text("2")
    assert record._commit() == f"{commit}-dirty"
    monkeypatch.setattr(record.shutil, "which", lambda name: None)
    assert record._commit() == "unknown (no git)"


# Tables


@pytest.mark.parametrize("name", ["table.csv", "table.json"])
def test_a_table_comes_back(tmp_path, name):
    table = pd.DataFrame({"query": ["é, ü", 'a "b"'], "n": [1, 2], "ap": [0.25, None]})
    tables.write_table(tmp_path / name, table)
    pd.testing.assert_frame_equal(tables.read_table(tmp_path / name), table)


def test_json_tables_are_rows_and_have_no_nan(tmp_path):
    tables.write_table(tmp_path / "t.json", pd.DataFrame({"a": [1.5, np.nan]}))
    assert json.loads((tmp_path / "t.json").read_text()) == [{"a": 1.5}, {"a": None}]


def test_a_missing_table_says_who_writes_it(tmp_path):
    with pytest.raises(RunError, match=r"No .*t\.csv: run notebooks 03 and 04"):
        tables.read_table(tmp_path / "t.csv")


def test_people_read_three_places_and_no_zero_dimensions():
    table = metrics(0.12345)
    shown = tables.format_table(table)
    assert list(shown) == ["method", "D", "mAP"]
    assert shown["D"].tolist() == ["-", 256]
    assert shown["mAP"].tolist() == ["0.123", "0.750"]
    pd.testing.assert_frame_equal(table, metrics(0.12345))
    shown = tables.format_table(table.assign(mAP_low=0.05, mAP_high=[0.25, np.nan]))
    assert shown["95 %"].tolist() == ["0.050 to 0.250", "0.050 to nan"]
    precisions = {"mP@1": 1.0, "mP@5": 0.6, "mP@10": 0.45678}
    assert "cell" not in tables.format_table(table.assign(cell="default"))
    assert list(tables.format_table(table.assign(cell=["a", "b"]))["cell"]) == [
        "a",
        "b",
    ]
    shown = tables.format_table(table.assign(mAP_low=0, mAP_high=1, **precisions))
    columns = ["method", "D", "mAP", "95 %", "mP@1", "mP@5", "mP@10"]
    assert list(shown) == columns
    assert shown.iloc[0, 4:].tolist() == ["1.000", "0.600", "0.457"]


def test_difficulties_stand_side_by_side_above_what_is_published():
    levels = [("easy", 0.75), ("medium", 0.5), ("hard", np.nan)]
    two = [("OnA", "b", 512), ("OnA", "a", 0)]  # of one label, not in order
    rows = pd.DataFrame(
        {
            "method": method,
            "slug": slug,
            "dimensions": dimensions,
            "difficulty": difficulty,
            "mAP": value,
            **{"mP@1": 1.0, "mP@5": 0.25, "mP@10": 0.125},
        }
        for method, slug, dimensions in two
        for difficulty, value in levels
    )
    before = rows.copy()
    published = paper.anchors_by_difficulty("rparis6k")
    shown = tables.format_difficulties(rows, published)
    pd.testing.assert_frame_equal(rows, before)
    measures = ["mAP", "mP@1", "mP@5", "mP@10"]
    pairs = [(name, m) for name in ("Easy", "Medium", "Hard") for m in measures]
    assert list(shown) == [*pairs, ("", "D"), ("", "source")]
    assert shown.index[:3].tolist() == ["OnA", "OnA", "SPoC, VGG-16"]
    assert shown["", "D"].tolist()[:3] == [512, "-", 512]
    assert shown["Easy"].iloc[0].tolist() == ["0.750", "1.000", "0.250", "0.125"]
    assert shown["Hard"].iloc[0].tolist() == ["-", "1.000", "0.250", "0.125"]
    best = shown.loc["R-MAC, ResNet-101"]
    assert best["Easy"].tolist() == ["-"] * 4
    assert best["Medium"].tolist() == ["0.740", "-", "-", "0.977"]
    assert best["Hard"].tolist() == ["0.521", "-", "-", "0.871"]
    alone = tables.format_difficulties(rows, paper.anchors_by_difficulty("monuments"))
    assert len(alone) == 2 and alone["", "source"].tolist() == ["-", "-"]


def test_a_table_without_any_ap_can_be_shown(tmp_path):
    table = metrics().assign(mAP=np.nan)
    tables.write_table(tmp_path / "metrics.json", table)
    shown = tables.format_table(tables.read_table(tmp_path / "metrics.json"))
    assert shown["mAP"].tolist() == ["nan", "nan"]


def test_markdown_keeps_whole_numbers_whole():
    table = pd.DataFrame({"D": [1, 2], "mAP": [0.5, 0.25]})
    assert tables.to_markdown(table) == (
        "| D | mAP |\n|---|---:|\n| 1 | 0.5 |\n| 2 | 0.25 |\n"
    )


# Executed notebooks


def png(side):
    """A noisy picture, base64: noise does not compress."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_an_executed_notebook_is_slimmed(tmp_path):
    bar = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%"}
    small, large = png(20), png(300)
    outputs = [
        nbformat.v4.new_output("display_data", bar),
        nbformat.v4.new_output("stream", name="stdout", text="kept"),
        nbformat.v4.new_output("display_data", {"image/png": small}),
        nbformat.v4.new_output("display_data", {"image/png": large}),
    ]
    cells = [
        nbformat.v4.new_markdown_cell("# Title"),
        nbformat.v4.new_code_cell("1", outputs=outputs),
    ]
    executed = nbformat.v4.new_notebook(cells=cells)
    executed.metadata = {
        "widgets": {"state": {}},
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "papermill": {"input_path": "/a/b", "output_path": "/c", "duration": 3},
    }
    path = tmp_path / "n.ipynb"
    nbformat.write(executed, path)
    notebook.slim(path)
    slimmed = nbformat.read(path, as_version=4)
    assert slimmed.metadata["papermill"] == {"duration": 3}
    assert "widgets" not in slimmed.metadata and "kernelspec" in slimmed.metadata
    text, kept, palette = slimmed.cells[1].outputs
    assert text.text == "kept" and kept["data"]["image/png"] == small
    with Image.open(io.BytesIO(base64.b64decode(palette["data"]["image/png"]))) as im:
        assert im.mode == "P" and im.size == (300, 300)
    assert len(palette["data"]["image/png"]) < len(large) / 2
    assert slimmed.cells[0].source == "# Title"


@pytest.fixture
def execute(monkeypatch):
    """Plays papermill; calls are kept, `raises` is raised."""

    def execute(source, target, parameters, **options):
        execute.calls.append((source, target, parameters, options))
        if execute.raises:
            raise execute.raises
        nbformat.write(nbformat.read(source, as_version=4), target)

    execute.calls, execute.raises = [], None
    monkeypatch.setattr(papermill, "execute_notebook", execute)
    return execute


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        ({}, True),
        ({"limit": 0, "results_dir": "/x", "data_root": "/y"}, True),
        ({"limit": 3}, False),
        ({"dataset": "street"}, False),
    ],
)
def test_what_was_seen_on_the_demo_is_in_its_executed_copy_alone(
    execute, tmp_path, parameters, shown
):
    target = notebook.run_notebook(PREPARE, parameters, tmp_path)
    cells, all_cells = (
        nbformat.read(path, as_version=4).cells
        for path in (target, source.path(PREPARE))
    )
    assert ("What we saw" in cells[-1].source) == shown
    assert len(cells) == len(all_cells) - (not shown)


def test_a_notebook_gets_the_parameters_that_it_knows(execute, tmp_path):
    parameters = {"limit": "3", "rerank": 5, "dataset": "street"}
    target = notebook.run_notebook(PREPARE, parameters, tmp_path / "new/folder")
    assert target == tmp_path / "new/folder/00_prepare_data.ipynb" and target.exists()
    ((used, _, chosen, options),) = execute.calls
    assert chosen == {"limit": 3, "dataset": "street"}
    assert "cwd" not in options  # it would move this process too
    assert options["resources"]["metadata"]["path"] == str(source.ROOT / "notebooks")
    assert used == str(source.ROOT / "notebooks" / "00_prepare_data.ipynb")


def test_an_executed_copy_names_no_folder_of_the_project(execute, tmp_path):
    parameters = {
        "results_dir": str(source.ROOT / "results/runs/x"),
        "figures_dir": str(tmp_path),
        "data_root": str(source.ROOT / "data"),
        "dataset": str(source.ROOT / "photos"),
    }
    notebook.run_notebook(PREPARE, parameters, tmp_path)
    assert execute.calls[0][2] == {
        "results_dir": "../results/runs/x",
        "figures_dir": str(tmp_path),
        "data_root": "../data",
        "dataset": "../photos",
    }


def sockets(execute, tmp_path):
    """The folder, a prefix of names, where a notebook's kernel had its sockets."""
    notebook.run_notebook(PREPARE, {}, tmp_path)
    config = execute.calls[-1][-1]["config"]["KernelManager"]
    assert config["transport"] == "ipc"
    return Path(config["ip"])


def test_sockets_of_kernels_lie_in_no_folder_of_the_project(execute, tmp_path):
    """Two runs would meet at one socket, and a killed one would leave its own."""
    first, second = (sockets(execute, tmp_path) for _ in range(2))
    assert first.is_absolute() and first != second
    assert not first.is_relative_to(source.ROOT) and not first.parent.exists()
    assert len(f"{first}-5") < 104  # the longest name of a socket on macOS


def test_sockets_fit_though_the_temporary_folder_has_a_long_name(
    execute, tmp_path, monkeypatch
):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(notebook.tempfile, "tempdir", str(long))
    assert len(f"{sockets(execute, tmp_path)}-5") < 104
    monkeypatch.setattr(notebook.os, "access", lambda *arguments: False)
    with pytest.raises(RunError, match="^A kernel's sockets need .* set TMPDIR"):
        notebook.run_notebook(PREPARE, {}, tmp_path)


def test_a_failing_cell_and_a_dead_kernel_are_run_errors(execute, tmp_path):
    execute.raises = papermill.PapermillExecutionError(
        4, 7, "data.take(0)", "ValueError", "`limit` must be at least 1", []
    )
    with pytest.raises(RunError, match="^04.* cell 7: ValueError: `limit` must"):
        notebook.run_notebook(EVALUATE, {}, tmp_path)
    execute.raises = RuntimeError("Kernel died")  # as nbclient's error is one
    with pytest.raises(RunError, match="^04.* stopped: Kernel died. .*memory"):
        notebook.run_notebook(EVALUATE, {}, tmp_path)
    execute.raises = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        notebook.run_notebook(EVALUATE, {}, tmp_path)


def test_an_unknown_notebook_is_refused(execute, tmp_path):
    with pytest.raises(
        RunError, match="There is no notebook `03_agregate_descriptors`: did you"
    ):
        notebook.run_notebook("03_agregate_descriptors", {}, tmp_path / "new")
    assert execute.calls == [] and not (tmp_path / "new").exists()


# Side by side


def test_tasks_start_after_those_that_they_need_and_side_by_side():
    both, finished = threading.Barrier(2, timeout=30), []

    def task(name):
        if name in "ab":
            both.wait()  # each must have started before either can end
        if name == "c":
            assert set(finished) == {"a", "b"}
        finished.append(name)

    names = {name: lambda name=name: task(name) for name in "cab"}
    notebook.side_by_side(names, 2, "tasks", {"c": "ab"})
    assert sorted(finished) == ["a", "b", "c"]


def test_the_first_error_starts_no_other_task():
    started = []

    def task():
        started.append(1)
        raise RunError("no memory")

    with pytest.raises(RunError, match="no memory"):
        notebook.side_by_side(dict.fromkeys("abc", task), 1, "tasks")
    assert len(started) == 1


# Data sets


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folders of photos: "first" and "other" with ground truth, "plain" without."""
    folder = tmp_path_factory.mktemp("data")
    for name, place in (("first", 0), ("far/first", 50), ("other", 20), ("full", 30)):
        (folder / name).parent.mkdir(exist_ok=True)
        others = 0 if name == "full" else 4
        tiny.dataset(folder / name, name, 2, 2, others, place)
        lines = [f"place{place + p}_{n},{p}" for p in range(2) for n in range(2)]
        (folder / name / "groups.csv").write_text("image,group\n" + "\n".join(lines))
    tiny.dataset(folder / "plain", "plain", 0, 0, 4, 40)
    return folder


def test_two_folders_are_loaded_and_sliced(photos):
    first, plain, other = (str(photos / name) for name in ("first", "plain", "other"))
    loaded, training = data.load_data(first, "", plain, "")
    assert (loaded.name, len(loaded.images), len(loaded.queries)) == ("first", 8, 4)
    assert (training.name, len(training.images)) == ("plain", 4)
    loaded, training = data.load_data(first, "", other, "", limit=4)
    assert (len(loaded.images), len(training.images)) == (4, 4)
    assert "slice" in loaded.note and "slice" in training.note


@pytest.mark.parametrize("again", ["first", "plain/../first", "other/../first/"])
def test_a_data_set_whitens_itself_by_distractors_that_it_holds_out(photos, again):
    first = str(photos / "first")
    whole = datasets.load(first)
    loaded, training = data.load_data(first, "", f"{photos}/{again}", "")
    assert training.images == whole.distractors and len(training.images) == 4
    assert set(loaded.images) == set(whole.images) - set(whole.distractors)
    assert loaded.queries == whole.queries and training.queries == ()
    assert training.name != loaded.name  # stores of their own
    _, few = data.load_data(first, "", first, "", 2)
    assert len(few.images) == 2 and set(few.images) <= set(whole.distractors)


def test_street_whitens_itself_by_its_other_views(photos, monkeypatch):
    street = datasets.load(str(photos / "first"))
    asked = []
    monkeypatch.setattr(datasets, "load", lambda *names: asked.append(names) or street)
    loaded, training = data.load_data(
        "street", "../data", demos.WHITENING["street"], "../data"
    )
    assert asked == [("street", source.ROOT / "data")] * 2
    assert training.images == street.distractors
    assert not set(loaded.images) & set(training.images)


def test_folders_start_from_where_one_stands_and_an_error_says_where_that_is(
    photos, monkeypatch
):
    monkeypatch.chdir(photos / "far")
    loaded, training = data.load_data("../first", "", "../plain", "")
    assert (loaded.name, training.name) == ("first", "plain")
    with pytest.raises(
        DatasetError,
        match=f"There is no folder {photos}/far/frist, and 'frist' is none of the data "
        r"sets monuments.*\. Did you mean first[?]",
    ):
        data.load_data("frist", "", "../plain", "")


def test_queries_without_a_right_answer_are_refused_before_they_are_described(photos):
    first = photos / "asked"
    shutil.copytree(photos / "plain", first)
    image = sorted(first.glob("*.png"))[0].stem
    (first / "queries.csv").write_text(f"image\n{image}\n")
    assert len(datasets.load(str(first)).queries) == 1
    with pytest.raises(DatasetError, match=r"asked has no queries .* a groups\.csv"):
        data.load_data(str(first), "", str(photos / "other"), "")


def test_two_folders_of_one_name_are_told_apart(photos):
    first, other = str(photos / "first"), str(photos / "far/first")
    loaded, training = data.load_data(first, "", other, "")
    assert (loaded.name, training.name) == ("first", "first-whitening")
    assert len(training.images) == 8 and training.path(training.images[0]).exists()


def test_photos_under_test_in_the_whitening_set_are_named(photos):
    shutil.copytree(photos / "plain", photos / "mixed")
    shutil.copy(photos / "first/place1_0.png", photos / "mixed/again.png")
    with pytest.raises(DatasetError, match="1 of the 5 whitening photos of mixed") as e:
        data.load_data(str(photos / "first"), "", str(photos / "mixed"), "")
    assert e.value.problems == ("again.png, which is place1_0.png in first",)


def test_a_data_set_without_distractors_cannot_whiten_itself(photos):
    with pytest.raises(
        DatasetError, match="Every photo of '.*full' .* another `whiten"
    ):
        data.load_data(str(photos / "full"), "", str(photos / "full"), "")


def test_a_folder_without_queries_is_refused(photos):
    with pytest.raises(DatasetError, match=r"plain has no queries .* a groups\.csv"):
        data.load_data(str(photos / "plain"), "", str(photos / "first"), "")


# Demo


def test_the_demo_prints_its_table_and_where_everything_is(world, capsys):
    demos.demo(limit=2)
    assert sorted(name for name, _ in world.runs) == list(source.NOTEBOOKS)
    own = {**demos.preset(), "limit": 2, **record.folders({"limit": 2})}
    assert all(parameters == own for _, parameters in world.runs)
    out = capsys.readouterr().out
    assert "generated patterns\nwhitening: other photos\n" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["method", "D", "mAP"] in lines
    assert ["Raw", "features", "-", "0.500"] in lines
    assert ["OnA,", "4", "classes", "256", "0.750"] in lines
    place = "runs/monuments-limit2"
    assert re.fullmatch(r"\d+ s", out.splitlines()[-4])
    assert out.splitlines()[-3:] == [
        f"tables: results/{place}",
        f"figures: figures/{place}",
        f"executed notebooks: results/{place}/executed",
    ]
    assert (world.root / "results" / place / "executed" / f"{PREPARE}.ipynb").exists()


def test_a_notebook_of_the_demo_starts_after_those_that_it_reads(world, monkeypatch):
    finished = []

    def watch(name, *arguments):
        assert set(finished) >= set(demos.READS[name])
        time.sleep(0.02)
        world(name, *arguments)
        finished.append(name)

    monkeypatch.setattr(notebook, "run_notebook", watch)
    demos.demo()
    assert sorted(finished) == list(source.NOTEBOOKS) == sorted(demos.READS)
    order = list(demos.READS)
    assert all(set(order[:i]) >= set(demos.READS[n]) for i, n in enumerate(order))


def test_a_notebook_that_fails_stops_the_demo(world):
    world.fails[EXTRACT, 2.0] = RunError("02 failed: no memory")
    with pytest.raises(RunError, match="no memory"):
        demos.demo()
    assert AGGREGATE not in [name for name, _ in world.runs]


def test_the_demo_falls_back_to_street_and_says_why_in_one_line(world, capsys):
    world.absent.add("monuments")
    demos.demo()
    out = capsys.readouterr().out
    assert out.splitlines()[0] == (
        "Using street views, because monuments cannot be had: "
        "apt cannot fetch monuments: - no network Go online."
    )
    assert all(parameters["dataset"] == "street" for _, parameters in world.runs)
    assert "results/runs/street-whitening_dataset_street" in out


# What git tracks


@pytest.fixture
def checkout(world):
    """The project under version control, with published results; its `Kernel`."""
    (world.root / ".gitignore").write_text((REAL / ".gitignore").read_text())
    for path in ("results/monuments/metrics.json", "figures/monuments/methods.png"):
        files.write_text(world.root / path, "published")
    git(world.root, "init")
    git(world.root, "add", ".")
    git(world.root, "commit", "-m", "a")
    assert changes(world) == []
    return world


REAL = source.ROOT


def changes(world):
    shown = git(world.root, "status", "--porcelain", "--untracked-files=all")
    return sorted(line[3:] for line in shown.splitlines())


def test_nothing_that_a_person_runs_changes_what_is_tracked(checkout):
    assert command.main(["demo", "--limit", "3"]) == 0
    assert command.main(["demo"]) == 0
    assert command.main(["run", "-p", "power=1", "-p", "dataset=street"]) == 0
    files.write_text(checkout.root / "../plan.yaml", "notebooks: [method_table]")
    assert command.main(["sweep", str(checkout.root / "../plan.yaml")]) == 0
    notebook.run_notebook(EVALUATE, {}, checkout.root / "results/runs/x/executed")
    assert len(checkout.runs) == 7 + 7 + 7 + 2 + 1
    assert changes(checkout) == []


def test_publish_alone_changes_it_and_keeps_the_executed_notebooks(checkout, capsys):
    assert command.main(["publish"]) == 0
    changed = changes(checkout)
    assert "results/monuments/metrics.json" in changed
    assert "results/monuments/run.json" in changed
    assert f"figures/monuments/{EVALUATE}.png" in changed
    executed = [path for path in changed if path.startswith("results/executed/")]
    assert executed == [
        f"results/executed/monuments/{n}.ipynb" for n in source.NOTEBOOKS
    ]
    own = ("results/monuments/", "figures/monuments/", "results/executed/monuments/")
    assert all(path.startswith(own) for path in changed)


def test_a_finished_run_is_published_without_what_tells_folders_apart(checkout):
    photos = project.photos(checkout.root / "../x/photos")
    assert command.main(["run", EVALUATE, "-p", f"dataset={photos}"]) == 0
    (name,) = os.listdir(checkout.root / "results/runs")
    assert command.main(["publish", name]) == 0
    assert "results/photos/metrics.json" in changes(checkout)
    assert not any("executed" in path for path in changes(checkout))


def test_what_is_not_finished_is_not_published(checkout, capsys):
    (checkout.root / "results/runs/half").mkdir(parents=True)
    for name in ("half", "none"):
        assert command.main(["publish", name]) == 1
        assert f"No finished run is in {checkout.root}" in capsys.readouterr().err
    assert changes(checkout) == []
