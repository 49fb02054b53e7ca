"""A folder of photos to a ranked answer, in three lines.

    index = search.index("my_photos")
    answer = index.search("query.jpg", box=(40, 30, 300, 260))
    answer.show()

The settings are those of the demo: online aggregation, whitening fitted on photos that
are not searched.
"""

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cwr_utils import datasets, extraction, figures, networks
from cwr_utils.arrays import check_shape
from cwr_utils.datasets import Dataset, DatasetError, Query
from cwr_utils.datasets.base import unreadable_images
from cwr_utils.datasets.folder import SUFFIXES, find_images
from cwr_utils.extraction import MOST_TOP_CLASSES, ImageMaps, Setup
from cwr_utils.images import Box, Facts, ImageError, check_box, read_image
from cwr_utils.networks import CamNetwork
from cwr_utils.retrieval import Collection, Experiment, Method
from cwr_utils.store import MemoryStore, Store
from cwr_utils.whitening import WhiteningError

ROOT = Path(__file__).resolve().parents[1]
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
BLOCK = 8  # photos that an interruption costs at most


@dataclass(frozen=True, repr=False)
class Answer:
    """What was found for a query, best first.

    Attributes:
        names: of all photos of the folder, paths inside it.
        scores: their similarities; re-ranked ones carry that of their best region.
        photo: (H, W, 3) uint8, the query.
        box: in its pixels, or None.
        own: names of the photos that have the same content as the query.
        paths: name -> file.
    """

    names: list[str]
    scores: np.ndarray
    photo: np.ndarray
    box: Box | None
    own: frozenset[str]
    paths: Mapping[str, Path]

    @property
    def table(self) -> pd.DataFrame:
        """Columns name and score, by rank from 1."""
        ranks = pd.RangeIndex(1, len(self.names) + 1, name="rank")
        return pd.DataFrame({"name": self.names, "score": self.scores}, ranks)

    def __repr__(self) -> str:
        """The first ten, and how many there are."""
        return f"{self.table.head(10).round(3)}\n{len(self.names)} photos"

    def _repr_html_(self) -> str:
        return self.table.head(10).round(3).to_html()

    def show(self, top: int = 10) -> Figure:
        """The query and the first photos as a strip."""
        names = self.names[:top]
        return figures.result_strip(
            self.photo,
            [read_image(self.paths[name]) for name in names],
            ["query" if name in self.own else "unknown" for name in names],
            self.scores[:top].tolist(),
            names,
            query_box=self.box,
        )


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
        training, fitted = self.collection.training, "not whitened"
        if training is not None:
            fitted = f"whitening: {len(training.rows)} other photos"
        left_out = f", {len(self.unreadable)} unreadable" if self.unreadable else ""
        return f"{self.collection.data.note}{left_out}; {self.method.label}, {fitted}"

    def search(self, photo: str | Path | np.ndarray, box: Box | None = None) -> Answer:
        """Rank all photos of the folder.

        Args:
            photo: a file, the name of a photo in the folder, or an array (H, W, 3) of
                uint8, RGB.
            box: (x1, y1, x2, y2) in pixels of the photo, around what to look for; None
                is all of it.

        Raises:
            ImageError: if there is no such file, or it is no image.
            ValueError: if the array is no photo, or the box not inside it.
        """
        pixels, content = self._read(photo)
        if box is not None:
            box = check_box(box, (pixels.shape[1], pixels.shape[0]))
        query = Query("query", "query", box)
        collection = self.collection
        result = collection.ask_photo(query, pixels, content).run(self.method)
        hashes = collection.database.hashes
        return Answer(
            result.rankings["query"],
            result.scores["query"],
            pixels,
            box,
            frozenset(name for name, other in hashes.items() if other == content),
            collection.data.paths,
        )

    def _read(self, photo) -> tuple[np.ndarray, str]:
        """Pixels and SHA-256 of their source."""
        if isinstance(photo, np.ndarray):
            check_shape(photo, "H W 3", "photo")
            if photo.dtype != np.uint8 or not photo.size:
                raise ValueError(
                    f"`photo` must be RGB of type uint8 (0 to 255); got {photo.dtype} "
                    f"of shape {photo.shape}."
                )
            return photo, hashlib.sha256(photo.tobytes()).hexdigest()
        path = Path(photo)
        if not path.exists() and str(photo) in self.names:
            path = self.collection.data.path(str(photo))
        if path.is_dir():
            raise ImageError(f"{path} is a folder: name a photo to search for.")
        pixels = read_image(path)
        return pixels, hashlib.sha256(path.read_bytes()).hexdigest()


