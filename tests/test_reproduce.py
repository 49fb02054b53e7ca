"""`make paper` up to the notebooks, which run elsewhere, and the tables it writes."""

import re
import shutil
import subprocess
from dataclasses import replace

import pandas as pd
import pytest
import tiny
from test_oxford_paris import make_oxford
from test_paper import FULL

from cwr_utils import paper
from cwr_utils.__main__ import main
from cwr_utils.datasets import DatasetError
from cwr_utils.extraction import Setup
from cwr_utils.identity import digest
from cwr_utils.protocol import PRESETS
from cwr_utils.retrieval import Experiment
from cwr_utils.runs import comparison, notebook, reproduce, source, sweeps, tables
from cwr_utils.runs.source import RunError

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


def test_a_model_file_is_a_network(photos, no_network, monkeypatch):
    """It starts from the working folder, and no name has a path of this machine."""
    monkeypatch.chdir(photos)
    (photos / "pets.keras").touch()
    (photos / "preset").mkdir()
    for network in ("pets.keras", "hub:preset"):
        found = reproduce.plan("ours", network, whitening="others")
        prefix, file = network[: network.find(":") + 1], network.split(":")[-1]
        assert found.parameters["network"] == f"{prefix}{photos / file}"
        assert file in found.name and str(photos.parent.name) not in found.name
    assert no_network[0] == (str(photos / "pets.keras"), "imagenet")


@pytest.mark.parametrize(("dataset", "network"), [("", ""), ("monuments", "")])
def test_without_data_set_or_network_it_says_what_to_give(dataset, network):
    with pytest.raises(RunError) as error:
        reproduce.plan(dataset, network)
    assert "make paper DATASET=monuments NETWORK=efficientnet-lite0" in str(error.value)


def test_the_command_says_it_too(capsys):
    assert main(["paper"]) == 1
    assert "make paper DATASET=monuments" in capsys.readouterr().err


def test_a_folder_needs_a_whitening_set(photos, no_network):
    with pytest.raises(RunError, match="No whitening set belongs to .*WHITENING="):
        reproduce.plan(str(photos / "ours"), "efficientnet-lite0")


def test_two_folders_are_a_plan(photos, no_network, monkeypatch):
    monkeypatch.chdir(photos)
    found = reproduce.plan("ours", "keras:ResNet50", whitening="others", weights=None)
    assert re.fullmatch("ours-[0-9a-f]{8}-keras-ResNet50-random", found.name)
    assert found.parameters["dataset"] == str(photos / "ours")
    assert found.parameters["whitening_dataset"] == str(photos / "others")
    assert found.parameters["feature_layer"] == "conv5_block3_out"
    assert found.parameters["dimensions"] == 2048
    assert found.parameters["protocol"] == "authors_code"
    assert no_network == [("keras:ResNet50", None)]
    for name, value in found.parameters.items():
        assert source.typed(name, value) == value


def test_the_default_layer_is_kept_where_the_paper_has_no_such_network(
    photos, no_network
):
    folders = str(photos / "ours"), str(photos / "others")
    found = reproduce.plan(folders[0], "efficientnet-lite0", whitening=folders[1])
    assert found.name.startswith("ours-") and found.name.endswith("-efficientnet-lite0")
    (photos / "far").mkdir()
    shutil.copytree(photos / "ours", photos / "far/ours")
    folders = str(photos / "far/ours"), str(photos / "others")
    other = reproduce.plan(folders[0], "efficientnet-lite0", whitening=folders[1])
    assert other.name != found.name
    assert found.parameters["feature_layer"] is None
    assert "dimensions" not in found.parameters  # the sweep's own


def test_missing_photos_are_found_before_the_work(tmp_path, no_network):
    with pytest.raises(DatasetError, match="oxford5k is not complete"):
        reproduce.plan("oxford5k", "vgg16-cam", data_root=str(tmp_path))
    assert not no_network


def test_an_unknown_network_is_one_message(photos):
    folders = str(photos / "ours"), str(photos / "others")
    with pytest.raises(RunError, match="unknown network 'vgg'"):
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
    monkeypatch.setattr(reproduce.data, "load_data", lambda *a: asked.append(a))
    found = reproduce.plan(str(root), "vgg16-cam")
    data = str(source.ROOT / "data")
    assert asked == [(loader, str(root), whitening, data)]
    assert re.fullmatch("part-[0-9a-f]{8}-vgg16-cam", found.name)


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
        cwd=source.ROOT,
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
    shutil.copytree(source.ROOT / "notebooks", tmp_path / "notebooks")
    ran = []

    def run_sweep(path, overrides, *, jobs, place):
        ran.append((path.stem, dict(overrides), jobs))
        folder = tmp_path / "results/runs" / place
        tables.write_table(folder / "metrics.csv", ROWS)
        return ["a cell: no memory"] if path.stem == "table2b" else []

    def run_notebook(name, parameters, output):
        ran.append((name, parameters))
        folder = source.place(parameters["results_dir"])
        comparison.write_tables(paper.compare(ROWS), comparison.heading(ROWS), folder)

    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setattr(sweeps, "run_sweep", run_sweep)
    monkeypatch.setattr(notebook, "run_notebook", run_notebook)
    return ran


