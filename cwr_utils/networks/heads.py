"""A classifier of any shape, cut where its maps are averaged: which heads are exact.

Global average pooling (GAP) and every affine layer behind it may change places, so that
the maps before the GAP split each logit exactly (Zhou et al. 2016). With x the mean of
the maps over the cells, these become one matrix and one bias (`split`):

- Dense and 1x1 convolutions, with or without bias, one after another;
- BatchNormalization, y = gamma (x - mean) / sqrt(variance + epsilon) + beta;
- LayerNormalization, y = gamma (x - m) / s + beta, where m is the mean of x over the
  channels and s its deviation. To take m away is linear. s is one number for a photo,
  by which `ScaleByPhoto` divides the maps; in CAMs scaled to [0, 1] it is gone.

Dropout does nothing here. A softmax or sigmoid at the end keeps the order of the
logits. A 1x1 convolution right before the GAP is a Dense layer behind it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from cwr_utils.networks.cam_network import ScaleByPhoto

_IDLE = (  # unless the network is trained
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.SpatialDropout2D,
)
_NORMALIZATION = (layers.BatchNormalization, layers.LayerNormalization)
# They keep the order of the logits: the last layer may have them.
_OF_LOGITS = ("softmax", "sigmoid", "log_softmax")
_RETRAIN = (
    "Nearest thing that works: GlobalAveragePooling2D and one Dense layer behind the "
    "same maps, that layer trained again"
)
_SLIDE = (
    "Nearest thing that works: networks.slide_windows(model), the same network seen "
    "through a window of its own size that moves over the photo"
)


@dataclass(frozen=True)
class Split:
    """A classifier in two parts.

    Attributes:
        backbone: images (B, H, W, 3) of any size -> maps (B, H', W', M).
        class_weights: (M, C) float32; the mean over cells of maps @ class_weights, plus
            `class_bias`, are the logits.
        class_bias: (C,) float32.
    """

    backbone: keras.Model
    class_weights: np.ndarray
    class_bias: np.ndarray


@dataclass(frozen=True)
class _Call:
    """An operation at one place of a graph.

    Attributes:
        operation: a layer or a function of `keras.ops`.
        shape: of what goes in; () if that is several tensors.
    """

    operation: Any
    shape: tuple[int | None, ...]

    @property
    def is_gap(self) -> bool:
        """Whether it averages maps over all cells."""
        op = self.operation
        if isinstance(op, layers.GlobalAveragePooling2D):
            return op.data_format == "channels_last"
        is_mean = type(op).__name__ == "Mean" and not isinstance(op, keras.Layer)
        return is_mean and len(self.shape) == 4 and sorted(op.axis) == [1, 2]

    @property
    def flattens_maps(self) -> bool:
        """Whether it makes one vector of maps with more than one cell."""
        is_flat = isinstance(self.operation, layers.Flatten | layers.Reshape)
        return is_flat and any(side != 1 for side in self.shape[1:-1])


def split(model: keras.Model, name: str) -> Split:
    """Split a classifier into what is before its GAP, for any input size, and a head.

    Args:
        model: functional or sequential, and so the models inside it; one image
            (B, H, W, 3) in, a score for each class out. One score alone, before or
            behind a sigmoid, becomes two classes whose softmax is that sigmoid: half of
            it against the first, and half for the second.
        name: for the errors.

    Returns:
        Its parts, with layers and weights of their own; the layers are in the precision
        that Keras's policy says.

    Raises:
        ValueError: if the split would not be exact, or the layers do not fit together
            at every size; it gives the reason, and the nearest thing that works.
    """
    _check_ends(model, name)
    behind, gap, before = _find_gap(model, name)
    head = [op for op in behind if _is_affine(op)]
    skipped = [*behind, gap]
    if not head and _is_pointwise(before) and _activation(before) == "linear":
        head, skipped = [before], [*skipped, before]
    elif not head and not _scores_classes(behind, before):
        raise ValueError(
            f"{name} ends in the mean of its maps, and no layer makes classes of them. "
            f"{_RETRAIN}, or a softmax if each map is a class already."
        )
    inputs, maps, sources = _rebuild(model, skipped, name)
    weights, bias, epsilon = _fold(head, maps.shape[-1], name)
    if epsilon is not None:
        maps = ScaleByPhoto(epsilon, name="scale_by_photo", dtype="float32")(maps)
    if weights.shape[1] == 1:
        weights, bias = weights * [[-0.5, 0.5]], bias * [-0.5, 0.5]
    backbone = keras.Model(inputs, maps)
    _check_sizes(backbone, model, name)
    _copy_weights(backbone, sources)
    return Split(backbone, weights.astype(np.float32), bias.astype(np.float32))


def slide_windows(model: keras.Model) -> keras.Model:
    """Make a classifier that flattens its maps one for photos of any size.

    Its first Dense layer becomes a convolution over windows as large as the maps it was
    trained on, the others 1x1 convolutions, and the scores of all windows are averaged:
    the dense evaluation of Simonyan and Zisserman (2015, Section 3.2). At its own input
    size there is one window, and the network is the same; smaller photos have none.
    Each cell of its class maps speaks for a window, not for a place.

    Args:
        model: convolutions, Flatten, then Dense layers with any activations.

    Returns:
        A model that `from_keras` takes.

    Raises:
        ValueError: if the model does not have that form.
    """
    name = model.name
    _check_ends(model, name)
    behind: list[Any] = []
    for call in _backwards(model):
        if call.flattens_maps:
            break
        behind.append(call.operation)
    else:
        raise ValueError(f"{name} does not flatten its maps: it needs no windows.")
    known = (*_IDLE, layers.Dense, layers.Activation, layers.ReLU)
    dense = [op for op in behind if isinstance(op, layers.Dense)]
    if not dense or not all(isinstance(op, known) for op in behind):
        raise ValueError(
            f"{name} has more than Dense layers, activations and dropout behind "
            f"{call.operation.name!r}: it cannot slide. {_RETRAIN}."
        )
    inputs, x, sources = _rebuild(model, [*behind, call.operation], name)
    window, activations = call.shape[1:3], []
    for op in reversed(behind):
        if isinstance(op, layers.Dense):
            x = _apply(activations, x)
            convolution = layers.Conv2D(
                op.units, window, use_bias=op.use_bias, name=op.name
            )
            x, window, activations = convolution(x), (1, 1), []
            kernel, *bias = op.get_weights()
            convolution.set_weights([kernel.reshape(convolution.kernel.shape), *bias])
        if not isinstance(op, _IDLE):
            activations.append(getattr(op, "activation", op))
    x = layers.GlobalAveragePooling2D("channels_last", name="mean_of_windows")(x)
    # Those of the last layer act on the scores, which are averaged before.
    sliding = keras.Model(inputs, _apply(activations, x), name=name)
    _copy_weights(sliding, sources)
    return sliding


def _apply(activations: list[Any], x: Any) -> Any:
    for activation in activations:
        x = layers.Activation(activation)(x)
    return x


def _backwards(model: keras.Model, output: int = 0) -> Iterator[_Call]:
    """Go from an output to the input, or to the first operation on several tensors.

    What models inside the model do is told as if it were done by the model itself.
    """
    if isinstance(model, keras.Sequential):
        for layer in reversed(model.layers):
            if _is_graph(layer):
                yield from _backwards(layer)
            else:
                yield _Call(layer, tuple(layer.input.shape))
        return
    tensor = model.outputs[output]
    while True:
        operation, node, output = tensor._keras_history
        if isinstance(operation, layers.InputLayer):
            return
        inputs = operation._inbound_nodes[node].input_tensors
        if _is_graph(operation):
            yield from _backwards(operation, output)
        else:
            yield _Call(operation, tuple(inputs[0].shape) if len(inputs) == 1 else ())
        if len(inputs) != 1:
            return
        tensor = inputs[0]


def _is_graph(operation: Any) -> bool:
    """Whether its layers can be followed: a model that is not a class with code."""
    return isinstance(operation, keras.Sequential) or (
        isinstance(operation, keras.Model) and hasattr(operation, "_run_through_graph")
    )


def _check_ends(model: keras.Model, name: str) -> None:
    """Refuse what is no functional model from an RGB image to scores."""
    if not _is_graph(model) or not model.built:
        raise ValueError(
            f"{name} is a {type(model).__name__} whose layers cannot be followed: "
            "expected a functional or sequential Keras model with a known input shape. "
            "Nearest thing that works: keras.Model(image, scores) of its layers."
        )
    shapes = [[tuple(t.shape) for t in ends] for ends in (model.inputs, model.outputs)]
    (image, *more), (scores, *others) = shapes
    if more or others or (len(image), image[-1], len(scores)) != (4, 3, 2):
        raise ValueError(
            f"{name} has inputs {shapes[0]} and outputs {shapes[1]}; expected one RGB "
            "image (B, H, W, 3) and one score for each class (B, C). Nearest thing "
            "that works: keras.Model(image, scores) of its layers, channels last."
        )


def _find_gap(model: keras.Model, name: str) -> tuple[list[Any], Any, Any]:
    """Operations behind the GAP, from the output on; the GAP; the one before it."""
    calls, behind = list(_backwards(model)), []
    for number, call in enumerate(calls):
        if call.is_gap:
            rest = (c.operation for c in calls[number + 1 :])
            before = next((op for op in rest if not isinstance(op, _IDLE)), None)
            return behind, call.operation, before
        at_end = not any(_is_affine(op) for op in behind)
        if reason := _refuse(call, at_end):
            op = call.operation
            slides = any(c.flattens_maps for c in calls[number:])
            raise ValueError(
                f"{name} has the {type(op).__name__} layer {op.name!r} between its "
                f"maps and its classes, which {reason}: its CAM is not exact. "
                f"{_SLIDE if slides else _RETRAIN}."
            )
        behind.append(call.operation)
    raise ValueError(
        f"{name} has no global average pooling: its CAM is not exact. {_RETRAIN}."
    )


def _refuse(call: _Call, at_end: bool) -> str:
    """Why an operation behind the GAP leaves no exact CAM; "" if it does.

    Args:
        call: the operation.
        at_end: whether nothing between it and the output changes values.
    """
    op, activation = call.operation, _activation(call.operation)
    if call.flattens_maps:
        return "gives each cell weights of its own, for one input size alone"
    if isinstance(op, layers.GlobalMaxPooling2D):
        return "takes the maximum of each map, where one cell decides"
    if isinstance(op, _NORMALIZATION):
        axes = {op.axis} if isinstance(op.axis, int) else set(op.axis)
        of_channels = axes <= {-1, len(call.shape) - 1}
        centred = not getattr(op, "rms_scaling", False)
        return "" if of_channels and centred else "does not normalise over the channels"
    if isinstance(op, (*_IDLE, layers.Flatten, layers.Reshape)):
        return ""
    if _is_pointwise(op) or isinstance(op, layers.Activation | layers.Softmax):
        fits = activation == "linear" or (at_end and activation in _OF_LOGITS)
        return "" if fits else f"is not linear ({activation})"
    return "is not known to be linear"


def _is_affine(operation: Any) -> bool:
    return _is_pointwise(operation) or isinstance(operation, _NORMALIZATION)


def _is_pointwise(operation: Any) -> bool:
    """Whether it multiplies the channels of each cell by one matrix."""
    if isinstance(operation, layers.Dense):
        return True
    return (
        type(operation) is layers.Conv2D
        and operation.kernel_size == operation.strides == (1, 1)
        and operation.groups == 1
        and operation.data_format == "channels_last"
    )


def _scores_classes(behind: list[Any], before: Any) -> bool:
    """Whether maps that nothing but their mean follows are those of classes."""
    if any(_activation(op) in _OF_LOGITS for op in behind):
        return True
    return type(before) is layers.Conv2D and _activation(before) == "linear"


def _activation(operation: Any) -> str:
    if isinstance(operation, layers.Softmax):
        return "softmax"
    return getattr(getattr(operation, "activation", None), "__name__", "unknown")


def _rebuild(
    model: keras.Model, skipped: list[Any], name: str
) -> tuple[Any, Any, dict[keras.Layer, keras.Layer]]:
    """Call new layers in the order of a model's, on an image of any size.

    Args:
        model: layers of models inside it become layers beside its own.
        skipped: operations that pass on what they get.
        name: for the errors.

    Returns:
        The symbolic input and output, and new layer -> layer that has its weights.
    """
    clones: dict[int, keras.Layer] = {}
    sources: dict[keras.Layer, keras.Layer] = {}
    times = {id(op): 0 for op in skipped}

    def call(op, *args, **kwargs):
        if id(op) in times:
            times[id(op)] += 1
            return args[0]
        if _is_graph(op):
            return run(op, *args)
        if not isinstance(op, keras.Layer):
            return op(*args, **kwargs)
        if id(op) not in clones:
            clones[id(op)] = _clone(op, {layer.name for layer in sources})
            sources[clones[id(op)]] = op
        return clones[id(op)](*args, **kwargs)

    def run(graph, x):
        if isinstance(graph, keras.Sequential):
            for layer in graph.layers:
                x = call(layer, x)
            return x
        return graph._run_through_graph(x, lambda op: op, call)

    inputs = keras.Input((None, None, 3), name="image")
    try:
        output = run(model, inputs)
    except Exception as error:  # each layer has its own
        raise ValueError(_one_size(model, name, error)) from error
    for op in skipped:
        if times[id(op)] > 1:
            raise ValueError(
                f"{name} calls {op.name!r}, of its head, in {times[id(op)]} places; "
                "expected one. Nearest thing that works: a layer for each place."
            )
    return inputs, output, sources


def _clone(layer: keras.Layer, taken: set[str]) -> keras.Layer:
    """The same layer anew, in the precision of Keras's policy, under a free name."""
    name, number = layer.name, 1
    while name in taken:
        number += 1
        name = f"{layer.name}_{number}"
    own = {"name": name, "dtype": keras.config.dtype_policy().name}
    if isinstance(layer, layers.Lambda):  # Keras makes none of another's settings
        return layers.Lambda(layer.function, arguments=layer.arguments, **own)
    return type(layer).from_config({**layer.get_config(), **own})


