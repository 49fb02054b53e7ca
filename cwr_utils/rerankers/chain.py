"""Re-rankers one after another, and the text that names them."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass, fields

import numpy as np

from cwr_utils.rerankers.base import (
    ExactIndex,
    Index,
    Prepared,
    Reranker,
    photos,
    single,
)
from cwr_utils.rerankers.diffusion import Diffusion
from cwr_utils.rerankers.expansion import AlphaQE, DatabaseAugmentation
from cwr_utils.rerankers.reciprocal import KReciprocal
from cwr_utils.rerankers.super_global import SuperGlobal

RERANKERS: dict[str, type[Reranker]] = {
    kind.name: kind
    for kind in (AlphaQE, DatabaseAugmentation, KReciprocal, Diffusion, SuperGlobal)
}


@dataclass(frozen=True)
class Chain:
    """Re-rankers, each at work on the descriptors that the one before it made.

    None at all rank by cosine similarity.

    Attributes:
        steps: first one first; only the last may be one that gives scores alone.
    """

    steps: tuple[Reranker, ...] = ()

    def __post_init__(self):
        """Check the order.

        Raises:
            ValueError: if something follows a re-ranker that gives scores alone.
        """
        for step, following in zip(self.steps, self.steps[1:], strict=False):
            if step.is_last:
                raise ValueError(
                    f"{step.name} gives scores and no descriptors: nothing can follow "
                    f"it; got {following.name} after it. Put it last."
                )

    @classmethod
    def parse(cls, text: str) -> "Chain":
        """Read re-rankers such as "dba:photos=5+alpha_qe:photos=10,alpha=3".

        Settings that are not given are the defaults; "" is no re-ranker.

        Raises:
            ValueError: if a name, a setting or a value is not known; says which are.
        """
        parts = text.split("+") if text.strip() else []
        return cls(tuple(_step(part) for part in parts))

    def __str__(self) -> str:
        """The text that `parse` reads, with every setting."""
        return "+".join(map(str, self.steps))

    @property
    def label(self) -> str:
        """What tables call it, with the settings that are not defaults; "" if empty."""
        return " + ".join(step.label for step in self.steps)

    def prepare(self, database, index: Index = ExactIndex) -> Prepared:
        """See `Reranker.prepare`."""
        parts = [Prepared(photos(database))]
        for step in self.steps:
            parts.append(step.prepare(parts[-1].database, index))
        return _Chained(parts)


class _Chained(Prepared):
    def __init__(self, parts: list[Prepared]):
        super().__init__(parts[-1].database)
        self._parts = parts

    def expand(self, queries: np.ndarray) -> np.ndarray:
        for part in self._parts:
            queries = part.expand(queries)
        return queries

    def scores(self, queries) -> np.ndarray:
        queries = single(queries)
        for part in self._parts[:-1]:
            queries = part.expand(queries)
        return self._parts[-1].scores(queries)


def _step(text: str) -> Reranker:
    name, colon, settings = (part.strip() for part in text.partition(":"))
    kind = RERANKERS[_known(name, RERANKERS, "re-ranker")]
    kinds = {field.name: field.type for field in fields(kind)}
    found: dict[str, float] = {}
    for setting in settings.split(",") if colon else []:
        key, _, value = (part.strip() for part in setting.partition("="))
        number = kinds[_known(key, kinds, f"setting of {name}")]
        if key in found:
            raise ValueError(f"{text!r} gives `{key}` twice.")
        try:
            found[key] = int(value) if number is int else float(value)
        except ValueError as error:
            whole = "a whole number" if number is int else "a number"
            raise ValueError(
                f"`{key}` of {name} must be {whole}, as in {kind()}; got {value!r}."
            ) from error
    return kind(**found)


def _known(name: str, names: Collection[str], what: str) -> str:
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}."
    raise ValueError(f"Unknown {what} {name!r}: {hint}")
