"""The class-vector store: on disk, in memory, or several read as one."""

from cwr_utils.store.base import (
    BLOCK,
    ArraySpec,
    Store,
    StoreError,
    StoreMismatchError,
)
from cwr_utils.store.disk import DiskStore
from cwr_utils.store.growing import begin_part, open_parts, parts
from cwr_utils.store.joined import JoinedStore
from cwr_utils.store.written import MemoryStore

__all__ = [
    "BLOCK",
    "ArraySpec",
    "DiskStore",
    "JoinedStore",
    "MemoryStore",
    "Store",
    "StoreError",
    "StoreMismatchError",
    "begin_part",
    "open_parts",
    "parts",
]
