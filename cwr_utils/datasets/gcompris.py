"""Photographs with licences from Debian's and Ubuntu's package gcompris-qt-data.

GCompris, an educational suite, brings some 300 photographs of known authors inside
Qt resource archives, each folder with a README that names author and licence. They
are fetched with apt on the user's machine, without root, and never committed.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from cwr_utils.datasets.base import DatasetError, run_program
from cwr_utils.datasets.rcc import RccError, ResourceArchive

PACKAGE = "gcompris-qt-data"
CONTENTS_FILE = "contents.json"

_SUFFIXES = (".webp", ".jpg", ".jpeg", ".png")
# What every path in the archives has in common says nothing about the photo.
_PLAIN_FOLDERS = {"gcompris", "src", "activities", "resource", "image", "images"}
_ARCHIVES = (
    "explore_monuments",
    "details",
    "categorization",
    "erase",
    "clickgame",
    "explore_farm_animals",
    "explore_world_animals",
    "explore_world_music",
)
# The README of version 3.1 misspells these file names.
_MISSPELT = {"audaPalatina.webp": "aulaPalatina.webp"}
_FETCH_SECONDS = 900


@dataclass(frozen=True)
class SourcePhoto:
    """One photo of the package.

    Attributes:
        key: short path without suffix, e.g. "explore_monuments/wonders/tajMahal".
        archive: which archive holds it, and `path` where.
        path: path inside the archive.
        author: as the README gives it.
        license: e.g. "CC BY-SA 4.0"; "" where the README does not say.
        comment: what was changed, or what it is based on.
        source: where the original was published.
    """

    key: str
    archive: ResourceArchive
    path: str
    author: str
    license: str
    comment: str
    source: str

    @property
    def suffix(self) -> str:
        """File type, with the dot."""
        return Path(self.path).suffix

    @property
    def credit(self) -> str:
        """Author and licence in one line, those of the original photo first."""
        own = f"{self.author}, {self.license}"
        original = re.search(r"based on .*? by (.+?), license ([^,]+)", self.comment)
        if original is None:
            return own
        license = _plain_license(original[2])
        return f"{original[1]}, {license}; adapted by {own}"

    def read(self) -> bytes:
        """The image file."""
        return self.archive.read(self.path)


@dataclass(frozen=True)
class Package:
    """The photos of the unpacked package and the READMEs with their licences."""

    version: str
    photos: Mapping[str, SourcePhoto]
    readmes: Mapping[str, bytes]


@contextmanager
def open_package(package: str | Path | None = None) -> Iterator[Package]:
    """Fetch (or take) the package and unpack it to a temporary folder.

    Args:
        package: a .deb file that is at hand; None fetches it with apt-get.

    Raises:
        DatasetError: when it cannot be fetched or unpacked, and why.
    """
    with tempfile.TemporaryDirectory(prefix="cwr-") as folder:
        place = Path(folder)
        with tqdm(total=3, desc=f"Fetching {PACKAGE} (44 MB)", leave=False) as bar:
            deb = _download(place, bar) if package is None else Path(package).resolve()
            bar.update()
            unpacked = place / "unpacked"
            _run(["dpkg-deb", "-x", str(deb), str(unpacked)], place)
            bar.update()
            contents = _read_package(unpacked, deb.stem)
            bar.update()
        yield contents


def write_photos(
    folder: Path,
    package: Package,
    names: Mapping[str, str],
    readmes: Sequence[str],
) -> None:
    """Write photos, the READMEs with their licences and a table of contents.

    Args:
        folder: where to; exists and is empty.
        package: the opened package.
        names: name of each photo in the collection -> its key in the package.
        readmes: keys of the folders whose README belongs to these photos.
    """
    photos = {}
    for name, key in names.items():
        photo = package.photos[key]
        file = name + photo.suffix
        (folder / file).write_bytes(photo.read())
        photos[name] = {
            "file": file,
            "credit": photo.credit,
            "source": photo.source,
            "changes": photo.comment,
            "from": key,
        }
    for key in readmes:
        name = "README_" + key.replace("/", "_") + ".txt"
        (folder / name).write_bytes(package.readmes[key])
    contents = {"package": package.version, "photos": photos}
    text = json.dumps(contents, indent=1, ensure_ascii=False)
    (folder / CONTENTS_FILE).write_text(text + "\n", encoding="utf-8")


def read_contents(folder: Path) -> dict[str, dict[str, str]]:
    """The table that `write_photos` left: photo name -> file, credit, source.

    Raises:
        DatasetError: if the folder has none, or it is damaged.
    """
    file = folder / CONTENTS_FILE
    try:
        photos = json.loads(file.read_text(encoding="utf-8"))["photos"]
        return {name: dict(photo) for name, photo in photos.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{file} cannot be read ({error}); delete {folder} to fetch it again."
        ) from error


def _download(place: Path, bar: tqdm) -> Path:
    """Fetch the .deb into `place`, with the machine's lists or, failing that, ours."""
    fetch = ["apt-get", "download", "-q", PACKAGE]
    bar.set_postfix_str("apt-get download")
    try:
        _run(fetch, place)
    except DatasetError:
        # Fresh machines have no package lists, and only root may fetch them to where
        # they belong: fetch them to a folder of our own.
        options = []
        for option in ("Dir::State::Lists=lists", "Dir::Cache=cache"):
            name, path = option.split("=")
            (place / path / "partial").mkdir(parents=True)
            options += ["-o", f"{name}={place / path}"]
        bar.set_postfix_str("apt-get update")
        _run(["apt-get", *options, "update", "-q"], place)
        bar.set_postfix_str("apt-get download")
        _run([*fetch[:1], *options, *fetch[1:]], place)
    found = sorted(place.glob(f"{PACKAGE}_*.deb"))
    if not found:
        raise DatasetError(f"apt-get brought no {PACKAGE} package and did not say why.")
    return found[0]