def _copy_weights(model: keras.Model, sources: dict[keras.Layer, keras.Layer]) -> None:
    for layer in model.layers:
        if layer in sources:
            layer.set_weights(sources[layer].get_weights())
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()  # it computes with a copy of its weights


def _check_sizes(backbone: keras.Model, model: keras.Model, name: str) -> None:
    """Refuse maps whose grid does not follow the size of the photo."""
    height, width = (side or 224 for side in model.inputs[0].shape[1:3])
    grids = []
    for size in ((height, width), (2 * height - 27, 2 * width + 37)):
        try:
            grids.append(backbone.compute_output_shape((1, *size, 3))[1:3])
        except Exception as error:
            # NASNet: Keras fixes each layer's padding for the size it is built with.
            raise ValueError(_one_size(model, name, error)) from error
    if grids[0] == grids[1]:
        raise ValueError(
            f"{name} has {grids[0][0]} x {grids[0][1]} cells whatever the size of the "
            "photo. Nearest thing that works: the same model without the layer in it "
            "that resizes or crops the photo."
        )


def _one_size(model: keras.Model, name: str, error: Exception) -> str:
    return (
        f"{name} works only at the input size {tuple(model.inputs[0].shape[1:3])} that "
        f"it was built with, not at any: {error}"
    )