def index(
    folder: str | Path,
    *,
    whitening: str | Path | None = WHITENING,
    method: Method | None = None,
    aggregation: str = METHOD.aggregation,
    network: str | CamNetwork = "efficientnet-lite2 + efficientnet-lite0",
    resize: str = "512x360 + 384x270",
    power: float = 2.0,
    cache_dir: str | Path = ROOT / "cache",
    data_root: str | Path = ROOT / "data",
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
        method: how to describe and rank; online aggregation by default.
        aggregation: of the default method; "grouped" keeps few classes of a photo.
        network: name of a network, or the network; " + " joins several names, which
            then describe photos together.
        resize: see `ResizePolicy.parse`; one for all, or for each.
        power: exponent of the class vectors.
        cache_dir: where descriptions are kept, about 5 MB a photo.
        data_root: where the whitening photos are put.

    Raises:
        DatasetError: if the folder holds no readable image, or the whitening set that
            was asked for cannot be had.
        WhiteningError: if the whitening photos are among those searched, or the method
            needs whitening and there is none.
    """
    texts = {"resize": resize}
    if isinstance(network, str):
        texts["network"] = network
    setups = []
    for part in extraction.together(**texts):
        one = part.get("network") or network
        loaded = networks.load(one) if isinstance(one, str) else one
        size = part["resize"] or resize
        few = min(MOST_TOP_CLASSES, len(loaded.class_names))
        classes = few if method is None and aggregation == "grouped" else None
        setups.append(
            Setup(loaded, Path(cache_dir), resize=size, power=power, classes=classes)
        )
    setup, *also = setups
    data, database, unreadable = _open_folder(folder, setup)
    training, described = _open_whitening(whitening, setup, data_root)
    if method is None:
        method = _usual_method(setups, training)
        if method.by_class:
            groups = min(method.groups, setup.classes or MOST_TOP_CLASSES)
            method = replace(method, aggregation=aggregation, groups=groups)
    if method.dimensions and training is None:
        raise WhiteningError(
            f"{method.label} needs whitening, which is never fitted on the photos that "
            "are searched: give `whitening`, a folder of other photos, or a method "
            f"without (`dimensions=0`), such as {PLAIN.label}."
        )
    if not method.dimensions:
        training = described = None

    def opened(
        setup: Setup, database: Store, described: Store | None, also: list
    ) -> Collection:
        others = tuple(part.setup for part in also)
        experiment = Experiment(data, training, setup, also=others)
        queries = MemoryStore(setup.query_facts(), {}, {})
        maps = ImageMaps(data, setup, on_disk=False)
        return Collection(experiment, database, queries, described, maps, also)

    others = [
        opened(
            other,
            extraction.extract(data, other, block=BLOCK),
            training and extraction.extract(training, other),
            [],
        )
        for other in also
    ]
    collection = opened(setup, database, described, others)
    return Index(collection, method, unreadable)


def _usual_method(setups: Sequence[Setup], training: Dataset | None) -> Method:
    """The demo's, with no more than the network and the whitening photos support."""
    if training is None:
        return PLAIN
    known = min(len(setup.network.class_names) for setup in setups)
    per_photo = min(METHOD.num_whitening_classes, known)
    # A photo that is there twice supports no more dimensions than once.
    support = len(set(training.hashes().values())) * per_photo // 2
    return replace(
        METHOD,
        num_classes=min(METHOD.num_classes, known),
        num_whitening_classes=per_photo,
        dimensions=max(
            1, min(METHOD.dimensions, support, *(setup.channels for setup in setups))
        ),
    )


def _open_whitening(
    source: str | Path | None, setup: Setup, data_root: str | Path
) -> tuple[Dataset | None, Store | None]:
    """Photos to fit the whitening on, and their store; None if there are none."""
    if source is None:
        return None, None
    if Path(source).is_dir():
        return _open_folder(source, setup)[:2]
    try:
        data = datasets.load(str(source), data_root)
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
        return None, None
    return data, extraction.extract(data, setup)


def _open_folder(
    folder: str | Path, setup: Setup
) -> tuple[Dataset, Store, dict[str, str]]:
    """The readable photos of a folder, their descriptions, and what is unreadable."""
    root = Path(folder).resolve()
    if not root.is_dir():
        raise DatasetError(f"{folder} is not a folder.")
    paths, left_out = find_images(root)
    facts: dict[Path, Facts] = {}
    unreadable = left_out | unreadable_images(paths, facts)
    place = hashlib.sha256(str(root).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "_", root.name) + f"-{place}"
    while True:
        images = tuple(image for image in paths if image not in unreadable)
        if not images:
            raise DatasetError(
                f"{folder} holds no readable image file ({', '.join(SUFFIXES)}).",
                unreadable.values(),
            )
        note = f"{len(images)} photos of the folder {root.name}"
        data = Dataset(name, images, (), note, paths, facts=facts)
        try:
            store = extraction.extract(data, setup, block=BLOCK)
            break
        except ImageError:
            # A whole file with damage inside: only decoding finds it.
            broken = _undecodable(data, setup)
            if not broken:
                raise
            unreadable |= broken
    if unreadable:
        warnings.warn(
            f"{len(unreadable)} of {len(paths | left_out)} files in {folder} cannot be "
            "read and are left out, see `unreadable`: "
            f"{', '.join(list(unreadable)[:5])}",
            stacklevel=3,
        )
    return data, store, unreadable


def _undecodable(data: Dataset, setup: Setup) -> dict[str, str]:
    broken = {}
    for name in data.images:
        try:
            data.target_size(name, setup.policy)
            read_image(data.path(name))
        except ImageError as error:
            broken[name] = str(error)
    return broken
