"""Class weighting (Eqs. 1-4) and the baselines, written once in `keras.ops`.

The same functions run inside a compiled graph and eagerly on NumPy arrays. Shapes are
channels last: `H W` feature grid, `h w` grid of the CAM layer, `K` channels, `M` CAM
maps, `C` classes, `R` regions. Leading axes (a batch) are carried through.

Equations are those of Jimenez et al. 2017 (BMVC) unless a docstring says otherwise.
"""

import math

import numpy as np

from cwr_utils.arrays import check_shape
from cwr_utils.backend import keras, ops

GEM_POWER = 3.0


def class_activation_maps(cam_maps, class_weights):
    """Class activation maps, not normalised (Eq. 1).

    ``CAM_c = sum_m conv_m * w_mc``. The classifier's bias is a constant per class and
    is left out; mean over cells of ``CAM_c`` plus the bias is the logit of class c.

    Args:
        cam_maps: (..., h, w, M), the maps that global average pooling averages.
        class_weights: (M, C), or (B, M, C) with the classes chosen per image.

    Returns:
        (..., h, w, C).
    """
    height, width, maps = check_shape(cam_maps, "... h w M", "cam_maps")
    *_, classes = check_shape(class_weights, f"... {maps} C", "class_weights")
    flat = ops.reshape(cam_maps, (*_lead(cam_maps, 3), height * width, maps))
    cams = ops.matmul(flat, class_weights)
    return ops.reshape(cams, (*_lead(cam_maps, 3), height, width, classes))


def normalize_cams(cams, flip_negative: bool = False):
    """Scale each CAM to [0, 1]: divide by its maximum, clip negatives (Sec. 3.1).

    A map without any positive value says nothing for its class and becomes all zero.

    Args:
        cams: (..., h, w, C).
        flip_negative: the authors' code divides by the maximum whatever its sign, so
            that an all-negative map turns into values >= 1 with its least relevant
            cells weighing most. True reproduces that.

    Returns:
        (..., h, w, C), in [0, 1] unless `flip_negative`.
    """
    peak = ops.max(cams, axis=(-3, -2), keepdims=True)
    usable = peak != 0 if flip_negative else peak > 0
    # An unusable map is divided by infinity: two passes over the maps in all.
    # An operator between a NumPy array and a tensor fails on some backends.
    return ops.maximum(ops.divide(cams, ops.where(usable, peak, np.inf)), 0)


def resize_maps(maps, grid: tuple[int, int]):
    """Bilinear resize of maps to a grid, as two small matrix products.

    Args:
        maps: (..., h, w, C).
        grid: (H, W) of the result.

    Returns:
        (..., H, W, C). Values stay within the range of `maps`.
    """
    height, width, _ = check_shape(maps, "... h w C", "maps")
    if (height, width) == tuple(grid):
        return maps
    rows = ops.convert_to_tensor(_bilinear_matrix(height, grid[0]), maps.dtype)
    columns = ops.convert_to_tensor(_bilinear_matrix(width, grid[1]), maps.dtype)
    return ops.einsum("Yy,Xx,...yxc->...YXc", rows, columns, maps)


def channel_weights(features, masks=None):
    """Weight of each channel by how rarely it fires (Eqs. 2 and 3).

    ``Q_k`` is the share of the region's cells where channel k is > 0, and
    ``CW_k = log(sum_n Q_n / Q_k)``. A channel that never fires weighs 0.

    Args:
        features: (..., H, W, K), activations of the pooled layer.
        masks: (..., R, H, W) of 0 and 1, or None for the whole grid.

    Returns:
        (..., K), or (..., R, K) with masks. A region without cells gives zeros.
    """
    active = ops.cast(features > 0, features.dtype)
    # The number of cells in the region cancels in the ratio of Eq. 3.
    counts = _sum_cells(active, masks)
    total = ops.sum(counts, axis=-1, keepdims=True)
    alive = counts > 0
    ratio = ops.where(alive, total / ops.where(alive, counts, 1.0), 1.0)
    return ops.log(ratio)


