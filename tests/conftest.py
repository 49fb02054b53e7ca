"""What all tests share: a quiet, headless set-up and the development photographs."""

import os
from dataclasses import replace
from pathlib import Path

# Before any test imports TensorFlow or matplotlib.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# The same examples in every run: a red test stays red, a green one green. A slow
# shared machine is no failure.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def dev_data():
    """Folder of third-party photographs on development machines; skips elsewhere."""
    folder = Path(os.environ.get("CWR_DEV_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no development photographs: set CWR_DEV_DATA to their folder")
    return folder


# What few tests need is imported where it is made: it loads TensorFlow.


@pytest.fixture(scope="module")
def compile_once():
    """One compiled graph for each setting of a module's tests, whatever the folder."""
    import tiny

    with tiny.compile_once():
        yield


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """4 places with 3 views each, the last one junk, and 6 distractors; credited."""
    import tiny

    data = tiny.dataset(tmp_path_factory.mktemp("planted"))
    credits = {name: f"Who took {name}" for name in data.images}
    return replace(data, credits={**credits, "place1_1": ""})


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """12 photos to fit the whitening on."""
    import tiny

    folder = tmp_path_factory.mktemp("others")
    return tiny.dataset(folder, "other", 0, 0, 12, first_place=100)


@pytest.fixture(scope="session")
def make(planted, others, tmp_path_factory):
    """Makes a fresh collection of `planted`, with flags and other parts of a setup."""
    import tiny

    from cwr_utils.retrieval import Experiment

    folder = tmp_path_factory.mktemp("cache")

    def make(data=planted, folder=folder, training=others, **options):
        setup = tiny.setup(folder, **{"resize": tiny.FINE, **options})
        return tiny.opened(Experiment(data, training, setup))

    return make
