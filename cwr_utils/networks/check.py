"""A look at what a network sees, to tell right weights from wrong ones."""

import numpy as np
import pandas as pd
from sklearn.datasets import load_sample_image

from cwr_utils.arrays import softmax
from cwr_utils.images import ResizePolicy, resize_image
from cwr_utils.networks.cam_network import CamNetwork, top_classes

_SIZE = ResizePolicy.parse("224x224")


def check_top5(network: CamNetwork) -> pd.DataFrame:
    """Name the five most probable classes of scikit-learn's two sample photos.

    With right weights flower.jpg is a daisy or a honeycomb, and china.jpg, a pavilion,
    a bell cote, palace, monastery or stupa. Shapes cannot tell a square kernel from one
    turned by 180 degrees (Theano's, not turned back); but a network of such kernels
    sees the world upside down. So the pavilion is shown upside down as well: if that
    column names it better than the upright one, the kernels are turned. Measured with
    EfficientNet-Lite0 and 2: bell cote goes from one column to the other, and boathouse
    and lakeside, of a building and its mirror image, the other way.

    Returns:
        Rows are the ranks 1..5, columns the photos, cells e.g. "daisy (93.1 %)".
    """
    photos = {name: load_sample_image(name) for name in ("china.jpg", "flower.jpg")}
    photos["china.jpg upside down"] = photos["china.jpg"][::-1, ::-1]
    images = np.stack([resize_image(photo, _SIZE) for photo in photos.values()])
    logits = network.maps(images)["logits"].astype(np.float64)
    best = top_classes(logits, min(5, logits.shape[1]))
    return pd.DataFrame(
        {
            photo: [f"{network.class_names[c]} ({row[c]:.1%})" for c in classes]
            for photo, row, classes in zip(photos, softmax(logits), best, strict=True)
        },
        index=pd.RangeIndex(1, best.shape[1] + 1, name="rank"),
    )
