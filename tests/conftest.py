"""What all tests share: a quiet, headless set-up and the development photographs."""

import os
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
