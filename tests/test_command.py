"""The command line: what a person types, what comes back, and how soon."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import project
import pytest
import tiny
from project import AGGREGATE, EVALUATE, EXTRACT, PREPARE

from cwr_utils import __main__ as command
from cwr_utils.retrieval import Experiment, Method, limits
from cwr_utils.runs import record, source, workbench
from cwr_utils.runs.source import RunError

HEAVY = ("tensorflow", "keras", "papermill", "matplotlib")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """An empty project with the real notebooks; its `Kernel`."""
    return project.make(tmp_path, monkeypatch)


# At once


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("--help", "run notebooks with other parameters"),
        ("run --help", "num_classes=8"),
        ("sweep --help", "num_classes=8"),
        ("paper --help", "--whitening"),
        ("rnu", "there is no command 'rnu': did you mean run?"),
        ("run 9", "There is no notebook `9`: known: 00_prepare_data"),
        ("run evaluate", "did you mean 04_evaluate_and_rerank?"),
        ("run -p num_clases=8", "did you mean num_classes?"),
        ("run -p num_classes=eight", "must be a whole number; got 'eight'"),
        ("run -p num_classes=0", "`num_classes` must be at least 1; got 0"),
        ("run -p aggregation=onlin", "did you mean online?"),
        ("run -p protocol=papers", "did you mean paper?"),
        ("run -p resize=640", "A resize policy is '1024x720'"),
        ("run -p limit=-3", "`limit` must be at least 0; got -3"),
        ("run -p dimensions=0", "Class vectors are whitened"),
        ("run -p rows=[{num_clases:3}]", "A method has no `num_clases:3`: did you"),
        ("demo --limit -3", "-3 is less than 0"),
        ("sweep fig44.yaml", "did you mean fig4?"),
    ],
)
def test_help_and_refusals_need_no_tensorflow(arguments, answer, tmp_path):
    code = (
        "import sys\n"
        "from cwr_utils.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', *[m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(source.ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:" and "Traceback" not in shown
    assert answer in shown
    assert not list(tmp_path.iterdir())


def test_help_names_every_parameter_with_its_default_and_meaning(capsys):
    for name in ("run", "sweep"):
        with pytest.raises(SystemExit) as stopped:
            command.main([name, "--help"])
        assert stopped.value.code == 0
        words = " ".join(capsys.readouterr().out.split())
        for parameter, value in source.parameters().items():
            meaning = source.meanings()[parameter]
            assert len(meaning) > 5
            if not str(value).startswith(".."):
                shown = "none" if value is None else value
                assert f" {parameter}={shown} {meaning}" in words
    assert " data_root=" in words and "data_root=../data" not in words
    with pytest.raises(SystemExit):
        command.main(["run", "--help"])
    assert "04 Evaluate and re-rank" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [[], ["demo", "--limit", "few"]])
def test_wrong_arguments_show_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m cwr_utils" in capsys.readouterr().err


# Paths


def test_paths_start_from_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["dataset=photos", "weights=best.h5", "cache_dir=../c", "data_root=/d"]
    assert source.parse([*given, "network=mine.keras"]) == {
        "dataset": f"{tmp_path}/photos",
        "weights": f"{tmp_path}/best.h5",
        "cache_dir": f"{tmp_path.parent}/c",
        "data_root": "/d",
        "network": f"{tmp_path}/mine.keras",
    }
    names = {"dataset": "street", "weights": "imagenet", "network": "keras:ResNet50"}
    assert source.parse([f"{k}={v}" for k, v in names.items()]) == names
    assert source.parse(["weights=none"]) == {"weights": None}
    several = source.parse(["weights=imagenet + a.h5 + none", "network=a.h5 + b"])
    assert several == {
        "weights": f"imagenet + {tmp_path}/a.h5 + none",
        "network": f"{tmp_path}/a.h5 + b",
    }
    monkeypatch.setenv("HOME", "/home/me")
    assert source.parse(["dataset=~/photos"]) == {"dataset": "/home/me/photos"}


def test_the_projects_own_folders_are_the_default_however_they_are_written(world):
    (world.root / "elsewhere").mkdir()
    assert source.parse(["data_root=data"]) == {"data_root": "../data"}
    assert source.parse(["cache_dir=elsewhere/../cache"]) == {"cache_dir": "../cache"}
    os.chdir(world.root / "elsewhere")
    assert source.place("../cache") == world.root / "cache"
    assert source.place("cache") == world.root / "elsewhere/cache"
    assert source.parse(["data_root=data"]) == {
        "data_root": str(world.root / "elsewhere/data")
    }


def test_every_folder_of_the_notebooks_is_one_of_the_projects_own():
    folders = {v for v in source.parameters().values() if str(v).startswith(".")}
    assert folders == set(source._OWN_FOLDERS)


# Running


@pytest.mark.parametrize(
    "text", ["4", "04", EVALUATE, f"notebooks/{EVALUATE}.ipynb", f"/x/{EVALUATE}.ipynb"]
)
def test_a_notebook_goes_by_its_number_its_name_or_its_file(text):
    assert source.notebook_name(text) == EVALUATE


def test_a_run_ends_with_its_table_its_time_and_its_places(world, capsys):
    assert command.main(["run", "0", "04", "-p", "limit=3"]) == 0
    out = capsys.readouterr().out
    assert "generated patterns\nwhitening: other photos\n" in out
    assert "OnA, 4 classes 256 0.750" in out
    assert re.search(
        r"\n\d+ s\ntables: results/runs/monuments-limit3\n"
        "figures: figures/runs/monuments-limit3\n"
        "executed notebooks: results/runs/monuments-limit3/executed\n$",
        out,
    )
    # The table of an earlier run is not that of this one.
    assert command.main(["run", "0", "-p", "limit=3", "--output", "copies"]) == 0
    out = capsys.readouterr().out
    assert "OnA" not in out and out.endswith("executed notebooks: copies\n")


def test_the_command_line_runs_notebooks(world):
    arguments = ["-p", "limit=3", "-p", "power=1"]
    assert command.main(["run", EXTRACT, AGGREGATE, *arguments]) == 0
    own = {"limit": 3, "power": 1.0}
    own |= record.folders(own)
    assert world.runs == [(name, own) for name in (EXTRACT, AGGREGATE)]
    world.runs.clear()
    assert command.main(["run", "--output", str(world.root / "executed")]) == 0
    assert [name for name, _ in world.runs] == list(source.NOTEBOOKS)
    assert len(os.listdir(world.root / "executed")) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-p", "dataset=nowhere"], "There is no folder {root}/nowhere"),
        (["run", "-p", "whitening_dataset=monuments/"], "There is no folder {root}/mo"),
        (["run", "0", "-p", "dataset=paris6k"], "apt cannot fetch paris6k"),
        (["run", "-p", "feature_layer=laste"], "has no feature layer 'laste'"),
        (["run", "-p", "power=0"], "`power` must be above 0; got 0.0"),
        (["run", "-p", "resize=32x32"], "tiny needs images of at least 33 pixels"),
        (["demo"], "apt cannot fetch street"),
        (["publish"], "apt cannot fetch street"),
    ],
)
def test_what_can_be_known_is_one_message_before_anything_runs(
    world, capsys, monkeypatch, arguments, message
):
    world.absent |= {"monuments", "street", "paris6k"} & {
        *(["paris6k"] if "run" in arguments else ["monuments", "street"])
    }
    monkeypatch.setattr(tiny.network(), "smallest_input", 33, raising=False)
    assert command.main(arguments) == 1
    shown = capsys.readouterr()
    assert message.format(root=world.root) in shown.err
    assert "Traceback" not in shown.err and world.runs == []
    assert not (world.root / "results").exists()


# Methods that cannot be


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """6 classes, 12 channels, 4 whitening photos of which two are one."""
    folder = tmp_path_factory.mktemp("data")
    data = tiny.dataset(folder / "data", "data", 2, 2, 2)
    training = tiny.dataset(folder / "others", "others", 0, 0, 4, 40)
    first, second, *_ = training.paths.values()
    second.write_bytes(first.read_bytes())
    return Experiment(data, training, tiny.setup(folder))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_classes": 7, "num_whitening_classes": 7, "rerank_classes": 7}, None),
        ({"dimensions": 9}, "`dimensions` is 9, .* can have 8 at most: 3 whitening "),
        ({"dimensions": 8}, None),
        ({"num_whitening_classes": 6, "dimensions": 13}, "12 at most: .* 12 channels"),
        ({"dimensions": 9, "cap_dimensions": True}, None),
        ({"aggregation": "sum", "rerank": 0, "dimensions": 3}, "Raw .* 2 at most"),
        ({"aggregation": "sum", "rerank": 0, "dimensions": 2}, None),
        ({"aggregation": "sum", "rerank": 0, "dimensions": 0}, None),
        ({"aggregation": "rmac_max", "rerank": 0, "dimensions": 12}, None),
        ({"rows": [{}, {"dimensions": 9}]}, "`dimensions` is 9"),
    ],
)
def test_a_method_that_asks_for_more_than_there_is(experiment, given, message):
    fits = {"num_whitening_classes": 3, "dimensions": 8, **given}
    parameters = source.complete("method_table", fits)
    given = source.methods(parameters), experiment
    if message is None:
        return limits.check_limits(*given, parameters["cap_dimensions"])
    with pytest.raises(ValueError, match=message):
        limits.check_limits(*given)


@pytest.mark.parametrize(
    "field", ["num_classes", "num_whitening_classes", "rerank_classes"]
)
def test_no_more_classes_of_a_photo_than_are_kept(experiment, monkeypatch, field):
    monkeypatch.setattr(limits, "MOST_TOP_CLASSES", 5)  # of the network's 6
    method = Method(
        num_classes=5, num_whitening_classes=5, rerank_classes=5, dimensions=8
    )
    limits.check_limits([replace(method, rerank=1)], experiment)
    with pytest.raises(ValueError, match=f"`{field}` is 6, and .* 5 most .* 5 or less"):
        limits.check_limits([replace(method, rerank=1, **{field: 6})], experiment)
    limits.check_limits([replace(method, rerank=0, rerank_classes=6)], experiment)


def test_no_whitening_without_photos_to_fit_it_on(experiment):
    without = replace(experiment, training=None)
    with pytest.raises(ValueError, match="0 whitening photos"):
        limits.check_limits([Method(dimensions=8)], without)
    limits.check_limits([Method("rmac_max", dimensions=0)], without)


def test_no_baselines_where_their_vectors_are_not_kept(experiment):
    kept = replace(experiment, setup=replace(experiment.setup, baselines=False))
    method = Method(num_classes=2, num_whitening_classes=3, dimensions=8)
    limits.check_limits([method, replace(method, aggregation="regional")], kept)
    with pytest.raises(ValueError, match="Raw features needs the vectors of poolings"):
        limits.check_limits([Method("sum", dimensions=0)], kept)


def test_a_fault_in_the_data_is_found_without_a_kernel(world, tmp_path):
    photos, others = project.photos(tmp_path / "a/p"), project.photos(tmp_path / "b")
    given = {"dataset": str(photos), "whitening_dataset": str(others)}
    with pytest.raises(RunError, match="6 of the 6 whitening photos of b are in") as e:
        workbench.Loader().check(PREPARE, given)
    assert "0.png, which is 0.png in p" in str(e.value)


# Plain papermill


def test_plain_papermill_works_from_any_folder(tmp_path):
    """On paths from there, and into the project's own folders."""
    project.photos(tmp_path / "photos")
    project.photos(tmp_path / "others", place=50)
    given = {"dataset": "photos", "whitening_dataset": "others", "figures_dir": "f"}
    words = [word for pair in given.items() for word in ("-p", *pair)]
    subprocess.run(
        [
            *(sys.executable, "-m", "papermill", "--no-progress-bar"),
            *(source.path(PREPARE), "out.ipynb", *words),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(source.ROOT)},
        check=True,
        capture_output=True,
    )
    name = record.run_name(
        {k: str(tmp_path / v) for k, v in given.items() if k != "figures_dir"}
    )
    results = source.ROOT / "results/runs" / name
    assert (results / "run.json").exists()
    shutil.rmtree(results)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("f", "others", "out.ipynb", "photos")
    ]
