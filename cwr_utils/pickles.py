"""Pickles that others made, read without running anything of them."""

import pickle
import reprlib
import struct
from typing import Any


def _load_bytes(unpickler: Any) -> None:
    """As is usual, but for the zeros that it writes first, as many as are said."""
    (size,) = struct.unpack("<Q", unpickler.read(8))
    unpickler.append(bytearray(unpickler.read(size)))


# Written in Python: a number in a damaged file, which the one in C takes for the place
# of a value, makes that fill gigabytes.
class PlainUnpickler(pickle._Unpickler):
    """Admits numbers, text and containers: no names at all.

    A pickle is a program, and an ordinary unpickler runs it. This one imports nothing;
    a subclass may look names up in a closed table, whose entries only make records.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every name."""
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, no plain value: malicious? Nothing was run"
        )

    def persistent_load(self, pid: Any) -> Any:
        """Refuse every outside reference."""
        raise pickle.UnpicklingError(f"it refers to {reprlib.repr(pid)} outside")

    dispatch = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytes}
