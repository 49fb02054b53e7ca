"""What a method can ask of an experiment, known before anything is described."""

import itertools
from collections.abc import Iterable

from cwr_utils.extraction import MOST_TOP_CLASSES
from cwr_utils.retrieval.experiment import Experiment
from cwr_utils.retrieval.method import REGION_AGGREGATIONS, Method


def check_limits(
    methods: Iterable[Method], experiment: Experiment, capped: bool = False
) -> None:
    """Refuse methods that need more classes or whitening vectors than there can be.

    Of a network with fewer classes than a method asks for all are taken.

    Args:
        methods: to run.
        experiment: on which.
        capped: whether `Collection.supported` will lower the dimensions.

    Raises:
        ValueError: which method, what there is, and what to change.
    """
    training = experiment.training
    # A photo that is there twice supports no more dimensions than once.
    photos = len(set(training.hashes().values())) if training else 0
    for part, method in itertools.product(experiment.parts, methods):
        setup = part.setup
        if not (method.by_class or setup.baselines):
            raise ValueError(
                f"{method.label} needs the vectors of poolings without classes, which "
                "`Setup(baselines=False)` does not keep: take a class aggregation."
            )
        known = min(len(setup.network.class_names), MOST_TOP_CLASSES)
        asked = ["num_classes", "num_whitening_classes"] if method.by_class else []
        asked += ["rerank_classes"] if method.rerank else []
        for name in asked:
            count = getattr(method, name)
            if count > known == MOST_TOP_CLASSES:
                raise ValueError(
                    f"`{name}` is {count}, and of a photo the {known} most probable "
                    f"classes of {setup.network.name} are kept: give {known} or less."
                )
        if capped or method.aggregation in (*REGION_AGGREGATIONS, "regional"):
            continue  # how many regions a photo has depends on its size
        per_photo = min(method.num_whitening_classes, known) if method.by_class else 1
        most = min(setup.channels, photos * per_photo - 1)
        if method.dimensions > max(most, 0):
            raise ValueError(
                f"`dimensions` is {method.dimensions}, and {method.label} can have "
                f"{most} at most: {photos} whitening photos with {per_photo} vectors "
                f"each, {setup.channels} channels. Give half of that or less, or more "
                "whitening photos."
            )
