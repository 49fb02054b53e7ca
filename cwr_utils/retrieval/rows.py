"""Methods measured: the rows of tables."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import product

import pandas as pd
from tqdm.auto import tqdm

from cwr_utils import evaluation
from cwr_utils.identity import digest
from cwr_utils.retrieval.collection import Collection
from cwr_utils.retrieval.method import Method, Result
from cwr_utils.retrieval.ranker import rank


def tabulate(
    collection: Collection, methods: Iterable[Method]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Result]]:
    """Run methods, with a progress bar; those of an offline curve in one pass.

    Returns:
        One row a method (see `row`); one row a query and method, of
        `evaluation.evaluate`; the results by `Method.slug`.
    """
    rows, tables, results, methods = [], [], {}, list(methods)
    counts = defaultdict(list)
    for method in methods:
        if method.aggregation == "offline":
            counts[method.whitened_by, method.class_weighting].append(method)
    for curve in counts.values():
        collection.offline_curve(curve[0], [method.num_classes for method in curve])
    for method in tqdm(methods, desc="methods"):
        result = rank(collection, method)
        results[method.slug] = result
        rows.append(row(collection, result))
        table = evaluation.evaluate(result.rankings, collection.data.queries)
        tables.append(_named(table, method))
    return pd.DataFrame(rows), pd.concat(tables, ignore_index=True), results


def row(collection: Collection, result: Result) -> dict:
    """One row of a table of methods; mAP with the 95 % interval over landmarks.

    mP@1, mP@5 and mP@10 are those of the revisited protocol on every data set
    (`evaluation.precision_at`). A query's own photo is junk there, as in
    `mAP_without_self`: it would be a free hit at rank 1.

    Its `identity` is a digest of all that its numbers depend on, `setting` that of all
    but the method: rows of one setting may stand side by side.
    """
    method, facts = result.method, collection.experiment.facts
    shown, first = collection.experiment.shown, collection.first
    queries, used = collection.data.queries, first.spaces.fitted(method)
    # Revisited queries are not in the database: nothing of theirs could count.
    inside = all(query.image in first.rows for query in queries)
    rule, own, others = (
        evaluation.evaluate(result.rankings, queries, self_match)
        for self_match in (None, inside, False)
    )
    return {
        "method": method.label,
        **_mean_and_interval(rule),
        "mAP_with_self": evaluation.mean_average_precision(own),
        "mAP_without_self": evaluation.mean_average_precision(others),
        **_mean_precisions(others),
        **method.settings,
        "slug": method.slug,
        **{name: shown[name] for name in _ROW_FACTS},
        "protocol": first.setup.protocol.name,
        "whitening": used.source if used else "",
        "whitening_vectors": used.vectors if used else 0,
        "queries": len(queries),
        "landmarks": rule.loc[rule["ap"].notna(), "landmark"].nunique(),
        **_data_facts(collection),
        "setting": digest(facts),
        "identity": digest({**facts, **method.settings}),
    }


def by_difficulty(
    collection: Collection, results: Iterable[Result]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Easy, Medium and Hard of the revisited protocol, from the same rankings.

    To look closer, `Collection.at_difficulty` gives one that is judged by one.

    Args:
        collection: where the results come from.
        results: of `rank`.

    Returns:
        One row a method and difficulty, with the measures of `row`; `queries` is how
        many have positives, so that the means are over them, and `left_out` how many
        have none. One row a query besides, of `evaluation.evaluate`.

    Raises:
        ValueError: if the ground truth knows no difficulties.
    """
    rows, tables = [], []
    judges = {
        name: collection.data.at_difficulty(name).queries
        for name in evaluation.DIFFICULTIES
    }
    for result, (difficulty, queries) in product(results, judges.items()):
        method, table = result.method, evaluation.evaluate(result.rankings, queries)
        scored = int(table["ap"].count())
        rows.append(
            {
                "method": method.label,
                "slug": method.slug,
                "difficulty": difficulty,
                "dimensions": method.dimensions,
                **_mean_and_interval(table),
                **_mean_precisions(table),
                "queries": scored,
                "left_out": len(table) - scored,
                **_data_facts(collection),
            }
        )
        tables.append(_named(table, method, difficulty=difficulty))
    return pd.DataFrame(rows), pd.concat(tables, ignore_index=True)


def _named(table: pd.DataFrame, method: Method, **names: str) -> pd.DataFrame:
    """A table of queries behind columns that say which method and what else."""
    names = {"method": method.label, "slug": method.slug, **names}
    return pd.DataFrame(names, table.index).join(table)


def _mean_and_interval(per_query: pd.DataFrame) -> dict[str, float]:
    interval = evaluation.bootstrap(per_query["ap"], per_query["landmark"])
    return {
        "mAP": evaluation.mean_average_precision(per_query),
        "mAP_low": interval.low,
        "mAP_high": interval.high,
    }


def _mean_precisions(per_query: pd.DataFrame) -> dict[str, float]:
    mean = evaluation.mean_precision_at
    return {f"mP@{k}": mean(per_query, k) for k in evaluation.DEPTHS}


def _data_facts(collection: Collection) -> dict[str, str | int]:
    data = collection.data
    return {"images": len(data.images), "dataset": data.name, "note": data.note}


# Facts that a row shows, so that a difference can be named.
_ROW_FACTS = (
    "network",
    "weights_sha256",
    "precision",
    "layer",
    "resize",
    "power",
    "package_version",
    "dataset_sha256",
    "training_sha256",
)