def _run(command: Sequence[str], folder: Path) -> None:
    program = shutil.which(command[0])
    if program is None:
        raise DatasetError(
            f"{command[0]} is not installed: these photos come from a package of "
            "Debian and Ubuntu."
        )
    # As root, apt would switch to a user who may not write to our folder.
    options = ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]
    extra = [*options, "-o", "Acquire::Retries=2"] if command[0] == "apt-get" else []
    run_program(
        [program, *extra, *command[1:]],
        f"`{' '.join(command)}` failed",
        timeout=_FETCH_SECONDS,
        cwd=folder,
    )


def _read_package(unpacked: Path, version: str) -> Package:
    photos: dict[str, SourcePhoto] = {}
    readmes: dict[str, bytes] = {}
    for stem in _ARCHIVES:
        for file in sorted(unpacked.rglob(f"{stem}.rcc")):
            try:
                _read_archive(ResourceArchive(file), photos, readmes)
            except RccError as error:
                raise DatasetError(f"{version}: {error}") from error
    if not photos:
        raise DatasetError(
            f"{version} has none of the archives {', '.join(_ARCHIVES)}: "
            "is it the right package?"
        )
    return Package(version, photos, readmes)


def _read_archive(
    archive: ResourceArchive,
    photos: dict[str, SourcePhoto],
    readmes: dict[str, bytes],
) -> None:
    licenses: dict[str, dict[str, str]] = {}
    for path in archive.names:
        if Path(path).name == "README":
            text = archive.read(path)
            readmes[_key(path).rpartition("/")[0]] = text
            for file, entry in _read_licenses(text.decode("utf-8", "replace")).items():
                licenses[str(Path(path).parent / file)] = entry
    for path in archive.names:
        if Path(path).suffix.lower() in _SUFFIXES:
            entry = licenses.get(path, {})
            photos[_key(path)] = SourcePhoto(
                key=_key(path),
                archive=archive,
                path=path,
                author=_plain_author(entry.get("copyright", "")),
                license=_plain_license(entry.get("license", "")),
                comment=entry.get("comment", ""),
                source=entry.get("source", ""),
            )


def _key(path: str) -> str:
    parts = [part for part in Path(path).parts if part not in _PLAIN_FOLDERS]
    return str(Path(*parts).with_suffix(""))


def _read_licenses(text: str) -> dict[str, dict[str, str]]:
    """File name -> fields, from blocks of "Field: value" lines.

    File names follow "Files:", on its line or one a line; some blocks of the README
    leave "Files:" out.
    """
    licenses = {}
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        fields: dict[str, str] = {}
        files: list[str] = []
        for line in block.splitlines():
            match = re.match(r"(Copyright|License|Source|Comment)s?:(.*)", line)
            if match:
                fields[match[1].lower()] = match[2].strip()
            elif file := line.removeprefix("Files:").strip():
                files.append(file)
        for file in files:
            licenses[_MISSPELT.get(file, file)] = fields
    return licenses


def _plain_license(text: str) -> str:
    """One spelling: "CC-BY-SA-4.0" -> "CC BY-SA 4.0"."""
    text = text.strip().replace("Public domain", "Public Domain")
    return re.sub(r"^CC(0|-BY(?:-SA)?)[- ](\d)", r"CC\1 \2", text).replace("CC-", "CC ")


def _plain_author(text: str) -> str:
    """The name alone, without the years and the sign."""
    text = re.sub(r"^[\s,©]*(\d{4}(-\d{4})?[\s,]+)*", "", text.strip())
    return re.sub(r",\s*\d{4}(-\d{4})?$", "", text)
