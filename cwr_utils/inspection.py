"""One photo, or one pair of photos, taken apart by class: what the explorers show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cwr_utils import aggregation, networks, pooling, reranking
from cwr_utils.arrays import check_shape
from cwr_utils.backend import ops
from cwr_utils.images import Box, ResizePolicy, cell_mask, cells_to_box, resize_image
from cwr_utils.networks import CamNetwork
from cwr_utils.protocol import PRESETS, Protocol
from cwr_utils.retrieval import Method, Result, Retrieval

OTHER_PAIRS = "pairs of different classes"

# A descriptor as a sum over classes: class number -> (D,).
Parts = dict[int, np.ndarray]


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
    protocol: Protocol = PRESETS["corrected"]

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
        return {
            f"{threshold:.0%}": cells_to_box(cells, self.size, self.grid)
            for threshold in self.protocol.rerank_thresholds
            for cells in reranking.cam_boxes(
                heat, [threshold], largest=self.protocol.rerank_largest
            )
        }

    def cells(self, box: Box | None) -> np.ndarray:
        """(H, W) mask of the cells that a box in pixels touches."""
        return cell_mask(box, self.size, self.grid)


def look(
    network: CamNetwork,
    photo: np.ndarray,
    layer: str | None = None,
    resize: str = "640x480",
    protocol: Protocol = PRESETS["corrected"],
) -> PhotoCams:
    """Run the network over a photo and keep the maps of all classes.

    Args:
        network: the CAM network.
        photo: (height, width, 3) uint8 RGB, of any size.
        layer: whose grid boxes are laid on; the network's default if None.
        resize: see `ResizePolicy.parse`.
        protocol: flags of scaling and thresholds.
    """
    check_shape(photo, "H W 3", "photo")
    resized = resize_image(photo, ResizePolicy.parse(resize))
    maps = network.maps(resized[None], layer)
    raw = pooling.class_activation_maps(maps["cam_maps"], network.class_weights)
    return PhotoCams(
        photo,
        ops.convert_to_numpy(raw)[0],
        ops.convert_to_numpy(ops.softmax(maps["logits"]))[0],
        (maps["features"].shape[2], maps["features"].shape[1]),
        protocol,
    )


def contributions(query: Parts, image: Parts) -> tuple[dict[int, float], float]:
    """A cosine similarity, class by class.

    Descriptors are sums over classes, so their product is a sum over pairs of classes:
    ``q . d = sum_c q_c . d_c + sum_{c != c'} q_c . d_c'``.

    Args:
        query: parts that add up to the query's descriptor.
        image: parts that add up to the image's descriptor.

    Returns:
        ``q_c . d_c`` for each class that both have, and the sum over all other pairs.
    """
    if not query or not image:
        return {}, 0.0
    same = {c: float(query[c] @ image[c]) for c in query if c in image}
    whole = [np.sum(list(parts.values()), axis=0) for parts in (query, image)]
    return same, float(whole[0] @ whole[1]) - sum(same.values())


def class_contributions(
    stores: Retrieval, result: Result, number: int, image: str
) -> pd.DataFrame:
    """What each class adds to the score of an image.

    With re-ranking, the score is that of the best region. With query expansion, the
    query is a sum of descriptors, whose parts add up class by class. (Under
    `rerank_moves_index="run"` only for a result of one query: earlier queries would
    have changed the index.)

    Args:
        stores: where the result comes from.
        result: of a class aggregation; of others only the last row comes.
        number: of the query.
        image: name of an image of the database.

    Returns:
        Columns class (number), name and contribution, the largest first; the last row
        (class -1) has the pairs of different classes, and the rounding of descriptors
        to half precision. The column adds up to the score.
    """
    query = stores.dataset.queries[number]
    rank = result.rankings[query.name].index(image)
    score = float(result.scores[query.name][rank])
    same: dict[int, float] = {}
    if result.method.by_class:
        same, _ = contributions(*_both_parts(stores, result, number, image))
    names = stores.require_maps().network.class_names
    order = sorted(same, key=lambda c: -same[c])
    rows = [(c, names[c], same[c]) for c in order]
    rows.append((-1, OTHER_PAIRS, score - sum(same.values())))
    return pd.DataFrame(rows, columns=["class", "name", "contribution"])


def _both_parts(
    stores: Retrieval, result: Result, number: int, image: str
) -> tuple[Parts, Parts]:
    """Parts of the query's and the image's descriptor, as the score compared them."""
    method, query = result.method, stores.dataset.queries[number]
    matches = result.matches[query.name]
    flags = stores.protocol

    def indexed(name: str) -> Parts:
        if name in matches and flags.rerank_moves_index != "no":
            return _region_parts(stores, method, number, name, matches[name])
        return _image_parts(stores, method, number, name)

    own = _query_parts(stores, method, number)
    if method.query_expansion:
        first = stores.run(replace(method, query_expansion=0)).rankings[query.name]
        members = [indexed(name) for name in first[: method.query_expansion]]
        expanded = members + [own] * flags.expand_with_query
        return _unit(_add(expanded)), indexed(image)
    if image in matches:
        described = replace(method, aggregation="online")
        described = replace(described, num_classes=method.rerank_classes)
        own = _query_parts(stores, described, number)
        return own, _region_parts(stores, method, number, image, matches[image])
    if flags.query_replaces_own_row and image == query.image:
        return own, own
    return own, indexed(image)


def _query_classes(stores: Retrieval, method: Method, number: int) -> list[int]:
    themed = method.aggregation == "theme"
    classes = stores.theme if themed else stores.top_classes[number].tolist()
    return classes[: method.num_classes]


def _query_parts(stores: Retrieval, method: Method, number: int) -> Parts:
    classes = _query_classes(stores, method, number)
    vectors = stores.queries.read("class_vectors", [number])[0][classes]
    return _parts(stores, method, classes, vectors)


def _image_parts(stores: Retrieval, method: Method, number: int, image: str) -> Parts:
    store, row = stores.database, stores.dataset.images.index(image)
    if method.aggregation == "offline":
        classes = store.read("top_classes", [row])[0][: method.num_classes].tolist()
    else:
        classes = _query_classes(stores, method, number)
    if store.config["classes"] is None:
        vectors = store.class_vectors(classes, slice(row, row + 1))[0]
    else:  # only the image's own top classes are kept, in their order
        vectors = store.read("class_vectors", [row])[0][: len(classes)]
    return _parts(stores, method, classes, vectors)


def _region_parts(
    stores: Retrieval, method: Method, number: int, image: str, match: reranking.Match
) -> Parts:
    """Parts of the region that won, pooled as in `reranking.best_regions`."""
    if not np.isfinite(match.score):
        return {}
    classes = stores.top_classes[number][: method.rerank_classes].tolist()
    maps = stores.require_maps()
    features, cam_maps = maps(image)
    flip = stores.protocol.flip_negative_cams
    cams = reranking.query_cams(cam_maps, maps.network.class_weights, classes, flip)
    height, width, _ = features.shape
    x1, y1, x2, y2 = match.box or (0, 0, width, height)
    mask = np.zeros((1, height, width), np.float32)
    mask[:, y1:y2, x1:x2] = 1
    power = stores.database.config["power"]
    features = features.astype(np.float32)
    vectors = pooling.class_vectors(features, np.asarray(cams), mask, power=power)
    return _parts(stores, method, classes, ops.convert_to_numpy(vectors)[0])


def _parts(stores: Retrieval, method: Method, classes: list[int], vectors) -> Parts:
    """Whitened class vectors (C, K) as the descriptor sums them."""
    whitened = stores.fitted(method)(vectors)
    if stores.protocol.repeat_previous_class:
        whitened = aggregation.repeat_previous(whitened)
    return _unit(dict(zip(classes, whitened, strict=True)))


def _add(members: Sequence[Mapping[int, np.ndarray]]) -> Parts:
    total: Parts = {}
    for parts in members:
        for c, vector in parts.items():
            total[c] = total[c] + vector if c in total else vector
    return total


def _unit(parts: Parts) -> Parts:
    """Scaled so that their sum has length 1; an empty one stays."""
    length = float(np.linalg.norm(sum(parts.values()))) if parts else 0.0
    return {c: vector / length for c, vector in parts.items()} if length else parts
