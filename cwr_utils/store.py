"""The class-vector store on disk: atomic shards, resume, configuration check.

Zarr v3 arrays written through TensorStore. A shard holds a whole block of images and is
one file that appears by a rename, so it exists whole or not at all. It is the unit of
work, of writing and of resume. Inside a `class_vectors` shard the inner chunks are
class-major: reading 64 of 1,000 classes touches only their bytes. Checksums (CRC-32C)
turn a damaged file into an error.
"""

import glob
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorstore as ts

from cwr_utils.arrays import is_finite
from cwr_utils.files import free_bytes, write_json
from cwr_utils.identity import differences

CONFIG_FILE = "store.json"
BLOCK = 64  # images a shard; a disk reads their 64 KiB of a class faster than 32 KiB


class StoreError(RuntimeError):
    """A store that cannot be read or written."""


class StoreMismatchError(StoreError):
    """A store that was made with another configuration or from other images."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store.

    Attributes:
        shape: sizes of one image's entry, without the image axis.
        dtype: NumPy name of the data type.
        by_row: whether each index of the entry's first axis is its own inner chunk.
        by_photo: whether each image's entry is, so that some can be read alone.
    """

    shape: tuple[int, ...]
    dtype: str
    by_row: bool = False
    by_photo: bool = False


class Store:
    """Arrays over images, written block by block.

    Attributes:
        path: the store's folder.
        names: image (or query) names, in the order of the first axis.
        config: what the arrays were made with.
        hashes: name -> SHA-256 of the content that was described.
        block: images a shard.
    """

    def __init__(self, path: Path, meta: Mapping):
        """Open the arrays that `meta`, the content of the configuration file, lists."""
        self.path = path
        self.names: list[str] = [name for name, _ in meta["images"]]
        self.config: dict = {**meta["config"]}
        self.block: int = meta["block"]
        self.hashes: dict[str, str] = dict(meta["images"])
        self._specs = {
            name: ArraySpec(tuple(s["shape"]), **{k: s[k] for k in s if k != "shape"})
            for name, s in meta["arrays"].items()
        }
        self._arrays = {name: self._open(name) for name in self._specs}

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open an existing store.

        Raises:
            StoreError: if there is none, or its configuration file is damaged.
        """
        path = Path(path)
        file = path / CONFIG_FILE
        if not file.exists():
            raise StoreError(f"No store at {path}: run the extraction first.")
        try:
            return cls(path, json.loads(file.read_text()))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{file} is damaged ({error}): delete {path} and extract again."
            ) from error

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Whether a store was begun at a path."""
        return Path(path, CONFIG_FILE).exists()

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Mapping,
        images: Mapping[str, str],
        arrays: Mapping[str, ArraySpec],
        block: int = BLOCK,
    ) -> "Store":
        """Create a store, or open the one that is there if it was made the same way.

        Args:
            path: the store's folder.
            config: JSON-serialisable values that the arrays depend on.
            images: name -> SHA-256 of its content, in the order of the first axis.
            arrays: name -> specification; the last one is written last in a block.
            block: images a shard.

        Raises:
            StoreMismatchError: if a field or an image differs; names it.
            StoreError: if the disk has no room for the whole store.
        """
        path = Path(path)
        meta = {
            "config": json.loads(json.dumps(config)),
            "images": [list(item) for item in images.items()],
            "arrays": {
                name: {
                    "shape": list(s.shape),
                    "dtype": s.dtype,
                    "by_row": s.by_row,
                    # Stores that were written before know nothing of it.
                    **({"by_photo": True} if s.by_photo else {}),
                }
                for name, s in arrays.items()
            },
            "block": block,
        }
        if cls.exists(path):
            return cls.open(path).require(config, images)
        _check_room(path, len(images), arrays, block)
        write_json(path / CONFIG_FILE, meta)
        return cls(path, meta)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays."""
        return list(self._specs)

    def items(self) -> list[tuple[str, str]]:
        """Name and content of each image, in the order of the first axis."""
        return list(self.hashes.items())

    def disk_bytes(self) -> int:
        """Bytes of all files of the store."""
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())

    def has(self, array: str) -> bool:
        """Whether there is an array of that name."""
        return array in self._specs

    def shape(self, array: str) -> tuple[int, ...]:
        """Shape of one image's entry in an array."""
        return self._specs[array].shape

    def dtype(self, array: str) -> np.dtype:
        """Data type of an array."""
        return np.dtype(self._specs[array].dtype)

    def entry_bytes(self, array: str) -> int:
        """Bytes of one image's entry in an array."""
        return int(np.prod(self.shape(array))) * self.dtype(array).itemsize

    @property
    def blocks(self) -> list[range]:
        """Image indices of each block."""
        starts = range(0, len(self), self.block)
        return [range(i, min(i + self.block, len(self))) for i in starts]

    @property
    def sources(self) -> list["Store"]:
        """The stores on disk that are read."""
        return [self]

    def missing_blocks(self) -> list[int]:
        """Numbers of the blocks that are not complete on disk."""
        return [
            number
            for number in range(len(self.blocks))
            if not all(self._shard(name, number).exists() for name in self._specs)
        ]

    def rows_by_content(self) -> dict[str, int]:
        """Content -> index of the images in the blocks that are complete."""
        contents, missing = list(self.hashes.values()), set(self.missing_blocks())
        return {
            contents[row]: row
            for number, rows in enumerate(self.blocks)
            if number not in missing
            for row in rows
        }

    def require_complete(self) -> "Store":
        """Return the store itself, or raise StoreError if blocks are missing."""
        if missing := self.missing_blocks():
            raise StoreError(
                f"{self.path} lacks {len(missing)} of {len(self.blocks)} blocks: "
                "run the extraction again; it goes on where it stopped."
            )
        return self

    def require(
        self, config: Mapping, images: Mapping[str, str] | None = None
    ) -> "Store":
        """Return the store itself if it was made as is asked for, of these images.

        Args:
            config: facts that it must have; others that it has do not matter.
            images: name -> SHA-256 of its content, in the order of the first axis; any
                if None.

        Raises:
            StoreMismatchError: if a fact, an image or their order differs; names it.
        """
        there = {name: self.config[name] for name in config if name in self.config}
        what = "; ".join(differences(there, config))
        if not what and images is not None and self.items() != list(images.items()):
            what = f"images: {_changes(self.hashes, images)}"
        if what:
            raise StoreMismatchError(
                f"The store {self.path} was made with another {what}. Use another "
                "cache_dir, or delete the store to make it anew."
            )
        return self

    def write_block(self, number: int, values: Mapping[str, np.ndarray]) -> None:
        """Write one block of every array; each shard appears whole or not at all.

        Args:
            number: the block's number.
            values: array name -> ``(images of the block, *shape)`` values.

        Raises:
            StoreError: if the disk refuses; complete blocks stay as they are.
            ValueError: if a shape is wrong or a value is not finite in the array's
                data type.
        """
        rows = self.blocks[number]
        for name, spec in self._specs.items():
            value = np.asarray(values[name])
            if value.shape != (len(rows), *spec.shape):
                raise ValueError(
                    f"`{name}` of block {number} must have shape "
                    f"{(len(rows), *spec.shape)}; got {value.shape}."
                )
            with np.errstate(over="ignore"):  # reported two lines below
                value = value.astype(spec.dtype, copy=False)
            if not is_finite(value):
                raise ValueError(f"`{name}` of block {number} has NaN or overflow.")
            try:
                self._write(name, rows, value)
            except (ValueError, OSError) as error:
                raise StoreError(
                    f"Cannot write block {number} to {self.path}: {error}. Complete "
                    "blocks are safe; free disk space and run again."
                ) from error

    def read(self, name: str, images: slice | Sequence[int] | np.ndarray = slice(None)):
        """Read an array for some images.

        Args:
            name: the array.
            images: slice or indices of the first axis.

        Returns:
            ``(images, *shape)`` array of the stored data type.

        Raises:
            StoreError: if a shard is missing or damaged.
        """
        return self._result(self._arrays[name][images].read())

    def class_vectors(
        self,
        classes: Sequence[int],
        images: slice | Sequence[int] | np.ndarray = slice(None),
    ):
        """Read the vectors of given classes (online aggregation).

        Args:
            classes: class numbers.
            images: slice or indices of the first axis.

        Returns:
            (images, len(classes), K) as stored, l2-normalised rows.

        Raises:
            StoreError: if the store keeps only each image's own top classes.
        """
        self._require_all_classes()
        vectors = self._arrays["class_vectors"].oindex[images, list(classes)]
        return self._result(vectors.read())

    def start_class(self, class_id: int) -> Callable[[], np.ndarray]:
        """Start to read one class of all images, and go on.

        Reads of several classes run together, while earlier ones are worked on.

        Args:
            class_id: the class.

        Returns:
            A function that waits for the (images, K) vectors and returns them, the same
            array each time.

        Raises:
            StoreError: if the store keeps only each image's own top classes.
        """
        self._require_all_classes()
        future = self._arrays["class_vectors"][:, class_id].read()
        return lambda: self._result(future)

    def iter_top_class_vectors(
        self, num_classes: int
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Read each image's own most probable class vectors, block by block.

        Args:
            num_classes: N_C, classes an image; of a network with fewer, all.

        Yields:
            (slice of images, (images, num_classes, K) as stored), most probable first.

        Raises:
            StoreError: if fewer classes than that are stored.
        """
        for rows in self.blocks:
            images = slice(rows.start, rows.stop)
            yield images, self.top_class_vectors(num_classes, images)

    def top_class_vectors(
        self, num_classes: int, images: slice | Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Read the most probable class vectors of some images.

        Args:
            num_classes: N_C, classes an image; of a network with fewer, all.
            images: slice or indices of the first axis.

        Returns:
            (images, num_classes, K) as stored, most probable first.

        Raises:
            StoreError: if fewer classes than that are stored.
        """
        chosen = self.top_classes(num_classes, images)
        if self.config["classes"] is not None:
            return self._first_vectors(chosen.shape[1], images)
        # One contiguous read of the classes that these images need is far quicker than
        # one small read for each image and class.
        needed, position = np.unique(chosen, return_inverse=True)
        vectors = self.class_vectors(needed.tolist(), images)
        position = position.reshape(chosen.shape)
        return vectors[np.arange(len(chosen))[:, None], position]

    def top_classes(
        self, num_classes: int, images: slice | Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """(images, num_classes) most probable classes; see `top_class_vectors`."""
        everything = self.config["classes"] is None
        if everything:
            num_classes = min(num_classes, self.shape("class_vectors")[0])
        known = self.shape("top_classes")[0]
        if num_classes <= known:
            return self.read("top_classes", images)[:, :num_classes]
        if not everything:
            raise StoreError(
                f"{self.path} knows the top {known} classes of each image; "
                f"{num_classes} were asked for."
            )
        falling = -self.read("probabilities", images)
        return falling.argsort(axis=1, kind="stable")[:, :num_classes]

    def _first_vectors(self, count: int, images) -> np.ndarray:
        """(images, count, K) first entries of `class_vectors`."""
        return self._result(self._arrays["class_vectors"].oindex[images, :count].read())

    def _write(self, name: str, rows: range, value: np.ndarray) -> None:
        self._arrays[name][rows.start : rows.stop].write(value).result()

    def _require_all_classes(self) -> None:
        if self.config["classes"] is not None:
            raise StoreError(
                f"{self.path} keeps only the top {self.config['classes']} classes of "
                "each image; online and theme aggregation need all (classes=None)."
            )

    def _result(self, future):
        try:
            return future.result()
        except (ValueError, OSError) as error:
            raise StoreError(
                f"Cannot read {self.path}: {error}. Delete the damaged shard that is "
                "named here and run the extraction again; it restores that block only."
            ) from error

    def _shard(self, name: str, number: int) -> Path:
        zeros = ["0"] * len(self._specs[name].shape)
        return self.path.joinpath(name, "c", str(number), *zeros)

    def _open(self, name: str):
        spec = self._specs[name]
        inner = (1, *spec.shape[1:]) if spec.by_row else spec.shape
        together = 1 if spec.by_photo else self.block
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        codecs = [little, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": [together, *inner],
            "codecs": codecs,
            "index_codecs": codecs,
        }
        grid = {"chunk_shape": [self.block, *spec.shape]}
        return ts.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{self.path.resolve()}/{name}/"},
                # A missing shard is an error, never silently zeros, and a shard of
                # zeros is written like any other.
                "fill_missing_data_reads": False,
                "store_data_equal_to_fill_value": True,
                "metadata": {
                    "shape": [len(self), *spec.shape],
                    "data_type": spec.dtype,
                    "chunk_grid": {"name": "regular", "configuration": grid},
                    "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                    "fill_value": 0,
                },
            },
            create=True,
            open=True,
        ).result()


