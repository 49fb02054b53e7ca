"""Re-ranking by the boxes that CAMs draw (Sec. 3.4, Fig. 3).

The query's two most probable classes say where in a database photo to look: boxes
around the largest connected element of their mean CAM, at several thresholds. Each box
is described by the query's classes; the best one is the photo's new score.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cwr_utils import pooling
from cwr_utils.aggregation import Aggregator
from cwr_utils.arrays import check_shape
from cwr_utils.backend import keras, ops
from cwr_utils.images import Cells
from cwr_utils.networks import compile_options
from cwr_utils.protocol import PRESETS, Protocol

HEAT_MAP_CLASSES = 2
MIN_CELLS = 5
BATCH = 8  # photos pooled together; 60 MiB for a 45 x 64 grid of 672 channels
REGIONS = 6  # masks a photo at least, so that few graphs serve all protocols
MOST_WAITING = 2 * BATCH  # photos that wait for others of their shape


@dataclass(frozen=True)
class Match:
    """How well a photo's best region matches the query.

    Attributes:
        score: cosine similarity; -inf if no region could be described.
        box: the region in cells (x1, y1, x2, y2), or None for the whole photo.
        descriptor: (D,) of the region; zeros if there is none.
    """

    score: float
    box: Cells | None
    descriptor: np.ndarray


def cam_boxes(
    cam,
    thresholds: Sequence[float],
    min_cells: int = MIN_CELLS,
    largest: str = "cells",
) -> list[Cells]:
    """Boxes around the largest connected element of a CAM at each threshold.

    Args:
        cam: (H, W), the mean CAM.
        thresholds: shares of the CAM's maximum.
        min_cells: boxes with a side below this many cells are left out.
        largest: see `Protocol.rerank_largest`.

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
        x, y, width, height = _largest_element(binary, largest)
        if min(width, height) >= min_cells:
            boxes.append((int(x), int(y), int(x + width), int(y + height)))
    return boxes


def threshold_boxes(cam, protocol: Protocol) -> dict[float, Cells]:
    """Threshold -> box of `cam_boxes`, under a protocol."""
    return {
        threshold: box
        for threshold in protocol.rerank_thresholds
        for box in cam_boxes(cam, [threshold], largest=protocol.rerank_largest)
    }


def _largest_element(binary, largest: str) -> Sequence[int]:
    """Box (x, y, width, height) of the largest 8-connected element."""
    if largest == "contour":
        contours, _ = cv2.findContours(
            binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        return cv2.boundingRect(max(contours, key=cv2.contourArea))
    _, _, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    # Row 0 is the background, the last column the number of cells.
    return stats[1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])][:4]


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
    return ops.convert_to_numpy(_mean_cam(cams, grid))


def _mean_cam(cams, grid: tuple[int, int]):
    mean = ops.mean(cams[..., :HEAT_MAP_CLASSES], axis=-1, keepdims=True)
    return pooling.resize_maps(mean, grid)[..., 0]


class _Cams(keras.layers.Layer):
    """CAMs of the query's classes on their own grid, and their heat map."""

    def __init__(self, grid: tuple[int, int], flip_negative: bool):
        super().__init__(trainable=False, dtype="float32")
        self._grid = grid
        self._flip_negative = flip_negative

    def call(self, cam_maps, class_weights):
        cams = pooling.class_activation_maps(cam_maps, class_weights)
        cams = pooling.normalize_cams(cams, self._flip_negative)
        return cams, _mean_cam(cams, self._grid)


class _Pool(keras.layers.Layer):
    """Class vectors of regions (Eq. 4)."""

    def __init__(self, power: float):
        super().__init__(trainable=False, dtype="float32")
        self._power = power

    def call(self, features, cams, masks):
        return pooling.class_vectors(features, cams, masks, power=self._power)


@functools.lru_cache(64)
def _compiled(layer: type, settings: tuple, *inputs: tuple) -> keras.Model:
    """A layer as a graph for inputs of (shape without batch, data type)."""
    tensors = [keras.Input(shape, dtype=dtype) for shape, dtype in inputs]
    model = keras.Model(tensors, layer(*settings)(*tensors))
    model.compile(**compile_options())
    return model


def _run(layer: type, settings: tuple, *arrays):
    """Run a layer on arrays (B, ...); every new shape is compiled once."""
    inputs = [(array.shape[1:], str(array.dtype)) for array in arrays]
    return _compiled(layer, settings, *inputs).predict_on_batch(list(arrays))