def test_all_sweeps_run_then_the_tables_are_written(world, tmp_path, capsys):
    failures = reproduce.run(reproduce.Plan("x-y", {"network": "n", "limit": 3}), 2)
    assert failures == ["a cell: no memory"]
    *swept, (name, parameters) = world
    given = {"network": "n", "limit": 3}
    ours = {**given, "protocol": "corrected", "feature_layer": None}
    beyond = (comparison.BEYOND, ours, 2)
    assert swept == [*((sweep, given, 2) for sweep in comparison.SWEEPS), beyond]
    assert name == "05_paper_figures"
    assert parameters["network"] == "n" and parameters["resize"] == "1024x720"
    # What a sweep lowers, the notebook on its tables has to lower too.
    assert "cap_dimensions" in source.defaults(name)
    out = capsys.readouterr().out
    assert paper.TABLES["2b"] in out
    for table in ("table1a", "table1b", "table2a", "table2b", "fig4", "fig5b"):
        for suffix in ("csv", "md", "tex"):
            assert (tmp_path / f"results/runs/paper/x-y/{table}.{suffix}").exists()


def test_notebook_05_asks_for_the_setting_of_the_sweeps():
    """Its rows would be left out otherwise."""
    settings = []
    for name in comparison.SWEEPS:
        plan = sweeps.Sweep.read(source.ROOT / f"notebooks/sweeps/{name}.yaml")
        settings += [source.complete(source.EXTRACT, c) for c in plan.cells.values()]
    assert all(given == settings[0] for given in settings)


def test_the_sweeps_are_there_and_take_every_override(photos, no_network):
    folders = str(photos / "ours"), str(photos / "others")
    for network in ("efficientnet-lite0", "keras:ResNet50"):
        plan = reproduce.plan(folders[0], network, whitening=folders[1])
        for name in (*comparison.SWEEPS, comparison.BEYOND):
            path = source.ROOT / f"notebooks/sweeps/{name}.yaml"
            for cell in sweeps.Sweep.read(path, plan.parameters).cells.values():
                assert cell["dataset"] == folders[0] and cell["network"] == network


# What is written


@pytest.mark.parametrize(
    ("dataset", "named"),
    [("oxford5k", {"oxford5k"}), ("mine", {"oxford5k", "paris6k"})],
)
def test_rows_beyond_the_paper_stand_above_published_ones(tmp_path, dataset, named):
    assert comparison.beyond(tmp_path, dataset).empty
    assert list(tmp_path.iterdir()) == []
    rows = ROWS.assign(mAP_low=0.4, mAP_high=0.8, images=5063, whitening="other")
    tables.write_table(tmp_path / "beyond" / "metrics.csv", rows)
    table = comparison.beyond(tmp_path, dataset)
    ours = table[table["source"] == "ours"]
    assert ours["mAP"].tolist() == [f"{100 * value:.1f}" for value in ROWS["mAP"]]
    assert list(table["source"][: len(ours)]) == ["ours"] * len(ours)
    published = table[len(ours) :]
    assert set(published["photos"]) == {f"all of {name}" for name in named}
    known = paper.anchors()
    assert len(published) == sum(known[name].notna().sum() for name in named)
    text = (tmp_path / "beyond.md").read_text()
    assert paper.ANCHORS_NOTE in text and "nan" not in text
    assert {path.suffix for path in tmp_path.glob("beyond.*")} == {
        ".csv",
        ".md",
        ".tex",
    }


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """What the rows of `rows_of` are of."""
    folder = tmp_path_factory.mktemp("data")
    data = tiny.dataset(folder / "data", "data", 2, 2, 2)
    training = tiny.dataset(folder / "others", "others", 0, 0, 4, 40)
    setup = Setup(tiny.network(), folder, resize=tiny.RESIZE)
    return Experiment(data, training, setup)


