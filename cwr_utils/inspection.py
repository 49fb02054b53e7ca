"""One photo taken apart by class: what the explorer of class activation maps shows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cwr_utils import networks, pooling, reranking
from cwr_utils.arrays import check_shape, softmax
from cwr_utils.backend import ops
from cwr_utils.extraction import Setup
from cwr_utils.images import Box, cell_mask, cells_to_box, resize_image
from cwr_utils.protocol import Protocol


@dataclass(frozen=True)
class PhotoCams:
    """The maps of all classes of one photo, from one forward pass.

    Attributes:
        photo: (height, width, 3) uint8.
        raw: (h, w, C) float32, class activation maps before scaling (Eq. 1).
        probabilities: (C,).
        grid: (width, height) of the pooled layer's grid, in cells.
        protocol: flags of scaling and thresholds.
    """

    photo: np.ndarray
    raw: np.ndarray
    probabilities: np.ndarray
    grid: tuple[int, int]
    protocol: Protocol

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the photo."""
        return self.photo.shape[1], self.photo.shape[0]

    def top(self, count: int) -> list[int]:
        """The most probable classes, most probable first."""
        count = min(count, len(self.probabilities))
        return networks.top_classes(self.probabilities[None], count)[0].tolist()

    def maps(self, classes: Sequence[int], raw: bool = False) -> np.ndarray:
        """Maps of some classes, (h, w, len(classes)); in [0, 1] unless `raw`."""
        chosen = self.raw[..., list(classes)]
        if raw:
            return chosen
        flip = self.protocol.flip_negative_cams
        return ops.convert_to_numpy(pooling.normalize_cams(chosen, flip))

    def boxes(self, classes: Sequence[int]) -> dict[str, Box]:
        """Boxes of the mean map at each threshold, in pixels (Sec. 3.4).

        Thresholds whose box is less than five cells wide or high are left out.
        """
        width, height = self.grid
        heat = reranking.heat_map(self.maps(classes), (height, width))
        found = reranking.threshold_boxes(heat, self.protocol)
        return {
            f"{threshold:.0%}": cells_to_box(cells, self.size, self.grid)
            for threshold, cells in found.items()
        }

    def cells(self, box: Box | None) -> np.ndarray:
        """(H, W) mask of the cells that a box in pixels touches."""
        return cell_mask(box, self.size, self.grid)


def look(setup: Setup, photo: np.ndarray) -> PhotoCams:
    """Run the network over a photo and keep the maps of all classes.

    Args:
        setup: network, layer, size and flags.
        photo: (height, width, 3) uint8 RGB, of any size.
    """
    check_shape(photo, "H W 3", "photo")
    network = setup.network
    maps = network.maps(resize_image(photo, setup.policy)[None], setup.layer)
    raw = pooling.class_activation_maps(maps["cam_maps"], network.class_weights)
    return PhotoCams(
        photo,
        ops.convert_to_numpy(raw)[0],
        softmax(maps["logits"])[0],
        (maps["features"].shape[2], maps["features"].shape[1]),
        setup.protocol,
    )
