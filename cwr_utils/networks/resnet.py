"""ResNet-50 and -101 (He et al. 2016), as torchvision has them.

Layers have torchvision's names; `layer4.2.relu` is the last. As in torchvision, and not
in Keras, the second convolution of a block has the stride.
"""

from dataclasses import dataclass

import keras
from keras import layers

_EPSILON = 1e-5  # of BatchNorm: PyTorch's, not Keras's 1e-3
_EXPANSION = 4  # a block's last convolution has 4 * its width in channels


@dataclass(frozen=True)
class Sizes:
    """How deep and wide the network is; published weights need the default width.

    Attributes:
        blocks: in each of the four layers.
        width: of the first layer; each of the next has twice as much.
        classes: outputs.
    """

    blocks: tuple[int, int, int, int]
    width: int = 64
    classes: int = 1000


def build(sizes: Sizes) -> keras.Model:
    """Build the network up to the GAP."""

    def conv_norm(x, filters, size, conv, norm, stride=1):
        # PyTorch pads both sides alike, Keras's "same" the right and bottom first.
        if size > 1:
            x = layers.ZeroPadding2D(size // 2, name=f"{conv}.pad")(x)
        x = layers.Conv2D(filters, size, stride, use_bias=False, name=conv)(x)
        return layers.BatchNormalization(epsilon=_EPSILON, name=norm)(x)

    inputs = keras.Input((None, None, 3), name="input")
    x = conv_norm(inputs, sizes.width, 7, "conv1", "bn1", 2)
    x = layers.ReLU(name="relu")(x)
    # No value is below 0 here, so that padding with 0 cannot change a maximum.
    x = layers.ZeroPadding2D(1, name="maxpool.pad")(x)
    x = layers.MaxPooling2D(3, 2, name="maxpool")(x)
    for number, count in enumerate(sizes.blocks, 1):
        width = sizes.width * 2 ** (number - 1)
        for block in range(count):
            name = f"layer{number}.{block}"
            stride = 2 if number > 1 and block == 0 else 1
            y = conv_norm(x, width, 1, f"{name}.conv1", f"{name}.bn1")
            y = layers.ReLU(name=f"{name}.relu1")(y)
            y = conv_norm(y, width, 3, f"{name}.conv2", f"{name}.bn2", stride)
            y = layers.ReLU(name=f"{name}.relu2")(y)
            channels = _EXPANSION * width
            y = conv_norm(y, channels, 1, f"{name}.conv3", f"{name}.bn3")
            if block == 0:
                down = f"{name}.downsample"
                x = conv_norm(x, channels, 1, f"{down}.0", f"{down}.1", stride)
            x = layers.Add(name=f"{name}.add")([y, x])
            x = layers.ReLU(name=f"{name}.relu")(x)
    return keras.Model(inputs, x, name="resnet")
