"""Shape checks with named axes, and l2 normalisation."""

import numpy as np


def check_shape(array, spec: str, name: str) -> tuple:
    """Check an array's shape against named axes and return it.

    Args:
        array: anything with a `shape`.
        spec: axes separated by spaces. A number must match exactly, a letter matches
            any size, and a leading ``...`` any number of leading axes.
        name: what the error calls the array.

    Returns:
        The sizes of the named axes, in the order of `spec` (None where unknown).

    Raises:
        ValueError: if the rank or a given number disagrees.
    """
    shape = tuple(array.shape)
    axes = spec.split()
    open_ended = axes[0] == "..."
    axes = axes[1:] if open_ended else axes
    tail = shape[len(shape) - len(axes) :] if len(shape) >= len(axes) else ()
    fits = len(tail) == len(axes) and (open_ended or len(shape) == len(axes))
    fits = fits and all(
        not axis.isdigit() or size is None or int(axis) == size
        for axis, size in zip(axes, tail, strict=True)
    )
    if not fits:
        expected = ", ".join((["..."] if open_ended else []) + axes)
        got = ", ".join(map(str, shape))
        raise ValueError(f"`{name}` must have shape ({expected}); got ({got}).")
    return tail


def l2_normalize(vectors, axis: int = -1) -> np.ndarray:
    """Scale vectors to unit Euclidean length; a zero vector stays zero, never NaN.

    Args:
        vectors: (..., D) array; float16 is computed and returned as float32.
        axis: the axis that holds a vector's components.

    Returns:
        Array of the same shape, float32 or wider.
    """
    vectors = np.asarray(vectors)
    vectors = vectors.astype(np.result_type(vectors.dtype, np.float32), copy=False)
    norms = np.linalg.norm(vectors, axis=axis, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
