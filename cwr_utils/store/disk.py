"""The class-vector store on disk: atomic shards, resume, configuration check.

Zarr v3 arrays written through TensorStore. A shard holds a whole block of images and is
one file that appears by a rename, so it exists whole or not at all. It is the unit of
work, of writing and of resume. Inside a `class_vectors` shard the inner chunks are
class-major: reading 64 of 1,000 classes touches only their bytes. Checksums (CRC-32C)
turn a damaged file into an error.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorstore as ts

from cwr_utils.files import free_bytes, write_json
from cwr_utils.store.base import BLOCK, ArraySpec, Store, StoreError
from cwr_utils.store.written import WrittenStore

CONFIG_FILE = "store.json"


class DiskStore(WrittenStore):
    """Arrays over images, written block by block.

    Attributes: those of `Store`; `path` is its folder, and a block a shard.
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
    def open(cls, path: str | Path) -> "DiskStore":
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
    ) -> "DiskStore":
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
            found = cls.open(path)
            found.require(config, images)
            return found
        _check_room(path, len(images), arrays, block)
        write_json(path / CONFIG_FILE, meta)
        return cls(path, meta)

    @property
    def sources(self) -> list[Store]:
        """The store itself."""
        return [self]

    def missing_blocks(self) -> list[int]:
        """Numbers of the blocks that are not complete on disk."""
        return [
            number
            for number in range(len(self.blocks))
            if not all(self._shard(name, number).exists() for name in self._specs)
        ]

    def read(
        self, name: str, images: slice | Sequence[int] | np.ndarray = slice(None)
    ) -> np.ndarray:
        """See `Store.read`."""
        return self._result(self._arrays[name][images].read())

    def class_vectors(
        self,
        classes: Sequence[int],
        images: slice | Sequence[int] | np.ndarray = slice(None),
    ) -> np.ndarray:
        """See `Store.class_vectors`; no other classes are read."""
        self._require_all_classes()
        vectors = self._arrays["class_vectors"].oindex[images, list(classes)]
        return self._result(vectors.read())

    def start_class(self, class_id: int) -> Callable[[], np.ndarray]:
        """See `Store.start_class`."""
        self._require_all_classes()
        future = self._arrays["class_vectors"][:, class_id].read()
        return lambda: self._result(future)

    def _first_vectors(self, count: int, images) -> np.ndarray:
        return self._result(self._arrays["class_vectors"].oindex[images, :count].read())

    def _write(self, name: str, rows: range, value: np.ndarray) -> None:
        self._arrays[name][rows.start : rows.stop].write(value).result()

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
