"""Runs of notebooks without a kernel: provenance, parameters, command line."""

import base64
import importlib.metadata
import io
import json
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import project
import pytest
import tiny
from PIL import Image
from project import metrics

from cwr_utils import __main__ as command
from cwr_utils import aggregation, datasets, extraction, runs
from cwr_utils.datasets import DatasetError
from cwr_utils.retrieval import Method
from cwr_utils.store import StoreError

EXTRACT, AGGREGATE, EVALUATE = runs.NOTEBOOKS[2:5]


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
        ("feature_layer=null", None),
        ("feature_layer=", None),
        ("network=keras:ResNet50", "keras:ResNet50"),
        ("resize=1024x720", "1024x720"),
        ("dataset=photos of 2020=best", "photos of 2020=best"),
        ("rerank=true", True),
        ("resize='12'", "12"),
    ],
)
def test_a_parameter_is_read_as_yaml(text, value):
    (found,) = runs.parse_parameters([text]).values()
    assert found == value and type(found) is type(value)


def test_the_last_of_two_values_counts():
    assert runs.parse_parameters(["seed=1", "limit=2", "seed=3"]) == {
        "seed": 3,
        "limit": 2,
    }
    assert runs.parse_parameters([]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limit", "'limit' is not NAME=VALUE"),
        ("limits=3", "'limits=3' is not NAME=VALUE with a name of dataset, data_root"),
        (" limit=3", "is not NAME=VALUE"),
        ("=3", "is not NAME=VALUE"),
        ("dataset=[a", r"'dataset=\[a' has a value that is not YAML"),
    ],
)
def test_what_is_no_parameter_is_refused(text, message):
    with pytest.raises(runs.RunError, match=message):
        runs.parse_parameters([text])


# Records


def namespace(folder, **changes):
    """What the first cells of a notebook leave behind."""
    return {
        "dataset": "street",
        "data_root": "../data",
        "limit": 0,
        "feature_layer": None,
        "results_dir": str(folder / "results"),
        "data": object(),
        **changes,
    }


def test_a_record_says_with_what_and_for_how_long(tmp_path, monkeypatch):
    clock = iter([100.0, 112.34])
    monkeypatch.setattr(runs.time, "monotonic", lambda: next(clock))
    record = runs.Record("03", tmp_path, {"limit": 3}, runs.time.monotonic())
    path = record.finish(dataset_sha256="abc", images=np.int64(18))
    assert path == tmp_path / "run.json"
    run = json.loads(path.read_text())["03"]
    assert run["seconds"] == 12.3
    assert run["parameters"] == {"limit": 3}
    assert run["dataset_sha256"] == "abc" and run["images"] in (18, "18")
    assert run["peak_memory_mib"] > 10
    assert run["finished"].endswith("+00:00")
    assert set(run["versions"]) == {"cwr_utils", "python", *runs.PACKAGES}
    assert run["versions"]["numpy"] == np.__version__
    assert run["versions"]["keras"] == importlib.metadata.version("keras")
    assert run["commit"]
    assert run["device"]["cores"] >= 1 and run["device"]["devices"]


def test_a_record_is_merged_over_notebooks_in_their_order(tmp_path):
    for name, limit in (("04", 1), ("02", 2), ("04", 3)):
        runs.start(name, namespace(tmp_path, limit=limit)).finish()
    recorded = json.loads((tmp_path / "results/run.json").read_text())
    assert list(recorded) == ["02", "04"]
    assert [run["parameters"]["limit"] for run in recorded.values()] == [2, 3]


def test_no_path_of_this_machine_is_recorded(tmp_path):
    home = tmp_path / "home"
    folders = {
        "dataset": str(home / "photos"),
        "data_root": str(home / "oxford5k"),
        "whitening_dataset": str(home / "others/"),
        "whitening_root": str(home),
        "cache_dir": str(home / "cache"),
        "weights": str(home / "own.weights.h5"),
        "figures_dir": str(home / "figures"),
    }
    path = runs.start("02", namespace(home, **folders)).finish()
    text = path.read_text()
    assert str(tmp_path) not in text
    parameters = json.loads(text)["02"]["parameters"]
    assert parameters["dataset"] == "photos"
    assert parameters["whitening_dataset"] == "others"
    assert parameters["weights"] == "own.weights.h5"
    assert parameters["results_dir"] == "results"


