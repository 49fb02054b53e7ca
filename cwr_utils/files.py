"""Files and folders that appear whole or not at all, one writer at a time."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LONGEST_NAME = 120  # of a folder, in characters


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a place to write to, which becomes `path` when the block ends well.

    It lies beside `path`, whose folder is made if need be. When the block does not end
    well it goes, and what was at `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another thread or process may write the same file.
    writer = f"{os.getpid()}-{threading.get_ident()}"
    part = path.with_name(f".{path.name}.{writer}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: str | Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `target` when the block ends well.

    Where another process was faster, its copy serves.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        part.chmod(0o755)
        yield part
        if not target.exists():
            os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep other processes, if they ask, out of a folder that exists."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def free_bytes(path: str | Path) -> int:
    """Bytes that are free on the disk of a path, which need not exist yet."""
    path = Path(path).absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    return shutil.disk_usage(there).free


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def file_name(text: str) -> str:
    """A text as the name of a file, neither odd nor too long."""
    text = re.sub(r"[^\w.-]+", "-", text)
    if len(text) > _LONGEST_NAME:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        text = f"{text[: _LONGEST_NAME - 9]}-{digest}"
    return text
