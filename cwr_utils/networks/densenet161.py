"""DenseNet-161 (Huang et al. 2017), as torchvision has it.

Layers have torchvision's names without the leading `features.`. The network ends in
BatchNorm, ReLU, GAP and one linear layer, so that its CAMs are exact.
"""

from dataclasses import dataclass

import keras
from keras import layers

_EPSILON = 1e-5  # of BatchNorm: PyTorch's, not Keras's 1e-3
_BOTTLENECK = 4  # a dense layer's first convolution has 4 * growth channels


@dataclass(frozen=True)
class Sizes:
    """How deep and wide the network is; published weights need the default.

    Attributes:
        stem: channels of the first convolution.
        growth: channels that a dense layer adds.
        blocks: dense layers in each block.
        classes: outputs.
    """

    stem: int = 96
    growth: int = 48
    blocks: tuple[int, ...] = (6, 12, 36, 24)
    classes: int = 1000


def build(sizes: Sizes) -> keras.Model:
    """Build the network up to the GAP."""

    def norm_relu(x, prefix, number=""):
        x = layers.BatchNormalization(epsilon=_EPSILON, name=f"{prefix}norm{number}")(x)
        return layers.ReLU(name=f"{prefix}relu{number}")(x)

    def conv(x, filters, size, name, **options):
        return layers.Conv2D(filters, size, use_bias=False, name=name, **options)(x)

    inputs = keras.Input((None, None, 3), name="input")
    # PyTorch pads both sides alike, Keras's "same" the right and bottom first.
    x = layers.ZeroPadding2D(3, name="pad0")(inputs)
    x = norm_relu(conv(x, sizes.stem, 7, "conv0", strides=2), "", "0")
    # No value is below 0 here, so that padding with 0 cannot change a maximum.
    x = layers.MaxPooling2D(3, 2, name="pool0")(layers.ZeroPadding2D(1, name="pad1")(x))
    for block, count in enumerate(sizes.blocks, 1):
        for i in range(1, count + 1):
            name = f"denseblock{block}.denselayer{i}."
            new = norm_relu(x, name, "1")
            new = conv(new, _BOTTLENECK * sizes.growth, 1, f"{name}conv1")
            new = norm_relu(new, name, "2")
            new = conv(new, sizes.growth, 3, f"{name}conv2", padding="same")
            x = layers.Concatenate(name=f"{name}concat")([x, new])
        if block < len(sizes.blocks):
            name = f"transition{block}."
            x = conv(norm_relu(x, name), x.shape[-1] // 2, 1, f"{name}conv")
            x = layers.AveragePooling2D(2, name=f"{name}pool")(x)
    return keras.Model(inputs, norm_relu(x, "", "5"), name="densenet161")
