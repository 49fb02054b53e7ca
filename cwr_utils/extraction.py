"""Photographs to a store: decode ahead, one compiled graph, atomic blocks, resume.

Threads decode and resize while the network works on earlier photos, two forward passes
at a time, and another thread writes the finished block, so memory holds two blocks and
a few photos however large the collection is. Only pooled vectors leave the device.

A block is a `Shard`: it needs no other and nobody else writes it. So shards run in any
order, on any executor, more than once if a machine dies.
"""

import hashlib
import json
import os
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from itertools import tee
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm.auto import tqdm

import cwr_utils
from cwr_utils import pooling
from cwr_utils.backend import keras, ops
from cwr_utils.datasets import Dataset, Query
from cwr_utils.images import (
    Box,
    Cells,
    ResizePolicy,
    box_to_cells,
    crop_image,
    image_size,
    read_image,
    resize_image,
)
from cwr_utils.networks import CamNetwork, compile_options, top_classes
from cwr_utils.protocol import Protocol
from cwr_utils.store import (
    BLOCK,
    CONFIG_FILE,
    ArraySpec,
    MapFiles,
    MemoryStore,
    Store,
    StoreMismatchError,
)

MOST_TOP_CLASSES = 64
DECODERS = max(4, os.cpu_count() or 1)
LOWEST_PRIORITY = 19
# Forward passes at a time: one has work for the cores that another leaves idle. JAX
# models hand their state from call to call.
IN_FLIGHT = 2 if keras.backend.backend() == "tensorflow" else 1
# What the store of the photos does not depend on, and that of the queries.
QUERY_FLAGS = ("query_classes", "scale_query_box", "keep_partial_cells")
DATABASE_FLAGS = ("stretch_query_images",)


@dataclass(frozen=True)
class ExtractionConf:
    """What a store depends on, besides the images and the network.

    Attributes:
        layer: the pooled layer; None is the network's default.
        resize: a policy that `ResizePolicy.parse` reads.
        classes: number of each image's own most probable classes to keep (serves
            offline aggregation at a fraction of the size); None keeps all, so that
            online aggregation can choose any.
        power: exponent of the class vectors; 1 is the paper.
        dtype: of the stored vectors, "float16" or, twice as large, "float32".
        flip_negative_cams: see `Protocol`, as for all below.
        stretch_query_images: for the photos only, not for the query regions.
        scale_query_box: for the query regions only, as for all below.
        query_classes: where their classes come from.
        keep_partial_cells: at their border.
    """

    layer: str | None = None
    resize: str = "1024x720"
    classes: int | None = None
    power: float = 1.0
    dtype: str = "float16"
    flip_negative_cams: bool = False
    stretch_query_images: bool = False
    scale_query_box: bool = True
    query_classes: str = "scaled crop"
    keep_partial_cells: bool = True

    def __post_init__(self):
        """Check the values.

        Raises:
            ValueError: if one is out of its range.
        """
        ResizePolicy.parse(self.resize)
        if self.classes is not None and self.classes < 1:
            raise ValueError(
                f"`classes` must be None (all) or at least 1; got {self.classes}."
            )
        if not self.power > 0:
            raise ValueError(f"`power` must be above 0; got {self.power}.")
        if self.dtype not in ("float16", "float32"):
            raise ValueError(
                f"`dtype` must be 'float16' or 'float32'; got {self.dtype!r}."
            )

    @classmethod
    def with_protocol(
        cls, protocol: Protocol, resize: str | None = None, **values
    ) -> "ExtractionConf":
        """Take the flags that concern extraction from a protocol.

        Args:
            protocol: the flags.
            resize: a policy of the run's own; None is that of the protocol.
            values: further fields.
        """
        return cls(
            resize=resize or protocol.resize,
            flip_negative_cams=protocol.flip_negative_cams,
            **{flag: getattr(protocol, flag) for flag in QUERY_FLAGS + DATABASE_FLAGS},
            **values,
        )


