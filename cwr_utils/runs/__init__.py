"""Runs of the notebooks: what they take, what they leave, and many of them together.

This is what notebooks call. `notebook` executes them through papermill, `demo`,
`sweeps` and `reproduce` run many; they are not imported here, as papermill takes a
second that every notebook would wait for.
"""

from cwr_utils.runs.record import contents, peak_memory, start
from cwr_utils.runs.tables import (
    format_difficulties,
    format_table,
    method,
    methods,
    time_queries,
)
from cwr_utils.runs.workbench import load_data, open_workbench

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
