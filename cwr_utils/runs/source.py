"""The notebooks as they lie on disk: their parameters, and what else identifies them.

A parameter has one meaning, one default and so one kind in all notebooks: a text is a
text, whatever YAML would make of it, and a number is a number however it is written. A
relative path starts where it was written: on the command line from the working folder,
in a sweep's file from the folder of that file, in a notebook from its own folder.

No deep-learning library is imported here: the command line has answers at once.
"""

import ast
import difflib
import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cwr_utils.protocol import PRESETS
from cwr_utils.retrieval import AGGREGATIONS, Method

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
# The notebooks' own folders, seen from theirs wherever they run.
_OWN_FOLDERS = ("../data", "../cache")
_NETWORK_FILES = (".keras", ".h5", ".hdf5")
PRESET = "hub:"  # of KerasHub, by name or in a folder
# Parameters that may name several things, joined by " + ", which then describe photos
# together.
TOGETHER = ("network", "weights", "feature_layer", "resize")
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


def notebook_name(text: str) -> str:
    """The notebook that a person means by a name, a number or a file.

    Raises:
        RunError: if there is none.
    """
    name = Path(text).name.removesuffix(".ipynb")
    if name.isdecimal():
        numbered = {int(known[:2]): known for known in NOTEBOOKS}
        name = numbered.get(int(name), name)
    return path(name).stem


def path(name: str) -> Path:
    """The file of a notebook.

    Raises:
        RunError: if there is none of that name.
    """
    _require(name, (*NOTEBOOKS, *SWEEP_NOTEBOOKS), "There is no notebook")
    folder = "sweeps" if name in SWEEP_NOTEBOOKS else ""
    return ROOT / "notebooks" / folder / f"{name}.ipynb"


def place(value: str) -> Path:
    """The file or folder that a parameter names, seen from the working folder."""
    return Path(_seen_from(ROOT / "notebooks" if value in _OWN_FOLDERS else "", value))


def _seen_from(start: str | Path, value: str) -> str:
    value = os.path.expanduser(value) if value.startswith("~/") else value
    return os.path.abspath(os.path.join(start, value))


def is_path(name: str, value: Any, start: str | Path = ".") -> bool:
    """Whether a parameter's value has a file or a folder in it, rather than names.

    Args:
        name: of the parameter.
        value: as it was written.
        start: folder that a relative path is seen from.
    """
    if not value:
        return False
    if name in TOGETHER and " + " in value:
        return any(is_path(name, part, start) for part in parts(value))
    if name in ("dataset", "whitening_dataset"):
        from cwr_utils import datasets  # half a second

        return value not in datasets.available()
    if name == "network":
        folder = value.removeprefix(PRESET)
        is_preset = folder != value and os.path.isdir(_seen_from(start, folder))
        return is_preset or value.endswith(_NETWORK_FILES)
    return name in PLACES and value not in ("imagenet", *_NOTHING)


def located(name: str, value: Any, start: str | Path = ".") -> Any:
    """A parameter's value; a path as what it is from every folder.

    Args:
        name: of the parameter.
        value: as it was written.
        start: folder that a relative path is seen from.
    """
    if not is_path(name, value, start):
        return value
    if name in TOGETHER and " + " in value:
        return " + ".join(located(name, part, start) for part in parts(value))
    prefix = PRESET if name == "network" and value.startswith(PRESET) else ""
    whole = _seen_from(start, value.removeprefix(prefix))
    own = {str(place(folder)): folder for folder in _OWN_FOLDERS}
    return prefix + own.get(whole, whole)


def from_notebooks(name: str, value: Any) -> Any:
    """A parameter's value; a path inside the project as seen from notebooks/.

    Notebooks run there, and an executed one then names no folder of this machine.
    """
    if is_path(name, value) and Path(value).is_relative_to(ROOT):
        return os.path.relpath(value, ROOT / "notebooks")
    return value


def parts(value: str) -> list[str]:
    """What a parameter of `TOGETHER` names."""
    return [part.strip() for part in value.split(" + ")]


def defaults(name: str) -> dict[str, Any]:
    """Parameter -> value in the notebook's first code cell, that of the parameters."""
    return {parameter: value for parameter, value, _ in _parameter_lines(name)}


