"""Stores whose arrays are written here: block by block, checked before."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cwr_utils.arrays import is_finite
from cwr_utils.store.base import ArraySpec, Store, StoreError


class WrittenStore(Store):
    """Arrays over images, written block by block."""

    _specs: dict[str, ArraySpec]

    @property
    def arrays(self) -> list[str]:
        """See `Store.arrays`."""
        return list(self._specs)

    def shape(self, array: str) -> tuple[int, ...]:
        """See `Store.shape`."""
        return self._specs[array].shape

    def dtype(self, array: str) -> np.dtype:
        """See `Store.dtype`."""
        return np.dtype(self._specs[array].dtype)

    def write_block(self, number: int, values: Mapping[str, np.ndarray]) -> None:
        """Write one block of every array; each shard appears whole or not at all.

        Args:
            number: the block's number.
            values: array name -> ``(images of the block, *shape)`` values.

        Raises:
            StoreError: if the disk refuses; complete blocks stay as they are.
            ValueError: if a shape is wrong or a value is not finite in the array's
                data type.
        """
        rows = self.blocks[number]
        for name, spec in self._specs.items():
            value = np.asarray(values[name])
            if value.shape != (len(rows), *spec.shape):
                raise ValueError(
                    f"`{name}` of block {number} must have shape "
                    f"{(len(rows), *spec.shape)}; got {value.shape}."
                )
            with np.errstate(over="ignore"):  # reported two lines below
                value = value.astype(spec.dtype, copy=False)
            if not is_finite(value):
                raise ValueError(f"`{name}` of block {number} has NaN or overflow.")
            try:
                self._write(name, rows, value)
            except (ValueError, OSError) as error:
                raise StoreError(
                    f"Cannot write block {number} to {self.path}: {error}. Complete "
                    "blocks are safe; free disk space and run again."
                ) from error

    @abstractmethod
    def _write(self, name: str, rows: range, value: np.ndarray) -> None:
        """Write the values of some images, which are right for the array."""


class MemoryStore(WrittenStore):
    """Arrays of one block that live as long as the process: those of a query."""

    def __init__(
        self,
        config: Mapping,
        images: Mapping[str, str],
        arrays: Mapping[str, ArraySpec],
    ):
        """Allocate; see `DiskStore.create` for the arguments."""
        self.path = Path("memory")
        self.names, self.hashes = list(images), dict(images)
        self.config, self.block = dict(config), len(images)
        self._specs = dict(arrays)
        self._arrays = {
            name: np.zeros((self.block, *spec.shape), spec.dtype)
            for name, spec in arrays.items()
        }

    @property
    def sources(self) -> list[Store]:
        """None: nothing is on disk."""
        return []

    def read(
        self, name: str, images: slice | Sequence[int] | np.ndarray = slice(None)
    ) -> np.ndarray:
        """See `Store.read`."""
        return self._arrays[name][images]

    def _write(self, name: str, rows: range, value: np.ndarray) -> None:
        self._arrays[name][rows.start : rows.stop] = value
