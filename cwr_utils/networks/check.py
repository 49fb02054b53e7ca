"""A look at what a network sees, to tell right weights from wrong ones."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
from sklearn.datasets import load_sample_image

from cwr_utils.arrays import softmax
from cwr_utils.images import ResizePolicy, read_image, resize_image
from cwr_utils.networks import imagenet
from cwr_utils.networks.cam_network import CamNetwork, top_classes

PAVILION, FLOWER = "china.jpg", "flower.jpg"  # scikit-learn's
TURNED = f"{PAVILION} upside down"
# What ImageNet's classes call them. A pavilion and its mirror image in the water,
# upside down, are a boathouse by a lake.
BUILDINGS = ("bell cote", "castle", "church", "dome", "monastery", "palace", "stupa")
FLOWERS = ("bee", "daisy", "honeycomb")
_KNOWN = 0.25  # probability that the buildings have at least, with any right network
_SAME = 0.02  # difference of probabilities below which photos get one answer
_THUMBNAIL = 112


@dataclass(frozen=True, eq=False)
class Check:
    """What a network sees on some photos; a notebook shows them too.

    Attributes:
        table: ranks 1 to 5 by photos, cells such as "daisy (93.1 %)".
        right: whether the weights are right; None if that cannot be told.
        verdict: the same in words, and what to do.
        photos: name -> (H, W, 3) uint8, as the network saw them.
    """

    table: pd.DataFrame
    right: bool | None
    verdict: str
    photos: Mapping[str, np.ndarray]

    def __str__(self) -> str:
        """The table and the verdict."""
        return f"{self.table.to_string()}\n\n{self.verdict}"

    def _repr_html_(self) -> str:
        heads = (
            f"<th>{_thumbnail(photo, name)}<br>{html.escape(name)}</th>"
            for name, photo in self.photos.items()
        )
        rows = (
            "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            for row in self.table.to_numpy()
        )
        body = "".join(f"<tr><th>{n}</th>{row}</tr>" for n, row in enumerate(rows, 1))
        return (
            f"<table><tr><th>rank</th>{''.join(heads)}</tr>{body}</table>"
            f"<p><b>{html.escape(self.verdict)}</b></p>"
        )


def check_top5(network: CamNetwork, photos: Sequence[str | Path] = ()) -> Check:
    """Name the five most probable classes of sample photos, and judge.

    With right weights `BUILDINGS` have most of the probability of scikit-learn's
    china.jpg, and one of `FLOWERS` is seen in flower.jpg. Shapes cannot tell a square
    kernel from one turned by 180 degrees (Theano's, not turned back); but a network of
    such kernels sees the world upside down. So the pavilion is shown upside down as
    well: where the buildings have more of it than of the upright one, the kernels are
    turned. Measured with EfficientNet-Lite 0, 1 and 2, as published and turned.

    Args:
        network: of any classes; only those of ImageNet can be judged.
        photos: files to look at in the place of the samples, without a judgement.

    Raises:
        ImageError: if a file is no image.
    """
    if photos:
        samples = {Path(path).name: read_image(path) for path in photos}
    else:
        samples = {name: load_sample_image(name) for name in (PAVILION, FLOWER)}
        samples[TURNED] = samples[PAVILION][::-1, ::-1]
    side = max(224, network.smallest_input)
    size = ResizePolicy.parse(f"{side}x{side}")
    seen = {name: resize_image(photo, size) for name, photo in samples.items()}
    logits = network.maps(np.stack(list(seen.values())))["logits"].astype(np.float64)
    probabilities, best = softmax(logits), top_classes(logits, 5)
    table = pd.DataFrame(
        {
            name: [f"{network.class_names[c]} ({row[c]:.1%})" for c in classes]
            for name, row, classes in zip(seen, probabilities, best, strict=True)
        },
        index=pd.RangeIndex(1, best.shape[1] + 1, name="rank"),
    )
    of_imagenet = tuple(network.class_names) == imagenet.class_names()
    if photos or not of_imagenet:
        return Check(table, None, _not_judged(network, probabilities), seen)
    return Check(table, *_judge(network, probabilities), seen)


def _judge(network: CamNetwork, probabilities: np.ndarray) -> tuple[bool | None, str]:
    """Whether weights are right, and why; see `check_top5`."""
    buildings = [network.class_names.index(name) for name in BUILDINGS]
    upright, _, turned = probabilities[:, buildings].sum(axis=1)
    flower = [network.class_names[c] for c in top_classes(probabilities, 5)[1]]
    shown = f"buildings have {upright:.0%} of {PAVILION}, {turned:.0%} upside down"
    if max(upright, turned) < _KNOWN:
        return False, (
            f"WRONG: {shown}. The weights are random or of another network, or pixels "
            "are scaled in another way than in the training."
        )
    if turned > upright:
        return False, (
            f"WRONG: {shown}. The network sees the world upside down: its kernels are "
            "turned by 180 degrees, as Theano stores them."
        )
    if not set(flower) & set(FLOWERS):
        return None, f"UNSURE: {shown}; but {FLOWER} is {', '.join(flower)}."
    return True, f"RIGHT: {shown}, and {FLOWER} may be a {flower[0]}."


def _not_judged(network: CamNetwork, probabilities: np.ndarray) -> str:
    classes = len(network.class_names)
    text = f"JUDGE FOR YOURSELF: {network.name} has {classes} classes"
    if tuple(network.class_names) != imagenet.class_names():
        text += " of its own, which the sample photos need not show"
    text += ". "
    if len(probabilities) > 1 and np.ptp(probabilities, axis=0).max() < _SAME:
        text += (
            "All photos get the same answer: its weights or `preprocess` are wrong. "
        )
    levels = np.arange(256, dtype=np.float32).repeat(3).reshape(1, 1, 256, 3)
    raw = np.array_equal(keras.ops.convert_to_numpy(network.preprocess(levels)), levels)
    scaling = keras.layers.Rescaling | keras.layers.Normalization
    if raw and not any(isinstance(k, scaling) for k in network.backbone.layers):
        text += (
            "It gets pixels of 0 to 255 as they are: if it was trained on others, say "
            "so by `preprocess`."
        )
    return text.strip()


def _thumbnail(photo: np.ndarray, name: str) -> str:
    small = cv2.resize(photo, (_THUMBNAIL,) * 2, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes()
    source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return f'<img src="{source}" alt="{html.escape(name, quote=True)}">'
