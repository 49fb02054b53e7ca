"""What each protocol flag costs or gains on the data at hand, one at a time."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from cwr_utils import evaluation, networks
from cwr_utils.images import ResizePolicy
from cwr_utils.protocol import FLAGS, PRESETS, Protocol, text, variants
from cwr_utils.retrieval import Collection, Method, rank


def under(collection: Collection, protocol: Protocol) -> Collection:
    """The collection under other flags; what is not there yet is described."""
    collection.experiment.under(protocol).extract()
    return collection.under(protocol)


def methods(base: Method, rerank: int, query_expansion: int) -> list[Method]:
    """Those on which every flag can show.

    Args:
        base: a class aggregation.
        rerank: R.
        query_expansion: images averaged.

    Returns:
        `base`, with expansion, with re-ranking, with both; and both offline, where all
        queries share one index.
    """
    both = replace(base, rerank=rerank, query_expansion=query_expansion)
    return [
        base,
        replace(base, query_expansion=query_expansion),
        replace(base, rerank=rerank),
        both,
        replace(both, aggregation="offline"),
    ]


def measure(
    collection: Collection, methods: Sequence[Method], all_flags: bool = False
) -> pd.DataFrame:
    """Switch one flag at a time, then all to those of a preset, and measure mAP.

    Args:
        collection: in which they are switched.
        methods: what to measure.
        all_flags: also those for which every photo has to be described anew.

    Returns:
        First the mAP of the run by each method (columns of their labels). Then a row
        for each flag (`protocol.variants`) and each preset: point, flag, its value here
        and the one it is switched to, the gain in mAP, and a note: why a flag was not
        switched, or what a preset was measured without.
    """
    here = collection.first.setup.protocol
    fixed = ResizePolicy.parse(here.resize).mode == "fixed"
    nearest = PRESETS["authors_code" if fixed else "corrected"]
    plans = [*variants(replace(here, resize=nearest.resize))]
    plans += [(name, PRESETS[name]) for name in ("paper", "authors_code")]
    before = _measure(collection, methods)
    rows: list[dict] = [{"flag": "mAP of this run", **before}]
    for name, wanted in tqdm(plans, desc="flags"):
        wanted = replace(wanted, resize=at_scale(wanted.resize, here.resize))
        switched = {f: getattr(wanted, f) for f in FLAGS}
        switched = {f: v for f, v in switched.items() if v != getattr(here, f)}
        idle = {
            flag: why_idle(flag, value, collection) for flag, value in switched.items()
        }
        anew = [flag for flag in switched if not idle[flag] and _is_of_photos(flag)]
        left_out = [] if all_flags else anew
        kept = {f: getattr(here, f) for f in FLAGS if idle.get(f) or f in left_out}
        row = {"flag": name, "here": here.name, "switched to": name, "note": ""}
        if name in FLAGS:
            row |= {"point": FLAGS[name]["point"], "here": text(getattr(here, name))}
            row |= {"switched to": text(switched[name]), "note": idle[name]}
        if left_out:
            row["note"] = f"not switched: {', '.join(left_out)}"
        if switched.keys() - kept:
            after = _measure(under(collection, replace(wanted, **kept)), methods)
            row |= {label: after[label] - before[label] for label in before}
        rows.append(row)
    columns = ["point", "flag", "here", "switched to", *before, "note"]
    return pd.DataFrame(rows, columns=columns)


def at_scale(resize: str, here: str) -> str:
    """Apply one policy's rule for the aspect at about the size of another.

    Args:
        resize: the policy whose rule is taken: "1024x720" gives the aspect up.
        here: the policy that says how large.

    Returns:
        `here` where it has this rule already.
    """
    rule, size = ResizePolicy.parse(resize), ResizePolicy.parse(here)
    if (rule.mode == "fixed") == (size.mode == "fixed"):
        return here
    if size.mode == "fixed":
        return f"shorter:{size.sides[1]}"
    if size.mode == "native":
        return resize
    longer, shorter = rule.sides
    scale = size.sides[0] / (shorter if size.mode == "shorter" else longer)
    return "x".join(str(round(side * scale / 16) * 16) for side in rule.sides)


def why_idle(flag: str, value: Any, collection: Collection) -> str:
    """Why a flag's value cannot matter on this data, or "" where it may."""
    data, setup = collection.data, collection.first.setup
    if flag == "mean_order":
        protocol = replace(setup.protocol, mean_order=value)
        same = networks.under(setup.network, protocol) is setup.network
        return "no effect here: of vgg16-cam only" if same else ""
    if FLAGS[flag]["stage"] == "queries":
        boxes = any(query.box for query in data.queries)
        return "" if boxes else "no effect here: no query has a box"
    if flag == "rerank_squares_upright":
        sizes = (data.size(name) for name in data.images)
        square = setup.policy.mode == "fixed" and any(w == h for w, h in sizes)
        return "" if square else "no effect here: no square photo changes its shape"
    return ""


def _is_of_photos(flag: str) -> bool:
    return FLAGS[flag]["stage"] in ("network", "database")


def _measure(collection: Collection, methods: Sequence[Method]) -> dict[str, float]:
    """Label of each method -> mAP."""
    queries = collection.data.queries
    return {
        method.label: evaluation.mean_average_precision(
            evaluation.evaluate(rank(collection, method).rankings, queries)
        )
        for method in methods
    }