def _fold(
    head: list[Any], channels: int, name: str
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Make one matrix and one bias of affine layers.

    Args:
        head: the layers, from the output to the GAP.
        channels: M.
        name: for the errors.

    Returns:
        (M, C) and (C,), float64, and the epsilon of a LayerNormalization, or None.
    """
    weights: np.ndarray | None = None
    bias, epsilon = np.zeros(1), None
    for number, op in enumerate(head, 1):
        if isinstance(op, layers.LayerNormalization):
            if number < len(head):
                raise ValueError(
                    f"{name} has {head[-1].name!r} between its GAP and {op.name!r}; "
                    f"expected none. {_RETRAIN}."
                )
            scale = np.broadcast_to(_array(op.gamma, 1.0), channels)
            # x - m is x (I - 1/M), applied to the rows of what comes behind.
            matrix, shift = np.diag(scale) - scale / channels, _array(op.beta, 0.0)
            epsilon = op.epsilon
        elif isinstance(op, layers.BatchNormalization):
            deviation = np.sqrt(_array(op.moving_variance) + op.epsilon)
            scale = _array(op.gamma, 1.0) / deviation
            matrix = np.diag(scale)
            shift = _array(op.beta, 0.0) - _array(op.moving_mean) * scale
        else:
            matrix = _array(op.kernel).reshape(-1, op.kernel.shape[-1])
            shift = _array(op.bias, 0.0)
        shift = np.broadcast_to(shift, matrix.shape[1])
        bias = bias + (shift if weights is None else shift @ weights)
        weights = matrix if weights is None else matrix @ weights
    if weights is None:
        weights = np.eye(channels)
    return weights, np.broadcast_to(bias, weights.shape[1]), epsilon


def _array(variable: Any, default: float | None = None) -> np.ndarray:
    if variable is None:
        return np.array(default)
    return np.asarray(variable.numpy(), np.float64)
