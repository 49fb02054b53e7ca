"""What a store depends on, and where it lies: the only owner of both."""

import re
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cwr_utils
from cwr_utils.datasets import Dataset
from cwr_utils.identity import digest
from cwr_utils.images import ResizePolicy
from cwr_utils.networks import CamNetwork, under
from cwr_utils.protocol import FLAGS, PRESETS, Protocol

MOST_TOP_CLASSES = 64

# Facts that must be equal where vectors are compared.
VECTOR_FACTS = (
    "network",
    "weights_sha256",
    "precision",
    "layer",
    "power",
    "flip_negative_cams",
    "package_version",
)
_QUERY_FLAGS = [flag for flag in FLAGS if FLAGS[flag]["stage"] == "queries"]


@dataclass(frozen=True)
class Setup:
    """How photos become vectors: one network, its settings and the protocol's flags.

    Made once; whatever needs a part of it gets it whole.

    Attributes:
        network: the CAM network, in the end as the protocol has it (`networks.under`).
        cache_dir: folder of the stores and maps.
        layer: the pooled layer; given None it becomes the network's default.
        resize: a policy that `ResizePolicy.parse` reads; given None it becomes the
            protocol's. Afterwards the protocol has this one.
        power: exponent of the class vectors; 1 is the paper.
        classes: number of each photo's own most probable classes to keep (serves
            offline aggregation at a fraction of the size); None keeps all, so that
            online aggregation can choose any. Queries always keep all.
        region_classes: number of its own most probable classes by which every R-MAC
            region of a photo is described too, for regional aggregation; 0 is none.
        baselines: whether to keep the vectors of poolings without classes too (SPoC,
            CroW, R-MAC ...), more than those of 32 classes.
        dtype: of the stored vectors, "float16" or, twice as large, "float32".
        protocol: flags where paper and code differ.
    """

    network: CamNetwork
    cache_dir: Path
    layer: str = field(default=None)  # pyright: ignore[reportAssignmentType]
    resize: str = field(default=None)  # pyright: ignore[reportAssignmentType]
    power: float = 1.0
    classes: int | None = None
    region_classes: int = 0
    baselines: bool = True
    dtype: str = "float16"
    protocol: Protocol = PRESETS["corrected"]

    def __post_init__(self):
        """Fill in what is None, and check the values.

        Raises:
            ValueError: if one is out of its range, the layer is unknown or cannot be
                pooled with this power, or fewer classes exist than asked for.
        """
        resize = self.resize or self.protocol.resize
        ResizePolicy.parse(resize)
        filled = {
            "network": under(self.network, self.protocol),
            "cache_dir": Path(self.cache_dir),
            "layer": self.layer or self.network.default_layer,
            "resize": resize,
            "power": float(self.power),
            "protocol": replace(self.protocol, resize=resize),
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        if not self.power > 0:
            raise ValueError(f"`power` must be above 0; got {self.power}.")
        if self.dtype not in ("float16", "float32"):
            raise ValueError(
                f"`dtype` must be 'float16' or 'float32'; got {self.dtype!r}."
            )
        known = len(self.network.class_names)
        if self.classes is not None and not 1 <= self.classes <= known:
            raise ValueError(
                f"`classes` must be None (all) or 1 to {known}, the classes of "
                f"{self.network.name}; got {self.classes}."
            )
        if not 0 <= self.region_classes <= min(known, MOST_TOP_CLASSES):
            raise ValueError(
                f"`region_classes` must be 0 to {min(known, MOST_TOP_CLASSES)}; got "
                f"{self.region_classes}."
            )
        layer = self.network.layer(self.layer)
        if self.power != 1.0 and not layer.non_negative:
            raise ValueError(
                f"`power` {self.power} needs a layer without negative values; "
                f"{self.layer} has them. Choose a layer after a ReLU, or power 1."
            )

    @property
    def policy(self) -> ResizePolicy:
        """To which size a photo is brought when it is described."""
        return ResizePolicy.parse(self.resize)

    @property
    def map_policy(self) -> ResizePolicy:
        """The same for re-ranking, which may turn squares the other way."""
        upright = self.protocol.rerank_squares_upright
        return replace(self.policy, squares_upright=upright)

    @property
    def channels(self) -> int:
        """K of the pooled layer."""
        return self.network.layer(self.layer).channels

    @property
    def of_queries(self) -> "Setup":
        """The same, keeping all classes."""
        return replace(self, classes=None)

    @property
    def recipe(self) -> tuple:
        """All of it, hashable, for `again` in another process."""
        rest = [f.name for f in fields(self) if f.name != "network"]
        settings = tuple((name, getattr(self, name)) for name in rest)
        return self.network.recipe, settings

    @classmethod
    def again(cls, recipe: tuple) -> "Setup":
        """The setup that a `recipe` is of."""
        (make, arguments), settings = recipe
        return cls(make(*arguments), **dict(settings))

    @cached_property
    def _map_facts(self) -> dict[str, Any]:
        return {
            "package_version": cwr_utils.__version__,
            "network": self.network.name,
            "weights_sha256": self.network.weights_sha256,
            "precision": self.network.precision,
            "layer": self.layer,
            "resize": self.resize,
        }

    @cached_property
    def _vector_facts(self) -> dict[str, Any]:
        return {
            **self._map_facts,
            "power": self.power,
            "classes": self.classes,
            "region_classes": self.region_classes,
            "dtype": self.dtype,
            "flip_negative_cams": self.protocol.flip_negative_cams,
            **({} if self.baselines else {"baselines": False}),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """All that the numbers of a run depend on, besides photos and method."""
        return {**self._vector_facts, **self.protocol.flags}

    def photo_facts(self, dataset: Dataset) -> dict[str, Any]:
        """What a store of a data set's photos depends on, besides their contents."""
        stretched: list[str] = []
        if self.protocol.stretch_query_images:
            # Which photos they are depends on the queries.
            stretched = sorted({query.image for query in dataset.queries})
        return {**self._vector_facts, "of": "photos", "stretched": stretched}

    def query_facts(self) -> dict[str, Any]:
        """What a store of query regions depends on, besides photos and boxes."""
        flags = {flag: getattr(self.protocol, flag) for flag in _QUERY_FLAGS}
        return {**self._vector_facts, "classes": None, "of": "queries", **flags}

    def photos_path(self, dataset: Dataset) -> Path:
        """Folder of the store of a data set's photos."""
        return self._path(dataset, "photos", self.photo_facts(dataset))

    def queries_path(self, dataset: Dataset) -> Path:
        """Folder of the store of a data set's query regions."""
        return self._path(dataset, "queries", self.query_facts())

    def maps_path(self, dataset: Dataset) -> Path:
        """Folder of a data set's maps: one for all powers and flags of pooling."""
        return self._path(dataset, "maps", self._map_facts)

    def _path(self, dataset: Dataset, kind: str, facts: dict[str, Any]) -> Path:
        """A folder with a readable name, and another one for other facts."""
        parts = [self.network.name, self.layer, self.resize, digest(facts)[:12]]
        name, last = (_file_name(text) for text in (dataset.name, "-".join(parts)))
        return self.cache_dir / name / kind / last


def together(**texts: str | None) -> list[dict[str, str | None]]:
    """Settings that are used together, from texts that join several by " + ".

    ``together(network="a + b", resize="512x360")`` are two: both networks at one size.

    Args:
        texts: for each setting one value, which all share, or as many as the others.

    Raises:
        ValueError: if the numbers of values differ.
    """
    lists = {
        name: [None] if text is None else [part.strip() for part in text.split(" + ")]
        for name, text in texts.items()
    }
    count = max(map(len, lists.values()))
    wrong = {
        name: len(part) for name, part in lists.items() if len(part) not in (1, count)
    }
    if wrong:
        raise ValueError(
            f"Settings joined by ' + ' need one value, or {count} as others have; got "
            + ", ".join(f"{number} of `{name}`" for name, number in wrong.items())
        )
    rows = zip(*(part * (count // len(part)) for part in lists.values()), strict=True)
    return [dict(zip(lists, row, strict=True)) for row in rows]


def _file_name(text: str) -> str:
    """What a path may hold on any system; other signs become "_"."""
    return re.sub(r"[^\w.-]|^\.+", "_", text)