def parts(path: str | Path) -> list[Store]:
    """The store at a path, and those beside it with what came later; none if none."""
    path = Path(path)
    later = sorted(path.parent.glob(f"{glob.escape(path.name)}+*"))
    return [Store.open(place) for place in (path, *later) if Store.exists(place)]


def open_parts(path: str | Path, config: Mapping, images: Mapping[str, str]) -> "Store":
    """Open what was described of some images, by their content.

    Args:
        path: of the first of the stores, see `parts`.
        config: facts that they must have.
        images: name -> SHA-256 of its content, in order.

    Returns:
        The first store if it is of just these images, or else its and the others'
        entries as one.

    Raises:
        StoreMismatchError: if a store is of other facts; names them.
        StoreError: if there is no store, or an image is in none.
    """
    found = parts(path)
    if not found:
        raise StoreError(f"No store at {path}: run the extraction first.")
    for store in found:
        store.require(config)
    if found[0].items() == list(images.items()):
        return found[0].require_complete()
    return JoinedStore(found, images)


def begin_part(
    path: str | Path,
    config: Mapping,
    images: Mapping[str, str],
    arrays: Mapping[str, ArraySpec],
    block: int = BLOCK,
) -> Store | None:
    """The store that what is not described yet goes into; None if everything is.

    A store cannot grow. Where one is there of other images, what is new gets one of its
    own beside it, and `open_parts` finds both. Arguments and errors are those of
    `Store.create`.
    """
    found = parts(path)
    if not found or found[0].items() == list(images.items()):
        return Store.create(path, config, images, arrays, block)
    for store in found:
        store.require(config)
    known = {content for store in found for content in store.rows_by_content()}
    # A content that is there twice is described once, under its first name.
    new = {c: n for n, c in reversed(list(images.items())) if c not in known}
    if not new:
        return None
    missing = {name: content for content, name in reversed(list(new.items()))}
    begun = [store for store in found if store.items() == list(missing.items())]
    free = (
        f"{path}+{n}" for n in itertools.count(1) if not Store.exists(f"{path}+{n}")
    )
    place = begun[0].path if begun else next(free)
    # What is added is often little, and a shard has room for a whole block.
    return Store.create(place, config, missing, arrays, min(block, len(missing)))


