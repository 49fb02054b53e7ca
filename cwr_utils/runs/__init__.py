"""Runs of the notebooks: what they take, what they leave, and many of them together.

This is what notebooks call, each imported when it is asked for: the command line reads
the notebooks' parameters (`source`) before it needs a network. `notebook` executes them
through papermill, `demo`, `sweeps` and `reproduce` run many.
"""

from typing import TYPE_CHECKING

from cwr_utils.names import on_demand
from cwr_utils.runs.source import method, methods

if TYPE_CHECKING:
    from cwr_utils.runs.data import load_data
    from cwr_utils.runs.record import contents, peak_memory, start
    from cwr_utils.runs.tables import (
        format_difficulties,
        format_table,
        time_queries,
    )
    from cwr_utils.runs.workbench import open_workbench

__all__ = [
    "contents",
    "format_difficulties",
    "format_table",
    "load_data",
    "method",
    "methods",
    "open_workbench",
    "peak_memory",
    "start",
    "time_queries",
]

_HOMES = {
    **dict.fromkeys(("contents", "peak_memory", "start"), "record"),
    **dict.fromkeys(("format_difficulties", "format_table", "time_queries"), "tables"),
    "load_data": "data",
    "open_workbench": "workbench",
}
__getattr__ = on_demand(__name__, _HOMES)
