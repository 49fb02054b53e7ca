"""Which heads of a Keras model are exact: the logit from the map, at any input size."""

import keras
import numpy as np
import pytest
from keras import layers

from cwr_utils import networks
from cwr_utils.networks import heads
from cwr_utils.networks.cam_network import randomize

SIZES = [(32, 32), (37, 50), (64, 35)]
CLASSES = 3


def photos(height, width, count=2):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, height, width, 3)).astype(np.float32)


def maps(side=None, channels=5, name="maps"):
    """An input and maps of stride 4 with positive and negative values."""
    image = keras.Input((side, side, 3))
    x = layers.Rescaling(1 / 64, -2)(image)
    x = layers.Conv2D(4, 3, 2, "same", activation="relu")(x)
    return image, layers.Conv2D(channels, 3, 2, "same", name=name)(x)


def mean(x, **options):
    return layers.GlobalAveragePooling2D(**options)(x)


def trained(image, scores, seed=0):
    """A model without a weight that is 0 or 1, so that none can be left out."""
    model = keras.Model(image, scores)
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "count" not in weight.name:
            weight.assign(rng.uniform(0.3, 1.5, weight.shape) * rng.choice([-1, 1]))
        if "variance" in weight.name:
            weight.assign(rng.uniform(0.5, 2, weight.shape))
        if weight.name == "kernel":
            weight.assign(rng.standard_normal(weight.shape) / 2)
    return model


def dense(activation=None, **options):
    return layers.Dense(options.pop("units", CLASSES), activation=activation, **options)


def pointwise(channels=CLASSES, **options):
    return layers.Conv2D(channels, 1, **options)


def sequence(x, *more):
    for layer in more:
        x = layer(x)
    return x


HEADS = {
    "dense": lambda x: dense()(mean(x)),
    "no bias": lambda x: dense(use_bias=False)(mean(x)),
    "dropout": lambda x: dense()(layers.Dropout(0.5)(mean(x))),
    "mean by hand": lambda x: dense()(keras.ops.mean(x, axis=(1, 2))),
    "two linear layers": lambda x: dense()(dense(units=7)(mean(x))),
    "flat already": lambda x: dense()(layers.Flatten()(mean(x, keepdims=True))),
    "batch norm": lambda x: dense()(layers.BatchNormalization()(mean(x))),
    "batch norm, bare": lambda x: dense()(
        layers.BatchNormalization(center=False, scale=False)(mean(x))
    ),
    "batch norm last": lambda x: layers.BatchNormalization()(dense()(mean(x))),
    "layer norm": lambda x: dense()(layers.LayerNormalization(epsilon=0.1)(mean(x))),
    "layer norm, bare": lambda x: dense(use_bias=False)(
        layers.LayerNormalization(center=False, scale=False)(mean(x))
    ),
    "layer and batch norm": lambda x: sequence(
        mean(x), layers.LayerNormalization(), layers.BatchNormalization(), dense()
    ),
    "convolution before": lambda x: mean(pointwise()(x)),
    "convolution before, no bias": lambda x: mean(pointwise(use_bias=False)(x)),
    "dense before": lambda x: mean(layers.Dropout(0.1)(dense()(x))),
    "convolution behind": lambda x: layers.Reshape((CLASSES,))(
        pointwise()(mean(x, keepdims=True))
    ),
    "seven classes": lambda x: dense(units=7)(mean(x)),
    "two classes": lambda x: dense(units=2)(mean(x)),
}


def check(network, expected, images):
    """Each logit is the bias and the mean of its map, and both are the model's."""
    found = network.maps(images)
    cams = found["cam_maps"].astype(np.float64) @ network.class_weights
    logits = network.class_bias + cams.mean(axis=(1, 2))
    scale = np.abs(expected).max()
    assert np.ptp(expected) > 1e-3 * scale
    for values in (found["logits"], logits):
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_logits_are_those_of_the_model(head, size):
    image, x = maps()
    model = trained(image, HEADS[head](x))
    network = networks.from_keras(model)
    check(network, model.predict_on_batch(photos(*size)), photos(*size))
    assert len(network.class_names) == model.output.shape[-1]


@pytest.mark.parametrize("last", ["softmax", "sigmoid", "log_softmax", "linear"])
@pytest.mark.parametrize("form", ["in the layer", "a layer"])
def test_activations_of_the_scores_are_left_out(last, form):
    image, x = maps()
    logits = trained(image, dense()(mean(x)))
    if form == "a layer":
        scores = layers.Activation(last)(layers.Dropout(0.1)(logits.output))
        model = keras.Model(image, scores)
    else:
        model = keras.Model(image, dense(last)(mean(x)))
        model.set_weights(logits.get_weights())
    check(
        networks.from_keras(model),
        logits.predict_on_batch(photos(35, 40)),
        photos(35, 40),
    )


