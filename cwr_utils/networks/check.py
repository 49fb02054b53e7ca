"""A look at what a network sees, to tell right weights from wrong ones."""

import numpy as np
import pandas as pd
from sklearn.datasets import load_sample_image

from cwr_utils.images import ResizePolicy, resize_image
from cwr_utils.networks.cam_network import CamNetwork, top_classes

PHOTOS = ("china.jpg", "flower.jpg")
_SIZE = ResizePolicy.parse("224x224")


def check_top5(network: CamNetwork) -> pd.DataFrame:
    """Name the five most probable classes of scikit-learn's two sample photos.

    With right weights china.jpg, a pavilion, is a bell cote, stupa, palace or
    monastery, and flower.jpg a daisy. A file whose kernels are of the right shape but
    in a wrong order or upside down gives other classes, of low probability.

    Returns:
        Rows are the ranks 1..5, columns the photos, cells e.g. "daisy (93.1 %)".
    """
    images = np.stack([resize_image(load_sample_image(p), _SIZE) for p in PHOTOS])
    logits = network.maps(images)["logits"].astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    best = top_classes(logits, min(5, logits.shape[1]))
    return pd.DataFrame(
        {
            photo: [f"{network.class_names[c]} ({row[c]:.1%})" for c in classes]
            for photo, row, classes in zip(PHOTOS, probabilities, best, strict=True)
        },
        index=pd.RangeIndex(1, best.shape[1] + 1, name="rank"),
    )