def test_a_folder_inside_the_project_is_recorded_as_it_was_given(world):
    default = runs.defaults(EXTRACT)
    record = runs.start(EXTRACT, default | {"results_dir": "results/street"})
    assert record.parameters["results_dir"] == "results/street"
    assert record.parameters["cache_dir"] == "../cache"
    assert record.parameters.keys() == default.keys()


def test_a_module_named_like_a_parameter_is_no_parameter(tmp_path):
    """It would put a path of this machine on record, and no sweep would be done."""
    record = runs.start("02_extract_features", namespace(tmp_path))
    assert record.parameters["feature_layer"] is None
    with_module = namespace(tmp_path, aggregation=aggregation)
    again = runs.start("02_extract_features", with_module)
    assert again.parameters == record.parameters


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"02": 3}', '{"02": {}}'])
def test_a_damaged_record_is_found_before_the_work(tmp_path, text):
    path = tmp_path / "results/run.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(runs.RunError, match=r"run\.json is damaged: delete it"):
        runs.start("03", namespace(tmp_path))
    with pytest.raises(runs.RunError, match=r"run\.json is damaged: delete it"):
        runs.Record("03", path.parent, {}).finish()
    assert path.read_text() == text


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "run.json"
    runs.write_json(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n'

    def fail(*names):
        raise OSError("no space left")

    monkeypatch.setattr(runs.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        runs.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run(
        ["git", "-C", folder, *who, *arguments], check=True, capture_output=True
    )


def test_the_commit_is_dirty_only_where_code_changed(tmp_path, monkeypatch):
    """Results are tracked: the first notebook of a run would soil all the others."""
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert runs._commit() == "unknown (no checkout)"
    git(tmp_path, "init")
    for name in ("cwr_utils", "results"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a")
    commit = runs._commit()
    assert len(commit) == 12 and int(commit, 16)
    (tmp_path / "results/file").write_text("2")
    assert runs._commit() == commit
    (tmp_path / "cwr_utils/file").write_text("2")
    assert runs._commit() == f"{commit}-dirty"
    monkeypatch.setattr(runs.shutil, "which", lambda name: None)
    assert runs._commit() == "unknown (no git)"


# Tables


@pytest.mark.parametrize("name", ["table.csv", "table.json"])
def test_a_table_comes_back(tmp_path, name):
    table = pd.DataFrame({"query": ["é, ü", 'a "b"'], "n": [1, 2], "ap": [0.25, None]})
    runs.write_table(tmp_path / name, table)
    pd.testing.assert_frame_equal(runs.read_table(tmp_path / name), table)


def test_json_tables_are_rows_and_have_no_nan(tmp_path):
    runs.write_table(tmp_path / "t.json", pd.DataFrame({"a": [1.5, np.nan]}))
    assert json.loads((tmp_path / "t.json").read_text()) == [{"a": 1.5}, {"a": None}]


def test_a_missing_table_says_who_writes_it(tmp_path):
    with pytest.raises(runs.RunError, match=r"No .*t\.csv: run notebooks 03 and 04"):
        runs.read_table(tmp_path / "t.csv")


def test_people_read_three_places_and_no_zero_dimensions():
    table = metrics(0.12345)
    shown = runs.format_table(table)
    assert list(shown) == ["method", "D", "mAP"]
    assert shown["D"].tolist() == ["-", 256]
    assert shown["mAP"].tolist() == ["0.123", "0.750"]
    pd.testing.assert_frame_equal(table, metrics(0.12345))
    shown = runs.format_table(table.assign(mAP_low=0.05, mAP_high=[0.25, np.nan]))
    assert shown["95 %"].tolist() == ["0.050 to 0.250", "0.050 to nan"]


def test_a_table_without_any_ap_can_be_shown(tmp_path):
    table = metrics().assign(mAP=np.nan)
    runs.write_table(tmp_path / "metrics.json", table)
    shown = runs.format_table(runs.read_table(tmp_path / "metrics.json"))
    assert shown["mAP"].tolist() == ["nan", "nan"]


def test_markdown_keeps_whole_numbers_whole():
    table = pd.DataFrame({"D": [1, 2], "mAP": [0.5, 0.25]})
    assert runs.to_markdown(table) == (
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
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata = {
        "widgets": {"state": {}},
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "papermill": {"input_path": "/a/b", "output_path": "/c", "duration": 3},
    }
    path = tmp_path / "n.ipynb"
    nbformat.write(notebook, path)
    runs.slim(path)
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


def test_a_notebook_gets_the_parameters_that_it_knows(execute, tmp_path):
    parameters = {"limit": 3, "rerank": 5, "dataset": "street"}
    name = "00_prepare_data"
    target, seconds = runs.run_notebook(name, parameters, tmp_path / "new/folder")
    assert target == tmp_path / "new/folder/00_prepare_data.ipynb" and target.exists()
    assert seconds >= 0
    ((source, _, chosen, options),) = execute.calls
    assert chosen == {"limit": 3, "dataset": "street"}
    assert "cwd" not in options  # it would move this process too
    assert options["resources"]["metadata"]["path"] == str(runs.ROOT / "notebooks")
    assert source == str(runs.ROOT / "notebooks" / "00_prepare_data.ipynb")


def test_sockets_of_kernels_lie_in_no_folder_of_the_project(execute, tmp_path):
    """Two runs would meet at one socket, and a killed one would leave its own."""
    used = []
    for _ in range(2):
        runs.run_notebook("00_prepare_data", {}, tmp_path)
        config = execute.calls[-1][-1]["config"]["KernelManager"]
        assert config["transport"] == "ipc"
        used.append(Path(config["ip"]))
    first, second = used
    assert first.is_absolute() and first != second
    assert not first.is_relative_to(runs.ROOT) and not first.parent.exists()
    assert len(f"{first}-5") < 104  # the longest name of a socket on macOS


def test_a_failing_cell_and_a_dead_kernel_are_run_errors(execute, tmp_path):
    execute.raises = papermill.PapermillExecutionError(
        4, 7, "data.take(0)", "ValueError", "`limit` must be at least 1", []
    )
    with pytest.raises(runs.RunError, match="^04.* cell 7: ValueError: `limit` must"):
        runs.run_notebook(EVALUATE, {}, tmp_path)
    execute.raises = RuntimeError("Kernel died")  # as nbclient's error is one
    with pytest.raises(runs.RunError, match="^04.* stopped: Kernel died. .*memory"):
        runs.run_notebook(EVALUATE, {}, tmp_path)
    execute.raises = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runs.run_notebook(EVALUATE, {}, tmp_path)


def test_an_unknown_notebook_is_refused(execute, tmp_path):
    with pytest.raises(runs.RunError, match="'99' is none of the notebooks 00_prepare"):
        runs.run_notebook("99", {}, tmp_path / "new")
    assert execute.calls == [] and not (tmp_path / "new").exists()


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
    loaded, training = runs.load_data(first, "", plain, "")
    assert (loaded.name, len(loaded.images), len(loaded.queries)) == ("first", 8, 4)
    assert (training.name, len(training.images)) == ("plain", 4)
    loaded, training = runs.load_data(first, "", other, "", limit=4)
    assert (len(loaded.images), len(training.images)) == (4, 4)
    assert "slice" in loaded.note and "slice" in training.note


@pytest.mark.parametrize("again", ["first", "plain/../first", "other/../first/"])
def test_a_data_set_whitens_itself_by_distractors_that_it_holds_out(photos, again):
    first = str(photos / "first")
    whole = datasets.load(first)
    loaded, training = runs.load_data(first, "", f"{photos}/{again}", "")
    assert training.images == whole.distractors and len(training.images) == 4
    assert set(loaded.images) == set(whole.images) - set(whole.distractors)
    assert loaded.queries == whole.queries and training.queries == ()
    assert training.name != loaded.name  # stores of their own
    _, few = runs.load_data(first, "", first, "", 2)
    assert len(few.images) == 2 and set(few.images) <= set(whole.distractors)


def test_street_whitens_itself_by_its_other_views(photos, monkeypatch):
    street = datasets.load(str(photos / "first"))
    asked = []
    monkeypatch.setattr(datasets, "load", lambda *names: asked.append(names) or street)
    preset = runs.PRESETS["street"]
    loaded, training = runs.load_data(
        preset["dataset"], "../data", preset["whitening_dataset"], "../data"
    )
    assert asked == [("street", "../data")] * 2
    assert training.images == street.distractors
    assert not set(loaded.images) & set(training.images)


def test_two_folders_of_one_name_are_refused(photos):
    """Their stores would share a folder."""
    with pytest.raises(DatasetError, match="Two folders are called 'first'.*rename"):
        runs.load_data(str(photos / "first"), "", str(photos / "far/first"), "")


def test_a_data_set_without_distractors_cannot_whiten_itself(photos):
    with pytest.raises(
        DatasetError, match="Every photo of '.*full' .* another `whiten"
    ):
        runs.load_data(str(photos / "full"), "", str(photos / "full"), "")


def test_a_folder_without_queries_is_refused(photos):
    with pytest.raises(DatasetError, match=r"plain has no queries. Put a groups\.csv"):
        runs.load_data(str(photos / "plain"), "", str(photos / "first"), "")


# Kernels that run one notebook many times


def test_runs_in_one_kernel_share_stores_and_have_records_of_their_own(
    photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(runs, "_shared", {})
    monkeypatch.setattr(runs.networks, "load", lambda *names: tiny.network())
    monkeypatch.setattr(extraction, "Describer", tiny.describer)
    names = runs.defaults("one_method") | {
        "dataset": str(photos / "first"),
        "whitening_dataset": str(photos / "plain"),
        "resize": tiny.RESIZE,
        "power": 1.0,
        "cache_dir": str(tmp_path),
        "results_dir": str(tmp_path / "first"),
    }
    work = runs.open_workbench("one_method", names)
    path = work.store_path(work.data)
    extraction.extract(work.data, work.network, path / "database", work.conf)
    extraction.extract_queries(work.data, work.network, path / "queries", work.conf)
    path = work.store_path(work.training) / "database"
    extraction.extract(work.training, work.network, path, work.conf)

    def open_shared(**changes):
        return runs.open_shared("one_method", names | changes)

    first, stores = open_shared()
    method = Method("online", 2, 2, 4)
    stores.run(method)
    assert list((path / "whitening").glob("*.npz"))  # for other kernels
    second, again = open_shared(num_classes=3, results_dir=str(tmp_path / "second"))
    assert again is stores and second.data is first.data
    assert second.record.results_dir == tmp_path / "second"
    assert second.record.parameters["num_classes"] == 3
    assert first.record.parameters["num_classes"] == names["num_classes"]
    with pytest.raises(StoreError, match="No store at .*power2"):
        open_shared(power=2.0)
    _, other = open_shared()
    assert other is not stores
    assert other.run(method).rankings == stores.run(method).rankings
    # Whatever could change more than the method is loaded anew.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "_load", lambda record, namespace: work)
    anew = set()
    for name in names:
        _, before = open_shared()
        if open_shared(**{name: "changed"})[1] is not before:
            anew.add(name)
    assert names.keys() - anew == {*asdict(method), "cap_dimensions", "results_dir"}


# Demo


@pytest.fixture
def demo(world, monkeypatch):
    """A project where any data set can be had, but for those in `absent`."""
    absent = set()

    def load(name, data_root):
        if name in absent:
            raise DatasetError(
                f"apt cannot fetch {name}:", ["no network"], "Go online."
            )
        return tiny.Dataset(name, (), (), "", {})

    monkeypatch.setattr(datasets, "load", load)
    world.absent = absent
    return world


def test_the_demo_prints_its_table_and_where_everything_is(demo, capsys):
    runs.demo(limit=24)
    assert sorted(name for name, _ in demo.runs) == list(runs.NOTEBOOKS)
    own = {
        **runs.PRESETS["monuments"],
        **runs.default_folders("monuments-24"),
        "limit": 24,
    }
    assert all(parameters == own for _, parameters in demo.runs)
    out = capsys.readouterr().out
    assert "generated patterns\nwhitening: other photos\n" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["method", "D", "mAP"] in lines
    assert ["Raw", "features", "-", "0.500"] in lines
    assert ["OnA,", "4", "classes", "256", "0.750"] in lines
    assert "Tables: results/monuments-24   figures: figures/monuments-24   " in out
    assert out.endswith("executed notebooks: results/monuments-24/executed\n")


def test_a_notebook_of_the_demo_starts_after_those_that_it_reads(demo, monkeypatch):
    finished = []
    run = runs.run_notebook

    def watch(notebook, *arguments):
        assert set(finished) >= set(runs.READS[notebook])
        time.sleep(0.02)
        result = run(notebook, *arguments)
        finished.append(notebook)
        return result

    monkeypatch.setattr(runs, "run_notebook", watch)
    runs.demo()
    assert sorted(finished) == list(runs.NOTEBOOKS) == sorted(runs.READS)
    order = list(runs.READS)
    assert all(set(order[:i]) >= set(runs.READS[n]) for i, n in enumerate(order))


def test_a_notebook_that_fails_stops_the_demo(demo):
    demo.fails[EXTRACT, 2.0] = runs.RunError("02 failed: no memory")
    with pytest.raises(runs.RunError, match="no memory"):
        runs.demo()
    assert AGGREGATE not in [name for name, _ in demo.runs]


def test_the_demo_falls_back_to_street_and_says_why_in_one_line(demo, capsys):
    demo.absent.add("monuments")
    runs.demo()
    out = capsys.readouterr().out
    assert out.splitlines()[0] == (
        "Using street views, because monuments cannot be had: "
        "apt cannot fetch monuments: - no network Go online."
    )
    for _, parameters in demo.runs:
        assert parameters == {"limit": 0, **runs.PRESETS["street"]}
    assert "Tables: results/street   figures: figures/street   " in out


def test_presets_name_parameters_and_their_own_folders():
    for name, preset in runs.PRESETS.items():
        assert set(preset) <= set(runs.PARAMETERS)
        used = runs.defaults("04_evaluate_and_rerank") | preset
        assert used["dataset"] == name
        assert used["results_dir"] == f"../results/{name}"
        assert used["figures_dir"] == f"../figures/{name}"


def test_publish_keeps_the_executed_notebooks(demo, monkeypatch):
    outputs = set()
    run = runs.run_notebook

    def keep(notebook, parameters, output, *line):
        outputs.add(output)
        return run(notebook, parameters, output)

    monkeypatch.setattr(runs, "run_notebook", keep)
    runs.publish()
    assert outputs == {demo.root / "results/executed/monuments"}


# Command line


def test_help_names_the_commands_and_the_parameters(capsys):
    for arguments in (["--help"], ["run", "--help"], ["sweep", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            command.main(arguments)
        assert stopped.value.code == 0
    out = capsys.readouterr().out
    for word in ("demo", "publish", "run", "sweep", *runs.PARAMETERS):
        assert word in out


@pytest.mark.parametrize("arguments", [[], ["dmeo"], ["demo", "--limit", "few"]])
def test_wrong_arguments_show_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m cwr_utils" in capsys.readouterr().err


def test_the_command_line_runs_the_demo(demo):
    assert command.main(["demo", "--limit", "24"]) == 0
    assert len(demo.runs) == 6
    assert command.main(["publish"]) == 0
    assert len(demo.runs) == 12


def test_the_command_line_runs_notebooks(world):
    arguments = ["-p", "limit=3", "-p", "power=1"]
    assert command.main(["run", EXTRACT, AGGREGATE, *arguments]) == 0
    own = {**runs.default_folders("monuments"), "limit": 3, "power": 1}
    assert world.runs == [(name, own) for name in (EXTRACT, AGGREGATE)]
    world.runs.clear()
    assert command.main(["run"]) == 0
    assert [name for name, _ in world.runs] == list(runs.NOTEBOOKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-p", "limits=3"], "'limits=3' is not NAME=VALUE"),
        (["sweep", "none.yaml"], "Cannot read none.yaml"),
        (["demo"], "neither can be had"),
        (["publish"], "neither can be had"),
    ],
)
def test_an_error_is_one_message(world, monkeypatch, capsys, arguments, message):
    def absent(*names):
        raise DatasetError("neither can be had")

    monkeypatch.setattr(datasets, "load_demo", absent)
    assert command.main(arguments) == 1
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err
    assert shown.out == ""


def test_a_warm_kernel_loads_again_where_anything_it_loads_differs(
    tmp_path, monkeypatch
):
    loaded = []

    class Stores:
        def forget_descriptors(self):
            pass

    def load(record, names):
        loaded.append(names["weights"])
        return SimpleWork(record)

    @dataclass(frozen=True)
    class SimpleWork:
        record: object

        def open_retrieval(self, **options):
            return Stores()

    monkeypatch.setattr(runs, "_load", load)
    monkeypatch.setattr(runs, "_shared", {})
    for weights in ("imagenet", "imagenet", None):
        names = {"weights": weights, "results_dir": str(tmp_path)}
        runs.open_shared("one_method", names)
    assert loaded == ["imagenet", None]
