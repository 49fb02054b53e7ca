"""From one setting to another, a step a row: what each gains and what it costs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from cwr_utils import evaluation, retrieval
from cwr_utils.datasets import Dataset
from cwr_utils.extraction import MOST_TOP_CLASSES, Setup, describer_of
from cwr_utils.identity import digest
from cwr_utils.images import read_image, resize_image
from cwr_utils.retrieval import Collection, Experiment, Method
from cwr_utils.runs import tables

TIMED_PHOTOS = 4
REPEATS = 3


@dataclass(frozen=True)
class Step:
    """One row of a walk.

    Attributes:
        label: what changes from the step before.
        experiment: how photos are described.
        method: how they are ranked.
    """

    label: str
    experiment: Experiment
    method: Method


def walk(steps: Sequence[Step]) -> pd.DataFrame:
    """Measure each step, and what it gains over the one before it.

    What is not described yet is described first.

    Args:
        steps: the first one first; D is lowered where it is not supported.

    Returns:
        Columns of `retrieval.row`, and: "step"; "gain", "gain_low", "gain_high", a
        paired bootstrap over landmarks; "seconds_photo" to decode and describe a photo
        (`seconds_a_photo`, all setups); "seconds_query" of `tables.timed`;
        "descriptor_bytes" and "store_bytes" a photo.
    """
    rows, before = [], None
    opened: dict[str, Collection] = {}
    photo_seconds: dict[tuple, float] = {}
    for step in tqdm(steps, desc="steps"):
        key = digest(step.experiment.facts)
        if key not in opened:
            step.experiment.extract()
            opened[key] = Collection.open(step.experiment)
        collection = opened[key]
        method = collection.supported(step.method)
        result, seconds = tables.timed(collection, method)
        table = evaluation.evaluate(result.rankings, collection.data.queries)
        # Which power the features are raised to changes no time.
        parts = {
            (s.network.name, s.layer, s.resize): s
            for s in (part.setup for part in step.experiment.parts)
        }
        for name, setup in parts.items():
            if name not in photo_seconds:
                photo_seconds[name] = seconds_a_photo(setup, step.experiment.data)
        row = {
            **retrieval.row(collection, result),
            "step": step.label,
            "seconds_photo": sum(photo_seconds[name] for name in parts),
            "seconds_query": seconds,
            "descriptor_bytes": 4 * next(collection.descriptors(method, [0]))[0].size,
            "store_bytes": sum(
                member.database.disk_bytes() / len(member.database)
                for member in collection.members
            ),
        }
        if before is not None:
            pairs = evaluation.compare(before, table)
            gain = evaluation.bootstrap(pairs["difference"], pairs["landmark"])
            row |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
        before = table
        rows.append(row)
    return pd.DataFrame(rows)


def seconds_a_photo(setup: Setup, data: Dataset) -> float:
    """Seconds to decode, resize and describe one photo, with the graph compiled.

    The least of `REPEATS` passes over one batch of `TIMED_PHOTOS` photos of one shape;
    what else the machine does at that time counts.

    Args:
        setup: how to describe them.
        data: the photos.
    """
    describer = describer_of(setup)
    shapes: dict[tuple, list[str]] = {}
    for name in data.images:
        shapes.setdefault(setup.policy.target_size(*data.size(name)), []).append(name)
    names = max(shapes.values(), key=len)[:TIMED_PHOTOS]

    def describe() -> None:
        photos = [read_image(data.path(name)) for name in names]
        describer(np.stack([resize_image(photo, setup.policy) for photo in photos]))

    describe()  # compiles
    seconds = []
    for _ in range(REPEATS):
        begun = time.monotonic()
        describe()
        seconds.append(time.monotonic() - begun)
    return min(seconds) / len(names)


def shown(walked: pd.DataFrame) -> pd.DataFrame:
    """The columns of a `walk` that people read, rounded."""
    interval = walked.apply(
        lambda row: (
            f"{100 * row['gain']:+.1f} "
            f"[{100 * row['gain_low']:+.1f}, {100 * row['gain_high']:+.1f}]"
            if np.isfinite(row["gain"])
            else ""
        ),
        axis=1,
    )
    return pd.DataFrame(
        {
            "step": walked["step"],
            "mAP": walked["mAP"].map("{:.3f}".format),
            "gain, points": interval,
            "ms a photo": (1000 * walked["seconds_photo"]).round().astype(int),
            "ms a query": (1000 * walked["seconds_query"]).round(1),
            "descriptor, KiB": (walked["descriptor_bytes"] / 1024).round(1),
            "store, MiB a photo": (walked["store_bytes"] / 2**20).round(2),
        }
    )


def steps(experiment: Experiment, best: Method) -> list[Step]:
    """From the paper's setting, offline, to a method, a change a step.

    Each keeps what the steps before it changed; one that changes nothing is left out.
    The paper's is that of the experiment's first setup with exponent 1, 64 classes that
    weigh alike, N_pca = 16 (its 1 needs thousands of whitening photos), D = 512 and
    whitening to unit variance.

    Args:
        experiment: where the walk ends.
        best: how its photos are ranked in the end.
    """
    first, several = experiment.parts[0], experiment
    own = replace(first, setup=replace(first.setup, power=1.0))
    known = min(MOST_TOP_CLASSES, len(first.setup.network.class_names))
    method = replace(
        best,
        aggregation="offline",
        num_classes=known,
        num_whitening_classes=min(16, best.num_whitening_classes),
        dimensions=min(512, best.dimensions),
        whitening_exponent=0.5,
        shrinkage=0.0,
        class_weighting="equal",
        refine=None,
        query_expansion=0,
        rerank=0,
    )
    found = [Step("the paper, offline", own, method)]

    def add(label: str, described: Experiment) -> None:
        if (described, method) != (found[-1].experiment, found[-1].method):
            found.append(Step(label, described, method))

    add(f"exponent {first.setup.power:g} of the features", first)
    online, augmented = {"aggregation": best.aggregation}, {"refine": "dba:photos=5"}
    end = {"rerank": best.rerank, "query_expansion": best.query_expansion}
    others = ", ".join(f"{s.network.name} at {s.resize}" for s in several.also)
    for label, names in {
        f"{best.num_classes} classes, by {best.class_weighting}": (
            "num_classes",
            "class_weighting",
        ),
        f"N_pca {best.num_whitening_classes}, D {best.dimensions}": (
            "num_whitening_classes",
            "dimensions",
        ),
        f"eigenvalues to the power {best.whitening_exponent:g}": (
            "whitening_exponent",
            "shrinkage",
        ),
    }.items():
        method = replace(method, **{name: getattr(best, name) for name in names})
        add(label, first)
    if others:
        add(f"together with {others}", several)
    for label, changes in {
        "the query's classes (online)": online,
        "database-side augmentation": augmented,
        "re-ranking and expansion": {**end, "refine": best.refine},
    }.items():
        method = replace(method, **changes)
        add(label, several)
    return found
