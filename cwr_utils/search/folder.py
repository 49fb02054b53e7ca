"""Photos that are to be searched, or to fit the whitening on, and their stores."""

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

from cwr_utils import extraction
from cwr_utils.datasets import Dataset, DatasetError, seen
from cwr_utils.datasets.base import unreadable_images
from cwr_utils.datasets.folder import SUFFIXES, find_images
from cwr_utils.extraction import Setup
from cwr_utils.images import ImageError, read_image
from cwr_utils.store import BLOCK, Store

LEAST_BLOCK = 8  # photos that an interruption costs at most


class Photos:
    """Photos that are to be described.

    Attributes:
        data: them.
        setups: every way to describe them.
        root: their folder.
        unreadable: name of each file that is none of them -> why.
    """

    def __init__(self, data: Dataset, setups: list[Setup]):
        """Nothing is described yet."""
        self.data, self.setups, self.root = data, setups, Path(data.name)
        self.unreadable: dict[str, str] = {}

    def describe(self, executor: Executor | None = None) -> list[Store]:
        """A store for each setup; what is in it already is not described again."""
        return [
            extraction.extract(self.data, setup, executor=executor)
            for setup in self.setups
        ]

    def warn(self) -> None:
        """Warn whoever called `index` of what is left out."""
        if self.unreadable:
            total = len(self.data.images) + len(self.unreadable)
            warnings.warn(
                f"{len(self.unreadable)} of {total} files in {self.root} cannot be "
                "read and are left out, see `unreadable`: "
                f"{', '.join(list(self.unreadable)[:5])}",
                stacklevel=3,
            )


class Folder(Photos):
    """The readable photos of a folder."""

    def __init__(self, folder: str | Path, setups: list[Setup]):
        """Find its photos, and look at those that are new.

        Raises:
            DatasetError: if it is no folder, or holds no readable photo.
        """
        self.root, self.setups = Path(folder).resolve(), setups
        if not self.root.is_dir():
            raise DatasetError(f"{folder} is not a folder: there is no {self.root}.")
        self._paths, self.unreadable = find_images(self.root)
        place = hashlib.sha256(str(self.root).encode()).hexdigest()[:8]
        self._name = re.sub(r"[^\w.-]+", "_", self.root.name) + f"-{place}"
        record = setups[0].cache_dir / self._name / "files.json"
        self._facts = seen.recall(record, self._paths)
        known = len(self._facts)
        self._leave_out(unreadable_images(self._paths, self._facts))
        if len(self._facts) > known:
            seen.remember(record, self._paths, self._facts)

    def describe(self, executor: Executor | None = None) -> list[Store]:
        """Their stores, without files that only decoding shows to be damaged."""
        # Of many photos an interruption may cost more of them, one in a hundred.
        size = min(BLOCK, max(LEAST_BLOCK, len(self.data.images) // 100))
        while True:
            try:
                return [
                    extraction.extract(self.data, s, block=size, executor=executor)
                    for s in self.setups
                ]
            except ImageError:
                broken = _undecodable(self.data, self.setups)
                if not broken:
                    raise
                self._leave_out(broken)

    def _leave_out(self, problems: Mapping[str, str]) -> None:
        self.unreadable |= problems
        images = tuple(name for name in self._paths if name not in self.unreadable)
        if not images:
            raise DatasetError(
                f"{self.root} holds no readable image file ({', '.join(SUFFIXES)}).",
                self.unreadable.values(),
            )
        note = f"{len(images)} photos of the folder {self.root.name}"
        self.data = Dataset(
            self._name, images, (), note, self._paths, facts=self._facts
        )


def _undecodable(data: Dataset, setups: Sequence[Setup]) -> dict[str, str]:
    broken = {}
    for name in data.images:
        try:
            for setup in setups:
                data.target_size(name, setup.policy)
            read_image(data.path(name))
        except ImageError as error:
            broken[name] = str(error)
    return broken
