"""What the notebooks after 00 work with, made from their parameters."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from cwr_utils import datasets, networks, protocol
from cwr_utils.datasets import Dataset
from cwr_utils.extraction import Setup, together
from cwr_utils.retrieval import Experiment
from cwr_utils.runs import source
from cwr_utils.runs.record import Record, start

# Parameters that may name several things, which then describe photos together.
TOGETHER = ("network", "weights", "feature_layer", "resize")


def open_workbench(
    notebook: str, namespace: Mapping[str, Any]
) -> tuple[Record, Experiment]:
    """Begin a notebook's record, and load what its parameters name.

    Args:
        notebook: its name.
        namespace: the notebook's `globals()`.
    """
    record = start(notebook, namespace)
    return record, Loader().experiment(record.parameters)


class Loader:
    """Loads what parameters name, each data set and each network once."""

    def __init__(self):
        """Nothing is loaded yet."""
        self._data = cache(load_data)
        self._network = cache(networks.load)

    def data(self, parameters: Mapping[str, Any]) -> tuple[Dataset, Dataset]:
        """The data set under test and the one to fit the whitening on."""
        names = ("dataset", "data_root", "whitening_dataset", "whitening_root", "limit")
        return self._data(*map(parameters.__getitem__, names))

    def experiment(self, parameters: Mapping[str, Any]) -> Experiment:
        """Data sets and network of a notebook's parameters, under their protocol."""
        texts = {name: parameters[name] for name in TOGETHER}
        first, *also = [self._setup({**parameters, **row}) for row in together(**texts)]
        return Experiment(*self.data(parameters), first, also=tuple(also))

    def _setup(self, parameters: Mapping[str, Any]) -> Setup:
        """One way to describe photos, from parameters that name no second one."""
        given = {name: source.typed(name, parameters[name]) for name in TOGETHER}
        weights = given["weights"]
        if weights and source.place(weights).exists():
            weights = str(source.place(weights))
        network = source.network(given["network"])
        seed, precision = parameters["seed"], parameters["precision"]
        return Setup(
            self._network(network, weights, seed, precision),
            source.place(parameters.get("cache_dir", "../cache")),
            layer=given["feature_layer"],
            resize=given["resize"],
            power=parameters["power"],
            protocol=protocol.get(parameters["protocol"]),
        )


def load_data(
    dataset: str,
    data_root: str,
    whitening_dataset: str,
    whitening_root: str,
    limit: int = 0,
) -> tuple[Dataset, Dataset]:
    """The data set under test and the one to fit the whitening on.

    Args:
        dataset: name or folder, as `datasets.load` takes it; relative folders start
            from notebooks/, as all below.
        data_root: where its photos are.
        whitening_dataset: another name or folder. The name of `dataset` itself holds
            its distractors out of the database and fits on those.
        whitening_root: where those photos are.
        limit: photos of a slice for a quick run; 0 is all.

    Returns:
        Both data sets.

    Raises:
        DatasetError: if there is nothing to search for or to fit the whitening on, or
            two folders have the same name.
    """
    loaded = _load(dataset, data_root)
    if not any(query.positives for query in loaded.queries):
        raise datasets.DatasetError(
            f"{loaded.name} has no queries with a right answer: {loaded.note}. They "
            "come from a groups.csv in the folder (columns image, group: photos of one "
            "group show the same thing); a queries.csv (image, and x1, y1, x2, y2 for "
            "a box) chooses among them."
        )
    training = _load(whitening_dataset, whitening_root)
    if training.name == loaded.name:
        first, second = (part.path(part.images[0]) for part in (loaded, training))
        if not first.samefile(second):
            raise datasets.DatasetError(
                f"Two folders are called {loaded.name!r}, the name of their stores: "
                "rename one of them."
            )
        loaded, training = loaded.hold_out_distractors()
        if not training.images:
            raise datasets.DatasetError(
                f"Every photo of {dataset!r} is in the ground truth of a query, "
                "which leaves none to fit the whitening on: name another "
                "`whitening_dataset`."
            )
    if limit:
        loaded, training = loaded.take(limit), training.take(limit)
    return loaded, training


def _load(dataset: str, root: str) -> Dataset:
    folder = source.place(dataset)
    known = dataset in datasets.available() or not folder.is_dir()
    return datasets.load(dataset if known else str(folder), source.place(root))
