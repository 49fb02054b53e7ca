"""From stores to rankings and scores: what a row of a table is.

An `Experiment` names what is searched and how, a `Collection` is it, opened, with a
`Described` for each setup; `rank` puts a `Method` to it and gives a `Result`, and `row`
or `tabulate` measure it. A `Method` alone needs no network: what is imported here comes
when it is asked for.
"""

from typing import TYPE_CHECKING

from cwr_utils.names import on_demand
from cwr_utils.retrieval.method import (
    AGGREGATIONS,
    BY_QUERY,
    CLASS_AGGREGATIONS,
    REGION_AGGREGATIONS,
    Method,
    Result,
    ladder,
)

if TYPE_CHECKING:
    from cwr_utils.retrieval.collection import Collection
    from cwr_utils.retrieval.described import Described
    from cwr_utils.retrieval.experiment import Experiment
    from cwr_utils.retrieval.ranker import rank
    from cwr_utils.retrieval.rows import by_difficulty, row, tabulate

__all__ = [
    "AGGREGATIONS",
    "BY_QUERY",
    "CLASS_AGGREGATIONS",
    "REGION_AGGREGATIONS",
    "Collection",
    "Described",
    "Experiment",
    "Method",
    "Result",
    "by_difficulty",
    "ladder",
    "rank",
    "row",
    "tabulate",
]

_HOMES = {
    "Collection": "collection",
    "Described": "described",
    "Experiment": "experiment",
    "rank": "ranker",
    **dict.fromkeys(("by_difficulty", "row", "tabulate"), "rows"),
}
__getattr__ = on_demand(__name__, _HOMES)
