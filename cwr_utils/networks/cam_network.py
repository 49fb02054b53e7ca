"""A classifier whose decision splits exactly into class activation maps.

Where a network ends in global average pooling (GAP) and one linear layer,

    logit_c = bias_c + mean_ij CAM_c(i, j),   CAM_c = sum_m conv_m * w_mc

(Zhou et al. 2016; Jimenez et al. 2017, Eq. 1): every cell votes for every class.
`CamNetwork` holds such a network, cut before the GAP, with its linear layer.
"""

import bisect
import difflib
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from cwr_utils.arrays import check_shape
from cwr_utils.images import MIN_SIDE

_NON_NEGATIVE_ACTIVATIONS = {
    "relu",
    "relu6",
    "sigmoid",
    "hard_sigmoid",
    "softmax",
    "softplus",
    "exponential",
}
_POOLING = (
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.UpSampling2D,
    keras.layers.Cropping2D,
    keras.layers.ZeroPadding2D,
    keras.layers.Dropout,
)
_MERGING = (
    keras.layers.Add,
    keras.layers.Average,
    keras.layers.Concatenate,
    keras.layers.Maximum,
    keras.layers.Multiply,
)


@keras.saving.register_keras_serializable("cwr_utils")
class ScaleByPhoto(keras.layers.Layer):
    """Divides maps by the deviation, over the channels, of their mean over the cells.

    A LayerNormalization behind the GAP divides that mean by it: dividing the maps gives
    the same logits (see `networks.heads`).
    """

    def __init__(self, epsilon: float, **options: Any):
        """Hold the epsilon that is added to the variance."""
        super().__init__(**options)
        self.epsilon = epsilon

    def call(self, maps: Any) -> Any:
        """(B, H, W, M) -> the same, each photo's by one number."""
        mean = ops.mean(maps, axis=(1, 2), keepdims=True)
        variance = ops.var(mean, axis=-1, keepdims=True)
        return maps / ops.sqrt(variance + self.epsilon)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The shape stays."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The epsilon, for a layer like this one."""
        return {**super().get_config(), "epsilon": self.epsilon}


_NOT_FEATURES = (
    ScaleByPhoto,
    keras.layers.InputLayer,
    keras.layers.ZeroPadding2D,
    keras.layers.Cropping2D,
    keras.layers.Dropout,
    keras.layers.Rescaling,
    keras.layers.Normalization,
)


@dataclass(frozen=True)
class FeatureLayer:
    """A layer that can be pooled.

    Attributes:
        name: what `CamNetwork.maps` takes.
        channels: K.
        stride: pixels of the input between two neighbouring cells.
        non_negative: whether no value can be below 0; Eqs. 2-4 suppose so.
    """

    name: str
    channels: int
    stride: int
    non_negative: bool


