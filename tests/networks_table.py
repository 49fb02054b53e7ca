"""Write cwr_utils/networks/networks.csv, the facts that `networks.table` shows.

    python tests/networks_table.py [NAMES]

Takes minutes and gigabytes: every network is built, with random weights. The slow test
in tests/test_catalog.py compares.
"""

import sys
from unittest import mock

import keras
import pandas as pd

from cwr_utils import networks
from cwr_utils.networks import catalog, keras_applications, torchvision


class _Asked(Exception):
    """Keras wants to fetch a file."""


def facts(name):
    """One row: what is pooled, how large the network is, and which file it reads."""
    network = networks.load(name, None)
    layer = network.layer(network.default_layer)
    weights = sum(weight.size for weight in network.backbone.get_weights())
    return {
        "name": name,
        "layer": layer.name,
        "channels": layer.channels,
        "stride": layer.stride,
        "non_negative": layer.non_negative,
        "layers": len(network.feature_layers()),
        "maps": len(network.class_weights),
        "smallest": network.smallest_input,
        "millions": round((weights + network.class_weights.size) / 1e6, 1),
        "url": url(name),
    }


def url(name):
    """Where its file is fetched from; "" if it is not."""
    if name in torchvision.ARCHITECTURES:
        return torchvision.URL + torchvision.ARCHITECTURES[name].file
    if not name.startswith(keras_applications.PREFIX):
        return ""

    def ask(_, origin, **__):
        raise _Asked(origin)

    constructor, _ = keras_applications._find(name)
    with mock.patch("keras.src.utils.file_utils.get_file", ask):
        try:
            constructor(weights="imagenet")
        except _Asked as asked:
            return asked.args[0]
    raise AssertionError(f"{name} asks for no file")


if __name__ == "__main__":
    rows = {}
    if catalog.FILE.exists():
        known = pd.read_csv(catalog.FILE, keep_default_na=False)
        rows = {row["name"]: row for row in known.to_dict("records")}
    for name in sys.argv[1:] or networks.available():
        rows[name] = facts(name)
        keras.backend.clear_session()
        table = pd.DataFrame([rows[n] for n in networks.available() if n in rows])
        table.to_csv(catalog.FILE, index=False)
        print(rows[name], flush=True)
