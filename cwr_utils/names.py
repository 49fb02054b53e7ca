"""Names that settings may have, and packages that import their modules when asked.

Nothing here needs a deep-learning library, so that the command line knows them at once.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

GLOBAL_POOLINGS = ("sum", "channel_weighted", "max", "gem", "crow")
REGION_POOLINGS = ("max", "gem", "mean")
CLASS_WEIGHTINGS = ("equal", "probability", "rank")
BITS = (4, 8, 16)  # of a component of a grouped vector


def on_demand(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`, which imports a module when one of its names is used.

    Args:
        package: its dotted name.
        homes: name -> module of the package that has it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get
