"""The notebooks as they lie on disk: their parameters, and what else identifies them.

A parameter has one meaning, one default and so one kind in all notebooks: a text is a
text, whatever YAML would make of it, and a number is a number however it is written.
"""

import ast
import difflib
import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cwr_utils.retrieval import Method

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = (
    "00_prepare_data",
    "01_load_cam_model",
    "02_extract_features",
    "03_aggregate_descriptors",
    "04_evaluate_and_rerank",
    "05_paper_figures",
    "06_beyond_the_paper",
)
EXTRACT = NOTEBOOKS[2]
# Notebooks that only sweeps run.
SWEEP_NOTEBOOKS = ("method_table",)
METHOD_FIELDS = tuple(field.name for field in fields(Method))
FOLDERS = ("results_dir", "figures_dir")
# Where something is: what is there counts for a run, not where.
PLACES = ("dataset", "data_root", "whitening_dataset", "whitening_root", "weights")
PLACES += ("cache_dir", *FOLDERS)
# Texts that may be None though they have a default.
_OPTIONAL = ("weights", "resize")
_NOTHING = ("", "none", "None", "null")
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list of mappings, whose names are fields of a method",
}


class RunError(RuntimeError):
    """A run that cannot be made, or failed; says which one and why."""


def path(name: str) -> Path:
    """The file of a notebook.

    Raises:
        RunError: if there is none of that name.
    """
    _require(name, (*NOTEBOOKS, *SWEEP_NOTEBOOKS), "There is no notebook")
    folder = "sweeps" if name in SWEEP_NOTEBOOKS else ""
    return ROOT / "notebooks" / folder / f"{name}.ipynb"


def place(value: str) -> Path:
    """The file or folder that a parameter names: paths start from notebooks/."""
    return Path(os.path.abspath(ROOT / "notebooks" / value))


def is_place(name: str, value: Any) -> bool:
    """Whether a parameter's value is a file or folder: what is there counts."""
    return name in PLACES or (
        name == "network" and any(map(_in_file, value.split(" + ")))
    )


def network(name: str) -> str:
    """A network's name; of a model file or a preset in a folder, where it is."""
    if not _in_file(name):
        return name
    path = name.removeprefix("hub:")
    return name.removesuffix(path) + str(place(path))


def _in_file(network: str) -> bool:
    folder = network.removeprefix("hub:")
    is_preset = folder != network and place(folder).is_dir()
    return is_preset or network.endswith((".keras", ".h5", ".hdf5"))


def defaults(name: str) -> dict[str, Any]:
    """Parameter -> value in the notebook's first code cell, that of the parameters."""
    lines = ast.parse(_code(name)[0]).body
    return {
        line.targets[0].id: ast.literal_eval(line.value)  # pyright: ignore
        for line in lines
    }


def code_sha256(name: str) -> str:
    """SHA-256 of a notebook's code cells but that of the parameters."""
    return hashlib.sha256(json.dumps(_code(name)[1:]).encode()).hexdigest()


def _code(name: str) -> list[str]:
    cells = json.loads(path(name).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def parameters() -> dict[str, Any]:
    """Every parameter that some notebook takes, and its default."""
    return _parameters(ROOT)


@cache
def _parameters(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (*NOTEBOOKS, *SWEEP_NOTEBOOKS):
        found |= defaults(name)
    return found


def complete(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a notebook: those given that it takes, else its defaults.

    Raises:
        RunError: as `typed`.
    """
    return {k: typed(k, given.get(k, default)) for k, default in defaults(name).items()}


def typed(name: str, value: Any) -> Any:
    """A parameter's value as what it has to be.

    Args:
        name: of the parameter.
        value: of that kind, or as a command line or a YAML file has it.

    Raises:
        RunError: if no notebook takes the parameter, or the value is of another kind.
    """
    _require(name, parameters(), "No notebook takes")
    default = parameters()[name]
    kind = str if default is None else type(default)
    optional = default is None or name in _OPTIONAL
    if optional and (value is None or value in _NOTHING):
        return None
    try:
        return _read(kind, value)
    except (
        *(TypeError, ValueError, ArithmeticError, LookupError),
        *(RecursionError, yaml.YAMLError),
    ) as error:
        wanted = _KINDS[kind] + (" or none" if optional else "")
        raise RunError(f"`{name}` must be {wanted}; got {value!r}.") from error


def _read(kind: type, value: Any) -> Any:
    """A value as its kind; an error of Python or YAML if it cannot be that."""
    if kind is list:
        rows = yaml.safe_load(value) if isinstance(value, str) else value
        if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
            raise TypeError
        for name in (name for row in rows for name in row):
            _require(name, METHOD_FIELDS, "A method has no")
        return [{n: typed(n, value) for n, value in row.items()} for row in rows]
    if kind is bool and isinstance(value, str):
        return {"true": True, "false": False}[value.lower()]
    if isinstance(value, str) or (kind is float and type(value) is int):
        value = kind(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError
    return value


def parse(texts: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE texts; the last of two values counts.

    Raises:
        RunError: if a text has no "=", or as `typed`.
    """
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise RunError(f"{text!r} is not NAME=VALUE.")
        found[name] = typed(name, value)
    return found


def _require(name: Any, known: Collection[str], wrong: str) -> None:
    """Refuse a name that is not known, and say what may be meant."""
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}."
        raise RunError(f"{wrong} `{name}`: {hint}")