def _parameter_lines(name: str) -> Iterator[tuple[str, Any, str]]:
    """Name, value and comment of each line of the cell of the parameters."""
    code = _code(name)[0]
    lines = code.splitlines()
    for line in ast.parse(code).body:
        comment = lines[line.end_lineno - 1][line.end_col_offset :]  # pyright: ignore
        (target,), value = line.targets, ast.literal_eval(line.value)  # pyright: ignore
        yield target.id, value, comment.strip(" #")


def code_sha256(name: str) -> str:
    """SHA-256 of a notebook's code cells but that of the parameters."""
    return hashlib.sha256(json.dumps(_code(name)[1:]).encode()).hexdigest()


def _code(name: str) -> list[str]:
    cells = json.loads(path(name).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def parameters() -> dict[str, Any]:
    """Every parameter that some notebook takes, and its default."""
    return {name: value for name, (value, _) in _parameters(ROOT).items()}


def meanings() -> dict[str, str]:
    """What each parameter means: the comment beside it."""
    return {name: meaning for name, (_, meaning) in _parameters(ROOT).items()}


def title(name: str) -> str:
    """The heading of a notebook, without its number."""
    cells = json.loads(path(name).read_text(encoding="utf-8"))["cells"]
    return cells[0]["source"][0].strip("# \n").split(". ", 1)[-1]


@cache
def _parameters(root: Path) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    for notebook in (*NOTEBOOKS, *SWEEP_NOTEBOOKS):
        for name, value, meaning in _parameter_lines(notebook):
            found.setdefault(name, (value, meaning))
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
    """Read NAME=VALUE texts of a command line; the last of two values counts.

    Raises:
        RunError: if a text has no "=", or as `typed`.
    """
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise RunError(f"{text!r} is not NAME=VALUE.")
        found[name] = located(name, typed(name, value))
    return found


def method(namespace: Mapping[str, Any], **changes: Any) -> Method:
    """The method of a notebook's parameters.

    Args:
        namespace: the notebook's `globals()`, or its parameters; fields that are none
            of these keep their defaults.
        changes: fields that are other ones.

    Raises:
        ValueError: if it cannot be.
    """
    given = {name: namespace[name] for name in METHOD_FIELDS if name in namespace}
    return Method(**{**given, **changes})


def methods(namespace: Mapping[str, Any]) -> list[Method]:
    """One method for each of a notebook's `rows`, which may leave out fields.

    Args:
        namespace: as `method` takes it; it has what a row leaves out.

    Returns:
        The methods: one of the parameters alone where a notebook has no `rows`, none
        where it searches nothing.

    Raises:
        ValueError: if one cannot be.
    """
    searches = not namespace.keys().isdisjoint(METHOD_FIELDS)
    rows = namespace.get("rows", [{}] if searches else [])
    return [method(namespace, **row) for row in rows]


def check(name: str, given: Mapping[str, Any]) -> None:
    """Refuse parameters that are wrong whatever photos and networks there are.

    Args:
        name: of the notebook.
        given: those that are not its defaults.

    Raises:
        RunError: as `typed`, or if there is no such protocol, size or method.
    """
    from cwr_utils.images import ResizePolicy  # OpenCV takes a moment

    values = complete(name, given)
    _require(values.get("protocol", "paper"), PRESETS, "There is no protocol")
    rows = [values, *values.get("rows", [])]
    for kind in (row["aggregation"] for row in rows if "aggregation" in row):
        _require(kind, AGGREGATIONS, "There is no aggregation")
    try:
        if values["limit"] < 0:
            raise ValueError(f"`limit` must be at least 0; got {values['limit']}.")
        for size in parts(values.get("resize") or "native"):
            ResizePolicy.parse(size)
        methods(values)
    except ValueError as error:
        raise RunError(str(error)) from error


def suggestion(name: str, known: Collection[str]) -> str:
    """What may be meant by a name that is not known."""
    close = difflib.get_close_matches(name, known, 1)
    close = close or [other for other in known if name and name in other]
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}."


def _require(name: Any, known: Collection[str], wrong: str) -> None:
    """Refuse a name that is not known, and say what may be meant."""
    if name not in known:
        raise RunError(f"{wrong} `{name}`: {suggestion(str(name), known)}")
