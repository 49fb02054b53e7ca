"""Extraction: from photographs on disk to a store, against the graph alone."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
from conftest import seconds

from cwr_utils import networks
from cwr_utils.datasets import Dataset
from cwr_utils.extraction import Setup, extract
from cwr_utils.extraction import photos as extraction
from cwr_utils.extraction.describer import finish
from cwr_utils.images import read_image, resize_image
from cwr_utils.store import DiskStore


def photos(folder, count, size):
    """JPEG files with smooth patterns and noise: 1.9 bits a pixel, like photographs."""
    folder.mkdir()
    paths = {}
    for number in range(count):
        scene = cv2.resize(tiny.scene(number), size, interpolation=cv2.INTER_CUBIC)
        noise = np.random.default_rng(number).normal(0, 7, scene.shape)
        paths[f"photo{number}"] = folder / f"{number}.jpg"
        picture = np.clip(scene + noise, 0, 255).astype(np.uint8)
        cv2.imwrite(
            str(paths[f"photo{number}"]), picture, [cv2.IMWRITE_JPEG_QUALITY, 88]
        )
    return Dataset("patterns", tuple(paths), (), "generated, for benchmarks", paths)


@pytest.mark.parametrize(
    ("name", "count"), [("efficientnet-lite0", 96), ("vgg16-cam", 12)]
)
def test_bench_extraction(compare, full_size, tmp_path, monkeypatch, name, count):
    """Hashing, decoding, resizing and writing included; the graph is compiled before.

    The lost percent: core milliseconds a photo that the network does not compute.
    """
    if full_size:
        weights = None if name == "vgg16-cam" else "imagenet"
        network, size = networks.load(name, weights), (1024, 768)
        setup = Setup(network, tmp_path, resize="1024x720")
    else:
        setup, count, size = tiny.setup(tmp_path), 3, (96, 72)
    data = photos(tmp_path / "photos", count, size)
    monkeypatch.setattr(extraction, "Describer", functools.cache(extraction.Describer))
    describer, policy = extraction.Describer(setup), setup.policy
    paths = [data.path(image) for image in data.images]
    resized = [resize_image(read_image(path), policy) for path in paths]
    describer(resized[0][None])
    stores = iter(range(10))
    store = []

    def fresh():
        """The photos as a new process finds them: nothing is known of the files."""
        return replace(data, facts={})

    def from_disk():
        store[:] = [extract(fresh(), setup, tmp_path / f"s{next(stores)}")]

    def losses():
        """Milliseconds a photo of each step, alone on the machine."""
        blocks = store[0].blocks
        values = {key: store[0].read(key) for key in store[0].arrays}
        copy = DiskStore.create(
            tmp_path / "copy",
            store[0].config,
            store[0].hashes,
            store[0]._specs,
            store[0].block,
        )
        decoded = [read_image(path) for path in paths]
        described = describer(resized[0][None])
        steps = {
            "check and hash": lambda: fresh().hashes(),
            "decode": lambda: [read_image(path) for path in paths],
            "resize": lambda: [resize_image(photo, policy) for photo in decoded],
            "finish": lambda: [finish(described, store[0]) for _ in paths],
            "write": lambda: [
                copy.write_block(n, {k: v[list(b)] for k, v in values.items()})
                for n, b in enumerate(blocks)
            ],
        }
        return {key: 1e3 * seconds(step) / count for key, step in steps.items()}

    compare(
        f"{name}: {count} photos from disk to store, against the graph on photos in "
        "memory",
        from_disk,
        lambda: [describer(photo[None]) for photo in resized],
        rounds=5 if name == "efficientnet-lite0" else 2,
        target="<= 1.11 (0.9 of the throughput)",
        names=("disk to store", "graph alone"),
        photos=count,
        ms_a_photo_of_each_step_alone=losses,
    )
    vectors = store[0].read("class_vectors", [0])
    np.testing.assert_array_equal(vectors, describer(resized[0][None])["class_vectors"])


MEMORY = """
import json, sys
from pathlib import Path
import keras
import numpy as np
from cwr_utils.datasets import folder
from cwr_utils.extraction import Setup, extract
from cwr_utils.networks import CamNetwork
from cwr_utils.networks.cam_network import randomize
from cwr_utils.runs import peak_memory

image = keras.Input((None, None, 3))
features = keras.layers.Conv2D(256, 3, 4, "same", activation="relu")(image)
backbone = keras.Model(image, keras.layers.Conv2D(32, 3, 2, "same")(features))
identity = randomize(backbone, 0)
weights = np.random.default_rng(0).standard_normal((32, 200)).astype(np.float32)
names = [str(c) for c in range(200)]
network = CamNetwork(
    "small", backbone, weights, np.zeros(200, np.float32), names, lambda x: x, identity
)
data = folder.load(sys.argv[1])
layer = network.feature_layers()[0].name
store = extract(data, Setup(network, "cache", layer, "64x48"), sys.argv[2])
print(json.dumps({"photos": len(store), "peak_mib": peak_memory()}))
"""


def test_bench_extraction_memory(measure, full_size, tmp_path):
    """Peak memory of a process that extracts 300 and 3,000 photos.

    A small network with 100 KiB of class vectors a photo: 3,000 kept in memory by
    mistake would be 290 MiB.
    """
    if not full_size:
        pytest.skip("two processes and 3,000 photos: only in `make bench`")

    def peaks():
        found = {}
        for count in (300, 3000):
            folder = tmp_path / str(count)
            photos(folder, count, (96, 72))
            here = Path(__file__).parents[1]
            output = subprocess.run(
                [sys.executable, "-c", MEMORY, str(folder), f"{folder}-store"],
                env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout.splitlines()
            facts = json.loads(output[-1])
            assert facts["photos"] == count
            found[f"{count} photos, MiB"] = facts["peak_mib"]
        few, many = found.values()
        return {**found, "ratio": many / few}

    measure("Peak memory of extraction", peaks, "ratio <= 1.1")