class CamNetwork:
    """A network cut before its global average pooling, and its linear classifier.

    Attributes:
        name: the name that `load` took.
        backbone: Keras model, preprocessed images (B, H, W, 3) -> the maps that
            the GAP averages (B, H', W', M); any H, W.
        class_weights: (M, C) float32; column c makes CAM_c (Eq. 1).
        class_bias: (C,) float32; moves a logit, never a CAM.
        class_names: C names.
        weights_sha256: identifies the weights in a store's configuration.
        default_layer: the layer pooled unless another is named: the paper's, or
            else one with stride 16 and no negative values, like conv5_1 in the
            paper's VGG-16.
        recipe: a function and its arguments, hashable, that make the same network in
            another process; None if there is no such function.
    """

    def __init__(
        self,
        name: str,
        backbone: keras.Model,
        class_weights: np.ndarray,
        class_bias: np.ndarray | None,
        class_names: Sequence[str],
        preprocess: Callable[[Any], Any],
        weights_sha256: str,
        default_layer: str | None = None,
    ) -> None:
        """Hold the parts; nothing is computed.

        Without a `default_layer` it is the widest layer with stride 16 and no
        negative values, the last of equals; a `class_bias` of None is all zero.
        """
        if class_bias is None:
            class_bias = np.zeros(len(class_names), np.float32)
        expected = (backbone.output.shape[-1], len(class_names))
        if class_weights.shape != expected or class_bias.shape != expected[1:]:
            raise ValueError(
                f"expected class weights {expected} and a bias {expected[1:]}; got "
                f"{class_weights.shape} and {class_bias.shape}"
            )
        self.name = name
        self.backbone = backbone
        self.class_weights = np.asarray(class_weights, np.float32)
        self.class_bias = np.asarray(class_bias, np.float32)
        self.class_names = list(class_names)
        self.weights_sha256 = weights_sha256
        self.recipe: tuple[Callable[..., CamNetwork], tuple] | None = None
        self._preprocess = preprocess
        self._default_layer = default_layer
        self._maps_models: dict[str, keras.Model] = {}

    def __repr__(self) -> str:
        """Name, sizes and default layer."""
        maps, classes = self.class_weights.shape
        return (
            f"CamNetwork({self.name!r}, {maps} maps, {classes} classes, "
            f"default layer {self.default_layer!r})"
        )

    def preprocess(self, images: Any) -> Any:
        """Turn RGB images (B, H, W, 3), uint8 or float 0..255, into network input."""
        return self._preprocess(ops.cast(images, keras.config.floatx()))

    def feature_layers(self) -> list[FeatureLayer]:
        """List the layers that can be pooled, from the input to the output."""
        return list(self._feature_layers)

    @functools.cached_property
    def _feature_layers(self) -> tuple[FeatureLayer, ...]:
        layers = [
            layer
            for layer in self.backbone.layers
            if not isinstance(layer, _NOT_FEATURES)
            and isinstance(layer.output, keras.KerasTensor)
            and len(layer.output.shape) == 4
        ]
        probe = keras.Model(self.backbone.inputs, [layer.output for layer in layers])
        small, large = (
            [shape[1] for shape in probe.compute_output_shape((1, size, size, 3))]
            for size in (512, 1024)
        )
        non_negative = _non_negative_tensors(self.backbone)
        return tuple(
            FeatureLayer(
                layer.name,
                int(layer.output.shape[-1]),
                # Unpadded layers lose border cells, so that size / cells is not the
                # stride; the pixels that buy one more cell are.
                round(512 / (cells_large - cells_small)),
                id(layer.output) in non_negative,
            )
            for layer, cells_small, cells_large in zip(
                layers, small, large, strict=True
            )
            # A grid that does not grow is a gate (squeeze-and-excite), no map.
            if cells_large > cells_small
        )

    def layer(self, name: str) -> FeatureLayer:
        """A layer that can be pooled, by name.

        Raises:
            ValueError: if there is no such layer; it lists similar names.
        """
        layers = {layer.name: layer for layer in self._feature_layers}
        if name not in layers:
            similar = difflib.get_close_matches(name, layers, n=5, cutoff=0.4)
            raise ValueError(
                f"{self.name} has no feature layer {name!r}; "
                f"similar: {', '.join(similar) or 'none'}; "
                "all of them: network.feature_layers()"
            )
        return layers[name]

    @property
    def precision(self) -> str:
        """Type that the convolutions compute in, by Keras's policy at loading."""
        layers = self.backbone.layers
        return next((k.compute_dtype for k in layers if k.weights), "float32")

    @functools.cached_property
    def smallest_input(self) -> int:
        """Pixels that each side of an image needs, so that every layer has a cell.

        At least `MIN_SIDE`. Unpadded layers need more, 75 in InceptionV3: with less,
        TensorFlow does not only refuse, but may end the process.
        """
        sides = range(MIN_SIDE, 2048)
        return sides[bisect.bisect_left(sides, True, key=self._takes)]

    def _takes(self, side: int) -> bool:
        """Whether shapes can be followed through all layers; nothing is computed."""
        try:
            shape = self.backbone.compute_output_shape((1, side, side, 3))
        except ValueError:
            return False
        return min(shape) > 0

    @functools.cached_property
    def default_layer(self) -> str:
        """The given one, or the widest with stride 16 and no negative values.

        A network that lacks such a layer falls back on what it has.
        """
        if self._default_layer:
            return self._default_layer
        layers = self._feature_layers
        layers = [layer for layer in layers if layer.stride == 16] or layers
        layers = [layer for layer in layers if layer.non_negative] or layers
        # `max` keeps the first of equals.
        return max(reversed(layers), key=lambda layer: layer.channels).name

    def maps_model(self, layer: str | None = None) -> keras.Model:
        """Build the graph from raw images to features, CAM maps and logits.

        Args:
            layer: a name out of `feature_layers`; None is `default_layer`.

        Returns:
            A Keras model, RGB images (B, H, W, 3), uint8 or float 0..255, any H and
            W -> dictionary of float32 tensors: `features` (B, h, w, K), `cam_maps`
            (B, H', W', M), `logits` (B, C) before softmax. The same object each
            time, compiled with `compile_options`.

        Raises:
            ValueError: if there is no such layer; it lists similar names.
        """
        layer = layer or self.default_layer
        if layer not in self._maps_models:
            self._maps_models[layer] = self._build_maps_model(layer)
        return self._maps_models[layer]

    def _build_maps_model(self, layer: str) -> keras.Model:
        layer = self.layer(layer).name
        backbone = self.backbone
        cut = keras.Model(
            backbone.inputs, [backbone.get_layer(layer).output, backbone.output]
        )
        images = keras.Input((None, None, 3), name="images")
        # Sums over a large grid overflow float16, hence the casts: with mixed
        # precision the convolutions alone are half precision.
        features, cam_maps = (
            ops.cast(maps, "float32") for maps in cut(self.preprocess(images))
        )
        classifier = keras.layers.Dense(
            len(self.class_names), name="logits", dtype="float32"
        )
        outputs = {
            "features": features,
            "cam_maps": cam_maps,
            "logits": classifier(ops.mean(cam_maps, axis=(1, 2))),
        }
        classifier.set_weights([self.class_weights, self.class_bias])
        model = keras.Model(images, outputs, name="maps")
        model.compile(**compile_options())
        return model

    def maps(self, images: Any, layer: str | None = None) -> dict[str, np.ndarray]:
        """Run `maps_model` on one batch.

        Args:
            images: (B, H, W, 3) RGB, uint8 or float 0..255.
            layer: as in `maps_model`.

        Returns:
            The dictionary of `maps_model`, as float32 arrays.

        Raises:
            ValueError: if the images have another shape, or less than
                `smallest_input` pixels on a side.
        """
        images = np.asarray(images)
        _, height, width, _ = check_shape(images, "B H W 3", "images")
        self.check_size(width, height)
        return self.maps_model(layer).predict_on_batch(images)

    def check_size(self, width: int, height: int) -> None:
        """Refuse images with less than `smallest_input` pixels on a side.

        Raises:
            ValueError: what is needed, and what came.
        """
        if min(width, height) < self.smallest_input:
            raise ValueError(
                f"{self.name} needs images of at least {self.smallest_input} pixels on "
                f"each side; got {width} x {height}. Enlarge them before."
            )


