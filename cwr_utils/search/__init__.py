"""A folder of photos to a ranked answer, in three lines.

::

    index = search.index("my_photos")
    answer = index.search("query.jpg", box=(40, 30, 300, 260))
    answer.show()

The settings are those of the demo: online aggregation, whitening fitted on photos that
are not searched. Of more than `space.LARGE` photos a few classes each are kept, and a
search has two steps: offline aggregation chooses `FIRST` photos, and only these are
described by the classes of the query.
"""

import difflib
import hashlib
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cwr_utils import datasets, extraction, networks
from cwr_utils.arrays import check_shape
from cwr_utils.datasets import Dataset, DatasetError, Query
from cwr_utils.extraction import ImageMaps, Setup
from cwr_utils.images import (
    Box,
    ImageError,
    check_box,
    check_region,
    decode,
    read_image,
)
from cwr_utils.networks import CamNetwork
from cwr_utils.retrieval import (
    AGGREGATIONS,
    BY_QUERY,
    CLASS_AGGREGATIONS,
    Collection,
    Described,
    Experiment,
    Method,
    rank,
    space,
)
from cwr_utils.retrieval.limits import check_limits
from cwr_utils.search.answer import Answer
from cwr_utils.search.folder import Folder, Photos
from cwr_utils.store import MemoryStore
from cwr_utils.whitening import WhiteningError

ROOT = Path(__file__).resolve().parents[2]
WHITENING = "monuments_whitening"
METHOD = Method(
    "online",
    num_classes=8,
    num_whitening_classes=64,
    dimensions=1024,
    whitening_exponent=0.35,
    class_weighting="rank",
)
# Needs no whitening (on the demo 0.64, as good as MAC and better than the others).
PLAIN = Method("rmac_max", dimensions=0)
FIRST = 1000  # of more than `space.LARGE`, those that are described by the query
KEPT = 16  # of their own classes, unless the method needs more
TOGETHER = 16  # queries that are described and ranked together
NEAR_NAMES = 10_000  # that are looked through for one that may be meant

# What needs no other classes of a photo than its own most probable ones.
_BY_OWN_CLASSES = {*AGGREGATIONS} - {*CLASS_AGGREGATIONS} | {"offline"}
Photo = str | os.PathLike | bytes | np.ndarray | Image.Image


