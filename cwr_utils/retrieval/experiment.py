"""A search problem, named before anything is opened: what, and how."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cwr_utils.datasets import Dataset
from cwr_utils.extraction import (
    Setup,
    extract,
    extract_queries,
    open_photos,
    open_queries,
)
from cwr_utils.identity import digest
from cwr_utils.protocol import Protocol
from cwr_utils.store import StoreError


@dataclass(frozen=True)
class Experiment:
    """What is searched, what whitening is fitted on, and how both are described.

    Attributes:
        data: the photos, queries and ground truth.
        training: photos to fit the whitening on; None allows only methods without.
        setup: how photos are described.
        training_images: names in `training` to fit on; all if None.
        theme: fixed class list; the most frequent top classes of the training photos
            if None.
        i_know_this_fits_whitening_on_the_test_set: allow training photos that are
            searched, distractors among them.
        also: other sizes, layers or networks that describe the photos too. Each has a
            whitening of its own, and the scores of all are averaged: descriptors are
            joined end to end.
    """

    data: Dataset
    training: Dataset | None
    setup: Setup
    training_images: Sequence[str] | None = None
    theme: Sequence[int] | None = None
    i_know_this_fits_whitening_on_the_test_set: bool = False
    also: tuple[Setup, ...] = ()

    @property
    def parts(self) -> list["Experiment"]:
        """An experiment for each way to describe photos, `setup` first."""
        return [replace(self, setup=s, also=()) for s in (self.setup, *self.also)]

    @property
    def shown(self) -> dict[str, Any]:
        """The facts as tables show them: those of several setups joined by " + "."""
        every = [part.setup.facts for part in self.parts]
        several = {
            name: " + ".join(str(facts[name]) for facts in every)
            for name in self.setup.facts
            if any(facts[name] != every[0][name] for facts in every)
        }
        return {**self.facts, **several}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All that the numbers of a run depend on, besides its method."""
        fitted_on = ""
        if self.training is not None:
            hashes = self.training.hashes()
            names = self.training_images or self.training.images
            fitted_on = digest({"photos": [hashes[name] for name in names]})
        return {
            **self.setup.facts,
            "dataset_sha256": self.data.checksum(),
            "training_sha256": fitted_on,
            "theme": self.theme and list(self.theme),
            "also": [setup.facts for setup in self.also],
        }

    def under(self, protocol: Protocol) -> "Experiment":
        """The same with all flags of a protocol, `resize` included."""
        setup = replace(self.setup, protocol=protocol, resize=protocol.resize)
        also = tuple(replace(other, protocol=protocol) for other in self.also)
        return replace(self, setup=setup, also=also)

    def at_layer(self, layer: str) -> "Experiment":
        """The same with another pooled layer of `setup`."""
        return replace(self, setup=replace(self.setup, layer=layer))

    def extract(self) -> None:
        """Describe what is not described yet: photos, queries, training photos."""
        for setup in (self.setup, *self.also):
            for part in filter(None, (self.data, self.training)):
                try:
                    open_photos(part, setup)
                except StoreError:
                    extract(part, setup)
            try:
                open_queries(self.data, setup)
            except StoreError:
                extract_queries(self.data, setup)
