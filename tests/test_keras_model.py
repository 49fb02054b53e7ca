"""A file of a whole Keras model as a network, everywhere a network's name is taken."""

import json
import shutil
from dataclasses import replace

import h5py
import keras
import numpy as np
import pytest
import tiny
from keras import layers

from cwr_utils import networks, search
from cwr_utils.networks.cam_network import randomize
from cwr_utils.protocol import PRESETS
from cwr_utils.retrieval import CLASS_AGGREGATIONS, Experiment, Method, rank
from cwr_utils.runs import record, source, workbench

# TensorFlow's own: its variables do not know NumPy 2's `copy` when they are saved.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 80, 3), dtype=np.uint8)


def model(classes=3, side=None, seed=0, tail=()):
    """A small network with a model inside; trained with an optimizer of its own."""
    image = keras.Input((side, side, 3))
    x = layers.Conv2D(8, 3, 2, "same", activation="relu", name="first")(image)
    base = keras.Model(image, layers.Conv2D(6, 3, 2, "same", activation="relu")(x))
    photo = keras.Input((side, side, 3))
    x = base(layers.Rescaling(1 / 127.5, -1)(photo))
    for layer in tail:
        x = layer(x)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    made = keras.Model(photo, layers.Dense(classes, activation="softmax")(x))
    randomize(made, seed)
    made.compile("adam", "categorical_crossentropy")
    return made


@pytest.fixture(params=["pets.keras", "pets.h5"])
def path(tmp_path, request):
    """A model file; HDF5 is a format of the past, says Keras."""
    path = tmp_path / request.param
    model().save(path)
    return path


def test_a_file_is_a_network_called_as_the_file(path):
    network = networks.load(str(path))
    assert network.name == path.name
    assert network.class_names == ["class 0", "class 1", "class 2"]
    logits = network.maps(IMAGES)["logits"]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = model().predict_on_batch(IMAGES.astype(np.float32))
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
    assert network.default_layer == "conv2d" or network.layer(network.default_layer)


def test_identity_is_that_of_the_model_not_of_the_file(path, tmp_path):
    network = networks.load(str(path))
    again = model()
    again.fit(IMAGES.astype(float), np.eye(3)[:2], verbose=0)  # the optimizer's state
    again.set_weights(model().get_weights())
    again.save(tmp_path / "other.keras")
    other = networks.load(str(tmp_path / "other.keras"))
    assert path.read_bytes() != (tmp_path / "other.keras").read_bytes()
    assert network.weights_sha256 == other.weights_sha256
    assert network.weights_sha256 == networks.from_keras(model()).weights_sha256
    model(seed=1).save(tmp_path / "third.keras")
    third = networks.load(str(tmp_path / "third.keras"))
    assert network.weights_sha256 != third.weights_sha256


def test_a_file_beside_names_classes_and_colours(path):
    beside = path.with_suffix(".json")
    beside.write_text('{"class_names": ["cat", "dog", "owl"], "preprocess": "unit"}')
    network, plain = networks.load(str(path)), networks.from_keras(model())
    assert network.class_names == ["cat", "dog", "owl"]
    np.testing.assert_allclose(
        network.preprocess(IMAGES), IMAGES.astype(np.float32) / 255, rtol=1e-6
    )
    assert network.weights_sha256 != plain.weights_sha256  # other numbers come out
    for text in (
        "[]",
        '{"classes": []}',
        '{"class_names": [1]}',
        "{",
        '{"class_names": 3}',
    ):
        beside.write_text(text)
        with pytest.raises(ValueError, match="pets.json must be an object with `class"):
            networks.load(str(path))
    beside.write_text('{"class_names": ["cat", "dog"]}')
    with pytest.raises(ValueError, match="3 classes; .* got 2"):
        networks.load(str(path))