class Index:
    """A folder that can be searched; made by `index`.

    Attributes:
        collection: the photos; `widgets.SearchExplorer` takes it too.
        method: how photos are described and ranked.
        unreadable: file in the folder -> why it could not be read.
    """

    def __init__(
        self,
        collection: Collection,
        method: Method,
        unreadable: Mapping[str, str],
    ):
        """Hold what `index` has opened."""
        self.method = method
        self.unreadable = dict(unreadable)
        self.collection = collection

    @property
    def names(self) -> tuple[str, ...]:
        """Of the photos: their paths inside the folder."""
        return self.collection.data.images

    def __len__(self) -> int:
        """Number of photos."""
        return len(self.names)

    def __repr__(self) -> str:
        """What is searched, and how."""
        training, fitted = self.collection.first.spaces.training, "not whitened"
        if training is not None:
            fitted = f"whitening: {len(training.rows)} other photos"
        left_out = f", {len(self.unreadable)} unreadable" if self.unreadable else ""
        return f"{self.collection.data.note}{left_out}; {self.method.label}, {fitted}"

    def search(self, photo: Photo, box: Box | None = None) -> Answer:
        """Rank all photos of the folder.

        Args:
            photo: a file, the name of a photo in the folder, the bytes of a file, a
                Pillow image, or an array (H, W, 3) of uint8, RGB.
            box: (x1, y1, x2, y2) in pixels of the photo, around what to look for; None
                is all of it.

        Raises:
            ImageError: if there is no such file, or it is no image.
            ValueError: if the array is no photo, or the box not inside it or smaller
                than 32 x 32 pixels.
        """
        return next(self.search_many([photo], [box]))

    def search_many(
        self, photos: Iterable[Photo], boxes: Iterable[Box | None] | None = None
    ) -> Iterator[Answer]:
        """Rank all photos of the folder for each of many queries.

        Some are described and ranked together, so that classes which several have are
        read once: the answers are those of `search`, at a fraction of the time.

        Args:
            photos: as `search` takes them, any number: few are held at a time.
            boxes: one, or None, for each; None is no box at all.

        Yields:
            An answer for each photo, in order.

        Raises:
            ValueError: as `search`, or if there are more or fewer boxes than photos.
        """
        boxed: Iterable = zip(photos, itertools.repeat(None))
        if boxes is not None:
            boxed = zip(photos, boxes, strict=True)
        while group := list(itertools.islice(boxed, TOGETHER)):
            yield from self._answers(group)

    def explorer(self) -> Any:
        """The search explorer on this folder, to be looked at in a notebook."""
        from cwr_utils.widgets import SearchExplorer  # which loads the widgets

        return SearchExplorer(self.collection, self.method)

    def _answers(self, group: Sequence[tuple[Photo, Box | None]]) -> Iterator[Answer]:
        """Answers to some queries together."""
        collection, asked = self.collection, []
        for number, (given, box) in enumerate(group):
            pixels, content = self._read(given)
            query = Query(f"query {number}", "query", _checked(box, pixels))
            asked.append((query, pixels, content))
        result = rank(collection.ask_photos(asked), self.method)
        for query, pixels, content in asked:
            yield Answer(
                result.rankings[query.name],
                result.scores[query.name],
                pixels,
                query.box,
                self._own(content),
                collection.data.paths,
            )

    def _own(self, content: str) -> frozenset[str]:
        """Photos of the folder with this SHA-256."""
        hashes = self.collection.first.database.hashes
        return frozenset(name for name, other in hashes.items() if other == content)

    def _read(self, photo: Photo) -> tuple[np.ndarray, str]:
        """Pixels and SHA-256 of their source."""
        if isinstance(photo, Image.Image):
            if photo.mode[0] in "IF":
                raise ValueError(
                    f"A Pillow image of mode {photo.mode} has no colours of 8 bits: "
                    "convert it to RGB."
                )
            photo = np.asarray(ImageOps.exif_transpose(photo).convert("RGB"))
        if isinstance(photo, np.ndarray):
            check_shape(photo, "H W 3", "photo")
            if photo.dtype != np.uint8 or not photo.size:
                raise ValueError(
                    f"`photo` must be RGB of type uint8 (0 to 255); got {photo.dtype} "
                    f"of shape {photo.shape}."
                )
            return photo, hashlib.sha256(photo.tobytes()).hexdigest()
        if isinstance(photo, bytes | bytearray | memoryview):
            photo = bytes(photo)
            pixels = decode(photo, "The bytes of the query")
            return pixels, hashlib.sha256(photo).hexdigest()
        path = self._file(photo)
        pixels = read_image(path)
        return pixels, hashlib.sha256(path.read_bytes()).hexdigest()

    def _file(self, photo: str | os.PathLike) -> Path:
        """The file that a query names, or the photo of the folder.

        Raises:
            ImageError: if there is none; says where it was looked for.
        """
        path = Path(photo)
        if path.is_dir():
            raise ImageError(f"{path.absolute()} is a folder: name a photo in it.")
        if path.exists():
            return path
        if str(photo) in self.collection.data.paths:
            return self.collection.data.path(str(photo))
        near = difflib.get_close_matches(str(photo), self.names[:NEAR_NAMES], 1, 0.75)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ImageError(
            f"There is no file {path.absolute()}, and no photo {str(photo)!r} in the "
            f"folder that is searched.{hint}"
        )


def _checked(box: Box | None, photo: np.ndarray) -> Box | None:
    """A box inside a photo that is large enough to be described."""
    if box is None:
        return None
    return check_region(check_box(box, (photo.shape[1], photo.shape[0])))