def compile_options() -> dict[str, bool]:
    """Choose how Keras compiles a model on this machine: keywords of `compile`.

    On an accelerator XLA fuses the graph. On a CPU, TensorFlow's oneDNN kernels
    without XLA are about ten times faster than with it. JAX has no compiler but XLA:
    without it every operation runs alone. PyTorch's compiler takes minutes, and
    again for every image size, so it stays off.
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        return {"jit_compile": backend == "jax"}
    devices = keras.distribution.list_devices()
    return {"jit_compile": any(not name.startswith("cpu") for name in devices)}


def top_classes(logits: np.ndarray, n: int) -> np.ndarray:
    """Return the `n` most probable classes of each image.

    Args:
        logits: (B, C), or probabilities: the order is the same.
        n: how many; of a network with fewer, all.

    Returns:
        (B, n) integers, the most probable first; of equals the lower index first.

    Raises:
        ValueError: if `logits` is not (B, C) or `n` is below 1.
    """
    logits = np.asarray(logits)
    check_shape(logits, "B C", "logits")
    if n < 1:
        raise ValueError(f"`n` must be at least 1; got {n}")
    return np.argsort(-logits, axis=1, kind="stable")[:, :n]


def randomize(model: keras.Model, seed: int) -> str:
    """Give every kernel He-normal values (He et al. 2015) that `seed` determines.

    NumPy draws them, so that every Keras backend gets the same network.

    Returns:
        What identifies these weights: the seed and a hash of the arrays.
    """
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        shape = tuple(weight.shape)
        if not weight.name.endswith("kernel"):
            continue
        # A depthwise filter sees one channel: its kernel is (h, w, C, 1).
        depthwise = "depthwise" in weight.path or shape[-1] == 1
        fan_in = math.prod(shape[:2] if depthwise else shape[:-1])
        weight.assign(rng.standard_normal(shape, np.float32) * np.sqrt(2 / fan_in))
    return f"random:seed={seed}:{hash_arrays(model.get_weights())}"


def hash_arrays(arrays: Sequence[np.ndarray]) -> str:
    """Return the SHA-256 of the shapes, types and values of `arrays`, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _non_negative_tensors(model: keras.Model) -> set[int]:
    """Return the ids of the symbolic tensors that can hold no negative value."""
    found: set[int] = set()
    for layer in model.layers:  # a functional model lists them in order
        if isinstance(layer, keras.layers.InputLayer):
            continue
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        passes_on = isinstance(layer, _POOLING + _MERGING)
        if _clips_negatives(layer) or (
            passes_on and all(id(tensor) in found for tensor in inputs)
        ):
            found.add(id(layer.output))
    return found


def _clips_negatives(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, keras.layers.ReLU):
        return not layer.negative_slope and layer.threshold >= 0
    activation = getattr(layer, "activation", None)
    return getattr(activation, "__name__", "") in _NON_NEGATIVE_ACTIVATIONS
