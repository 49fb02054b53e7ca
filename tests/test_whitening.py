"""PCA-whitening: unit covariance, honest limits, safe files, honest training sets."""

import numpy as np
import pytest

from cwr_utils import whitening
from cwr_utils.arrays import l2_normalize
from cwr_utils.whitening import WhiteningError, refuse_test_images


def vectors(count, channels=8, seed=0):
    """Positive vectors, as pooled activations are: far from centred."""
    return np.random.default_rng(seed).random((count, channels), np.float32) ** 2


@pytest.fixture
def fitted():
    return whitening.fit(vectors(60), "generated").keep(5)


def before_the_last_l2(fitted, training):
    return (l2_normalize(training) - fitted.mean) @ fitted.projection


@pytest.mark.parametrize("dimensions", [1, 5, 8])
def test_whitened_training_vectors_have_unit_covariance(dimensions):
    training = vectors(200)
    fitted = whitening.fit(training, "generated").keep(dimensions)
    whitened = before_the_last_l2(fitted, training)
    covariance = np.cov(whitened, rowvar=False).reshape(dimensions, dimensions)
    np.testing.assert_allclose(covariance, np.eye(dimensions), atol=1e-4)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-5)


def test_it_is_l2_centre_project_l2(fitted):
    others = vectors(7, seed=1)
    expected = before_the_last_l2(fitted, others)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    got = fitted(others)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fitted(5 * others), got, rtol=1e-5, atol=1e-6)


def test_leading_axes_and_float16_are_carried_through(fitted):
    others = vectors(12, seed=1).reshape(3, 4, 8)
    assert fitted(others).shape == (3, 4, 5)
    half = others.astype(np.float16)
    np.testing.assert_array_equal(fitted(half), fitted(half.astype(np.float32)))


def test_axes_come_by_falling_variance():
    training = vectors(100)
    fitted = whitening.fit(training, "generated").keep(8)
    lengths = np.linalg.norm(fitted.projection, axis=0)  # 1 / standard deviation
    assert (np.diff(lengths) >= 0).all()
    assert fitted.variance.sum() == pytest.approx(1)
    assert fitted.keep(2).variance.sum() < 0.9


def test_a_zero_vector_stays_zero_and_trains_nothing(fitted):
    training = vectors(60)
    padded = np.concatenate([np.zeros((9, 8), np.float32), training])
    again = whitening.fit(padded, "generated").keep(5)
    assert again.vectors == 60
    np.testing.assert_array_equal(again.projection, fitted.projection)
    whitened = fitted(padded)
    assert not whitened[:9].any()
    np.testing.assert_allclose(np.linalg.norm(whitened[9:], axis=1), 1, rtol=1e-5)


def test_the_same_vectors_give_the_same_bits():
    first, second = (whitening.fit(vectors(60), "generated").keep(5) for _ in range(2))
    np.testing.assert_array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(first.projection, second.projection)


def test_the_sign_of_an_axis_does_not_depend_on_the_order_of_the_photos(fitted):
    again = whitening.fit(vectors(60)[::-1], "generated").keep(5)
    np.testing.assert_allclose(again.projection, fitted.projection, rtol=1e-3)


@pytest.mark.parametrize(
    ("count", "dimensions", "numbers"),
    [
        (6, 6, ["6 vectors", "8 channels", "at most 5", "6 were asked"]),
        (50, 9, ["50 vectors", "at most 8", "9 were asked"]),
        (50, 0, ["0 were asked"]),
    ],
)
def test_too_many_dimensions_are_refused_with_the_numbers(count, dimensions, numbers):
    with pytest.raises(WhiteningError) as error:
        whitening.fit(vectors(count), "generated").keep(dimensions)
    for number in numbers:
        assert number in str(error.value)


