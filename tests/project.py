"""A project for tests: the real notebooks, whose execution a `Kernel` plays."""

import shutil
from pathlib import Path

import pandas as pd
import tiny
from matplotlib.figure import Figure

from cwr_utils import datasets, networks
from cwr_utils.files import write_text
from cwr_utils.identity import digest
from cwr_utils.retrieval import Collection
from cwr_utils.runs import notebook, record, source, workbench
from cwr_utils.runs.workbench import Loader
from cwr_utils.store import StoreError

PREPARE, _, EXTRACT, AGGREGATE, EVALUATE, *_ = source.NOTEBOOKS
TABLE = "method_table"
# Data sets that can be had by name.
NAMES = ("monuments", "monuments_whitening", "street", "oxford5k", "paris6k")


class Kernel:
    """Plays `run_notebook`: what a notebook leaves behind, without running it.

    Attributes:
        root: folder of the project.
        runs: (notebook, parameters it was given) of every run.
        fails: (notebook, power) -> exception, raised when all but the record is there.
        value: mAP that the next runs find.
        stores: digests of the experiments whose stores are there.
        described: those that notebook 2 has described.
        absent: names of data sets that cannot be had.
    """

    def __init__(self, root):
        self.root = root
        self.runs = []
        self.fails = {}
        self.value = 0.5
        self.stores, self.described = set(), []
        self.absent = set()

    def __call__(self, name, parameters, output, threads=0):
        self.runs.append((name, dict(parameters)))
        known = source.defaults(name)
        given = {k: v for k, v in parameters.items() if k in known}
        run = record.start(name, known | given)
        assert run.results_dir.is_relative_to(self.root)
        run.figure(Figure(), name)
        write_text(Path(output, f"{name}.ipynb"), "{}")
        if name == PREPARE:
            contents = record.contents(*Loader().data(run.parameters))
        else:
            contents = Loader().experiment(run.parameters).facts
        if name in (EVALUATE, TABLE):
            run.table("metrics.json", metrics(self.value))
        if error := self.fails.get((name, run.parameters.get("power"))):
            raise error
        if name == EXTRACT:
            self.stores.add(digest(contents))
            self.described.append(digest(contents))
        run.finish(contents)

    @property
    def cells(self):
        """(power, notebook) of every run."""
        return [(parameters["power"], name) for name, parameters in self.runs]


def metrics(value=0.5):
    return pd.DataFrame(
        {
            "method": ["Raw features", "OnA, 4 classes"],
            "dimensions": [0, 256],
            "mAP": [value, 0.75],
            "whitening": ["", "other photos"],
            "note": ["generated patterns"] * 2,
        }
    )


def photos(folder, groups=2, place=0):
    """A folder of four photos with a groups.csv, and of two others."""
    folder.mkdir(parents=True)
    for number in range(6):
        tiny.write(folder / f"{number}.png", tiny.view(place + number // 2, number))
    lines = [f"{number},{number * groups // 4}" for number in range(4)]
    (folder / "groups.csv").write_text("\n".join(["image,group", *lines]))
    return folder


def make(folder, monkeypatch):
    """An empty project in a folder, with the real notebooks; its `Kernel`."""
    # A copy: through a link, "../results" would be that of the real project.
    shutil.copytree(
        source.ROOT / "notebooks",
        folder / "notebooks",
        ignore=lambda _, names: [n for n in names if n.startswith(".")],
    )
    kernel, load = Kernel(folder), datasets.load
    places = {name: 100 * number for number, name in enumerate(NAMES)}

    def load_named(name, root="data", **options):
        if name in kernel.absent:
            raise datasets.DatasetError(
                f"apt cannot fetch {name}:", ["no network"], "Go online."
            )
        if name not in places:
            return load(name, root, **options)
        place = folder / "data" / name
        if not place.exists():
            photos(place, place=places[name])
        return load(str(place))

    def open_known(experiment):
        if digest(experiment.facts) not in kernel.stores:
            raise StoreError("nothing is described")

    monkeypatch.setattr(datasets, "load", load_named)
    monkeypatch.setattr(networks, "load", lambda *names: tiny.network())
    # The notebooks' defaults ask for more than a network of 6 classes has.
    monkeypatch.setattr(workbench, "check_limits", lambda *given: None)
    monkeypatch.setattr(Collection, "open", open_known)
    monkeypatch.setattr(source, "ROOT", folder)
    monkeypatch.setattr(notebook, "run_notebook", kernel)
    monkeypatch.chdir(folder)
    return kernel
