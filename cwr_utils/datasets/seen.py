"""Size and hash of files that were looked at before, so that none is read again.

A file is taken for unchanged if its length and its time of change are: 100,000 photos
are known in a second or two, and reading them takes as long as the disk needs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from cwr_utils.files import write_text
from cwr_utils.images import Facts

# Nanoseconds in which a file may change twice and its time once.
_TICK = 2 * 10**9


def recall(record: Path, paths: Mapping[str, Path]) -> dict[Path, Facts]:
    """What is known of files that have not changed since; of others nothing.

    Args:
        record: file that `remember` wrote; a damaged one is taken for none.
        paths: name -> file.
    """
    found = {}
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        for name in known.keys() & paths.keys():
            stamp, (width, height), sha256 = known[name]
            if stamp == _stamp(paths[name]):
                found[paths[name]] = Facts((int(width), int(height)), str(sha256))
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return found


def remember(record: Path, paths: Mapping[str, Path], facts: Mapping) -> None:
    """Write what is known of files, but for those that changed a moment ago.

    Args:
        record: file to write.
        paths: name -> file, the names that `recall` will be given.
        facts: file -> `Facts`.
    """
    begun, known = time.time_ns() - _TICK, {}
    for name, path in paths.items():
        if path in facts and (stamp := _stamp(path)) and stamp[0] < begun:
            known[name] = [stamp, facts[path].size, facts[path].sha256]
    write_text(record, json.dumps(known))


def _stamp(path: Path) -> list[int] | None:
    """Time of change and length of a file; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_size]