def test_other_weights(path, tmp_path):
    random = [networks.load(str(path), None, seed).weights_sha256 for seed in (5, 5, 6)]
    assert random[0] == random[1] != random[2]
    fifth = networks.from_keras(model(seed=5)).weights_sha256
    assert random[0] == f"random:seed=5:{fifth}"  # which tables look for
    model(seed=7).save_weights(tmp_path / "seven.weights.h5")
    seven = networks.load(str(path), tmp_path / "seven.weights.h5")
    assert seven.weights_sha256 == networks.from_keras(model(seed=7)).weights_sha256
    with pytest.raises(
        networks.WeightsError, match="does not hold the weights of pets"
    ):
        model(classes=4).save_weights(tmp_path / "four.weights.h5")
        networks.load(str(path), tmp_path / "four.weights.h5")


def test_other_processes_find_the_file(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    make, arguments = networks.load(path.name).recipe
    monkeypatch.chdir("/")
    assert make(*arguments).name == path.name
    assert networks.from_keras(model()).recipe is None


def test_the_precision_is_that_asked_for(path):
    assert networks.load(str(path), precision="mixed_bfloat16").precision == "bfloat16"


def test_a_name_of_a_network_of_the_paper_stays_a_file(tmp_path):
    model().save(tmp_path / "vgg16-cam.keras")
    network = networks.load(str(tmp_path / "vgg16-cam.keras"))
    assert networks.under(network, PRESETS["authors_code"]) is network


# What is refused


def test_files_that_hold_no_model(tmp_path):
    made = model()
    made.save_weights(tmp_path / "w.weights.h5")
    made.save(tmp_path / "whole.h5")
    whole = (tmp_path / "whole.h5").read_bytes()
    (tmp_path / "short.h5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(tmp_path / "whole.h5", "a") as file:
        del file.attrs["model_config"]
    (tmp_path / "cut.keras").write_bytes(b"PK no zip")
    (tmp_path / "cut.h5").write_bytes(b"nothing")
    for name, message in [
        ("w.weights.h5", "has weights and no model"),
        ("whole.h5", "has weights and no model"),
        ("cut.keras", "cannot be loaded: it is damaged"),
        ("cut.h5", "cannot be loaded: it is damaged"),
        ("short.h5", "cannot be loaded: it is damaged"),
        ("none.keras", "there is no weight file"),
    ]:
        with pytest.raises(networks.WeightsError, match=message):
            networks.load(str(tmp_path / name))


@pytest.mark.parametrize("name", ["evil.keras", "evil.h5"])
def test_code_in_a_file_is_not_run(tmp_path, name):
    marker = tmp_path / "marker"
    touch = layers.Lambda(lambda x, m=str(marker): (open(m, "w").close(), x)[1])
    evil = model(tail=[touch])
    evil.save(tmp_path / name)
    marker.unlink()
    with pytest.raises(networks.WeightsError, match="of which nothing is run"):
        networks.load(str(tmp_path / name))
    assert not marker.exists()
    # A model that a person has made is the person's own code.
    assert networks.from_keras(evil).maps(IMAGES)["logits"].shape == (2, 3)


@pytest.mark.parametrize("module", ["os", "subprocess", "keras.utils", "builtins"])
def test_functions_of_other_modules_are_not_called(tmp_path, module):
    """A configuration may name any class; only layers are made of it."""
    import zipfile

    model().save(tmp_path / "good.keras")
    with zipfile.ZipFile(tmp_path / "good.keras") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(content["config.json"])
    last = config["config"]["layers"][-1]
    names = {"os": "system", "subprocess": "run", "keras.utils": "get_file"}
    last.update(
        module=module, class_name=names.get(module, "eval"), registered_name=None
    )
    content["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "evil.keras", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(networks.WeightsError, match="cannot be loaded"):
        networks.load(str(tmp_path / "evil.keras"))


# From photos to mAP


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_fewer_classes_than_a_default_are_all_used(tmp_path, classes):
    made = networks.from_keras(model(classes))
    data = tiny.dataset(tmp_path / "data")
    other = tiny.dataset(tmp_path / "other", "other", 0, 0, 12, first_place=100)
    setup = tiny.setup(tmp_path / "cache", made, tiny.FINE, region_classes=classes)
    collection = tiny.opened(Experiment(data, other, setup))
    for aggregation in CLASS_AGGREGATIONS:
        rerank = 0 if aggregation == "regional" else 3
        most = Method(aggregation, classes, classes, 4, 0, rerank, classes)
        more = Method(aggregation, 64, 32, 4, 0, rerank, 40)
        found, expected = rank(collection, more), rank(collection, most)
        assert found.rankings == expected.rankings
        for query in data.queries:
            np.testing.assert_array_equal(
                found.scores[query.name], expected.scores[query.name]
            )
    both = collection.first.space(Method("offline", 64, 32, 4)).offline([classes, 64])
    np.testing.assert_array_equal(both[classes], both[64])


def test_three_lines_search_with_a_file(tmp_path, monkeypatch):
    photos = tiny.dataset(tmp_path / "photos")
    tiny.dataset(tmp_path / "other", "other", 0, 0, 12, first_place=100)
    model(2).save(tmp_path / "pets.keras")
    monkeypatch.chdir(tmp_path)
    index = search.index(
        "photos",
        whitening="other",
        network="pets.keras",
        resize=tiny.FINE,
        cache_dir="c",
    )
    assert index.method.num_classes == index.method.num_whitening_classes == 2
    answer = index.search(photos.path("place1_0"))
    assert answer.names[0] == "place1_0.png"
    many = search.index(
        "photos",
        whitening="other",
        network="pets.keras",
        resize=tiny.FINE,
        cache_dir="c",
        method=replace(index.method, num_classes=64, num_whitening_classes=64),
    )
    assert many.search(photos.path("place1_0")).names == answer.names
    (store,) = (tmp_path / "c").glob("photos-*/photos/*")
    assert store.name.startswith("pets.keras-")


def test_notebooks_take_a_file(tmp_path, monkeypatch):
    data = tiny.dataset(tmp_path / "data")
    (tmp_path / "data" / "groups.csv").write_text(
        "image,group\nplace0_0.png,a\nplace0_1.png,a\n"
    )
    tiny.dataset(tmp_path / "other", "other", 0, 0, 12, first_place=100)
    model(2).save(tmp_path / "pets.keras")
    parameters = source.complete("04_evaluate_and_rerank", {}) | {
        "dataset": str(tmp_path / "data"),
        "whitening_dataset": str(tmp_path / "other"),
        "network": str(tmp_path / "pets.keras"),
        "cache_dir": str(tmp_path / "cache"),
        "dimensions": 8,
    }
    experiment = workbench.Loader().experiment(parameters)
    assert experiment.setup.network.name == "pets.keras"
    assert len(data.images) == len(experiment.data.images)
    # What a run is called and is known by has no path of this machine.
    shutil.copy(tmp_path / "pets.keras", tmp_path / "data" / "pets.keras")
    moved = parameters | {"network": str(tmp_path / "data" / "pets.keras")}
    facts = [
        record.facts(
            "04_evaluate_and_rerank", p, workbench.Loader().experiment(p).facts
        )
        for p in (parameters, moved)
    ]
    assert facts[0] == facts[1]
    assert "pets.keras" in record.run_name(parameters)
    assert str(tmp_path) not in record.run_name(parameters)
    assert str(tmp_path) not in json.dumps(facts)
    shown = record._shown("network", parameters["network"])
    assert shown == "pets.keras"


def test_relative_files_start_where_folders_do(tmp_path):
    inside = source.place("none/pets.keras")
    with pytest.raises(networks.WeightsError, match=str(inside)):
        workbench.Loader().experiment(
            source.complete("02_extract_features", {"network": "none/pets.keras"})
        )
