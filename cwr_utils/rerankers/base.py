"""What all re-rankers share: settings as fields, preparing once, and neighbours."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from cwr_utils import ranking
from cwr_utils.arrays import check_shape, widen

QUERY_ROWS = 1024  # by `ranking.SEARCH_ROWS`: 256 MiB of scores

# Makes of (N, D) descriptors what is searched like a FAISS index; one such thing is
# functools.partial(ranking.faiss_index, factory="IVF1024,Flat").
Index = Callable[[np.ndarray], Any]


class ExactIndex:
    """`ranking.search`, for any number of queries."""

    def __init__(self, database: np.ndarray):
        """Hold (N, D) descriptors."""
        self._database = database

    def search(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, top) scores, best first, and (n, top) rows, for (n, D) queries."""
        blocks = [
            ranking.search(queries[start : start + QUERY_ROWS], self._database, top)
            for start in range(0, len(queries), QUERY_ROWS)
        ]
        scores, rows = zip(*blocks, strict=True)
        return np.concatenate(scores), np.concatenate(rows)


class Prepared:
    """A database made ready for a re-ranker; for any number of queries.

    This one changes nothing and ranks by cosine similarity.

    Attributes:
        database: (N, D) float32: what a next re-ranker works on.
    """

    def __init__(self, database: np.ndarray):
        """Hold the descriptors."""
        self.database = database

    def expand(self, queries: np.ndarray) -> np.ndarray:
        """(Q, D) descriptors that take the place of (Q, D) queries."""
        return queries

    def scores(self, queries) -> np.ndarray:
        """Score every photo for every query.

        Args:
            queries: (Q, D), l2-normalised. None changes what another one gets.

        Returns:
            (Q, N) float32 for `ranking.order`: larger is better, within a row only.

        Raises:
            ValueError: if the dimensions differ.
        """
        return ranking.similarities(self.expand(single(queries)), self.database)


@dataclass(frozen=True)
class Reranker:
    """A way to rank again, by the neighbours of photos in their collection.

    Its fields are its settings: numbers, none below 0.

    Attributes:
        name: what `parse` calls it.
        title: what tables call it.
        is_last: whether it gives scores alone, no descriptors for another one.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    is_last: ClassVar[bool] = False

    def __post_init__(self):
        """Check the settings.

        Raises:
            ValueError: if one is out of its range, or not whole where it counts.
        """
        for field in fields(self):
            value, whole = getattr(self, field.name), field.type is int
            wanted = (int, np.integer) if whole else (int, float, np.number)
            fits = isinstance(value, wanted) and not isinstance(value, bool)
            if not fits or not math.isfinite(value) or value < 0:
                kind = "a whole number" if whole else "a number"
                self._refuse(field.name, f"{kind}, at least 0")
            # 3 and 3.0 are one setting, with one text.
            object.__setattr__(self, field.name, int(value) if whole else float(value))

    def _require_some(self, *names: str) -> None:
        """Refuse a number of photos or steps that is 0."""
        for name in names:
            if getattr(self, name) < 1:
                self._refuse(name, "at least 1")

    def _refuse(self, name: str, expected: str):
        value = getattr(self, name)
        raise ValueError(f"`{name}` of {self.name} must be {expected}; got {value!r}.")

    def prepare(self, database, index: Index = ExactIndex) -> Prepared:
        """Do once what depends on no query.

        Args:
            database: (N, D), l2-normalised, N >= 1.
            index: what finds the neighbours of photos.

        Raises:
            ValueError: if there is no photo, or the index finds too few neighbours.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        """The text that `parse` reads, with every setting."""
        values = [f"{f.name}={shown(getattr(self, f.name))}" for f in fields(self)]
        return f"{self.name}:{','.join(values)}"

    @property
    def label(self) -> str:
        """What tables call it, with the settings that are not its defaults."""
        changed = [
            f"{f.name} {shown(value)}"
            for f in fields(self)
            if (value := getattr(self, f.name)) != f.default
        ]
        return f"{self.title} ({', '.join(changed)})" if changed else self.title


def shown(value: float) -> str:
    """A number, exactly, without the "+" that joins re-rankers."""
    return repr(value).removesuffix(".0").replace("+", "")


def single(vectors) -> np.ndarray:
    """(n, D) float32 descriptors.

    Raises:
        ValueError: if they have another shape.
    """
    vectors = np.asarray(vectors)
    check_shape(vectors, "n D", "descriptors")
    return widen(vectors).astype(np.float32, copy=False)


def photos(database) -> np.ndarray:
    """(N, D) float32 descriptors of at least one photo.

    Raises:
        ValueError: if there is none.
    """
    database = single(database)
    if not len(database):
        raise ValueError("There are no photos to rank: the database has no rows.")
    return database


def neighbours(
    database: np.ndarray, top: int, index: Index = ExactIndex
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other photos of each photo.

    Args:
        database: (N, D).
        top: k, how many; all others if there are fewer.
        index: what finds them.

    Returns:
        (N, k) scores, best first, and (N, k) rows.

    Raises:
        ValueError: if the index finds fewer.
    """
    count = len(database)
    top = min(top, count - 1)
    scores, rows = index(database).search(database, top + 1)
    if (rows < 0).any():
        raise ValueError(
            f"The index found fewer than {top + 1} neighbours of some photos; search "
            "more of its cells (IVF: `nprobe`), or search exactly."
        )
    own = rows == np.arange(count)[:, None]
    own[~own.any(axis=1), -1] = True  # equals came before it: the last one goes instead
    return scores[~own].reshape(count, top), rows[~own].reshape(count, top)


def by_row(values, rows: np.ndarray, columns: int) -> sparse.csr_array:
    """(n, columns) with `values` (n, k) at the columns `rows` (n, k) of each row."""
    count, each = rows.shape
    values = np.broadcast_to(values, rows.shape)
    parts = values.flatten(), rows.flatten(), np.arange(count + 1) * each  # its own
    return sparse.csr_array(parts, shape=(count, columns))
