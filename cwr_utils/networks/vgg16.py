"""VGG-16 (Simonyan and Zisserman 2015), as torchvision has it.

The trunk of CroW (Kalantidis et al. 2016) and R-MAC (Tolias et al. 2016), which pool
its last maps: here `pool5`, the default, or `conv5_3`. They took the authors' weights
for Caffe; torchvision's are of another training.

Its first fully connected layer sees 7x7 cells, all that a photo of 224x224 has. To have
class maps, it slides over larger photos, and the scores of all windows are averaged:
the dense evaluation of the VGG paper (Section 3.2), which for a photo of 224x224 is the
network itself. Logits are then means of maps, but a cell of a map speaks for a window
of 224 pixels: maps are smooth, and tell places of a photo apart less than those of a
network whose GAP comes right behind its convolutions (`vgg16_cam`). torchvision itself
averages the cells to 7x7 first, and has no exact maps at other sizes. A photo with a
side of less than 224 pixels has no window.
"""

from dataclasses import dataclass

import keras
from keras import layers

from cwr_utils.networks import vgg16_cam

LINEAR = ("fc6", "fc7")  # layers that torchvision has as matrices
# Our name of a layer -> torchvision's.
KEYS = {
    **{
        f"conv{block}_{number}": f"features.{first + 2 * number - 2}"
        for block, (first, count) in enumerate(
            ((0, 2), (5, 2), (10, 3), (17, 3), (24, 3)), 1
        )
        for number in range(1, count + 1)
    },
    "fc6": "classifier.0",
    "fc7": "classifier.3",
}


@dataclass(frozen=True)
class Sizes:
    """How wide the network is; published weights need the default.

    Attributes:
        blocks: channels of the convolutions in each of the five blocks.
        hidden: outputs of each hidden layer.
        classes: outputs.
    """

    blocks: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    hidden: int = 4096
    classes: int = 1000


def build(sizes: Sizes) -> keras.Model:
    """Build the network up to the mean over windows."""
    inputs, x = vgg16_cam.trunk(sizes.blocks)
    x = layers.MaxPooling2D(2, name="pool5")(x)
    x = layers.Conv2D(sizes.hidden, 7, activation="relu", name="fc6")(x)
    x = layers.Conv2D(sizes.hidden, 1, activation="relu", name="fc7")(x)
    return keras.Model(inputs, x, name="vgg16")
