"""A CAM network of three layers and a data set of generated photos, for fast tests.

The network has random weights and never saw a picture, but pictures of the same thing
still get similar features: enough for a search whose right answer is known.
"""

import functools
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from cv2 import COLOR_RGB2BGR, INTER_CUBIC, cvtColor, imencode, resize

from cwr_utils import retrieval
from cwr_utils.datasets import Dataset, Query
from cwr_utils.extraction import Describer, Setup, photos, queries
from cwr_utils.networks import CamNetwork
from cwr_utils.networks.cam_network import randomize
from cwr_utils.protocol import FLAGS, PRESETS
from cwr_utils.retrieval import Collection, Described, Experiment

CLASSES = 6
LAYER = "features"  # 12 channels, stride 4; the CAM layer has stride 8
RESIZE = "64x48"  # a feature grid of 16x12 cells, a CAM grid of 8x6
FINE = "96x72"  # boxes of five cells need a grid that is somewhat finer
SIZES = [(96, 72), (72, 96), (80, 80)]  # landscape, portrait, square


@functools.cache
def network(seed: int = 0, name: str = "tiny") -> CamNetwork:
    """A CAM network; the last of its six classes never has a positive CAM.

    The same object for the same arguments; `network.__wrapped__` makes a new one.
    """

    def conv(channels, kernel, name, activation="relu"):
        return keras.layers.Conv2D(
            channels, kernel, 2, "same", activation=activation, name=name
        )

    image = keras.Input((None, None, 3))
    linear = conv(8, 3, "linear", activation=None)(image)
    features = conv(12, 3, LAYER)(keras.layers.ReLU()(linear))
    backbone = keras.Model(image, conv(7, 3, "maps")(features))
    identity = randomize(backbone, seed)
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((7, CLASSES)).astype(np.float32)
    # Without the direction that all photos share, or all would have the same classes.
    scenes = np.stack([_preprocess(scene(s).astype(np.float32)) for s in range(8)])
    mean = backbone.predict_on_batch(scenes).mean(axis=(0, 1, 2))
    weights -= np.outer(mean, mean @ weights) / (mean @ mean)
    weights[:, -1] = -1
    tiny = CamNetwork(
        name,
        backbone,
        weights,
        np.zeros(CLASSES, np.float32),
        [f"class {c}" for c in range(CLASSES)],
        _preprocess,
        identity,
    )
    tiny.recipe = network, (seed, name)
    return tiny


def setup(folder=Path("cache"), own=None, resize=RESIZE, **changes) -> Setup:
    """How tests describe photos: the tiny network and size, unless they say otherwise.

    Args:
        folder: of stores and maps.
        own: another network.
        resize: another size.
        changes: other fields of the setup; a name of a protocol is one too, and so are
            its flags, one by one.
    """
    flags = {name: changes.pop(name) for name in FLAGS if name in changes}
    base = changes.pop("protocol", PRESETS["corrected"])
    base = PRESETS[base] if isinstance(base, str) else base
    return Setup(
        own or network(),
        folder,
        resize=resize,
        protocol=replace(base, **flags),
        **changes,
    )


@functools.cache
def _describer(settings: Setup) -> Describer:
    return Describer(settings)


def describer(settings: Setup) -> Describer:
    """One graph for each network, setting and size, not for each folder."""
    return _describer(replace(settings, cache_dir=Path("any")))


@contextmanager
def compile_once():
    """Put `describer` in the place of the class wherever photos are described."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (photos, queries, retrieval.described):
            patch.setattr(module, "describer_of", describer)
        yield


def described(folder: Path, *setups: Setup, others: int = 12) -> Experiment:
    """An experiment whose photos are described, by one setup or several together.

    Args:
        folder: of the photos.
        setups: the first one, and those that describe photos besides.
        others: photos to fit the whitening on.
    """
    data = dataset(folder / "photos")
    training = dataset(folder / "other", "other", 0, 0, others, first_place=100)
    experiment = Experiment(data, training, setups[0], also=setups[1:])
    with compile_once():
        experiment.extract()
    return experiment


def collection(experiment: Experiment, *stores, **options) -> Collection:
    """One that is opened from stores at hand, see `Described.of`."""
    return Collection(experiment, (Described.of(experiment, *stores, **options),))


def opened(experiment: Experiment) -> Collection:
    """Describe what is not described yet, and open it all."""
    with compile_once():
        experiment.extract()
    return Collection.open(experiment)


def _preprocess(images):
    return images / 64 - 2


def scene(seed: int) -> np.ndarray:
    """(160, 160, 3) uint8 smooth coloured pattern, a place to take photos of."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (3, 3), dtype=np.uint8)
    coarse = palette[rng.integers(0, 3, (16, 16))]
    return resize(coarse, (160, 160), interpolation=INTER_CUBIC)


def view(place: int, number: int) -> np.ndarray:
    """(h, w, 3) uint8 photo of a place: other sizes, other cut-outs, some noise."""
    rng = np.random.default_rng((place, number))
    width, height = SIZES[number % len(SIZES)]
    x, y = 30 + rng.integers(-3, 4, 2)
    noise = rng.integers(-6, 7, (height, width, 3))
    photo = scene(place)[y : y + height, x : x + width].astype(int)
    return np.clip(photo + noise, 0, 255).astype(np.uint8)


def write(path, photo: np.ndarray) -> None:
    """Write a PNG file, which loses nothing."""
    path.write_bytes(imencode(".png", cvtColor(photo, COLOR_RGB2BGR))[1].tobytes())


def dataset(
    folder, name="tiny", places=4, views=3, distractors=6, first_place=0
) -> Dataset:
    """Places with several views each, then distractors; a query for each place.

    The query is the place's first photo with a box; the last view is junk where there
    are more than two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, queries = {}, []

    def add(image, place, number):
        paths[image] = folder / f"{image}.png"
        write(paths[image], view(place, number))

    for place in range(first_place, first_place + places):
        images = [f"place{place}_{number}" for number in range(views)]
        for number, image in enumerate(images):
            add(image, place, place + number)
        width, height = SIZES[place % len(SIZES)]
        junk = frozenset(images[-1:] if views > 2 else [])
        queries.append(
            Query(
                f"query{place}",
                images[0],
                (8.0, 8.0, width - 6.0, height - 6.0),
                frozenset(images) - junk,
                junk,
            )
        )
    for number in range(distractors):
        add(f"other{first_place}_{number}", 1000 + first_place + number, number)
    note = "generated patterns, for tests"
    return Dataset(name, tuple(paths), tuple(queries), note, paths)