def test_one_score_becomes_two_classes():
    image, x = maps()
    model = trained(image, dense("sigmoid", units=1)(mean(x)))
    network = networks.from_keras(model, ["cat", "dog"])
    logits = network.maps(photos(35, 40))["logits"].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    dog = model.predict_on_batch(photos(35, 40))
    np.testing.assert_allclose(probabilities, np.hstack([1 - dog, dog]), rtol=1e-4)
    check(network, logits, photos(35, 40))


def test_maps_that_are_classes_already():
    image, x = maps(channels=CLASSES)
    relu = layers.ReLU()(x)
    logits = trained(image, mean(relu))
    model = keras.Model(image, layers.Softmax()(logits.output))
    network = networks.from_keras(model)
    np.testing.assert_array_equal(network.class_weights, np.eye(CLASSES))
    check(network, logits.predict_on_batch(photos(35, 40)), photos(35, 40))


def test_the_layer_norm_by_hand():
    """W' = gamma W less its mean over channels; maps are divided by the deviation."""
    image, x = maps()
    norm, last = layers.LayerNormalization(epsilon=0.25), dense()
    model = trained(image, last(norm(mean(x))))
    network = networks.from_keras(model)
    kernel, bias = last.get_weights()
    gamma, beta = norm.get_weights()
    expected = gamma[:, None] * kernel
    expected = expected - expected.mean(axis=0)
    np.testing.assert_allclose(network.class_weights, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(network.class_bias, beta @ kernel + bias, rtol=1e-5)
    raw = keras.Model(image, x).predict_on_batch(photos(37, 50))
    deviation = np.sqrt(raw.mean(axis=(1, 2)).var(axis=1) + 0.25)
    maps_now = network.maps(photos(37, 50))["cam_maps"]
    np.testing.assert_allclose(
        maps_now, raw / deviation[:, None, None, None], rtol=1e-4, atol=1e-5
    )
    assert network.feature_layers()[-1].name == "maps"


# Forms of a model


def nested(image, x):
    base = keras.Model(image, x, name="base")
    other = keras.Input((40, 40, 3))
    return other, dense()(layers.Dropout(0.2)(mean(base(other))))


def sequential(image, x):
    base = keras.Model(image, x)
    model = keras.Sequential([keras.Input((40, 40, 3)), base])
    for layer in (layers.GlobalAveragePooling2D(), layers.Dropout(0.1), dense()):
        model.add(layer)
    return model.inputs[0], model.outputs[0]


def two_levels(image, x):
    head = keras.Sequential(
        [keras.Input((None, None, 5)), pointwise(6), layers.GlobalAveragePooling2D()]
    )
    inner = keras.Model(image, {"maps": x, "other": layers.ReLU()(x)})
    other = keras.Input((40, 40, 3))
    return other, dense("softmax")(head(inner(layers.RandomFlip()(other))["maps"]))


def branches(image, x):
    """Layers of equal names, a layer that is called twice, and two paths."""
    shared = layers.Conv2D(5, 3, padding="same", name="maps_2")
    base = keras.Model(
        image, layers.Concatenate()([x, shared(layers.Add()([x, shared(x)]))])
    )
    other = keras.Input((40, 40, 3))
    y = layers.Conv2D(3, 3, padding="same", name="maps")(other)
    return other, dense()(mean(base(y)))


FORMS = {f.__name__: f for f in (nested, sequential, two_levels, branches)}


@pytest.mark.parametrize("form", FORMS)
def test_models_inside_models(form):
    image, x = maps()
    model = trained(*FORMS[form](image, x), seed=4)
    network = networks.from_keras(model)
    expected = model.predict_on_batch(photos(40, 40))
    logits = network.maps(photos(40, 40))["logits"]
    if form == "two_levels":
        logits = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-5)
    other = network.maps(photos(61, 33))
    check(network, other["logits"], photos(61, 33))
    names = [layer.name for layer in network.backbone.layers]
    assert len(names) == len(set(names)) and "maps" in names


def test_a_model_is_copied():
    image, x = maps()
    model = trained(image, dense()(mean(x)))
    network = networks.from_keras(model)
    before = network.maps(photos(32, 32))["logits"]
    for weight in model.weights:
        weight.assign(weight * 0)
    np.testing.assert_array_equal(
        before, networks.CamNetwork.maps(network, photos(32, 32))["logits"]
    )
    assert model.output.shape == (None, CLASSES)


