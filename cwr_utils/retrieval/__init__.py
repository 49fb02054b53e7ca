"""From stores to rankings and scores: what a row of a table is.

An `Experiment` names what is searched and how, a `Collection` is its stores, opened; a
`Method` is put to it and gives a `Result`. A `Method` alone needs no network: what is
imported here comes when it is asked for.
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
    from cwr_utils.retrieval.experiment import Experiment

__all__ = [
    "AGGREGATIONS",
    "BY_QUERY",
    "CLASS_AGGREGATIONS",
    "REGION_AGGREGATIONS",
    "Collection",
    "Experiment",
    "Method",
    "Result",
    "ladder",
]

_HOMES = {"Collection": "collection", "Experiment": "experiment"}
__getattr__ = on_demand(__name__, _HOMES)
