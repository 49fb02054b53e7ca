"""A project for tests: the real notebooks, whose execution a `Kernel` plays."""

import shutil

import pandas as pd

from cwr_utils import runs

EXTRACT, EVALUATE = "02_extract_features", "04_evaluate_and_rerank"


class Kernel:
    """Plays `run_notebook`: what a notebook leaves behind, without running it.

    Attributes:
        root: folder of the project.
        runs: (notebook, parameters it was given) of every run.
        fails: (notebook, power) -> exception.
        value: mAP that the next runs find.
    """

    def __init__(self, root):
        self.root = root
        self.runs = []
        self.fails = {}
        self.value = 0.5

    def __call__(self, notebook, parameters, output, line=0, **engine):
        self.runs.append((notebook, dict(parameters)))
        default = runs.defaults(notebook)
        used = default | {k: v for k, v in parameters.items() if k in default}
        folder = (self.root / "notebooks" / used["results_dir"]).resolve()
        assert folder.is_relative_to(self.root.resolve())
        record = runs.start(notebook, used | {"results_dir": str(folder)})
        # A kernel starts in notebooks/ and may give the path as it is.
        record.parameters["results_dir"] = used["results_dir"]
        error = self.fails.get((notebook, used.get("power")))
        if error:
            raise error
        if notebook in (EVALUATE, *runs.SWEEP_NOTEBOOKS):
            runs.write_table(folder / "metrics.json", metrics(self.value))
        facts = {}
        if notebook == EXTRACT:
            facts = {"stores": [f"store-{used['power']}"]}
            store = self.root / "cache" / facts["stores"][0]
            store.mkdir(parents=True, exist_ok=True)
        record.finish(**facts)
        return output, 0.0

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


def make(folder, monkeypatch):
    """An empty project in a folder, with the real notebooks; its `Kernel`."""
    # A copy: through a link, "../results" would be that of the real project.
    shutil.copytree(
        runs.ROOT / "notebooks",
        folder / "notebooks",
        ignore=lambda _, names: [n for n in names if n.startswith(".")],
    )
    kernel = Kernel(folder)
    monkeypatch.setattr(runs, "ROOT", folder)
    monkeypatch.setattr(runs, "run_notebook", kernel)
    monkeypatch.chdir(folder)
    return kernel