def test_code_of_the_person_may_stand_before_the_maps():
    class Double(layers.Layer):
        def call(self, x):
            return 2 * x

    image, x = maps()
    x = layers.Lambda(lambda x: x + 1)(Double()(x / 2))
    model = trained(image, dense()(mean(x)))
    check(
        networks.from_keras(model),
        model.predict_on_batch(photos(32, 35)),
        photos(32, 35),
    )


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "float32"])
def test_layers_have_the_precision_of_the_policy(precision):
    image, x = maps()
    model = trained(image, dense()(layers.LayerNormalization()(mean(x))))
    keras.config.set_dtype_policy(precision)
    try:
        network = networks.from_keras(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert network.precision == precision.removeprefix("mixed_")
    logits = network.maps(photos(37, 50))["logits"]
    rtol = 1e-4 if precision == "float32" else 0.1
    np.testing.assert_allclose(
        logits, model.predict_on_batch(photos(37, 50)), rtol=rtol, atol=rtol
    )


# What is refused

WRONG = {
    "hidden layer": (
        lambda x: dense()(dense("relu", units=4, name="hidden")(mean(x))),
        "Dense layer 'hidden' .* not linear [(]relu[)].* trained again",
    ),
    "activation": (
        lambda x: dense()(layers.Activation("tanh")(mean(x))),
        "not linear [(]tanh[)]",
    ),
    "softmax inside": (
        lambda x: dense()(dense("softmax")(mean(x))),
        "not linear [(]softmax[)]",
    ),
    "norm behind a softmax": (
        lambda x: layers.BatchNormalization()(dense("softmax")(mean(x))),
        "not linear [(]softmax[)]",
    ),
    "maximum": (
        lambda x: dense()(layers.GlobalMaxPooling2D()(x)),
        "one cell decides.* trained again",
    ),
    "flat": (
        lambda x: dense()(layers.Flatten()(x)),
        "cell weights of its own.*slide_windows",
    ),
    "flat and hidden": (
        lambda x: dense()(dense("relu")(layers.Flatten()(x))),
        "not linear [(]relu[)].*slide_windows",
    ),
    "no pooling": (lambda x: dense()(x[:, 0, 0]), "not known to be linear"),
    "two paths": (
        lambda x: layers.Add()([dense()(mean(x)), dense()(mean(x))]),
        "Add layer .* not known to be linear",
    ),
    "length one": (
        lambda x: dense()(layers.UnitNormalization()(mean(x))),
        "not known to be linear",
    ),
    "headless": (lambda x: mean(layers.ReLU()(x)), "no layer makes classes"),
    "layer norm of a product": (
        lambda x: dense()(
            layers.LayerNormalization()(dense(units=4, name="first")(mean(x)))
        ),
        "'first' between its GAP and 'layer_norm",
    ),
    "maps": (lambda x: x, r"inputs .* outputs .*; expected one RGB"),
}


@pytest.mark.parametrize("head", WRONG)
def test_what_is_not_exact_is_refused(head):
    make, message = WRONG[head]
    image, x = maps(24)
    with pytest.raises(ValueError, match=message) as error:
        networks.from_keras(keras.Model(image, make(x)))
    assert "earest thing that works" in str(error.value)


def test_other_forms_are_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    image, x = maps()
    grey = keras.Input((None, None, 1))
    pool = layers.GlobalAveragePooling2D()
    twice = keras.Model(
        image, dense()(pool(layers.Multiply()([x, pool(x)[:, None, None]])))
    )
    small = layers.Resizing(16, 16)(image)
    resized = keras.Model(image, dense()(mean(layers.Conv2D(4, 3)(small))))
    unbuilt = keras.Sequential([pool, dense()])
    for model, message in [
        (Own(), "layers cannot be followed"),
        (unbuilt, "known input shape"),
        (keras.Model(grey, dense()(mean(grey))), r"None, 1\)\] .* one RGB image"),
        (keras.Model(image, [mean(x), mean(x)]), "expected one RGB image"),
        (twice, "calls 'global_average.*, of its head, in 2 places"),
        (resized, "14 x 14 cells whatever the size"),
    ]:
        with pytest.raises(ValueError, match=message):
            networks.from_keras(model)


# Windows


def flat(side=40, dropout=True, last="softmax", hidden="relu"):
    image, x = maps(side)
    x = layers.Flatten()(x)
    if hidden:
        x = dense(hidden, units=7, name="fc1")(x)
        x = layers.Dropout(0.5)(x)
        x = layers.ReLU()(dense(units=6, name="fc2")(x))
    return trained(image, dense(last, name="scores")(x))


@pytest.mark.parametrize("hidden", ["relu", None])
def test_a_window_sees_what_the_model_saw(hidden):
    model = flat(hidden=hidden, last=None)
    network = networks.from_keras(networks.slide_windows(model))
    check(network, model.predict_on_batch(photos(40, 40)), photos(40, 40))
    assert network.smallest_input == 37  # 10 cells of 4 pixels, the last one begun


@pytest.mark.parametrize("hidden", ["relu", None])
def test_scores_of_windows_are_averaged(hidden):
    """With stride 4 and "same" padding inside, only the borders of windows differ."""
    model = flat(hidden=hidden, last="softmax")
    sliding = networks.slide_windows(model)
    network = networks.from_keras(sliding)
    images = photos(48, 40)
    grid = keras.Model(model.inputs[0], model.get_layer("maps").output)
    any_size = heads._rebuild(grid, [], "grid")
    whole = keras.Model(*any_size[:2])
    heads._copy_weights(whole, any_size[2])
    cells = whole.predict_on_batch(images)
    tail = [layer for layer in model.layers if layer.name in ("fc1", "fc2", "scores")]
    scores = []
    for top in range(3):
        x = cells[:, top : top + 10].reshape(2, -1)
        for layer in tail:
            kernel, bias = layer.get_weights()
            x = x @ kernel + bias
            x = x if layer.name == "scores" else np.maximum(x, 0)
        scores.append(x)
    check(network, np.mean(scores, axis=0), images)
    probabilities = sliding.predict_on_batch(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_what_cannot_slide_is_refused():
    image, x = maps(24)
    with pytest.raises(ValueError, match="does not flatten"):
        networks.slide_windows(keras.Model(image, dense()(mean(x))))
    norm = layers.BatchNormalization()(layers.Flatten()(x))
    with pytest.raises(ValueError, match="more than Dense layers"):
        networks.slide_windows(keras.Model(image, dense()(norm)))


# Names, colours, identity


def model(seed=0, names=None, activation="relu"):
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, 2, activation=activation, name=names)(image)
    return trained(image, dense()(mean(x)), seed)


def test_class_names():
    assert networks.from_keras(model()).class_names == ["class 0", "class 1", "class 2"]
    assert networks.from_keras(model(), ["a", "b", "c"]).class_names == ["a", "b", "c"]
    for names in (["a", "b"], ["a", "a", "b"]):
        with pytest.raises(ValueError, match=f"3 classes; .* got {len(names)}, 2 diff"):
            networks.from_keras(model(), names)


def test_a_thousand_classes_are_those_of_imagenet():
    image, x = maps()
    network = networks.from_keras(keras.Model(image, dense(units=1000)(mean(x))))
    assert network.class_names[985] == "daisy"


def test_colours_are_scaled_as_said():
    image = np.array([[[[0.0, 51.0, 255.0]]]], np.float32)
    rgb = np.array([0.0, 0.2, 1.0])
    torch = (rgb - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for mode, expected in {
        None: [0, 51, 255],
        "none": [0, 51, 255],
        "unit": rgb,
        "tf": rgb * 2 - 1,
        "torch": torch,
        "caffe": [255 - 103.939, 51 - 116.779, 0 - 123.68],
    }.items():
        found = networks.from_keras(model(), None, mode).preprocess(image)
        np.testing.assert_allclose(found[0, 0, 0], expected, atol=1e-5)
    half = networks.from_keras(model(), preprocess=lambda images: images / 2)
    np.testing.assert_allclose(half.preprocess(image)[0, 0, 0], [0, 25.5, 127.5])
    with pytest.raises(ValueError, match="`preprocess` must be .* got 'imagenet'"):
        networks.from_keras(model(), preprocess="imagenet")


def test_identity_is_of_contents():
    def known(*arguments, preprocess=None):
        return networks.from_keras(model(*arguments), None, preprocess).weights_sha256

    assert known() == known(0, "other name")
    assert known(preprocess="tf") == known(preprocess=lambda images: images / 127.5 - 1)
    different = {known(), known(1), known(0, None, "elu"), known(preprocess="tf")}
    assert len(different) == 4 and all(len(sha256) == 64 for sha256 in different)


def test_random_weights_change_kernels_alone():
    first, second = model(), model()
    randomize(first, 0)
    randomize(second, 1)
    assert (
        networks.from_keras(first).weights_sha256
        != networks.from_keras(second).weights_sha256
    )