def test_zero_vectors_do_not_count_towards_the_limit():
    training = np.concatenate([vectors(4), np.zeros((40, 8), np.float32)])
    with pytest.raises(WhiteningError, match="4 vectors .* at most 3"):
        whitening.fit(training, "generated").keep(4)


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("seed", range(5))
def test_repeated_vectors_are_refused_with_the_rank_they_have(spread, seed):
    """Also where all vectors nearly agree and rounding looks like variance."""
    different = 1 + spread * vectors(10, 32, seed)
    training = np.repeat(different, 20, axis=0)
    with pytest.raises(WhiteningError, match="at most 9 whitened dimensions; 12 were"):
        whitening.fit(training, "generated").keep(12)
    assert whitening.fit(training, "generated").keep(9).dimensions == 9


@pytest.mark.parametrize("count", [0, 1, 20])
def test_vectors_that_do_not_vary_span_nothing(count):
    with pytest.raises(WhiteningError, match=f"{count} vectors .* do not vary"):
        whitening.fit(np.repeat(vectors(1), count, axis=0), "generated")


def test_vectors_of_other_channels_are_refused(fitted):
    with pytest.raises(ValueError, match="`vectors` must have shape"):
        fitted(vectors(3, 7))


def test_photos_under_test_are_refused_by_content():
    with pytest.raises(WhiteningError, match="2 of the 3 whitening photos"):
        refuse_test_images(["a", "b", "c", "c"], ["b", "c", "d"])
    refuse_test_images(["a"], ["b"])
    refuse_test_images([], ["b"])


def test_only_the_long_name_allows_them():
    refuse_test_images(["a"], ["a"], i_know_this_fits_whitening_on_the_test_set=True)


@pytest.mark.parametrize(("channels", "dimensions"), [(8, 5), (8, 8), (200, 150)])
def test_scaled_sums_are_sums_of_whitened_vectors(channels, dimensions):
    """Also in several blocks of columns, and with vectors of zeros and any length."""
    training = vectors(400, channels)
    fitted = whitening.fit(training, "generated").keep(dimensions)
    others = vectors(7, channels, seed=1) * 3
    others[2] = 0
    s, t = fitted.scales(others)
    expected = fitted(others).sum(axis=0)
    got = fitted.unscale((s[:, None] * others).sum(axis=0)[None], t.sum(keepdims=True))
    np.testing.assert_allclose(got[0], expected, rtol=1e-3, atol=1e-3)
    assert s[2] == t[2] == 0


# Other powers of the variances


def naive_scaled(vectors, fitted, exponent, shrinkage):
    """Whitened by eigenvectors of the covariance, one axis at a time."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    values, axes = np.linalg.eigh(np.cov(unit.T))
    order = np.argsort(-values)[: fitted.dimensions]
    mean = values.mean()
    rows = []
    for vector in unit:
        row = []
        for axis in order:
            moved = (1 - shrinkage) * values[axis] + shrinkage * mean
            row.append((vector - unit.mean(0)) @ axes[:, axis] / moved**exponent)
        rows.append(np.array(row) / np.linalg.norm(row))
    return np.array(rows)


@pytest.mark.parametrize(
    "exponent, shrinkage", [(0.5, 0.0), (0.35, 0.0), (0.0, 0.0), (0.5, 0.3), (1.0, 1.0)]
)
def test_scaled_is_the_naive_loop_up_to_the_signs_of_the_axes(exponent, shrinkage):
    vectors = np.random.default_rng(5).random((40, 6)) ** 3
    fitted = whitening.fit(vectors, "generated").keep(4)
    got = fitted.scaled(exponent, shrinkage)(vectors)
    expected = naive_scaled(vectors, fitted, exponent, shrinkage)
    np.testing.assert_allclose(got @ got.T, expected @ expected.T, atol=1e-5)


def test_the_paper_s_scaling_changes_no_bit():
    fitted = whitening.fit(np.random.default_rng(5).random((40, 6)), "generated")
    assert fitted.scaled() is fitted


@pytest.mark.parametrize("values", [(-0.1, 0), (1.1, 0), (0.5, -0.1), (0.5, 2)])
def test_a_scaling_out_of_range_is_refused(values):
    fitted = whitening.fit(np.random.default_rng(5).random((40, 6)), "generated")
    with pytest.raises(ValueError, match="must be from 0 to 1; got"):
        fitted.scaled(*values)