class _Describe(keras.layers.Layer):
    """CAMs and pooled vectors inside the graph: Eqs. 1-4 and the baselines."""

    def __init__(self, class_weights: np.ndarray, conf: ExtractionConf):
        # Sums over a large grid overflow float16, whatever the global policy is.
        super().__init__(trainable=False, dtype="float32")
        self._weights = self.add_weight(
            shape=class_weights.shape, initializer="zeros", name="class_weights"
        )
        self._weights.assign(class_weights)
        self._conf = conf

    def call(self, maps: dict) -> dict:
        conf, weights, chosen = self._conf, self._weights, {}
        if conf.classes is not None:
            top = ops.top_k(maps["logits"], conf.classes)[1]
            weights = ops.swapaxes(ops.take(ops.transpose(weights), top, axis=0), 1, 2)
            chosen = {"top_classes": top}
        cams = pooling.class_activation_maps(maps["cam_maps"], weights)
        cams = pooling.normalize_cams(cams, conf.flip_negative_cams)
        described = pooling.describe(maps["features"], cams, power=conf.power)
        # As stored: half the bytes leave the device, and NumPy casts slowly.
        chosen["class_vectors"] = ops.cast(described["class_vectors"], conf.dtype)
        return {**described, **chosen, "logits": maps["logits"]}