def index(
    folder: str | Path,
    *,
    whitening: str | Path | None = WHITENING,
    method: Method | None = None,
    aggregation: str | None = None,
    network: str | CamNetwork = "efficientnet-lite2 + efficientnet-lite0",
    resize: str = "512x360 + 384x270",
    power: float = 2.0,
    cache_dir: str | Path = ROOT / "cache",
    data_root: str | Path = ROOT / "data",
    executor: Executor | None = None,
) -> Index:
    """Describe the photos of a folder and its subfolders, with a progress bar.

    What was described before is not described again: an interrupted call goes on, and
    photos that are added later are the only ones to cost time. Files that cannot be
    read are listed in `Index.unreadable`.

    Args:
        folder: with photos, see `datasets.folder`.
        whitening: data set or folder to fit the whitening on, other photos of the same
            kind. The default is fetched on first use; where that fails, and for None,
            photos are described without whitening (R-MAC), less well.
        method: how to describe and rank. By default online aggregation; of more than
            `space.LARGE` photos that of the first `FIRST`, from few classes of each.
        aggregation: of the default method; "grouped" is online aggregation from few
            classes of each photo.
        network: name of a network, or the network; " + " joins several names, which
            then describe photos together.
        resize: see `ResizePolicy.parse`; one for all, or for each.
        power: exponent of the class vectors.
        cache_dir: where descriptions are kept, about 5 MB a photo. "grouped" takes 0.2
            MB for the 32 classes of its default, as do more than `space.LARGE` photos
            with a method that needs no other classes than a photo's own.
        data_root: where the whitening photos are put.
        executor: where photos are described and groups made, for example Dask's
            `Client.get_executor`; its machines see all folders under the same paths.
            This process if None.

    Raises:
        DatasetError: if the folder holds no readable image, or the whitening set that
            was asked for cannot be had.
        WhiteningError: if the whitening photos are among those searched, or the method
            needs whitening and there is none.
    """
    setups = _setups(network, resize, power, Path(cache_dir))
    photos = Folder(folder, setups)
    training = _open_whitening(whitening, setups, data_root)
    if method is None:
        method = _usual_method(setups, training, len(photos.data.images), aggregation)
    if method.dimensions and training is None:
        raise WhiteningError(
            f"{method.label} needs whitening, which is never fitted on the photos that "
            "are searched: give `whitening`, a folder of other photos, or a method "
            f"without (`dimensions=0`), such as {PLAIN.label}."
        )
    others = training if method.dimensions else None
    if others is not None:
        _refuse_shared(others.data, photos.data)
    grouped = method.aggregation == "grouped"
    offline = method.first_stage.aggregation == "offline"
    many = len(photos.data.images) > space.LARGE
    if grouped or many and method.aggregation in _BY_OWN_CLASSES:
        wanted = method.groups if grouped else KEPT
        if offline:
            wanted = max(wanted, method.num_classes)
        photos.setups = [
            replace(
                setup,
                classes=min(wanted, len(setup.network.class_names)),
                baselines=not method.by_class,
            )
            for setup in setups
        ]
    check_limits([method], _experiment(photos, others))
    databases = photos.describe(executor)
    described = others.describe(executor) if others else [None] * len(setups)
    # Without what only decoding has shown to be damaged.
    experiment, members = _experiment(photos, others), []
    for part, database, fitted_on in zip(
        experiment.parts, databases, described, strict=True
    ):
        maps = ImageMaps(photos.data, part.setup, on_disk=False)
        no_queries = MemoryStore(part.setup.query_facts(), {}, {})
        members.append(Described.of(part, database, no_queries, fitted_on, maps))
    for part in filter(None, (photos, others)):
        part.warn()
    for member in members:
        if grouped:
            member.spaces.group(method, executor)
        if many and offline:
            member.space(method).keep_offline(method.num_classes, executor)
    return Index(Collection(experiment, tuple(members)), method, photos.unreadable)


def _setups(
    network: str | CamNetwork, resize: str, power: float, cache_dir: Path
) -> list[Setup]:
    """Every way to describe photos that the texts join."""
    texts = {"resize": resize}
    if isinstance(network, str):
        texts["network"] = network
    setups = []
    for part in extraction.together(**texts):
        one = part.get("network") or network
        loaded = networks.load(one) if isinstance(one, str) else one
        size = part["resize"] or resize
        setups.append(Setup(loaded, cache_dir, resize=size, power=power))
    return setups


def _experiment(photos: Photos, others: Photos | None) -> Experiment:
    first, *also = photos.setups
    return Experiment(photos.data, others and others.data, first, also=tuple(also))


def _refuse_shared(training: Dataset, data: Dataset) -> None:
    """Name the photos that are in both, before hours of work."""
    searched, hashes = set(data.hashes().values()), training.hashes()
    shared = [name for name, content in hashes.items() if content in searched]
    if shared:
        raise WhiteningError(
            f"{len(shared)} of the {len(hashes)} whitening photos are among those that "
            f"are searched ({', '.join(shared[:10])}): take them out of one of the two "
            "folders, or give `whitening` another one."
        )


def _usual_method(
    setups: Sequence[Setup],
    training: Photos | None,
    photos: int,
    aggregation: str | None,
) -> Method:
    """The demo's, with no more than the network and the whitening photos support."""
    if training is None:
        return PLAIN
    many = photos > space.LARGE
    aggregation = aggregation or ("grouped" if many else METHOD.aggregation)
    cascade = FIRST if many and aggregation in BY_QUERY else 0
    known = min(len(setup.network.class_names) for setup in setups)
    per_photo = min(METHOD.num_whitening_classes, known)
    # A photo that is there twice supports no more dimensions than once.
    support = len(set(training.data.hashes().values())) * per_photo // 2
    channels = min(setup.channels for setup in setups)
    return replace(
        METHOD,
        aggregation=aggregation,
        cascade=cascade,
        num_classes=min(METHOD.num_classes, known),
        num_whitening_classes=per_photo,
        dimensions=max(1, min(METHOD.dimensions, support, channels)),
    )


def _open_whitening(
    source: str | Path | None, setups: list[Setup], data_root: str | Path
) -> Photos | None:
    """Photos to fit the whitening on; None if there are none."""
    if source is None:
        return None
    if Path(source).is_dir():
        return Folder(source, setups)
    try:
        return Photos(datasets.load(str(source), data_root), setups)
    except DatasetError as error:
        if source != WHITENING:
            raise
        reason = " ".join(str(error).split())
        warnings.warn(
            f"The whitening photos cannot be had, so photos are described without "
            f"whitening ({PLAIN.label}), less well; `whitening` takes a folder of "
            f"other photos. Reason: {reason}",
            stacklevel=3,
        )
        return None