def class_vectors(features, cams, masks=None, power: float = 1.0):
    """Pool an image, or regions of it, into one vector per class (Eq. 4).

    ``f_k^c = CW_k * (sum_ij X_ijk^p * CAM_ijc)^(1/p)``, with CW from Eq. 3 inside the
    same region; p = 1 is the paper. Rows are not normalised.

    CAMs may stay on their own coarser grid: the bilinear resize of Sec. 3.1 is linear,
    so features are brought to the CAM grid with its transpose. The result is the same
    and the product over all classes gets cheaper by the ratio of the two grids.

    Args:
        features: (..., H, W, K), non-negative activations of the pooled layer.
        cams: (..., h, w, C), scaled to [0, 1].
        masks: (..., R, H, W) of 0 and 1, or None for the whole grid.
        power: exponent p of the weighted generalised mean; > 1 favours strong cells.

    Returns:
        (..., C, K), or (..., R, C, K) with masks; an all-zero map gives a zero row.

    Raises:
        ValueError: if a rank or the grids disagree.
    """
    height, width, channels = check_shape(features, "... H W K", "features")
    rows, columns, classes = check_shape(cams, "... h w C", "cams")
    powered = _power(features, power)
    lead = _lead(features, 3)
    if masks is None:
        powered = _to_coarser_grid(powered, (rows, columns))
        left = ops.reshape(cams, (*lead, rows * columns, classes))
        right = ops.reshape(powered, (*lead, rows * columns, channels))
        pooled = ops.matmul(ops.swapaxes(left, -1, -2), right)
    else:
        regions, *_ = check_shape(masks, f"... R {height} {width}", "masks")
        cams = ops.moveaxis(resize_maps(cams, (height, width)), -1, -3)
        weights = ops.expand_dims(masks, -3) * ops.expand_dims(cams, -4)
        left = ops.reshape(weights, (*lead, regions * classes, height * width))
        right = ops.reshape(powered, (*lead, height * width, channels))
        pooled = ops.reshape(
            ops.matmul(left, right), (*lead, regions, classes, channels)
        )
    if power != 1.0:
        pooled = _power(ops.maximum(pooled, 0), 1.0 / power)
    return pooled * ops.expand_dims(channel_weights(features, masks), -2)


def sum_pool(features, masks=None):
    """Sum over cells: the paper's "raw features"; SPoC without its centre prior.

    Args:
        features: (..., H, W, K).
        masks: (..., R, H, W) of 0 and 1, or None for the whole grid.

    Returns:
        (..., K) or (..., R, K). Babenko and Lempitsky, ICCV 2015.
    """
    return _sum_cells(features, masks)


def max_pool(features, masks=None):
    """Maximum over cells (MAC, Tolias et al., ICLR 2016).

    Args:
        features: (..., H, W, K).
        masks: (..., R, H, W) of 0 and 1, or None for the whole grid.

    Returns:
        (..., K) or (..., R, K). A region without cells gives the dtype's lowest value.
    """
    if masks is None:
        return ops.max(features, axis=(-3, -2))
    inside = ops.expand_dims(masks, -1) > 0
    lowest = float(np.finfo(keras.backend.standardize_dtype(features.dtype)).min)
    return ops.max(ops.where(inside, ops.expand_dims(features, -4), lowest), (-3, -2))


def gem_pool(features, masks=None, power: float = GEM_POWER):
    """Generalised-mean pooling (Radenovic et al., TPAMI 2019), negatives set to zero.

    Args:
        features: (..., H, W, K).
        masks: (..., R, H, W) of 0 and 1, or None for the whole grid.
        power: exponent p; 1 is the mean, infinity the maximum.

    Returns:
        (..., K) or (..., R, K).
    """
    sums = _sum_cells(_power(ops.maximum(features, 0), power), masks)
    if masks is None:
        cells = features.shape[-3] * features.shape[-2]
    else:
        cells = ops.maximum(ops.sum(masks, axis=(-2, -1)), 1)[..., None]
    return _power(sums / cells, 1.0 / power)


