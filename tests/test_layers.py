"""Data flows one way: a module imports only from the rows above its own."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cwr_utils"

ROWS = {
    "__init__": 0,
    "arrays": 0,
    "files": 0,
    "identity": 0,
    "jobs": 0,
    "names": 0,
    "pickles": 0,
    "protocol": 0,
    "backend": 0,
    "images": 1,
    "evaluation": 1,
    "pooling": 1,
    "datasets": 1,
    "store": 1,
    "derived": 1,
    "paper": 1,
    "networks": 2,
    "whitening": 2,
    "aggregation": 2,
    "grouping": 2,
    "extraction": 3,
    "ranking": 3,
    "reranking": 3,
    "rerankers": 3,
    "retrieval": 4,
    "figures": 4,
    "contributions": 5,
    "redundancy": 5,
    "explain": 5,
    "flag_costs": 5,
    "inspection": 5,
    "runs": 6,
    "widgets": 6,
    "search": 7,
    "__main__": 7,
}
# Neighbours in a row that may know each other, one way.
SAME_ROW = {
    ("datasets", "images"),  # a data set checks its photographs and boxes
    ("datasets", "evaluation"),  # what a difficulty of the revisited sets asks for
    ("derived", "store"),  # what is computed from a store is kept in one
    ("aggregation", "whitening"),  # class vectors are whitened, then summed
    ("grouping", "whitening"),  # and kept,
    ("grouping", "aggregation"),  # to be summed by the same rules
    ("rerankers", "ranking"),  # what they change is ranked and searched as ever
}
# Keras takes seconds to load, so only what computes with it may import it.
KERAS = {"backend", "networks"}
BACKENDS = {"tensorflow", "torch", "jax", "jaxlib"}
# Importable at once, without a deep-learning library.
LIGHT = ["cwr_utils", "cwr_utils.datasets", "cwr_utils.images", "cwr_utils.evaluation"]
LIGHT += ["cwr_utils.runs", "cwr_utils.retrieval", "cwr_utils.__main__"]
LIGHT += ["cwr_utils.runs.demo", "cwr_utils.runs.data", "cwr_utils.runs.record"]


def room(path):
    """The module of the table that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(source, package):
    """Full dotted names that a file imports, at any depth in it.

    Args:
        source: the file's text.
        package: dotted name of the package it is in, for relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level else []
            parts = parts[: len(parts) - node.level + 1] if node.level else parts
            base = ".".join([*parts, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def edges(source, importer, package="cwr_utils"):
    """Rooms of the package that a file imports, other than its own."""
    for name in imports(source, package):
        parts = name.split(".")
        if parts[0] == "cwr_utils":
            target = parts[1] if len(parts) > 1 and parts[1] in ROWS else "__init__"
            if target != importer:
                yield target


def allowed(importer, target):
    return ROWS[target] < ROWS[importer] or (importer, target) in SAME_ROW


FILES = sorted(PACKAGE.rglob("*.py"))


def read(path):
    package = ".".join(("cwr_utils", *path.relative_to(PACKAGE).parent.parts))
    return path.read_text(encoding="utf-8"), package


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    importer = room(path)
    assert importer in ROWS, "a new module needs a row in CONTRIBUTING.md and here"
    source, package = read(path)
    wrong = [t for t in edges(source, importer, package) if not allowed(importer, t)]
    assert not wrong, f"{importer} (row {ROWS[importer]}) imports {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_keras_stays_in_its_rooms_and_backends_stay_out(path):
    tops = {name.split(".")[0] for name in imports(*read(path))}
    # One place knows JAX, to let two forward passes run at a time.
    own = {"jax"} if room(path) == "backend" else set()
    assert not tops & BACKENDS - own, "call keras.ops: any Keras backend must do"
    assert "keras" not in tops or room(path) in KERAS


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_no_deep_learning_library(module):
    heavy = sorted({"keras"} | BACKENDS)
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_contributing_shows_the_same_table():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = {
        module: int(row)
        for row, modules in re.findall(r"(?m)^\| (\d) \| (.*) \|$", text)
        for module in re.findall(r"`(\w+)`", modules)
    }
    assert shown == {name: row for name, row in ROWS.items() if name != "__init__"}


# The checker itself


@pytest.mark.parametrize(
    ("importer", "source", "targets"),
    [
        ("images", "from cwr_utils import runs", ["runs"]),
        ("images", "import cwr_utils.store", ["store"]),
        ("images", "def f():\n    from cwr_utils.networks import load", ["networks"]),
        ("images", "from .store import Store", ["store"]),
        ("images", "from . import store", ["store"]),
        ("images", "from cwr_utils import __version__", ["__init__"]),
        ("images", "import numpy\nimport images", []),
    ],
)
def test_edges_are_seen_in_every_spelling(importer, source, targets):
    assert list(edges(source, importer)) == targets


def test_a_relative_import_climbs_out_of_its_package():
    source = "from ..images import read_image\nfrom .base import Dataset"
    assert list(edges(source, "datasets", "cwr_utils.datasets")) == ["images"]


@pytest.mark.parametrize(
    ("importer", "target", "fine"),
    [
        ("store", "arrays", True),
        ("arrays", "store", False),
        ("ranking", "reranking", False),
        ("aggregation", "whitening", True),
        ("whitening", "aggregation", False),
        ("__init__", "arrays", False),
    ],
)
def test_directions(importer, target, fine):
    assert allowed(importer, target) == fine