class MemoryStore(Store):
    """Arrays of one block that live as long as the process, such as those of a query.

    It is read like a store on disk, except for `class_vectors`, which a query does not
    need.
    """

    def __init__(
        self,
        config: Mapping,
        images: Mapping[str, str],
        arrays: Mapping[str, ArraySpec],
    ):
        """Allocate; see `Store.create` for the arguments."""
        self.path = Path("memory")
        self.names, self.hashes = list(images), dict(images)
        self.config, self.block = dict(config), len(images)
        self._specs = dict(arrays)
        self._arrays = {
            name: np.zeros((self.block, *spec.shape), spec.dtype)
            for name, spec in arrays.items()
        }

    def missing_blocks(self) -> list[int]:
        """None: what is in memory is there."""
        return []

    def read(self, name: str, images: slice | Sequence[int] | np.ndarray = slice(None)):
        """See `Store.read`."""
        return self._arrays[name][images]

    def _write(self, name: str, rows: range, value: np.ndarray) -> None:
        self._arrays[name][rows.start : rows.stop] = value


class JoinedStore(Store):
    """Chosen images of several stores, read as if they were one; never written.

    A store cannot grow, but another one can stand beside it: so a collection that gets
    more photos is not described anew.
    """

    def __init__(self, stores: Sequence[Store], images: Mapping[str, str]):
        """Find every image by its content.

        Args:
            stores: of the same settings; incomplete ones serve with what they have.
            images: name -> SHA-256 of its content, in the order of the first axis.

        Raises:
            StoreError: if no store has an image.
        """
        places = {
            content: (number, row)
            for number, store in enumerate(stores)
            for content, row in store.rows_by_content().items()
        }
        missing = [name for name, content in images.items() if content not in places]
        if missing or not stores:
            raise StoreError(
                f"{len(missing)} images are in none of {len(stores)} stores: "
                f"{', '.join(missing[:5])}. Describe them first."
            )
        self.path, self.config, self.block = stores[0].path, stores[0].config, BLOCK
        self.names, self.hashes = list(images), dict(images)
        self._stores = list(stores)
        self._places = np.array([places[content] for content in images.values()])

    @property
    def sources(self) -> list[Store]:
        """See `Store.sources`."""
        return self._stores

    def missing_blocks(self) -> list[int]:
        """None: every image was found."""
        return []

    def has(self, array: str) -> bool:
        """See `Store.has`."""
        return self._stores[0].has(array)

    def shape(self, array: str) -> tuple[int, ...]:
        """Of the largest entry; others are filled up with zeros (R-MAC regions)."""
        shapes = [store.shape(array) for store in self._stores]
        return tuple(max(sizes) for sizes in zip(*shapes, strict=True))

    def dtype(self, array: str) -> np.dtype:
        """See `Store.dtype`."""
        return self._stores[0].dtype(array)

    def read(self, name: str, images: slice | Sequence[int] | np.ndarray = slice(None)):
        """See `Store.read`."""
        return self._gather(
            images, self.shape(name), lambda s, rows: s.read(name, rows)
        )

    def class_vectors(
        self,
        classes: Sequence[int],
        images: slice | Sequence[int] | np.ndarray = slice(None),
    ):
        """See `Store.class_vectors`."""
        shape = (len(classes), self.shape("class_vectors")[1])
        return self._gather(
            images, shape, lambda store, rows: store.class_vectors(classes, rows)
        )

    def _first_vectors(self, count: int, images) -> np.ndarray:
        return self.read("class_vectors", images)[:, :count]

    def start_class(self, class_id: int) -> Callable[[], np.ndarray]:
        """See `Store.start_class`; here it is read at once."""
        vectors = self.class_vectors([class_id])[:, 0]
        return lambda: vectors

    def _gather(self, images, shape: tuple[int, ...], read: Callable) -> np.ndarray:
        """(n, *shape) entries from where they are."""
        places = self._places[images]
        parts = []
        for number, store in enumerate(self._stores):
            here = np.flatnonzero(places[:, 0] == number)
            if here.size:
                parts.append((here, read(store, places[here, 1])))
        found = np.zeros((len(places), *shape), parts[0][1].dtype)
        for here, values in parts:
            found[(here, *map(slice, values.shape[1:]))] = values
        return found


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """How the images of a store differ from others."""
    groups = {
        "changed": sorted(n for n in old.keys() & new.keys() if old[n] != new[n]),
        "new": sorted(new.keys() - old.keys()),
        "gone": sorted(old.keys() - new.keys()),
    }
    details = [
        f"{len(group)} {what} ({', '.join(group[:5])})"
        for what, group in groups.items()
        if group
    ]
    return "; ".join(details) or "the same ones in another order"


def _check_room(path: Path, images: int, arrays: Mapping, block: int) -> None:
    """Refuse before hours of work what the disk cannot hold."""
    blocks = -(-images // block) * block
    needed = sum(
        blocks * int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        for spec in arrays.values()
    )
    free = free_bytes(path)
    if needed > free:
        raise StoreError(
            f"The store {path} needs {needed / 2**30:.1f} GiB and the disk has "
            f"{free / 2**30:.1f} GiB free. Free some, use another cache_dir, or keep "
            "fewer classes (classes=64 serves offline aggregation)."
        )