def crow_pool(features, masks=None):
    """Cross-dimensional weighting (CroW, Kalantidis et al., ECCVW 2016).

    Spatial weights ``(S / ||S||_2)^(1/2)`` with S the sum over channels, times the
    channel weights of Eq. 3 (CroW's own have a small epsilon that we leave out).

    Args:
        features: (..., H, W, K), non-negative.
        masks: (..., R, H, W) of 0 and 1, or None for the whole grid.

    Returns:
        (..., K) or (..., R, K).
    """
    saliency = ops.maximum(ops.sum(features, axis=-1), 0)  # (..., H, W)
    if masks is not None:
        saliency = ops.multiply(ops.expand_dims(saliency, -3), masks)
    norm = ops.sqrt(ops.sum(saliency**2, axis=(-2, -1), keepdims=True))
    spatial = ops.sqrt(saliency / ops.where(norm > 0, norm, 1.0))
    subscripts = "...rhw,...hwk->...rk" if masks is not None else "...hw,...hwk->...k"
    pooled = ops.einsum(subscripts, spatial, features)
    return pooled * channel_weights(features, masks)


def rmac_regions(height: int, width: int, levels: int = 3) -> np.ndarray:
    """Square regions of R-MAC on a feature grid (Tolias et al., ICLR 2016, Sec. 3.2).

    Level l has regions of side ``2 min(H, W) / (l + 1)``, l of them along the short
    side and ``l + m - 1`` along the long side, evenly spread; m, found at level 1, is
    the number whose overlap of neighbours comes nearest to 40 %.

    Args:
        height: cells of the grid.
        width: cells of the grid.
        levels: number of scales L.

    Returns:
        (R, 4) integer boxes (x1, y1, x2, y2) in cells, exclusive end, without repeats.
    """
    short, long = sorted((height, width))
    extra = 0
    if long > short:
        steps = np.arange(1, 7)
        overlap = 1 - (long - short) / steps / short
        extra = int(steps[np.argmin(np.abs(overlap - 0.4))])
    boxes = []
    for level in range(1, levels + 1):
        side = max(1, math.floor(2 * short / (level + 1)))
        along_short = _spread(short - side, level)
        along_long = _spread(long - side, level + extra)
        for a in along_short:
            for b in along_long:
                x, y = (b, a) if width >= height else (a, b)
                boxes.append((x, y, x + side, y + side))
    return np.array(list(dict.fromkeys(boxes)))


def pool_regions(features, boxes, pool):
    """Pool each of a fixed list of boxes, as R-MAC does.

    Args:
        features: (..., H, W, K).
        boxes: (R, 4) integer cells (x1, y1, x2, y2), known before the graph is built.
        pool: a function of features only, for example `max_pool` or `gem_pool`.

    Returns:
        (..., R, K).
    """
    pooled = [
        pool(features[..., int(y1) : int(y2), int(x1) : int(x2), :])
        for x1, y1, x2, y2 in boxes
    ]
    return ops.stack(pooled, axis=-2)


