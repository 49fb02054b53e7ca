"""PCA-whitening, fitted on another data set than the one under test (Sec. 3.2)."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from cwr_utils.arrays import check_shape, l2_normalize

TRIANGLE_COLUMNS = 64


class WhiteningError(ValueError):
    """A whitening that would be impossible or dishonest."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """l2, centre, rotate and scale to unit variance (or see `scaled`), l2.

    Attributes:
        mean: (K,) mean of the l2-normalised training vectors.
        projection: (K, D), principal axes divided by the standard deviation on them.
        source: what it was fitted on, for tables.
        vectors: how many training vectors there were.
        variance: (D,) share of the training variance on each axis, falling.
    """

    mean: np.ndarray
    projection: np.ndarray
    source: str
    vectors: int
    variance: np.ndarray

    @property
    def dimensions(self) -> int:
        """D, components of a whitened vector."""
        return self.projection.shape[1]

    @cached_property
    def sha256(self) -> str:
        """Of its numbers: equal ones whiten equally."""
        numbers = hashlib.sha256(str(self.projection.shape).encode())
        for array in (self.mean, self.projection):
            numbers.update(np.ascontiguousarray(array).tobytes())
        return numbers.hexdigest()

    def keep(self, dimensions: int) -> "Whitening":
        """The same whitening with only its first axes.

        Raises:
            WhiteningError: if it has fewer axes than that.
        """
        if not 1 <= dimensions <= self.dimensions:
            raise WhiteningError(
                f"{self.vectors} vectors of {len(self.mean)} channels from "
                f"{self.source} support at most {self.dimensions} whitened "
                f"dimensions; {dimensions} were asked for. Lower `dimensions`, raise "
                "`num_whitening_classes`, or fit on more photos."
            )
        return replace(
            self,
            projection=self.projection[:, :dimensions],
            variance=self.variance[:dimensions],
        )

    def scaled(self, exponent: float = 0.5, shrinkage: float = 0.0) -> "Whitening":
        """The same axes, divided by another power of their variances.

        ``1 / lambda^exponent`` with ``lambda`` moved towards the mean of all K
        variances: ``(1 - shrinkage) lambda + shrinkage mean(lambda)`` (Ledoit and Wolf
        2004). Exponent 0.5 is whitening, 0 is plain PCA; between them the last axes,
        mostly noise, weigh less.

        Args:
            exponent: from 0 to 1.
            shrinkage: from 0 to 1, where all variances count as equal.

        Raises:
            ValueError: if a value is outside its range.
        """
        check_scaling(exponent, shrinkage)
        if (exponent, shrinkage) == (0.5, 0.0):
            return self
        # Only ratios of the variances count: what is common to all axes, the last l2
        # takes away. The shares of all K axes have the mean 1 / K.
        moved = (1 - shrinkage) * self.variance + shrinkage / len(self.mean)
        factors = np.sqrt(self.variance) / moved**exponent
        return replace(self, projection=self.projection * factors.astype(np.float32))

    def __call__(self, vectors) -> np.ndarray:
        """Whiten vectors; a zero vector stays zero (an empty CAM votes for nothing).

        Args:
            vectors: (..., K), normalised or not.

        Returns:
            (..., D) float32, l2-normalised rows.
        """
        check_shape(vectors, f"... {len(self.mean)}", "vectors")
        vectors = l2_normalize(vectors).astype(np.float32, copy=False)
        # One product of two matrices: NumPy would run one for each leading index.
        rows = vectors.reshape(-1, len(self.mean))
        # Centring after the product saves a copy as large as the vectors.
        whitened = rows @ self.projection
        whitened -= self._offset
        whitened[~rows.any(axis=-1)] = 0
        return l2_normalize(whitened).reshape(*vectors.shape[:-1], self.dimensions)

    @cached_property
    def _offset(self) -> np.ndarray:
        """(D,) the mean after the projection."""
        return self.mean @ self.projection

    def scales(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factors that turn sums of whitened vectors into whitened sums.

        With x a vector, w its whitening before the last l2, and s and t its factors,
        the whitened vector is ``s x @ projection - t mean @ projection``. So a sum of
        many needs one projection (see `unscale`), and here only the length of w is
        computed. That is the length of ``R x``, R the triangular factor of the
        projection: about half the work of w itself.

        Args:
            vectors: (n, K) float32, normalised or not.

        Returns:
            ``s = 1 / (|x| |w|)`` and ``t = 1 / |w|``, both (n,), and 0 where x or w
            is 0.
        """
        norms = _lengths(vectors)
        inverse = _inverse(norms)
        squares = np.zeros(len(vectors), np.float32)
        triangle, offset = self._triangle
        for start in range(0, self.dimensions, TRIANGLE_COLUMNS):
            columns = slice(start, start + TRIANGLE_COLUMNS)
            part = vectors[:, start:] @ triangle[start:, columns]
            part *= inverse[:, None]
            part -= offset[columns]
            squares += np.einsum("nd,nd->n", part, part)
        lengths = np.where(norms > 0, np.sqrt(squares), 0)
        return _inverse(lengths) * inverse, _inverse(lengths)

    def unscale(self, vectors: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """The sum of whitened vectors from sums with `scales`.

        Args:
            vectors: (n, K) sums of s x.
            factors: (n,) sums of t.

        Returns:
            (n, D) float32, not normalised.
        """
        return vectors @ self.projection - factors[:, None] * self._offset

    @cached_property
    def _triangle(self) -> tuple[np.ndarray, np.ndarray]:
        """(K, D) transposed triangular factor of the projection, and its offset."""
        factor: Any = np.linalg.qr(self.projection.T, mode="r")
        return np.ascontiguousarray(factor.T), factor @ self.mean


def fit(vectors, source: str) -> Whitening:
    """Fit PCA-whitening with every axis that the vectors support.

    n centred vectors of K channels span at most min(K, n - 1) dimensions, fewer if
    some repeat each other; the last of them are mostly noise (see `Whitening.keep`).

    Args:
        vectors: (n, K) training vectors; l2-normalised here, zero rows are left out.
        source: what the vectors come from, for tables.

    Returns:
        The whitening. The sign of each axis is fixed, so that the same vectors give the
        same bits.

    Raises:
        WhiteningError: if the vectors do not vary at all.
    """
    from sklearn.decomposition import PCA  # a second

    _, channels = check_shape(vectors, "n K", "vectors")
    vectors = l2_normalize(vectors).astype(np.float64, copy=False)
    vectors = vectors[vectors.any(axis=1)]
    axes = min(channels, len(vectors) - 1)
    if axes < 1 or not np.ptp(vectors, axis=0).any():
        raise WhiteningError(
            f"{len(vectors)} vectors from {source} do not vary: nothing to whiten."
        )
    # The covariance is the smaller problem unless channels outnumber the vectors. Its
    # rounding would pass for more axes if the vectors were not centred first.
    mean = vectors.mean(axis=0)
    solver = "covariance_eigh" if len(vectors) > channels else "full"
    pca = PCA(axes, svd_solver=solver).fit(vectors - mean)
    deviation = np.sqrt(pca.explained_variance_)
    rank = int((deviation > 1e-6 * deviation[0] + 1e-9).sum())
    return Whitening(
        mean=mean.astype(np.float32),
        projection=(pca.components_[:rank] / deviation[:rank, None]).T.astype(
            np.float32
        ),
        source=source,
        vectors=len(vectors),
        variance=pca.explained_variance_ratio_[:rank],
    )


def check_scaling(exponent: float, shrinkage: float) -> None:
    """Refuse what `Whitening.scaled` cannot take.

    Raises:
        ValueError: if a value is outside its range.
    """
    for name, value in (("whitening_exponent", exponent), ("shrinkage", shrinkage)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be from 0 to 1; got {value}.")


def refuse_test_images(
    training: Collection[str],
    under_test: Collection[str],
    i_know_this_fits_whitening_on_the_test_set: bool = False,
) -> None:
    """Refuse to fit the whitening on photos of the data set under test.

    Distractors count too: whitening pushes apart what it was fitted on, which are then
    just the photos that a query must be told from (notebook 3 measures the gain).

    Args:
        training: SHA-256 of the photos that the whitening would be fitted on.
        under_test: SHA-256 of the photos of the database and of the queries.
        i_know_this_fits_whitening_on_the_test_set: True allows it, to show the effect.

    Raises:
        WhiteningError: if the two share a photo.
    """
    shared = set(training) & set(under_test)
    if shared and not i_know_this_fits_whitening_on_the_test_set:
        raise WhiteningError(
            f"{len(shared)} of the {len(set(training))} whitening photos are in the "
            "data set under test. Numbers from such a whitening flatter the method: "
            "fit it on another data set."
        )


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("nk,nk->n", vectors, vectors))


def _inverse(lengths: np.ndarray) -> np.ndarray:
    return np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