class RegionDescriber:
    """Regions of photos, drawn by a query's CAMs and described by its classes.

    Attributes:
        aggregator: from class vectors to descriptors.
        key: what a match depends on, besides the query and the photo.
    """

    def __init__(
        self,
        class_weights: np.ndarray,
        aggregator: Aggregator,
        power: float = 1.0,
        protocol: Protocol = PRESETS["corrected"],
    ):
        """Hold what all queries share.

        Args:
            class_weights: (M, C) of all classes.
            aggregator: that of the query's class vectors.
            power: exponent of the class vectors.
            protocol: the flags of re-ranking.
        """
        self.aggregator, self._class_weights = aggregator, class_weights
        self._power, self._protocol = power, protocol
        self.key = aggregator, power, protocol.of_regions

    def best(
        self,
        query: np.ndarray,
        maps: Iterable[tuple],
        classes: Sequence[int],
        count: int | None = None,
        probabilities: np.ndarray | None = None,
    ) -> list[Match]:
        """For each photo, describe every box and keep the one most like the query.

        Photos of one shape are pooled together, `BATCH` at a time, all their boxes as
        masks on the grid in one graph. A shape's photos wait until there are so many,
        or until `MOST_WAITING` of all shapes wait: then those of the commonest shape
        go on. Memory holds no more photos than that.

        Args:
            query: (D,) query descriptor from the same classes.
            maps: for each photo, features (H, W, K) and CAM maps (h, w, M).
            classes: of the query, most probable first. The first two draw the boxes.
            count: how many of them describe a region; all if None.
            probabilities: of those for the query; needed only where they weigh.

        Returns:
            The best match of each photo.
        """
        matches: dict[int, Match] = {}
        waiting: dict[tuple, dict[int, tuple]] = {}  # shapes -> number -> photo

        def match(shapes: tuple) -> None:
            photos = waiting.pop(shapes)
            described = self._regions(
                list(photos.values()), classes, count, probabilities
            )
            found = [_best(query, *regions) for regions in described]
            matches.update(zip(photos, found, strict=True))

        for number, photo in enumerate(maps):
            shapes = tuple(array.shape for array in photo)
            waiting.setdefault(shapes, {})[number] = photo
            if len(waiting[shapes]) == BATCH:
                match(shapes)
            elif sum(map(len, waiting.values())) == MOST_WAITING:
                match(max(waiting, key=lambda shapes: len(waiting[shapes])))
        for shapes in list(waiting):
            match(shapes)
        return [matches[number] for number in range(len(matches))]

    def parts(
        self,
        photo: tuple,
        classes: Sequence[int],
        box: Cells | None,
        probabilities: np.ndarray | None = None,
    ):
        """(C, D) whitened class vectors of one region, which its descriptor sums.

        Args:
            photo: features (H, W, K) and CAM maps (h, w, M).
            classes: C of them.
            box: in cells; None is the whole photo.
            probabilities: see `best`.
        """
        features, cams, _ = self._cams([photo], classes)
        vectors = self._pool(features, cams, [[box]])[0, 0]
        return self.aggregator.parts(vectors, probabilities)

    def _regions(
        self,
        photos: list[tuple],
        classes: Sequence[int],
        count: int | None,
        probabilities: np.ndarray | None,
    ) -> Iterator[tuple[list, np.ndarray]]:
        """Regions of each of some photos of one shape, and their descriptors (R, D)."""
        features, cams, heats = self._cams(photos, classes)
        boxes = [_region_boxes(heat, self._protocol) for heat in heats[: len(photos)]]
        vectors = self._pool(features, cams[..., :count], boxes)
        described = self.aggregator(vectors, probabilities)
        for regions, rows in zip(boxes, described, strict=True):
            yield regions, rows[: len(regions)]

    def _cams(self, photos: list[tuple], classes: Sequence[int]) -> tuple:
        """Features (B, H, W, K), CAMs (B, h, w, C) and heat maps (B, H, W)."""
        # A short batch is filled up: another batch size would be compiled.
        full = [*photos, *photos[-1:] * (BATCH - len(photos))]
        features, cam_maps = (np.stack(arrays) for arrays in zip(*full, strict=True))
        _, height, width, _ = check_shape(features, "B H W K", "features")
        weights = self._class_weights[:, list(classes)]
        weights = np.broadcast_to(weights, (BATCH, *weights.shape))
        settings = (height, width), self._protocol.flip_negative_cams
        return features, *_run(_Cams, settings, cam_maps, weights)

    def _pool(self, features, cams, boxes: list[list[Cells | None]]) -> np.ndarray:
        """(len(boxes), R, C, K) class vectors of the regions of each photo."""
        _, height, width, _ = features.shape
        flags = self._protocol
        most = max(REGIONS, len(flags.rerank_thresholds) + flags.rerank_fallback)
        masks = np.zeros((BATCH, most, height, width), np.float32)
        for photo, regions in enumerate(boxes):
            for number, box in enumerate(regions):
                x1, y1, x2, y2 = box or (0, 0, width, height)
                masks[photo, number, y1:y2, x1:x2] = 1
        return _run(_Pool, (self._power,), features, cams, masks)[: len(boxes)]


def _best(query, regions: list, descriptors: np.ndarray) -> Match:
    """The region that is most like the query."""
    if not regions:
        return Match(-np.inf, None, np.zeros_like(query))
    scores = descriptors @ query
    best = int(np.argmax(scores))
    return Match(float(scores[best]), regions[best], descriptors[best])


def _region_boxes(heat, protocol: Protocol) -> list:
    """Different boxes of a heat map; None stands for the whole photo."""
    boxes: list = list(dict.fromkeys(threshold_boxes(heat, protocol).values()))
    return boxes + [None] * protocol.rerank_fallback
