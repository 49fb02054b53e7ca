"""A photo, or a region of it, to the arrays of a store."""

import threading
from collections.abc import Callable, Iterable
from functools import lru_cache

import cv2
import numpy as np

from cwr_utils import pooling
from cwr_utils.arrays import softmax
from cwr_utils.backend import keras, ops, predictor
from cwr_utils.extraction.conf import MOST_TOP_CLASSES, Setup
from cwr_utils.images import (
    Box,
    Cells,
    box_to_cells,
    crop_image,
    resize_image,
    scale_image,
)
from cwr_utils.names import GLOBAL_POOLINGS, REGION_POOLINGS
from cwr_utils.networks import compile_options, top_classes
from cwr_utils.store import ArraySpec, Store


class _Vectors(keras.layers.Layer):
    """CAMs and pooled vectors inside the graph: Eqs. 1-4 and the baselines."""

    def __init__(self, setup: Setup):
        # Sums over a large grid overflow float16, whatever the global policy is.
        super().__init__(trainable=False, dtype="float32")
        weights = setup.network.class_weights
        self._weights = self.add_weight(
            shape=weights.shape, initializer="zeros", name="class_weights"
        )
        self._weights.assign(weights)
        self._classes, self._power = setup.classes, setup.power
        self._flip, self._dtype = setup.protocol.flip_negative_cams, setup.dtype
        self._region_classes = setup.region_classes
        self._left_out = () if setup.baselines else ("globals", "regions")

    def call(self, maps: dict) -> dict:
        chosen, cams, region_cams = {}, None, None
        if self._classes is None:
            cams = self._cams(maps, self._weights)
        else:
            chosen["top_classes"], cams = self._top_cams(maps, self._classes)
        if self._region_classes:
            _, region_cams = self._top_cams(maps, self._region_classes)
        described = pooling.pool(
            maps["features"], cams, power=self._power, region_cams=region_cams
        )
        # As stored: half the bytes leave the device, and NumPy casts slowly.
        for name in described.keys() & {"class_vectors", "region_vectors"}:
            chosen[name] = ops.cast(described[name], self._dtype)
        for name in self._left_out:
            del described[name]
        return {**described, **chosen, "logits": maps["logits"]}

    def _top_cams(self, maps: dict, count: int) -> tuple:
        """(B, count) most probable classes of each photo, and their CAMs."""
        top = ops.top_k(maps["logits"], count)[1]
        weights = ops.take(ops.transpose(self._weights), top, axis=0)
        return top, self._cams(maps, ops.swapaxes(weights, 1, 2))

    def _cams(self, maps: dict, weights):
        cams = pooling.class_activation_maps(maps["cam_maps"], weights)
        return pooling.normalize_cams(cams, self._flip)


