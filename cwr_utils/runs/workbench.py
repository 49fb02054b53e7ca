"""What the notebooks after 00 work with, made from their parameters."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from cwr_utils import datasets, networks, protocol
from cwr_utils.datasets import Dataset, DatasetError
from cwr_utils.extraction import Setup, together
from cwr_utils.retrieval import Experiment
from cwr_utils.retrieval.limits import check_limits
from cwr_utils.runs import record, source
from cwr_utils.runs.record import Record
from cwr_utils.runs.source import TOGETHER


def open_workbench(
    notebook: str, namespace: Mapping[str, Any]
) -> tuple[Record, Experiment]:
    """Begin a notebook's record, and load what its parameters name.

    Args:
        notebook: its name.
        namespace: the notebook's `globals()`.
    """
    started = record.start(notebook, namespace)
    return started, Loader().experiment(started.parameters)


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

    def check(self, name: str, given: Mapping[str, Any]) -> None:
        """Find what would fail in a notebook, before the first photo is described.

        Args:
            name: of the notebook.
            given: its parameters that are not defaults.

        Raises:
            RunError: what is wrong, and what to do.
        """
        parameters = source.complete(name, given)
        try:
            if "network" in parameters:
                self.experiment(parameters)
            else:
                self.data(parameters)
        except ValueError as error:
            raise source.RunError(str(error)) from error

    def experiment(self, parameters: Mapping[str, Any]) -> Experiment:
        """Data sets and network of a notebook's parameters, under their protocol.

        Raises:
            ValueError: if they cannot be loaded, a photo cannot be described, or the
                notebook's methods need more than there is, see `check_limits`.
        """
        data, training = self.data(parameters)
        texts = {name: parameters[name] for name in TOGETHER}
        setups = [self._setup({**parameters, **row}) for row in together(**texts)]
        for part, setup in itertools.product((data, training), setups):
            names = {*part.images, *(query.image for query in part.queries)}
            for size in {part.target_size(name, setup.policy) for name in names}:
                setup.network.check_size(*size)
        experiment = Experiment(data, training, setups[0], also=tuple(setups[1:]))
        capped = parameters.get("cap_dimensions", False)
        methods = source.methods(parameters)
        check_limits(methods, experiment, capped)
        return experiment

    def _setup(self, parameters: Mapping[str, Any]) -> Setup:
        """One way to describe photos, from parameters that name no second one."""
        given = {name: source.typed(name, parameters[name]) for name in TOGETHER}
        network, weights = (source.located(n, given[n]) for n in ("network", "weights"))
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
            from the working folder, as all below.
        data_root: where its photos are.
        whitening_dataset: another name or folder. The name of `dataset` itself holds
            its distractors out of the database and fits on those.
        whitening_root: where those photos are.
        limit: photos of a slice for a quick run; 0 is all.

    Returns:
        Both data sets. Where they are two folders of one name, the second one is called
        after its use: tables know them by their names.

    Raises:
        DatasetError: if there is nothing to search for or to fit the whitening on, or
            both have a photo in common; names these.
    """
    loaded = _load(dataset, data_root)
    if not any(query.positives for query in loaded.queries):
        raise DatasetError(
            f"{loaded.name} has no queries with a right answer: {loaded.note}. They "
            "come from a groups.csv in the folder (columns image, group: photos of one "
            "group show the same thing); a queries.csv (image, and x1, y1, x2, y2 for "
            "a box) chooses among them."
        )
    training = _load(whitening_dataset, whitening_root)
    if training.name == loaded.name:
        first, second = (part.path(part.images[0]) for part in (loaded, training))
        if first.samefile(second):
            loaded, training = loaded.hold_out_distractors()
        else:
            training = replace(training, name=f"{training.name}-whitening")
        if not training.images:
            raise DatasetError(
                f"Every photo of {dataset!r} is in the ground truth of a query, "
                "which leaves none to fit the whitening on: name another "
                "`whitening_dataset`."
            )
    if limit:
        loaded, training = loaded.take(limit), training.take(limit)
    _refuse_shared(loaded, training)
    return loaded, training


def _refuse_shared(data: Dataset, training: Dataset) -> None:
    """Refuse photos that are under test and in the whitening set; names them."""
    under_test = {content: name for name, content in data.hashes().items()}
    shared = [
        f"{name}, which is {under_test[content]} in {data.name}"
        for name, content in training.hashes().items()
        if content in under_test
    ]
    if shared:
        raise DatasetError(
            f"{len(shared)} of the {len(training.images)} whitening photos of "
            f"{training.name} are in the data set under test:",
            shared,
            "Numbers from such a whitening flatter the method: take them out of one of "
            "the two, or name another `whitening_dataset`.",
        )


def _load(dataset: str, root: str) -> Dataset:
    if dataset not in datasets.available():
        dataset = str(source.place(dataset))
    return datasets.load(dataset, source.place(root))
