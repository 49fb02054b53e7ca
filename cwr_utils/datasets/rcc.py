"""Reader of Qt resource archives (.rcc): a tree of names over packed files.

Layout, as Qt's resource compiler writes it (all numbers big endian): a header
``qres``, version, then the offsets of the tree, the data and the names (version 3
adds flags). A tree node is name offset (u32) and flags (u16), then for a folder the
number of children and the index of the first one (u32 each), for a file the locale
(u32) and the data offset (u32); from version 2 on a time stamp (u64) follows. A name
is its length (u16), a hash (u32) and UTF-16. Data are a length (u32) and the bytes;
zlib data begin with their unpacked length (u32).
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

_ZLIB, _FOLDER, _ZSTD = 1, 2, 4
_MAX_FILE_BYTES = 1 << 28  # an archive that claims more is damaged or hostile


class RccError(ValueError):
    """The file is no resource archive, or a damaged one."""


@dataclass(frozen=True)
class _Entry:
    offset: int
    flags: int


class ResourceArchive:
    """The files inside one .rcc archive.

    Raises:
        RccError: if the file is not an archive, is truncated, or its tree is not one.
    """

    def __init__(self, path: str | Path):
        """Read the tree; files are unpacked by `read`."""
        self._path = Path(path)
        self._bytes = self._path.read_bytes()
        magic, version, *offsets = self._unpack(">4s4I", 0)
        if magic != b"qres":
            raise self._error(f"it begins with {magic!r} instead of b'qres'")
        if version not in (1, 2, 3):
            raise self._error(f"its format version is {version}; expected 1, 2 or 3")
        self._tree, self._data, self._names = offsets
        self._node_bytes = 14 if version == 1 else 22
        self._entries: dict[str, _Entry] = {}
        self._walk()

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the files, with slashes, in the order of the tree."""
        return tuple(self._entries)

    def read(self, name: str) -> bytes:
        """The unpacked bytes of one file."""
        entry = self._entries[name]
        start = self._data + entry.offset
        (length,) = self._unpack(">I", start)
        packed = self._slice(start + 4, length)
        if entry.flags & _ZSTD:
            return self._unzstd(packed, name)
        if entry.flags & _ZLIB:
            return self._unzlib(packed, name)
        return packed

    def _walk(self) -> None:
        # In a tree every node has one parent. With that checked, no damaged archive
        # can send us round in circles.
        seen = {0}
        todo = [(0, "")]
        while todo:
            index, folder = todo.pop()
            name_offset, flags = self._unpack(">IH", self._node(index))
            path = folder + self._name(name_offset) if index else ""
            first, second = self._unpack(">II", self._node(index) + 6)
            if not flags & _FOLDER:
                self._entries[path] = _Entry(second, flags)
                continue
            self._slice(self._node(second), first * self._node_bytes)
            children = range(second, second + first)
            if not seen.isdisjoint(children):
                raise self._error(f"folder {path!r} points back into the tree")
            seen.update(children)
            prefix = f"{path}/" if index else ""
            todo += [(child, prefix) for child in reversed(children)]

    def _node(self, index: int) -> int:
        return self._tree + index * self._node_bytes

    def _name(self, offset: int) -> str:
        start = self._names + offset
        (length,) = self._unpack(">H", start)
        try:
            name = self._slice(start + 6, 2 * length).decode("utf-16-be")
        except UnicodeDecodeError as error:
            raise self._error(f"the name at byte {start} is not UTF-16") from error
        if not name or name in (".", "..") or "/" in name or "\\" in name:
            raise self._error(f"{name!r} is not a file name")
        return name

    def _unzlib(self, packed: bytes, name: str) -> bytes:
        if len(packed) < 4:
            raise self._error(f"{name}: the compressed data are too short")
        (length,) = struct.unpack(">I", packed[:4])
        if length > _MAX_FILE_BYTES:
            raise self._error(f"{name}: it claims to unpack to {length} bytes")
        try:
            unpacked = zlib.decompressobj().decompress(packed[4:], length + 1)
        except zlib.error as error:
            raise self._error(f"{name}: {error}") from error
        if len(unpacked) != length:
            raise self._error(f"{name}: expected {length} bytes; got {len(unpacked)}")
        return unpacked

    def _unzstd(self, packed: bytes, name: str) -> bytes:
        program = shutil.which("zstd")
        if program is None:
            raise self._error(f"{name} is compressed with zstd: install `zstd`")
        done = subprocess.run(
            [program, "-dc"], input=packed, capture_output=True, check=False
        )
        if done.returncode:
            raise self._error(f"{name}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def _unpack(self, layout: str, offset: int) -> tuple:
        return struct.unpack(layout, self._slice(offset, struct.calcsize(layout)))

    def _slice(self, offset: int, length: int) -> bytes:
        if offset + length > len(self._bytes):
            raise self._error(
                f"it needs bytes {offset}..{offset + length} "
                f"but has {len(self._bytes)} (truncated?)"
            )
        return self._bytes[offset : offset + length]

    def _error(self, what: str) -> RccError:
        return RccError(f"{self._path} is not a usable Qt resource archive: {what}.")