def pool(features, cams, *, box=None, power: float = 1.0, region_cams=None) -> dict:
    """Everything the store keeps of one image or region, l2-normalised.

    Args:
        features: (..., H, W, K), activations of the pooled layer for the full image.
        cams: (..., h, w, C), normalised over the full image.
        box: integer cells (x1, y1, x2, y2) of the region, or None for the whole grid.
        power: exponent of `class_vectors`.
        region_cams: (..., h, w, n) CAMs by which every region of R-MAC is pooled too.

    Returns:
        Dictionary with `class_vectors` (..., C, K), `globals` (..., 5, K) in the order
        of `names.GLOBAL_POOLINGS`, `regions` (..., 3, R, K) of R-MAC in the order of
        `names.REGION_POOLINGS` ("mean" is the generalised mean with `power`, so that
        regions and CAMs can be compared at the same exponent), `region_vectors` (...,
        R, n, K) if there are `region_cams`, and `empty_cams` (...), the number of
        classes whose map has no positive value.
    """
    height, width, _ = check_shape(features, "... H W K", "features")
    peak = ops.max(cams, axis=(-3, -2))
    if box is not None:
        x1, y1, x2, y2 = (int(cell) for cell in box)
        grid = height, width
        cams = resize_maps(cams, grid)[..., y1:y2, x1:x2, :]
        if region_cams is not None:
            region_cams = resize_maps(region_cams, grid)[..., y1:y2, x1:x2, :]
        features = features[..., y1:y2, x1:x2, :]
        height, width = y2 - y1, x2 - x1
    raw = sum_pool(features)
    pooled = [
        raw,
        raw * channel_weights(features),
        max_pool(features),
        gem_pool(features),
        crow_pool(features),
    ]
    boxes = rmac_regions(height, width)
    # Regions overlap: a product with their masks raises each cell to its power once.
    masks = np.zeros((len(boxes), height, width), np.float32)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    masks = ops.convert_to_tensor(masks)
    vectors = {
        "class_vectors": class_vectors(features, cams, power=power),
        "globals": ops.stack(pooled, axis=-2),
        "regions": ops.stack(
            [
                pool_regions(features, boxes, max_pool),
                gem_pool(features, masks),
                gem_pool(features, masks, power),
            ],
            axis=-3,
        ),
    }
    if region_cams is not None:
        vectors["region_vectors"] = class_vectors(features, region_cams, masks, power)
    vectors = {name: _l2(value) for name, value in vectors.items()}
    vectors["empty_cams"] = ops.sum(ops.cast(peak <= 0, "int32"), axis=-1)
    return vectors


def _lead(array, axes: int) -> tuple:
    """Leading axes for a reshape, with the batch axis left open."""
    lead = array.shape[: len(array.shape) - axes]
    return (-1,) if len(lead) == 1 else tuple(lead)


def _power(values, exponent: float):
    """``values ** exponent``; the usual exponents without the slow general power."""
    if exponent == 1.0:
        return values
    if exponent == 0.5:
        return ops.sqrt(values)
    if exponent in (2.0, 3.0):
        return values * values if exponent == 2.0 else values * values * values
    return values**exponent


def _sum_cells(values, masks):
    """Sum (..., H, W, K) over cells, or over the cells of (..., R, H, W) masks."""
    if masks is None:
        return ops.sum(values, axis=(-3, -2))
    height, width, channels = check_shape(values, "... H W K", "features")
    regions, *_ = check_shape(masks, f"... R {height} {width}", "masks")
    lead = _lead(values, 3)
    flat_masks = ops.reshape(masks, (*lead, regions, height * width))
    flat_values = ops.reshape(values, (*lead, height * width, channels))
    return ops.matmul(ops.cast(flat_masks, flat_values.dtype), flat_values)


def _to_coarser_grid(features, grid):
    """Apply the transpose of the bilinear resize from `grid` to the feature grid."""
    height, width, _ = check_shape(features, "... H W K", "features")
    if (height, width) == tuple(grid):
        return features
    rows = ops.convert_to_tensor(_bilinear_matrix(grid[0], height), features.dtype)
    columns = ops.convert_to_tensor(_bilinear_matrix(grid[1], width), features.dtype)
    return ops.einsum("Yy,Xx,...YXk->...yxk", rows, columns, features)


def _bilinear_matrix(size: int, new_size: int) -> np.ndarray:
    """(new_size, size) weights of a half-pixel-centred bilinear resize."""
    position = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    position = np.clip(position, 0, size - 1)
    low = np.minimum(np.floor(position).astype(int), max(size - 2, 0))
    high = np.minimum(low + 1, size - 1)
    share = position - low
    matrix = np.zeros((new_size, size), np.float32)
    np.add.at(matrix, (np.arange(new_size), low), 1 - share)
    np.add.at(matrix, (np.arange(new_size), high), share)
    return matrix


def _spread(slack: int, count: int) -> list[int]:
    """`count` integer offsets spread evenly over 0..slack."""
    if count == 1:
        return [slack // 2]
    return [math.floor(index * slack / (count - 1)) for index in range(count)]


def _l2(vectors):
    norms = ops.sqrt(ops.sum(vectors**2, axis=-1, keepdims=True))
    return vectors / ops.where(norms > 0, norms, 1.0)