def rows_of(experiment, rows=ROWS):
    """The rows as if they had been measured in an experiment."""
    facts = experiment.facts
    shown = ("network", "weights_sha256", "layer", "resize", "power")
    shown += ("dataset_sha256", "training_sha256")
    own = {name: facts[name] for name in shown}
    name = experiment.setup.protocol.name
    return rows.assign(**own, protocol=name, setting=digest(facts))


def others(experiment):
    """The same experiment with one thing changed, and the column that says so."""
    setup, data = experiment.setup, experiment.data
    yield "power: 2.0", replace(experiment, setup=replace(setup, power=2.0))
    yield "resize: ", replace(experiment, setup=replace(setup, resize="80x64"))
    yield "layer: ", replace(experiment, setup=replace(setup, layer="maps"))
    yield "dataset_sha256: ", replace(experiment, data=data.take(5))
    few = replace(experiment, training_images=experiment.training.images[:3])
    yield "training_sha256: ", few
    protocol = replace(PRESETS["paper"], resize=setup.resize)
    yield "protocol: ", replace(experiment, setup=replace(setup, protocol=protocol))


def test_rows_come_from_the_sweeps_or_from_the_notebooks(tmp_path, experiment):
    rows = rows_of(experiment)
    tables.write_table(tmp_path / "metrics.json", rows[:1])
    tables.write_table(tmp_path / "ablation.csv", rows[1:].assign(whitening=""))
    found, left_out = comparison.collect(tmp_path, experiment)
    assert list(found["sweep"]) == ["metrics", "ablation"] and left_out == []
    assert list(found["whitening"]) == ["paris6k", ""]  # not NaN, as CSV has it
    tables.write_table(tmp_path / "fig4/metrics.csv", rows)
    found, _ = comparison.collect(tmp_path, experiment)
    assert list(found["sweep"]) == ["fig4", "fig4"]


def test_rows_of_another_experiment_are_left_out_and_it_says_by_what(
    tmp_path, experiment
):
    """No heading may say "exponent 1" over rows of exponent 2."""
    for column, other in others(experiment):
        mixed = pd.concat([rows_of(experiment), rows_of(other), rows_of(other)])
        tables.write_table(tmp_path / "metrics.json", mixed)
        tables.write_table(tmp_path / "ablation.csv", rows_of(other))
        found, (text,) = comparison.collect(tmp_path, experiment)
        assert len(found) == 2 and set(found["power"]) == {1.0}
        assert text.startswith(f"6 rows left out ({column}") and ";" not in text
        assert "exponent 1" in comparison.heading(found)
        found, _ = comparison.collect(tmp_path, other)
        assert len(found) == 6


def test_rows_of_an_earlier_version_are_left_out(tmp_path, experiment):
    old = ROWS.assign(power=experiment.setup.power)
    tables.write_table(tmp_path / "metrics.json", old)
    tables.write_table(tmp_path / "ablation.csv", rows_of(experiment))
    found, (text,) = comparison.collect(tmp_path, experiment)
    assert list(found["sweep"]) == ["ablation"] * 2
    assert text.startswith("2 rows left out (")


def test_without_any_row_of_the_experiment_it_says_what_to_run(tmp_path, experiment):
    with pytest.raises(RunError, match="run notebooks 03 and 04"):
        comparison.collect(tmp_path, experiment)
    for name in ("metrics.json", "ablation.csv"):
        tables.write_table(tmp_path / name, rows_of(experiment))
    other = replace(experiment, setup=replace(experiment.setup, power=2.0))
    with pytest.raises(RunError, match=r"power: 1.0 there, 2.0 here.*Run notebooks 03"):
        comparison.collect(tmp_path, other)


def test_the_heading_says_what_ours_is():
    line = comparison.heading(ROWS)
    for word in ("vgg16-cam", "conv5_1", "1024x720", "authors_code", "paris6k"):
        assert word in line
    random = comparison.heading(ROWS.assign(weights_sha256="random:seed=0:1a"))
    assert "random weights" in random


def test_a_table_says_the_same_in_three_forms(tmp_path):
    rows = paper.compare(ROWS)
    comparison.write_tables(rows, "Ours: this.", tmp_path)
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
    comparison.write_classes(names, [0.9, 0.5, *[0.1] * 62], "Ours.", tmp_path)
    rows = pd.read_csv(tmp_path / "fig5a.csv")
    assert list(rows["paper"][:2]) == ["vault", "bell cote"]
    assert list(rows["one of the paper's 16"][:2]) == ["yes", "no"]
    assert list(rows["paper, share"].iloc[[0, 1, 63]]) == ["0.83", "-", "0.31"]
