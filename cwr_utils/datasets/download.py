"""Fetch public archives over HTTP: resumed, checked, unpacked whole or not at all.

pooch (1.9) does the rest well, but starts each attempt in a new temporary file, without
an HTTP Range: a line that breaks after 1.8 of 1.9 GB starts from zero. Hence urllib.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from tqdm.auto import tqdm

from cwr_utils.datasets.base import DatasetError, complete_folder, run_program

_HEADERS = {"User-Agent": "cwr-workbook", "Accept-Encoding": "identity"}
_TIMEOUT = 30.0  # seconds without a byte
_TRIES = 3  # in a row that bring no new byte
_PAUSE = 2.0  # seconds between tries
_BLOCK = 1 << 20
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True)
class RemoteFile:
    """A file that somebody offers.

    Attributes:
        name: under which it is kept here.
        urls: where it is (or was): tried in this order.
        sha256: "" where no checksum is publicly known.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str = ""


class _RefusedError(Exception):
    """This address will not give the file, however often it is asked."""


def fetch(files: Sequence[RemoteFile], folder: Path, size: str) -> list[Path]:
    """Download what is not in `folder` yet; a partial file is continued.

    Args:
        files: to fetch, one after the other.
        folder: where they go; made if need be. Files put there by hand serve as well.
        size: of all files together, for the message.

    Returns:
        Their paths, in order.

    Raises:
        DatasetError: every address of a file failed (what each of them answered, and
            what to do by hand), or the disk is full.
    """
    for file in files:
        target = folder / file.name
        if target.is_file():
            continue
        if tried := _from_any_mirror(file, target):
            missing = [f.name for f in files if not (folder / f.name).is_file()]
            raise DatasetError(
                f"{file.name} cannot be downloaded:",
                tried,
                f"The host may be down, have moved or ask for a registration. Fetch "
                f"{', '.join(missing)} ({size} in all) in a browser or from a "
                f"colleague, put them into {folder} and run this again: what is there "
                f"is not fetched, a file that ends in .part is continued.",
            )
    return [folder / file.name for file in files]


def _from_any_mirror(file: RemoteFile, target: Path) -> list[str]:
    """Download; [] when that worked, else what each address answered."""
    part = target.with_name(f"{file.name}.part")
    tried = []
    for url in file.urls:
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            _download(url, part)
            _check_sha256(file, part)
            part.replace(target)
        except _RefusedError as error:
            tried.append(f"{url}: {error}")
        except OSError as error:  # of the disk: `_download` keeps those of the line
            raise DatasetError(
                f"Cannot write {part} ({error.strerror or error}). Free some space or "
                "choose another `data_root`; what has arrived is kept and continued."
            ) from error
        else:
            return []
    return tried


def _download(url: str, part: Path) -> None:
    best, failures = _size(part), 0
    while True:
        try:
            return _receive(url, part)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
            if error.code < 500:
                raise _RefusedError(reason) from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        if _size(part) > best:
            best, failures = _size(part), 0
        else:
            failures += 1
        if failures == _TRIES:
            raise _RefusedError(f"{reason} ({_TRIES} tries)")
        time.sleep(_PAUSE)


def _receive(url: str, part: Path) -> None:
    """One request: append to `part` what it lacks.

    Another mirror's part is continued too: were the copies not the same, the checksum,
    the archive's own one or the count would tell.
    """
    have = _size(part)
    span = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers=_HEADERS | span)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: there is nothing after `have`
            raise
        error.close()
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return None  # all of it had arrived
        part.unlink()  # a part of something longer
        return _receive(url, part)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _RefusedError("a web page came instead of the file")
        if response.status == 206:
            start = response.headers.get("Content-Range", "")
            if not start.startswith(f"bytes {have}-"):
                raise _RefusedError(f"asked from byte {have}, it sent {start!r}")
        else:  # the host knows no ranges: from the start
            have = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(
                desc=part.stem,
                total=total,
                initial=have,
                unit="B",
                unit_scale=True,
                leave=False,
            ) as bar,
        ):
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and _size(part) < total:
        raise ConnectionError(f"broke off after {_size(part):,} of {total:,} bytes")
    return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_sha256(file: RemoteFile, part: Path) -> None:
    if not file.sha256:
        return
    with part.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != file.sha256:
        part.unlink()  # there is no sense in continuing it
        raise _RefusedError(f"expected SHA-256 {file.sha256}; got {digest}")


def unpack(
    archives: Sequence[Path], target: Path, problem_in: Callable[[Path], str]
) -> None:
    """Unpack tar archives, or the volumes of one RAR archive, into one new folder.

    Args:
        archives: in order.
        target: the folder; it appears whole or not at all.
        problem_in: looks at the unpacked folder; a text refuses it.

    Raises:
        DatasetError: an archive is damaged, holds a link or a path that leads out of
            the folder, or is refused by `problem_in`; no program unpacks RAR.
    """
    with complete_folder(target) as new:
        if archives[0].suffix == ".rar":
            _unpack_rar(archives[0], new)
        else:
            for archive in archives:
                _unpack_tar(archive, new)
        if problem := problem_in(new):
            names = ", ".join(str(archive) for archive in archives)
            raise DatasetError(f"{problem} in {names}. Nothing was unpacked.")


def _unpack_tar(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            # Python before 3.11.4 has no such filter: `_checked` has to be enough.
            tar.extraction_filter = getattr(
                tarfile, "data_filter", lambda member, _: member
            )
            tar.extractall(folder, _checked(tar, archive))
    except _DAMAGED as error:
        raise DatasetError(
            f"{archive} is damaged ({error}): delete it and run this again."
        ) from error


def _checked(tar: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    """Members of an archive that holds files and folders inside it only."""
    for member in tqdm(tar, f"Unpacking {archive.name}", leave=False):
        # Windows paths know both slashes and drives.
        path = PureWindowsPath(member.name)
        inside = not path.anchor and ".." not in path.parts
        if not inside or not (member.isfile() or member.isdir()):
            raise DatasetError(
                f"{archive} holds {member.name!r}, a link or a path that leads "
                "elsewhere: refused, nothing was unpacked."
            )
        yield member


def rar_program() -> str:
    """The program here that unpacks RAR, for which Python has nothing.

    Raises:
        DatasetError: there is none; ask before a long download, not after.
    """
    for program in ("unar", "unrar", "7zz", "7z"):
        if found := shutil.which(program):
            return found
    raise DatasetError(
        "The archive is in RAR format, and none of unar, unrar, 7zz and 7z is "
        "installed here. On Debian and Ubuntu: sudo apt-get install unar"
    )


def _unpack_rar(first: Path, folder: Path) -> None:
    program = rar_program()
    options = {
        "unar": ["-quiet", "-output-directory", str(folder), str(first)],
        "unrar": ["x", "-y", "-idq", str(first), f"{folder}{os.sep}"],
    }.get(Path(program).stem, ["x", "-y", "-bd", f"-o{folder}", str(first)])
    tqdm.write(f"Unpacking {first.name} and its other volumes with {program} ...")
    run_program([program, *options], f"{program} cannot unpack {first}")
