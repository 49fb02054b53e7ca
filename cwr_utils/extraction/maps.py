"""Feature and CAM maps of single photos, in memory and on disk."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from cwr_utils import files
from cwr_utils.datasets import Dataset
from cwr_utils.extraction.ahead import DECODERS, ahead, helpers
from cwr_utils.extraction.conf import Setup
from cwr_utils.images import read_image, resize_image

DISK_RESERVE = 2 * 2**30  # bytes that maps leave free: they can be made again


class ImageMaps:
    """Maps of a data set's photos, computed on demand and kept while used.

    Serves what the store does not hold: re-ranking boxes and pictures.

    Attributes:
        setup: whose network, layer, sizes and flags they have.
    """

    def __init__(
        self,
        dataset: Dataset,
        setup: Setup,
        cache_bytes: int = 2**31,
        on_disk: bool = True,
    ):
        """Wrap a data set; nothing is computed yet.

        Args:
            dataset: the photos.
            setup: how they are described.
            cache_bytes: memory for maps; the least recently used go first.
            on_disk: whether maps stay beside the stores for later runs and other
                processes, 4 to 9 MB a photo.
        """
        self.setup = setup
        self._dataset = dataset
        self._policy = setup.map_policy
        self._limit = cache_bytes
        self._files = MapFiles(setup.maps_path(dataset)) if on_disk else None
        self._kept: OrderedDict[str, tuple] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def under(self, setup: Setup) -> "ImageMaps":
        """These maps, or where another setup has others, those."""
        here = self.setup.maps_path(self._dataset), self._policy
        if here == (setup.maps_path(self._dataset), setup.map_policy):
            return self
        return ImageMaps(self._dataset, setup, self._limit, self._files is not None)

    def __call__(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Maps of one photo.

        Args:
            name: an image of the data set.

        Returns:
            `features` (H, W, K) and `cam_maps` (h, w, M), float16, or float32 where
            that would overflow.
        """
        return next(self.many([name]))

    def many(self, names: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Maps of several photos in order; later ones are read meanwhile."""
        names = list(names)
        todo = list(dict.fromkeys(n for n in names if n not in self._kept))
        with helpers(DECODERS) as readers:
            read = ahead(readers, self._read, todo, DECODERS)
            ready = dict.fromkeys(todo)
            for name in names:
                if name in ready:
                    del ready[name]
                    yield self._keep(name, *next(read))
                elif name in self._kept:
                    self._kept.move_to_end(name)
                    yield self._kept[name]
                else:  # pushed out of memory meanwhile
                    yield self._keep(name, *self._read(name))

    def _read(self, name: str) -> tuple[str, np.ndarray | tuple]:
        """What a photo's maps depend on, and these from the disk, or else its pixels.

        That is its content, and the size in which the network sees it.
        """
        content = ""
        if self._files is not None:
            width, height = self._policy.target_size(*self._dataset.size(name))
            content = f"{self._dataset.sha256(name)}-{width}x{height}"
            if (maps := self._files.read(content)) is not None:
                return content, maps
        return content, resize_image(read_image(self._dataset.path(name)), self._policy)

    def _keep(self, name: str, content: str, read: np.ndarray | tuple) -> tuple:
        entry = read if isinstance(read, tuple) else self._compute(content, read)
        with self._lock:
            self._kept[name] = entry
            self._bytes += sum(array.nbytes for array in entry)
            while self._bytes > self._limit and len(self._kept) > 1:
                _, old = self._kept.popitem(last=False)
                self._bytes -= sum(array.nbytes for array in old)
        return entry

    def _compute(self, content: str, photo: np.ndarray) -> tuple:
        maps = self.setup.network.maps(photo[None], self.setup.layer)
        entry = _half(maps["features"][0]), _half(maps["cam_maps"][0])
        if self._files is not None:
            self._files.write(content, *entry)
        return entry


class MapFiles:
    """Maps of photos on disk, one file a photo, whole or not at all.

    They save re-ranking its forward passes. Nothing is lost with them: a file that is
    missing or damaged is computed again, and a full disk only ends the keeping.
    """

    def __init__(self, folder: str | Path):
        """Name the folder, which is of one network, its weights, layer and resize."""
        self.folder = Path(folder)
        self._full = False

    def read(self, content: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Maps of a photo, or None if they are not kept.

        Args:
            content: what the maps depend on, besides the folder.

        Returns:
            `features` (H, W, K) and `cam_maps` (h, w, M), as they were written.
        """
        path = self._path(content)
        try:
            with path.open("rb") as data, np.load(data, allow_pickle=False) as file:
                maps = file["features"], file["cam_maps"]  # checked by a CRC-32
            if any(np.ndim(array) != 3 for array in maps):  # but that of nothing is 0
                raise ValueError("it has no maps")
            return maps
        except FileNotFoundError:
            return None
        except SystemError:  # CPython below 3.11.8: threads that parse headers together
            return self.read(content)
        except Exception as error:  # a damaged archive raises almost any
            tqdm.write(f"{path} is damaged ({error}): computed again.")
            return None

    def write(self, content: str, features: np.ndarray, cam_maps: np.ndarray) -> None:
        """Keep the maps of a photo, unless less than `DISK_RESERVE` would stay free.

        Args:
            content: see `read`.
            features: (H, W, K).
            cam_maps: (h, w, M).
        """
        if self._full:
            return
        try:
            with files.whole_file(self._path(content)) as part:
                if files.free_bytes(self.folder) < DISK_RESERVE:
                    raise OSError(f"less than {DISK_RESERVE / 2**30:g} GiB are free")
                with part.open("wb") as file:
                    np.savez(file, features=features, cam_maps=cam_maps)
        except OSError as error:
            self._full = True
            tqdm.write(
                f"No more maps are kept in {self.folder} ({error}): photos are passed "
                "through the network again whenever they are re-ranked."
            )

    def _path(self, content: str) -> Path:
        return self.folder / f"{content}.npz"


def _half(maps: np.ndarray) -> np.ndarray:
    """Half the memory, where the values fit: those of random ResNets do not."""
    fits = np.abs(maps).max() <= np.finfo(np.float16).max
    return maps.astype(np.float16) if fits else maps