class Describer:
    """A network's graph from photos of one size to the arrays of the store.

    One graph for each size that occurs, compiled at its first use and kept.
    """

    def __init__(self, network: CamNetwork, conf: ExtractionConf):
        """Check the layer and the number of classes.

        Raises:
            ValueError: if the layer is unknown, cannot be pooled with this power, or
                fewer classes exist than asked for.
        """
        self.network = network
        self.conf = conf
        self.layer = conf.layer or network.default_layer
        self._maps_model = network.maps_model(self.layer)
        self._describe = _Describe(network.class_weights, conf)
        self._graphs: dict[tuple[int, int], keras.Model] = {}
        self._lock = threading.Lock()
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}
        known = {layer.name: layer for layer in network.feature_layers()}
        self.channels = known[self.layer].channels
        if conf.power != 1.0 and not known[self.layer].non_negative:
            raise ValueError(
                f"`power` {conf.power} needs a layer without negative values; "
                f"{self.layer} has them. Choose a layer after a ReLU, or power 1."
            )
        if conf.classes is not None and conf.classes > len(network.class_names):
            raise ValueError(
                f"{network.name} has {len(network.class_names)} classes; "
                f"`classes` {conf.classes} were asked for."
            )

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the feature grid for an input of (width, height) pixels."""
        if size not in self._grids:
            shapes = self._maps_model.compute_output_shape((1, size[1], size[0], 3))
            self._grids[size] = tuple(shapes["features"][1:3])
        return self._grids[size]

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Describe a batch of resized photos.

        Args:
            images: (B, H, W, 3) uint8 RGB.

        Returns:
            The arrays of `pooling.describe`, class vectors in `conf.dtype`, and
            `logits` (B, C).
        """
        size = images.shape[1:3]
        with self._lock:  # two passes may be the first ones of a size
            if size not in self._graphs:
                inputs = keras.Input((*size, 3), dtype="uint8")
                graph = keras.Model(inputs, self._describe(self._maps_model(inputs)))
                graph.compile(**compile_options())
                self._graphs[size] = graph
                return graph.predict_on_batch(images)  # which compiles
        return self._graphs[size].predict_on_batch(images)

    def describe_query(self, photo: np.ndarray, box) -> dict[str, np.ndarray]:
        """Describe the query region of a photo (Sec. 3.3).

        The classes come from a pass of their own over the cropped region (or see
        `Protocol.query_classes`), features and CAMs from the full photo; CAMs are
        normalised over the full photo and then cut.

        Args:
            photo: (height, width, 3) uint8 RGB, as decoded.
            box: (x1, y1, x2, y2) in pixels of the photo, or None for all of it.

        Returns:
            As `__call__`, without the batch axis, all classes.
        """
        policy = ResizePolicy.parse(self.conf.resize)
        resized = resize_image(photo, policy)
        maps = self.network.maps(resized[None], self.layer)
        cams = pooling.class_activation_maps(
            maps["cam_maps"], self.network.class_weights
        )
        cams = pooling.normalize_cams(cams, self.conf.flip_negative_cams)
        logits, cells = maps["logits"], None
        if box is not None:
            logits = self._query_logits(photo, box, maps["cam_maps"])
            size = photo.shape[1], photo.shape[0]
            grid = maps["features"].shape[2], maps["features"].shape[1]
            cells = self.query_cells(box, size, grid)
        described = pooling.describe(
            maps["features"], cams, box=cells, power=self.conf.power
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
        partial = self.conf.keep_partial_cells
        if self.conf.scale_query_box:
            return box_to_cells(box, size, grid, partial)
        width, height = ResizePolicy.parse(self.conf.resize).target_size(*size)
        # What lies beyond the resized photo is cut off, as array slices do.
        x1, y1, x2, y2 = box
        box = min(x1, width - 1), min(y1, height - 1), min(x2, width), min(y2, height)
        return box_to_cells(box, (width, height), grid, partial)

    def _query_logits(self, photo: np.ndarray, box, cam_maps) -> np.ndarray:
        """(1, C) of the query region; see `Protocol.query_classes`."""
        if self.conf.query_classes != "same pass":
            return self.network.maps(self._crop(photo, box), self.layer)["logits"]
        _, rows, columns, _ = cam_maps.shape
        size = photo.shape[1], photo.shape[0]
        x1, y1, x2, y2 = self.query_cells(box, size, (columns, rows))
        mean = cam_maps[:, y1:y2, x1:x2].mean(axis=(1, 2))
        return mean @ self.network.class_weights + self.network.class_bias

    def _crop(self, photo: np.ndarray, box) -> np.ndarray:
        """(1, h, w, 3) query region at the scale of the resized photo, or its own."""
        height, width = photo.shape[:2]
        crop = crop_image(photo, box)
        if self.conf.query_classes == "native crop":
            native = [max(32, side // 16 * 16) for side in crop.shape[1::-1]]
            return cv2.resize(crop, native, interpolation=cv2.INTER_AREA)[None]
        target = ResizePolicy.parse(self.conf.resize).target_size(width, height)
        scaled = (
            max(32, round(crop.shape[1] * target[0] / width / 16) * 16),
            max(32, round(crop.shape[0] * target[1] / height / 16) * 16),
        )
        return cv2.resize(crop, scaled, interpolation=cv2.INTER_AREA)[None]


@dataclass(frozen=True)
class Shard:
    """One block of a store, as work that any process can do.

    Attributes:
        store: absolute path of the store, which exists.
        number: the block.
        photos: absolute paths of its photos, in order.
        recipe: see `CamNetwork.recipe`; None in the process that has the network.
    """

    store: Path
    number: int
    photos: tuple[Path, ...]
    recipe: tuple | None = None


def extract(
    dataset: Dataset,
    network: CamNetwork,
    path: str | Path,
    conf: ExtractionConf | None = None,
    *,
    batch: int | None = None,
    block: int = BLOCK,
    on_block: Callable[[int], None] | None = None,
    executor: Executor | None = None,
) -> Store:
    """Describe every photo of a data set; goes on where an earlier run stopped.

    Args:
        dataset: the photos.
        network: the CAM network.
        path: the store's folder.
        conf: what to extract.
        batch: photos of one size in a forward pass; if None that of the store where one
            is there, or else 1 on CPU and 16 on a GPU. It moves the last bits, so it
            belongs to the store's configuration.
        block: photos a shard, the unit of work, of writing and of resume.
        on_block: called with the number of each block after it is on disk.
        executor: where the shards are computed, for example a process pool or Dask's
            `Client.get_executor`; its machines see the photos and the store under the
            same paths. This process if None.

    Returns:
        The complete store, images in the order of `dataset.images`.

    Raises:
        StoreMismatchError: if the store there is of another configuration or of other
            images.
        ImageError: if a photo cannot be decoded; blocks that are complete stay.
        ValueError: if there is an executor and the network has no `recipe`.
    """
    if executor is not None and network.recipe is None:
        raise ValueError(
            f"{network.name} cannot be made again in another process: load it with "
            "`networks.load`, or set its `recipe`."
        )
    conf = conf or ExtractionConf()
    shown, path = path, Path(path).absolute()
    describer = Describer(network, conf)
    policy = ResizePolicy.parse(conf.resize)
    sizes = {policy.target_size(*image_size(dataset.path(n))) for n in dataset.images}
    hashes = dataset.hashes()
    store = Store.create(
        path,
        {
            **_config(describer, dataset, queries=False),
            "batch": batch or _usual_batch(path),
        },
        {name: hashes[name] for name in dataset.images},
        _array_specs(describer, _most_regions({describer.grid(s) for s in sizes})),
        block,
    )
    missing = store.missing_blocks()
    if not missing:
        tqdm.write(f"{shown}: complete, {len(store)} photos; extraction skipped.")
        return store
    photos = [dataset.path(name).absolute() for name in dataset.images]
    shards = [
        Shard(path, n, tuple(photos[i] for i in store.blocks[n]), network.recipe)
        for n in missing
    ]
    done = len(store) - sum(len(shard.photos) for shard in shards)
    with tqdm(total=len(store), initial=done, desc=f"extract {dataset.name}") as bar:
        if executor is None:
            _extract_here(describer, store, shards, bar.update, on_block)
        else:
            _extract_there(executor, shards, bar.update, on_block)
    return store


def extract_shard(shard: Shard) -> int:
    """Compute and write one block, in whatever process this is.

    The network is made once a process and kept.

    Returns:
        The block's number.

    Raises:
        StoreMismatchError: if the network has other weights here.
        ImageError: if a photo cannot be decoded.
    """
    store = Store.open(shard.store)
    names = [field.name for field in fields(ExtractionConf)]
    conf = ExtractionConf(**{name: store.config[name] for name in names})
    describer = _describer(shard.recipe, conf)
    here, there = describer.network.weights_sha256, store.config["weights_sha256"]
    if here != there:
        raise StoreMismatchError(
            f"{shard.store} was begun with weights {there}; this machine loads {here}. "
            "Give every machine the same weight file."
        )
    _extract_here(describer, store, [shard])
    return shard.number


@lru_cache(maxsize=1)
def _describer(recipe: tuple, conf: ExtractionConf) -> Describer:
    make, arguments = recipe
    return Describer(make(*arguments), conf)


def _extract_there(executor: Executor, shards: Sequence[Shard], update, on_block):
    """Hand every shard to an executor; the first error cancels what has not begun."""
    futures = {executor.submit(extract_shard, shard): shard for shard in shards}
    try:
        for future in as_completed(futures):
            number = future.result()
            update(len(futures[future].photos))
            if on_block:
                on_block(number)
    finally:
        for future in futures:
            future.cancel()


def _extract_here(
    describer: Describer,
    store: Store,
    shards: Sequence[Shard],
    update: Callable[[int], Any] = lambda photos: None,
    on_block: Callable[[int], None] | None = None,
) -> None:
    """Compute and write blocks; decoding and writing go on beside the network."""
    policy = ResizePolicy.parse(describer.conf.resize)
    stretched = set(store.config.get("stretched", ()))
    batch = store.config["batch"]

    def load(item: tuple[Shard, int]) -> np.ndarray:
        shard, position = item
        photo = read_image(shard.photos[position])
        if store.names[store.blocks[shard.number][position]] in stretched:
            photo = _stretch_contrast(photo)
        return resize_image(photo, policy)

    plan, items = tee(
        (shard, part, left)
        for shard in shards
        for part, left in _batches(shard, policy, batch)
    )
    plan, parts = tee(plan)
    with (
        _helpers(DECODERS) as decoders,
        ThreadPoolExecutor(IN_FLIGHT) as passes,
        _helpers(1) as writer,
    ):
        each = ((shard, i) for shard, part, _ in items for i in part)
        photos = _ahead(decoders, load, each, DECODERS + batch)

        def batches() -> Iterator[np.ndarray]:
            for _, part, _ in parts:
                images = [next(photos) for _ in part]
                # A short last one is filled up: another size would be compiled.
                yield np.stack(images + images[-1:] * (batch - len(part)))

        described = _ahead(passes, describer, batches(), IN_FLIGHT)
        writing, values = None, {}
        for (shard, part, left), arrays in zip(plan, described, strict=True):
            for name, array in _finish(arrays, store).items():
                if name not in values:
                    shape = (len(shard.photos), *array.shape[1:])
                    values[name] = np.empty(shape, array.dtype)
                values[name][part] = array[: len(part)]
            update(len(part))
            if not left:
                if writing is not None:
                    writing.result()
                writing = writer.submit(_write, store, shard.number, values, on_block)
                values = {}
        if writing is not None:
            writing.result()


def extract_queries(
    dataset: Dataset,
    network: CamNetwork,
    path: str | Path,
    conf: ExtractionConf | None = None,
) -> Store:
    """Describe the query regions of a data set, for all classes.

    Args:
        dataset: the queries and their photos.
        network: the CAM network.
        path: the store's folder.
        conf: as for the database; `classes` is taken as None.

    Returns:
        The complete store, in the order of `dataset.queries`.

    Raises:
        ValueError: if there are no queries.
    """
    if not dataset.queries:
        raise ValueError(
            f"{dataset.name} has no queries: there is nothing to describe."
        )
    conf = replace(conf or ExtractionConf(), classes=None)
    describer = Describer(network, conf)
    hashes = dataset.hashes()
    grids = {_query_grid(describer, dataset, query) for query in dataset.queries}
    store = Store.create(
        path,
        _config(describer, dataset, queries=True),
        {q.name: query_content(q, hashes[q.image]) for q in dataset.queries},
        _array_specs(describer, _most_regions(grids)),
        block=8,
    )
    missing = store.missing_blocks()
    if not missing:
        tqdm.write(f"{path}: complete, {len(store)} queries; extraction skipped.")
        return store
    total = sum(len(store.blocks[number]) for number in missing)
    with tqdm(total=total, desc=f"queries {dataset.name}") as bar:
        for number in missing:
            rows = []
            for index in store.blocks[number]:
                query = dataset.queries[index]
                photo = read_image(dataset.path(query.image))
                rows.append(describer.describe_query(photo, query.box))
                bar.update()
            # Regions of different sizes have different numbers of R-MAC regions.
            described = [
                _finish({k: v[None] for k, v in row.items()}, store) for row in rows
            ]
            store.write_block(
                number,
                {n: np.concatenate([d[n] for d in described]) for n in described[0]},
            )
    return store


def describe_query(
    describer: Describer, query: Query, photo: np.ndarray, sha256: str
) -> MemoryStore:
    """Describe one query that need not be part of a data set, in memory.

    Args:
        describer: of all classes.
        query: its name and box.
        photo: (H, W, 3) uint8 RGB.
        sha256: of the photo's content.

    Returns:
        A complete store of one entry.
    """
    described = describer.describe_query(photo, query.box)
    described = {name: array[None] for name, array in described.items()}
    store = MemoryStore(
        _config(describer, Dataset(query.name, (), (query,), "", {}), queries=True),
        {query.name: query_content(query, sha256)},
        _array_specs(describer, described["regions"].shape[2]),
    )
    store.write_block(0, _finish(described, store))
    return store


def query_content(query: Query, sha256: str) -> str:
    """A query's content, for its store: SHA-256 of the photo, and the box."""
    return f"{sha256} {query.box}"


class ImageMaps:
    """Feature and CAM maps of single photos, computed on demand and kept while used.

    Serves what the store does not hold: re-ranking boxes and pictures.
    """

    def __init__(
        self,
        dataset: Dataset,
        network: CamNetwork,
        conf: ExtractionConf,
        cache_bytes: int = 2**31,
        cache_dir: str | Path | None = None,
    ):
        """Wrap a data set; nothing is computed yet.

        Args:
            dataset: the photos.
            network: the CAM network.
            conf: layer and resize policy; the rest does not matter.
            cache_bytes: memory for maps; the least recently used go first.
            cache_dir: that of the stores, where maps stay for later runs and other
                processes, 4 to 9 MB a photo; None keeps none there.
        """
        self.network = network
        self.layer = conf.layer or network.default_layer
        self._dataset = dataset
        self._policy = ResizePolicy.parse(conf.resize)
        self._limit = cache_bytes
        self._files = None
        if cache_dir is not None:
            self._files = MapFiles(_maps_folder(cache_dir, dataset, network, conf))
        # By the name, and whether it is a square that stands upright.
        self._kept: OrderedDict[tuple[str, bool], tuple] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(
        self, name: str, squares_upright: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Maps of one photo.

        Args:
            name: an image of the data set.
            squares_upright: see `Protocol.rerank_squares_upright`.

        Returns:
            `features` (H, W, K) and `cam_maps` (h, w, M), float16, or float32 where
            that would overflow.
        """
        return next(self.many([name], squares_upright))

    def many(
        self, names: Iterable[str], squares_upright: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Maps of several photos in order; later ones are read meanwhile."""
        photos = [(name, squares_upright and self._is_square(name)) for name in names]
        todo = list(dict.fromkeys(n for n in photos if n not in self._kept))
        with _helpers(DECODERS) as readers:
            read = _ahead(readers, self._read, todo, DECODERS)
            ready = dict.fromkeys(todo)
            for key in photos:
                if key in ready:
                    del ready[key]
                    yield self._keep(key, *next(read))
                elif key in self._kept:
                    self._kept.move_to_end(key)
                    yield self._kept[key]
                else:  # pushed out of memory meanwhile
                    yield self._keep(key, *self._read(key))

    def _is_square(self, name: str) -> bool:
        width, height = image_size(self._dataset.path(name))
        return width == height

    def _read(self, key: tuple[str, bool]) -> tuple[str, np.ndarray | tuple]:
        """Content of a photo, and its maps from the disk, or else its pixels."""
        name, upright = key
        content = ""
        if self._files is not None:
            content = self._dataset.sha256(name) + "-upright" * upright
            if (maps := self._files.read(content)) is not None:
                return content, maps
        photo = read_image(self._dataset.path(name))
        return content, resize_image(photo, self._policy, upright)

    def _keep(self, key: tuple[str, bool], content: str, read: np.ndarray | tuple):
        entry = read if isinstance(read, tuple) else self._compute(content, read)
        with self._lock:
            self._kept[key] = entry
            self._bytes += sum(array.nbytes for array in entry)
            while self._bytes > self._limit and len(self._kept) > 1:
                _, old = self._kept.popitem(last=False)
                self._bytes -= sum(array.nbytes for array in old)
        return entry

    def _compute(self, content: str, photo: np.ndarray) -> tuple:
        maps = self.network.maps(photo[None], self.layer)
        entry = _half(maps["features"][0]), _half(maps["cam_maps"][0])
        if self._files is not None:
            self._files.write(content, *entry)
        return entry


def _maps_folder(
    cache_dir: str | Path, dataset: Dataset, network: CamNetwork, conf: ExtractionConf
) -> Path:
    """Folder of a data set's maps: one for all powers and flags of pooling."""
    layer = conf.layer or network.default_layer
    parts = [network.name.replace(":", "-"), layer, conf.resize.replace(":", "")]
    made_with = [cwr_utils.__version__, network.weights_sha256, network.precision]
    digest = hashlib.sha256(json.dumps(made_with).encode()).hexdigest()[:12]
    return Path(cache_dir) / dataset.name / "maps" / "-".join([*parts, digest])


def store_path(
    cache_dir: str | Path,
    dataset: Dataset,
    network: CamNetwork,
    conf: ExtractionConf,
) -> Path:
    """Folder of a data set's stores: readable, and apart where settings differ.

    Returns:
        cache_dir / data set / settings; `database` and `query_folder` go below it.
    """
    parts = [network.name.replace(":", "-"), conf.layer or network.default_layer]
    parts += [conf.resize.replace(":", "")]
    if network.weights_sha256.startswith("random:"):
        parts.append("random")
    if conf.classes is not None:
        parts.append(f"top{conf.classes}")
    if conf.power != 1.0:
        parts.append(f"power{conf.power:g}")
    if conf.dtype != "float16":
        parts.append(conf.dtype)
    if network.precision != "float32":
        parts.append(f"in_{network.precision}")
    conf = _what_matters(conf, dataset, queries=False)
    parts += _unusual(conf, ("flip_negative_cams", *DATABASE_FLAGS))
    return Path(cache_dir) / dataset.name / "-".join(parts)


def query_folder(conf: ExtractionConf) -> str:
    """Name of the store of query regions, which have flags of their own."""
    return "-".join(["queries", *_unusual(conf, QUERY_FLAGS)])


def _unusual(conf: ExtractionConf, flags: Iterable[str]) -> list[str]:
    """The flags that differ from the default, fit for a file name."""
    usual, names = ExtractionConf(), []
    for flag in flags:
        value = getattr(conf, flag)
        if value != getattr(usual, flag):
            name = {True: flag, False: f"no_{flag}"}.get(value, f"{flag}_{value}")
            names.append(name.replace(" ", "_"))
    return names


def _what_matters(
    conf: ExtractionConf, dataset: Dataset, queries: bool
) -> ExtractionConf:
    """The configuration with flags that a store does not depend on at their default."""
    idle = DATABASE_FLAGS if queries else QUERY_FLAGS
    if not dataset.queries:  # no photo of theirs is there
        idle += DATABASE_FLAGS
    usual = ExtractionConf()
    return replace(conf, **{flag: getattr(usual, flag) for flag in idle})


def _config(describer: Describer, dataset: Dataset, queries: bool) -> dict[str, Any]:
    network = describer.network
    conf = _what_matters(describer.conf, dataset, queries)
    # Which photos are stretched depends on the queries, not on the photos.
    stretched = (
        {"stretched": sorted({q.image for q in dataset.queries})}
        if conf.stretch_query_images and not queries
        else {}
    )
    half = {} if network.precision == "float32" else {"precision": network.precision}
    return {
        "package_version": cwr_utils.__version__,
        "dataset": dataset.name,
        "queries": queries,
        "network": network.name,
        "weights_sha256": network.weights_sha256,
        **half,
        **asdict(conf),
        "layer": describer.layer,
        **stretched,
    }


def _most_regions(grids: Iterable[tuple[int, int]]) -> int:
    return max(len(pooling.rmac_regions(*grid)) for grid in grids)


def _array_specs(describer: Describer, regions: int) -> dict[str, ArraySpec]:
    """Arrays of a store; `class_vectors`, the largest, is written last."""
    classes, channels = len(describer.network.class_names), describer.channels
    kept, dtype = describer.conf.classes or classes, describer.conf.dtype
    top = describer.conf.classes or min(classes, MOST_TOP_CLASSES)
    return {
        "top_classes": ArraySpec((top,), "int32"),
        "probabilities": ArraySpec((classes,), "float32"),
        "empty_cams": ArraySpec((), "int32"),
        "globals": ArraySpec((len(pooling.GLOBAL_POOLINGS), channels), dtype),
        "regions": ArraySpec((len(pooling.REGION_POOLINGS), regions, channels), dtype),
        "class_vectors": ArraySpec((kept, channels), dtype, by_row=True),
    }


def _finish(described: dict, store: Store) -> dict[str, np.ndarray]:
    """Arrays of the store from those of the graph, R-MAC regions padded with zeros."""
    logits = described["logits"]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    arrays = {name: described[name] for name in described if name != "logits"}
    arrays["probabilities"] = exponentials / exponentials.sum(axis=1, keepdims=True)
    if "top_classes" not in arrays:
        arrays["top_classes"] = top_classes(logits, store.shape("top_classes")[0])
    padding = store.shape("regions")[1] - arrays["regions"].shape[2]
    arrays["regions"] = np.pad(
        arrays["regions"], ((0, 0), (0, 0), (0, padding), (0, 0))
    )
    return arrays


def _query_grid(describer: Describer, dataset: Dataset, query: Query):
    """(H, W) cells of a query's region."""
    width, height = image_size(dataset.path(query.image))
    target = ResizePolicy.parse(describer.conf.resize).target_size(width, height)
    rows, columns = describer.grid(target)
    if query.box is None:
        return rows, columns
    cells = describer.query_cells(query.box, (width, height), (columns, rows))
    x1, y1, x2, y2 = cells
    return y2 - y1, x2 - x1


def _half(maps: np.ndarray) -> np.ndarray:
    """Half the memory, where the values fit: those of random ResNets do not."""
    fits = np.abs(maps).max() <= np.finfo(np.float16).max
    return maps.astype(np.float16) if fits else maps


def _write(store, number, values, on_block) -> None:
    store.write_block(number, values)
    if on_block:
        on_block(number)


def _batches(
    shard: Shard, policy: ResizePolicy, batch: int
) -> Iterator[tuple[list[int], int]]:
    """Positions of a shard's photos, grouped by size, at most `batch` together.

    Yields:
        Positions, and how many photos of the shard come later.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for position, photo in enumerate(shard.photos):
        groups.setdefault(policy.target_size(*image_size(photo)), []).append(position)
    left = len(shard.photos)
    for group in groups.values():
        for start in range(0, len(group), batch):
            part = group[start : start + batch]
            left -= len(part)
            yield part, left


def _usual_batch(path: Path) -> int:
    """That of the store which is there, or else what suits this machine."""
    if (path / CONFIG_FILE).exists() and (
        known := Store.open(path).config.get("batch")
    ):
        return known
    return 16 if compile_options()["jit_compile"] else 1


def _helpers(count: int) -> ThreadPoolExecutor:
    """Threads that work beside the network, where it leaves a core idle.

    On a CPU a core that they take away from the network lets its other cores wait too:
    so they stand back. OpenCV's own threads would not, hence one for each photo.
    """
    cv2.setNumThreads(1)
    return ThreadPoolExecutor(count, initializer=_stand_back)


def _stand_back() -> None:
    if sys.platform == "linux":  # elsewhere a priority is that of the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


def _ahead(executor: Executor, function, items: Iterable, depth: int) -> Iterator:
    """Map in order, with at most `depth` results waiting."""
    waiting: deque = deque()
    for item in items:
        waiting.append(executor.submit(function, item))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _stretch_contrast(photo: np.ndarray) -> np.ndarray:
    """Min-max stretch to 0..255 (what SciPy's old imresize did to float images)."""
    low, high = int(photo.min()), int(photo.max())
    scale = 255.0 / max(high - low, 1)
    return np.clip((photo.astype(np.float32) - low) * scale + 0.5, 0, 255).astype(
        np.uint8
    )