class Describer:
    """A network's graph from photos of one size to the arrays of the store.

    One graph for each size that occurs, compiled at its first use and kept.
    """

    def __init__(self, setup: Setup):
        """Nothing is compiled yet."""
        self.setup = setup
        self._maps_model = setup.network.maps_model(setup.layer)
        self._vectors = _Vectors(setup)
        self._graphs: dict[tuple[int, int], keras.Model] = {}
        self._predict: dict[tuple[int, int], Callable] = {}
        self._lock = threading.Lock()
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the feature grid for an input of (width, height) pixels."""
        if size not in self._grids:
            self.setup.network.check_size(*size)
            shapes = self._maps_model.compute_output_shape((1, size[1], size[0], 3))
            self._grids[size] = tuple(shapes["features"][1:3])
        return self._grids[size]

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Describe a batch of resized photos.

        Args:
            images: (B, H, W, 3) uint8 RGB.

        Returns:
            The arrays of `pooling.pool`, class vectors in the type of the store,
            and `logits` (B, C).
        """
        size = images.shape[1:3]
        with self._lock:  # two passes may be the first ones of a size
            if size not in self._graphs:
                inputs = keras.Input((*size, 3), dtype="uint8")
                graph = keras.Model(inputs, self._vectors(self._maps_model(inputs)))
                graph.compile(**compile_options())
                self._graphs[size], self._predict[size] = graph, predictor(graph)
                return self._predict[size](images)  # which compiles
        return self._predict[size](images)

    def describe_query(
        self, photo: np.ndarray, box: Box | None
    ) -> dict[str, np.ndarray]:
        """Describe the query region of a photo (Sec. 3.3).

        The classes come from a pass of their own over the cropped region (or see
        `Protocol.query_classes`), features and CAMs from the full photo; CAMs are
        normalised over the full photo and then cut. Without a box the photo passes
        through the graph of the collection's photos.

        Args:
            photo: (height, width, 3) uint8 RGB, as decoded.
            box: (x1, y1, x2, y2) in pixels of the photo, or None for all of it.

        Returns:
            As `__call__`, without the batch axis: of all classes, if the setup keeps
            them (`Setup.of_queries`). Class vectors of a box are float32.
        """
        setup, network = self.setup, self.setup.network
        resized = resize_image(photo, setup.policy)
        if box is None:
            return {name: array[0] for name, array in self(resized[None]).items()}
        maps = network.maps(resized[None], setup.layer)
        cams = pooling.class_activation_maps(maps["cam_maps"], network.class_weights)
        cams = pooling.normalize_cams(cams, setup.protocol.flip_negative_cams)
        logits = self._query_logits(photo, box, maps["cam_maps"])
        grid = maps["features"].shape[2], maps["features"].shape[1]
        cells = self.query_cells(box, (photo.shape[1], photo.shape[0]), grid)
        region_cams = None
        if setup.region_classes:
            own = top_classes(logits, setup.region_classes)[0]
            region_cams = ops.take(cams, own, axis=-1)
        described = pooling.pool(
            maps["features"],
            cams,
            box=cells,
            power=setup.power,
            region_cams=region_cams,
        )
        arrays = {k: ops.convert_to_numpy(v)[0] for k, v in described.items()}
        return {**arrays, "logits": logits[0]}

    def query_cells(
        self, box: Box, size: tuple[int, int], grid: tuple[int, int]
    ) -> Cells:
        """Cells of a query box; see `scale_query_box`, `keep_partial_cells`.

        Args:
            box: (x1, y1, x2, y2) in pixels of the photo.
            size: (width, height) of the photo.
            grid: (width, height) of the feature grid.

        Returns:
            (x1, y1, x2, y2), exclusive end.
        """
        partial = self.setup.protocol.keep_partial_cells
        if self.setup.protocol.scale_query_box:
            return box_to_cells(box, size, grid, partial)
        width, height = self.setup.policy.target_size(*size)
        # What lies beyond the resized photo is cut off, as array slices do.
        x1, y1, x2, y2 = box
        box = min(x1, width - 1), min(y1, height - 1), min(x2, width), min(y2, height)
        return box_to_cells(box, (width, height), grid, partial)

    def _query_logits(self, photo: np.ndarray, box: Box, cam_maps) -> np.ndarray:
        """(1, C) of the query region; see `Protocol.query_classes`."""
        network = self.setup.network
        if self.setup.protocol.query_classes != "same pass":
            crop = self._crop(photo, box)
            return network.maps(crop[None], self.setup.layer)["logits"]
        _, rows, columns, _ = cam_maps.shape
        size = photo.shape[1], photo.shape[0]
        x1, y1, x2, y2 = self.query_cells(box, size, (columns, rows))
        mean = cam_maps[:, y1:y2, x1:x2].mean(axis=(1, 2))
        return mean @ network.class_weights + network.class_bias

    def _crop(self, photo: np.ndarray, box: Box) -> np.ndarray:
        """(h, w, 3) query region at the scale of the resized photo, or its own."""
        crop = crop_image(photo, box)
        height, width = crop.shape[:2]
        least = self.setup.network.smallest_input
        if self.setup.protocol.query_classes == "native crop":
            sides = [max(least, side // 16 * 16) for side in (width, height)]
            return cv2.resize(crop, sides, interpolation=cv2.INTER_AREA)
        target = self.setup.policy.target_size(photo.shape[1], photo.shape[0])
        scales = target[0] / photo.shape[1], target[1] / photo.shape[0]
        if (width, height) == photo.shape[1::-1]:  # to the pixel the photo itself
            return scale_image(crop, target)
        sides = [
            max(least, round(side * scale / 16) * 16)
            for side, scale in zip((width, height), scales, strict=True)
        ]
        return scale_image(crop, (sides[0], sides[1]))


@lru_cache(maxsize=4)
def describer_of(setup: Setup) -> Describer:
    """The describer of a setup, the same for photos, queries and whitening photos.

    To compile a graph takes as long as a dozen photos.
    """
    return Describer(setup)


def most_regions(grids: Iterable[tuple[int, int]]) -> int:
    """R-MAC regions of the grid (H, W) that has the most."""
    return max(len(pooling.rmac_regions(*grid)) for grid in grids)


def array_specs(setup: Setup, regions: int) -> dict[str, ArraySpec]:
    """Arrays of a store; `class_vectors`, the largest, is written last."""
    classes, channels = len(setup.network.class_names), setup.channels
    kept, dtype = setup.classes or classes, setup.dtype
    top = setup.classes or min(classes, MOST_TOP_CLASSES)
    pooled, by_region = {}, {}
    if setup.baselines:
        pooled = {
            "globals": ArraySpec((len(GLOBAL_POOLINGS), channels), dtype),
            "regions": ArraySpec((len(REGION_POOLINGS), regions, channels), dtype),
        }
    if setup.region_classes:
        shape = regions, setup.region_classes, channels
        by_region["region_vectors"] = ArraySpec(shape, dtype)
    return {
        "top_classes": ArraySpec((top,), "int32"),
        "probabilities": ArraySpec((classes,), "float32"),
        "empty_cams": ArraySpec((), "int32"),
        **pooled,
        **by_region,
        "class_vectors": ArraySpec((kept, channels), dtype, by_row=True),
    }


def finish(described: dict, store: Store) -> dict[str, np.ndarray]:
    """Arrays of the store from those of the graph, R-MAC regions padded with zeros."""
    logits = described["logits"]
    arrays = {name: described[name] for name in described if store.has(name)}
    arrays["probabilities"] = softmax(logits)
    if "top_classes" not in arrays:
        arrays["top_classes"] = top_classes(logits, store.shape("top_classes")[0])
    for name, axis in (("regions", 2), ("region_vectors", 1)):
        if name in arrays:
            padding = store.shape(name)[axis - 1] - arrays[name].shape[axis]
            widths = [(0, padding * (a == axis)) for a in range(arrays[name].ndim)]
            arrays[name] = np.pad(arrays[name], widths)
    return arrays
