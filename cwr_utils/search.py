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
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from cwr_utils import datasets, extraction, figures, files, networks
from cwr_utils.arrays import check_shape
from cwr_utils.datasets import Dataset, DatasetError, Query, seen
from cwr_utils.datasets.base import unreadable_images
from cwr_utils.datasets.folder import SUFFIXES, find_images
from cwr_utils.extraction import ImageMaps, Setup
from cwr_utils.images import (
    MIN_SIDE,
    Box,
    ImageError,
    check_box,
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
from cwr_utils.store import BLOCK, MemoryStore, Store
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
FIRST = 1000  # of more than `space.LARGE`, those that are described by the query
LEAST_BLOCK = 8  # photos that an interruption costs at most
KEPT = 16  # of their own classes, unless the method needs more
TOGETHER = 16  # queries that are described and ranked together
NEAR_NAMES = 10_000  # that are looked through for one that may be meant

# What needs no other classes of a photo than its own most probable ones.
_BY_OWN_CLASSES = {*AGGREGATIONS} - {*CLASS_AGGREGATIONS} | {"offline"}
_DPI = 200  # of saved pictures
Photo = str | os.PathLike | bytes | np.ndarray | Image.Image


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

    def figure(self, top: int = 10) -> Figure:
        """The query and the first photos as a strip, to be drawn on or saved."""
        figure = self._strip(top)
        plt.close(figure)  # a notebook would draw it a second time
        return figure

    def show(self, top: int = 10) -> None:
        """Show the query and the first photos.

        In a notebook below the cell, elsewhere in a window; where there is no screen
        the picture is saved, and it says where.
        """
        figure = self._strip(top)
        ipython: Any = sys.modules.get("IPython")
        if ipython and hasattr(ipython.get_ipython(), "kernel"):
            ipython.display.display(figure)
        elif figure.canvas.required_interactive_framework:
            return plt.show()
        else:
            place = Path(tempfile.mkdtemp(prefix="answer-"), "answer.png")
            print("There is no screen here; see", self.save(place, top=top))
        plt.close(figure)

    def _strip(self, top: int) -> Figure:
        names = self.names[:top]
        return figures.result_strip(
            self.photo,
            [read_image(self.paths[name]) for name in names],
            ["query" if name in self.own else "unknown" for name in names],
            self.scores[:top].tolist(),
            names,
            query_box=self.box,
        )

    def save(
        self, path: str | os.PathLike, kind: str | None = None, top: int | None = None
    ) -> Path:
        """Write the answer to a file, whole or not at all.

        Args:
            path: of the file; its folder is made if need be.
            kind: "picture" (the query and the first photos), "table" (CSV with rank,
                name, score and path) or "paths" (JSON, a list of the photos' absolute
                paths, best first). None is what the ending says: .csv is a table,
                .json are paths, and any other that matplotlib writes is a picture.
            top: number of photos; None is 10 in a picture, else all.

        Returns:
            The path.

        Raises:
            ValueError: if the kind is unknown, or no picture has that ending.
        """
        path = Path(path)
        ending = path.suffix.lower().removeprefix(".")
        kind = kind or {"csv": "table", "json": "paths"}.get(ending, "picture")
        if kind not in ("picture", "table", "paths"):
            raise ValueError(f"`kind` must be picture, table or paths; got {kind!r}.")
        places = [os.path.abspath(self.paths[name]) for name in self.names[:top]]
        if kind == "table":
            table = self.table.head(len(places)).assign(path=places)
            files.write_text(path, table.to_csv(lineterminator="\n"))
        elif kind == "paths":
            files.write_json(path, places)
        else:
            figure = self.figure(10 if top is None else top)
            with files.whole_file(path) as part:
                figure.savefig(part, format=ending or "png", dpi=_DPI)
        return path


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
    x1, y1, x2, y2 = box = check_box(box, (photo.shape[1], photo.shape[0]))
    if min(x2 - x1, y2 - y1) < MIN_SIDE:
        raise ValueError(
            f"The box has {x2 - x1:g}x{y2 - y1:g} pixels, too few to describe: take at "
            f"least {MIN_SIDE}x{MIN_SIDE}."
        )
    return box


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
    photos = _Folder(folder, setups)
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


def _experiment(photos: "_Photos", others: "_Photos | None") -> Experiment:
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
    training: "_Photos | None",
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


class _Photos:
    """Photos that are to be described.

    Attributes:
        data: them.
        setups: every way to describe them.
        root: their folder.
        unreadable: name of each file that is none of them -> why.
    """

    def __init__(self, data: Dataset, setups: list[Setup]):
        self.data, self.setups, self.root = data, setups, Path(data.name)
        self.unreadable: dict[str, str] = {}

    def describe(self, executor: Executor | None = None) -> list[Store]:
        """A store for each setup; what is in it already is not described again."""
        return [
            extraction.extract(self.data, setup, executor=executor)
            for setup in self.setups
        ]

    def warn(self) -> None:
        """Warn whoever called `index` of what is left out."""
        if self.unreadable:
            total = len(self.data.images) + len(self.unreadable)
            warnings.warn(
                f"{len(self.unreadable)} of {total} files in {self.root} cannot be "
                "read and are left out, see `unreadable`: "
                f"{', '.join(list(self.unreadable)[:5])}",
                stacklevel=3,
            )


class _Folder(_Photos):
    """The readable photos of a folder."""

    def __init__(self, folder: str | Path, setups: list[Setup]):
        self.root, self.setups = Path(folder).resolve(), setups
        if not self.root.is_dir():
            raise DatasetError(f"{folder} is not a folder: there is no {self.root}.")
        self._paths, self.unreadable = find_images(self.root)
        place = hashlib.sha256(str(self.root).encode()).hexdigest()[:8]
        self._name = re.sub(r"[^\w.-]+", "_", self.root.name) + f"-{place}"
        record = setups[0].cache_dir / self._name / "files.json"
        self._facts = seen.recall(record, self._paths)
        known = len(self._facts)
        self._leave_out(unreadable_images(self._paths, self._facts))
        if len(self._facts) > known:
            seen.remember(record, self._paths, self._facts)

    def describe(self, executor: Executor | None = None) -> list[Store]:
        """Their stores, without files that only decoding shows to be damaged."""
        # Of many photos an interruption may cost more of them, one in a hundred.
        size = min(BLOCK, max(LEAST_BLOCK, len(self.data.images) // 100))
        while True:
            try:
                return [
                    extraction.extract(self.data, s, block=size, executor=executor)
                    for s in self.setups
                ]
            except ImageError:
                broken = _undecodable(self.data, self.setups)
                if not broken:
                    raise
                self._leave_out(broken)

    def _leave_out(self, problems: Mapping[str, str]) -> None:
        self.unreadable |= problems
        images = tuple(name for name in self._paths if name not in self.unreadable)
        if not images:
            raise DatasetError(
                f"{self.root} holds no readable image file ({', '.join(SUFFIXES)}).",
                self.unreadable.values(),
            )
        note = f"{len(images)} photos of the folder {self.root.name}"
        self.data = Dataset(
            self._name, images, (), note, self._paths, facts=self._facts
        )


def _open_whitening(
    source: str | Path | None, setups: list[Setup], data_root: str | Path
) -> _Photos | None:
    """Photos to fit the whitening on; None if there are none."""
    if source is None:
        return None
    if Path(source).is_dir():
        return _Folder(source, setups)
    try:
        return _Photos(datasets.load(str(source), data_root), setups)
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


def _undecodable(data: Dataset, setups: Sequence[Setup]) -> dict[str, str]:
    broken = {}
    for name in data.images:
        try:
            for setup in setups:
                data.target_size(name, setup.policy)
            read_image(data.path(name))
        except ImageError as error:
            broken[name] = str(error)
    return broken
