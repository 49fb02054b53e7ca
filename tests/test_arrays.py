"""Shape checks and normalisation."""

import numpy as np
import pytest

from cwr_utils.arrays import check_shape, is_finite, l2_normalize, softmax, widen


def test_check_shape_returns_the_named_sizes():
    assert check_shape(np.zeros((2, 3, 4)), "H W 4", "x") == (2, 3, 4)
    assert check_shape(np.zeros((7, 2, 3)), "... H W", "x") == (2, 3)


@pytest.mark.parametrize("spec", ["3 4 C", "H W", "... A B C D"])
def test_check_shape_says_what_was_expected_and_what_came(spec):
    with pytest.raises(ValueError, match=r"`cams` must have shape .* got \(3, 3, 2\)"):
        check_shape(np.zeros((3, 3, 2)), spec, "cams")


def test_l2_normalize_leaves_a_zero_vector_zero():
    vectors = np.array([[3, 4], [0, 0]], np.float16)
    assert l2_normalize(vectors).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)],
        [0, 0],
    ]
    assert l2_normalize(vectors).dtype == np.float32


def test_softmax_by_hand():
    logits = np.log([[1.0, 3.0], [2.0, 2.0]])
    np.testing.assert_allclose(softmax(logits), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-15)
    np.testing.assert_allclose(softmax(logits[0] + 7), [0.25, 0.75], rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_softmax_of_large_logits_is_a_number(dtype):
    logits = np.array([[[6e4, 0], [-6e4, -6e4]]], dtype)
    shares = softmax(logits)
    assert shares.tolist() == [[[1, 0], [0.5, 0.5]]]
    assert shares.dtype == np.result_type(dtype, np.float32)


EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)


def test_every_finite_half_is_widened_exactly():
    finite = EVERY_HALF[np.isfinite(EVERY_HALF)].reshape(62, -1)
    wide = widen(finite)
    assert wide.dtype == np.float32
    assert wide.tobytes() == finite.astype(np.float32).tobytes()  # signs of zeros too
    columns = finite[:, ::3].T
    np.testing.assert_array_equal(widen(columns), columns.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_wide_stays_as_it_is(dtype):
    array = np.arange(3, dtype=dtype)
    assert widen(array) is array


def test_what_is_no_half_takes_numpys_wider_type():
    assert widen([1, 2]).dtype == np.float64
    assert widen(np.array([1, 2], np.uint8)).dtype == np.float32


def test_every_half_is_known_as_finite_or_not():
    for half in EVERY_HALF:
        assert is_finite(np.array([1, half, -1], np.float16)) == np.isfinite(half)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32])
def test_arrays_of_any_type_are_checked(dtype):
    assert is_finite(np.ones((2, 3), dtype)) and is_finite(np.ones((0, 3), dtype))
    if dtype != np.int32:
        assert not is_finite(np.array([[1, np.nan], [0, 0]], dtype))
