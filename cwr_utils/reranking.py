"""Re-ranking by the boxes that CAMs draw (Sec. 3.4, Fig. 3).

The query's two most probable classes say where in a database photo to look: boxes
around the largest connected element of their mean CAM, at several thresholds. Each box
is described by the query's classes; the best one is the photo's new score.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cwr_utils import pooling
from cwr_utils.arrays import check_shape, l2_normalize
from cwr_utils.backend import ops
from cwr_utils.protocol import PRESETS, Protocol
from cwr_utils.whitening import Whitening

HEAT_MAP_CLASSES = 2
MIN_CELLS = 5
BATCH = 16  # photos pooled together; 130 MiB for a 45 x 64 grid of 672 channels


@dataclass(frozen=True)
class Match:
    """How well a photo's best region matches the query.

    Attributes:
        score: cosine similarity; -inf if no region could be described.
        box: the region in cells (x1, y1, x2, y2), or None for the whole photo.
        descriptor: (D,) of the region; zeros if there is none.
    """

    score: float
    box: tuple[int, int, int, int] | None
    descriptor: np.ndarray


def cam_boxes(
    cam, thresholds: Sequence[float], min_cells: int = MIN_CELLS
) -> list[tuple[int, int, int, int]]:
    """Boxes around the largest connected element of a CAM at each threshold.

    Deviation: "largest" counts cells, as the paper says; the authors' code takes the
    area inside the contour, which is zero for a shape one cell thin.

    Args:
        cam: (H, W), the mean CAM.
        thresholds: shares of the CAM's maximum.
        min_cells: boxes with a side below this many cells are left out.

    Returns:
        Boxes in cells (x1, y1, x2, y2), exclusive end, in the order of the thresholds;
        empty where the CAM has no positive value.
    """
    check_shape(cam, "H W", "cam")
    cam = np.asarray(cam, np.float32)
    if cam.max() <= 0:
        return []
    boxes = []
    for threshold in thresholds:
        binary = (cam >= threshold * cam.max()).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
        # Row 0 is the background.
        x, y, width, height, _ = stats[1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])]
        if min(width, height) >= min_cells:
            boxes.append((int(x), int(y), int(x + width), int(y + height)))
    return boxes


def query_cams(cam_maps, class_weights, classes: Sequence[int], flip_negative=False):
    """Normalised CAMs of a query's classes on a photo.

    Args:
        cam_maps: (h, w, M).
        class_weights: (M, C).
        classes: the query's classes, most probable first.
        flip_negative: see `Protocol`.

    Returns:
        (h, w, len(classes)) float32 in [0, 1].
    """
    cam_maps = np.asarray(cam_maps, np.float32)
    cams = pooling.class_activation_maps(cam_maps, class_weights[:, list(classes)])
    return pooling.normalize_cams(cams, flip_negative)


def heat_map(cams, grid: tuple[int, int]) -> np.ndarray:
    """Mean CAM of the query's two most probable classes on the feature grid.

    Args:
        cams: (..., h, w, C) from `query_cams`.
        grid: (H, W).

    Returns:
        (..., H, W) float32.
    """
    mean = ops.mean(cams[..., :HEAT_MAP_CLASSES], axis=-1, keepdims=True)
    return ops.convert_to_numpy(pooling.resize_maps(mean, grid))[..., 0]


def best_regions(
    query,
    maps: Iterable[tuple],
    whitening: Whitening,
    protocol: Protocol = PRESETS["corrected"],
    power: float = 1.0,
) -> list[Match]:
    """For each photo, describe every box and keep the one most like the query.

    Photos whose grids are equal are pooled together, `BATCH` at a time.

    Args:
        query: (D,) query descriptor from the same classes.
        maps: for each photo, features (H, W, K) and cams (h, w, C) from `query_cams`.
        whitening: that of the query's class vectors.
        protocol: thresholds, and whether the whole photo is a region too.
        power: exponent of the class vectors.

    Returns:
        The best match of each photo.
    """
    matches: list[Match] = []
    batch: list[tuple] = []
    for features, cams in maps:
        if batch and (
            len(batch) == BATCH
            or features.shape != batch[0][0].shape
            or cams.shape != batch[0][1].shape
        ):
            matches += _best_of_batch(query, batch, whitening, protocol, power)
            batch = []
        batch.append((features, cams))
    if batch:
        matches += _best_of_batch(query, batch, whitening, protocol, power)
    return matches


def _best_of_batch(query, batch, whitening, protocol, power) -> list[Match]:
    """`best_regions` of photos whose arrays have equal shapes."""
    features = np.stack([photo for photo, _ in batch]).astype(np.float32)
    cams = np.stack([ops.convert_to_numpy(maps) for _, maps in batch])
    _, height, width, _ = check_shape(features, "B H W K", "features")
    boxes = [_region_boxes(heat, protocol) for heat in heat_map(cams, (height, width))]
    most = max(map(len, boxes))
    if not most:
        nothing = np.zeros(whitening.dimensions, np.float32)
        return [Match(-np.inf, None, nothing) for _ in batch]
    masks = np.zeros((len(batch), most, height, width), np.float32)
    for photo, regions in enumerate(boxes):
        for number, box in enumerate(regions):
            x1, y1, x2, y2 = box or (0, 0, width, height)
            masks[photo, number, y1:y2, x1:x2] = 1
    vectors = pooling.class_vectors(features, cams, masks, power=power)
    whitened = whitening(ops.convert_to_numpy(vectors))
    descriptors = l2_normalize(whitened.sum(axis=2))
    scores = descriptors @ query
    matches = []
    for photo, regions in enumerate(boxes):
        scores[photo, len(regions) :] = -np.inf  # padding
        best = int(np.argmax(scores[photo]))
        box = regions[best] if regions else None
        found = descriptors[photo, best] if regions else np.zeros_like(query)
        matches.append(Match(float(scores[photo, best]), box, found))
    return matches


def _region_boxes(heat, protocol: Protocol) -> list:
    """Different boxes of a heat map; None stands for the whole photo."""
    boxes: list = list(dict.fromkeys(cam_boxes(heat, protocol.rerank_thresholds)))
    return boxes + [None] * protocol.rerank_fallback
