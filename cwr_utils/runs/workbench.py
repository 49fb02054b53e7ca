"""What the notebooks after 00 work with, made from their parameters."""

import itertools
from collections.abc import Mapping
from functools import cache
from typing import Any

from cwr_utils import networks, protocol
from cwr_utils.datasets import Dataset
from cwr_utils.extraction import Setup, together
from cwr_utils.retrieval import Experiment
from cwr_utils.retrieval.limits import check_limits
from cwr_utils.runs import record, source
from cwr_utils.runs.data import load_data
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
