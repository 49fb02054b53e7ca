"""A setting of the experiment: how to describe, rank and re-rank, and what it found."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cwr_utils.names import BITS, CLASS_WEIGHTINGS, GLOBAL_POOLINGS, REGION_POOLINGS
from cwr_utils.rerankers import Chain
from cwr_utils.whitening import check_scaling

if TYPE_CHECKING:
    from cwr_utils.reranking import Match

BY_QUERY = ("online", "grouped")  # a photo is described by the classes of the query
CLASS_AGGREGATIONS = ("offline", "theme", "regional", *BY_QUERY)
REGION_AGGREGATIONS = tuple(f"rmac_{pool}" for pool in REGION_POOLINGS)
AGGREGATIONS = GLOBAL_POOLINGS + REGION_AGGREGATIONS + CLASS_AGGREGATIONS

_NAMES = {
    "sum": "Raw features",
    "channel_weighted": "Raw + channel weights",
    "max": "MAC",
    "gem": "GeM",
    "crow": "CroW",
    "rmac_max": "R-MAC",
    "rmac_gem": "R-MAC, GeM regions",
    "rmac_mean": "R-MAC, mean regions",
    "offline": "OfA",
    "online": "OnA",
    "theme": "Theme list",
    "regional": "OfA by regions",
    "grouped": "OnA",
}


@dataclass(frozen=True)
class Method:
    """One way to describe, rank and re-rank.

    Attributes:
        aggregation: one of `AGGREGATIONS`.
        num_classes: N_C, classes a descriptor (class aggregations only).
        num_whitening_classes: N_pca, top class vectors of each whitening photo.
        dimensions: D after PCA-whitening; 0 ranks without whitening.
        query_expansion: images averaged into the expanded query; 0 is none.
        rerank: R, images re-ranked by CAM boxes; 0 is none.
        rerank_classes: classes that describe a region.
        whitening_exponent: of the variances, see `Whitening.scaled`; 0.5 is the paper.
        shrinkage: of the variances towards their mean, see there; 0 is the paper.
        class_weighting: one of `CLASS_WEIGHTINGS`; "equal" is the paper.
        refine: re-rankers by the neighbours of descriptors, such as "dba+alpha_qe", see
            `rerankers.Chain.parse`; they rank where cosine similarity would, before
            re-ranking by CAM boxes and with the expanded query. None is none.
        groups: G, classes that a photo keeps ("grouped" only, see `grouping`).
        bits: of a component of what it keeps, one of `names.BITS`; 16 is float16.
        cascade: L, photos that are described by the classes of the query ("online" and
            "grouped" only): the first ones of `first_stage`, and the others stay behind
            them in its order. With `refine`, which ranks the first stage, its score and
            theirs are averaged. 0 describes all photos. Deviation: not in the paper.

    A network with fewer classes than one of these numbers uses all that it has.
    """

    aggregation: str = "online"
    num_classes: int = 8
    num_whitening_classes: int = 16
    dimensions: int = 512
    query_expansion: int = 0
    rerank: int = 0
    rerank_classes: int = 6
    whitening_exponent: float = 0.5
    shrinkage: float = 0.0
    class_weighting: str = "equal"
    refine: str | None = None
    groups: int = 32
    bits: int = 4
    cascade: int = 0

    def __post_init__(self):
        """Check the values.

        Raises:
            ValueError: if a name is unknown, a number out of its range, or a class
                method is asked to do without whitening.
        """
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(
                f"`aggregation` must be one of {', '.join(AGGREGATIONS)}; "
                f"got {self.aggregation!r}."
            )
        for name, value in asdict(self).items():
            least = 1 if "classes" in name or name == "groups" else 0
            if isinstance(value, int) and value < least:
                raise ValueError(f"`{name}` must be at least {least}; got {value}.")
        check_scaling(self.whitening_exponent, self.shrinkage)
        if self.bits not in BITS:
            raise ValueError(
                f"`bits` must be one of {', '.join(map(str, BITS))}; got {self.bits}."
            )
        object.__setattr__(self, "refine", str(self.chain) or None)  # one text for one
        if self.class_weighting not in CLASS_WEIGHTINGS:
            raise ValueError(
                f"`class_weighting` must be one of {', '.join(CLASS_WEIGHTINGS)}; got "
                f"{self.class_weighting!r}."
            )
        if self.aggregation == "theme" and self.class_weighting == "probability":
            raise ValueError(
                "A theme list has no probabilities, which are each photo's own: weight "
                "its classes by rank, or equally."
            )
        if self.by_class and not self.dimensions:
            raise ValueError(
                "Class vectors are whitened: `dimensions` must be above 0."
            )
        if self.rerank and not self.by_class:
            raise ValueError(
                "Re-ranking describes regions by class vectors: it needs one of the "
                f"aggregations {', '.join(CLASS_AGGREGATIONS)}."
            )

        if not self.cascade:
            return
        if self.aggregation not in BY_QUERY:
            raise ValueError(
                "A cascade describes its first photos by the classes of the query: it "
                f"needs one of the aggregations {', '.join(BY_QUERY)}; got "
                f"{self.aggregation!r}."
            )
        if self.cascade < max(self.rerank, self.query_expansion):
            raise ValueError(
                f"`cascade` is {self.cascade}: what is re-ranked (`rerank` is "
                f"{self.rerank}) or expands the query ({self.query_expansion}) must be "
                "among these photos."
            )

    @property
    def first_stage(self) -> "Method":
        """What ranks all photos: offline aggregation, where there is a cascade."""
        if not self.cascade:
            return self
        return replace(self, aggregation="offline", cascade=0)

    @property
    def chain(self) -> Chain:
        """The re-rankers that `refine` names."""
        return Chain.parse(self.refine or "")

    @property
    def by_class(self) -> bool:
        """Whether descriptors are sums of class vectors."""
        return self.aggregation in CLASS_AGGREGATIONS

    @property
    def adds_classes(self) -> bool:
        """Whether a score is a product of sums over classes, so that it comes apart."""
        return self.by_class and self.aggregation != "regional" and not self.refine

    @property
    def settings(self) -> dict[str, Any]:
        """All that matters of it, by name.

        Groups, bits and the cascade only where there are any.
        """
        known = asdict(self)
        if not self.cascade:
            del known["cascade"]
        if self.aggregation != "grouped":
            del known["groups"], known["bits"]
        return known

    @property
    def trained_on(self) -> tuple[str, int]:
        """Kind of the vectors that its whitening is fitted on, and N_pca."""
        if self.by_class:
            kind = "regional" if self.aggregation == "regional" else "class"
            return kind, self.num_whitening_classes
        return self.aggregation, 0

    @property
    def whitened_by(self) -> tuple:
        """All that its whitening depends on, besides the photos."""
        scaling = self.whitening_exponent, self.shrinkage
        return self.trained_on, self.dimensions, *scaling

    @property
    def label(self) -> str:
        """What tables and figures call it."""
        text = _NAMES[self.aggregation]
        if self.aggregation == "sum" and self.dimensions:
            text = "Raw"  # "Raw + PCA", as in Table 1a
        if self.by_class:
            plural = "es" if self.num_classes > 1 else ""
            text += f", {self.num_classes} class{plural}"
            if self.class_weighting != "equal":
                text += f" by {self.class_weighting}"
        elif self.dimensions:
            text += " + PCA"
        if self.aggregation == "grouped":
            text += f", {self.groups} groups of {self.bits} bits"
        if self.cascade:
            text += f", first {self.cascade:,} of OfA"
        if self.refine:
            text += f" + {self.chain.label}"
        if self.rerank:
            text += f" + R{self.rerank}"
        if self.query_expansion:
            text += f" + QE{self.query_expansion}"
        return text

    @property
    def slug(self) -> str:
        """File-safe name with every setting that matters."""
        parts = [self.aggregation]
        if self.by_class:
            parts += [f"nc{self.num_classes}", f"npca{self.num_whitening_classes}"]
            if self.class_weighting != "equal":
                parts.append(self.class_weighting)
        if self.aggregation == "grouped":
            parts += [f"g{self.groups}", f"b{self.bits}"]
        if self.cascade:
            parts.append(f"l{self.cascade}")
        parts.append(f"d{self.dimensions}" if self.dimensions else "raw")
        if self.dimensions:
            scaling = ("e", self.whitening_exponent, 0.5), ("s", self.shrinkage, 0.0)
            parts += [
                f"{name}{value:g}".replace(".", "_")
                for name, value, usual in scaling
                if value != usual
            ]
        if self.refine:
            parts.append(re.sub("[^a-z0-9]+", "_", self.refine))
        if self.rerank:
            parts.append(f"r{self.rerank}c{self.rerank_classes}")
        if self.query_expansion:
            parts.append(f"qe{self.query_expansion}")
        return "-".join(parts)


@dataclass(frozen=True)
class Result:
    """What a method found.

    Attributes:
        method: the setting.
        rankings: query name -> all image names, best first.
        scores: query name -> their scores, in that order; re-ranked images carry the
            score of their best region.
        matches: query name -> image name -> best region (re-ranking only).
        averaged: query name -> images that query expansion averaged.
    """

    method: Method
    rankings: dict[str, list[str]]
    scores: dict[str, np.ndarray]
    matches: "dict[str, dict[str, Match]]"
    averaged: dict[str, list[str]] = field(default_factory=dict)


def ladder(
    base: Method, whitening_photos: int, num_classes: Sequence[int] = (1, 8)
) -> list[Method]:
    """The methods of Table 1a and 2a, from raw features to online aggregation.

    Args:
        base: what they share: D of regional and class vectors, N_pca, the scaling.
        whitening_photos: photos that whitening is fitted on. A global pooling gives
            one vector a photo, so its dimensions are held to half of that number.
        num_classes: values of N_C.

    Returns:
        Methods, simple ones first.
    """
    few = max(1, min(base.dimensions, whitening_photos // 2))
    rows: list[dict] = []
    for name in GLOBAL_POOLINGS:
        rows += [{"aggregation": name, "dimensions": d} for d in (0, few)]
    rows += [{"aggregation": name} for name in REGION_AGGREGATIONS]
    rows += [
        {"aggregation": name, "num_classes": count}
        for name in ("offline", "online", "theme")
        for count in num_classes
    ]
    return [replace(base, query_expansion=0, rerank=0, **row) for row in rows]
