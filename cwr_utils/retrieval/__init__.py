"""From stores to rankings and scores: what a row of a table is.

An `Experiment` names what is searched and how, a `Collection` is its stores, opened; a
`Method` is put to it and gives a `Result`.
"""

from cwr_utils.retrieval.collection import Collection
from cwr_utils.retrieval.experiment import Experiment
from cwr_utils.retrieval.method import (
    AGGREGATIONS,
    CLASS_AGGREGATIONS,
    REGION_AGGREGATIONS,
    Method,
    Result,
    ladder,
)

__all__ = [
    "AGGREGATIONS",
    "CLASS_AGGREGATIONS",
    "REGION_AGGREGATIONS",
    "Collection",
    "Experiment",
    "Method",
    "Result",
    "ladder",
]
