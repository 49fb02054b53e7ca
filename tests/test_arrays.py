"""Shape checks and normalisation."""

import numpy as np
import pytest

from cwr_utils.arrays import check_shape, l2_normalize


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
