"""Sweeps as they lie on disk: a YAML file to the parameters of each cell.

docs/sweeps.md has what may stand in a file, with an example.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from cwr_utils import files
from cwr_utils.runs import source
from cwr_utils.runs.source import RunError

_LISTS = {"type": "object", "additionalProperties": {"type": "array", "minItems": 1}}
_MAPPINGS = {"type": "array", "minItems": 1, "items": {"type": "object"}}
_NOTEBOOKS = [source.NOTEBOOKS[1], *source.NOTEBOOKS[3:], *source.SWEEP_NOTEBOOKS]
# Fields of a method that cost time and change it: nothing is measured unasked.
_EXTRAS = ("query_expansion", "rerank")
_SCHEMA = {
    "type": "object",
    "required": ["notebooks"],
    "additionalProperties": False,
    "properties": {
        "notebooks": {"type": "array", "minItems": 1, "items": {"enum": _NOTEBOOKS}},
        "jobs": {"type": "integer", "minimum": 1},
        "parameters": {"type": "object"},
        "grid": _LISTS,
        "cells": _MAPPINGS,
        "rows": _MAPPINGS,
        "curve": _LISTS,
    },
}


@dataclass(frozen=True)
class Sweep:
    """Runs of the same notebooks with different parameters, from a YAML file.

    Attributes:
        notebooks: to run for each cell, in order.
        cells: cell name -> parameters: each combination of the grid, then the cells
            that are listed one by one.
        jobs: cells at a time; None is one for each core.
    """

    notebooks: list[str]
    cells: dict[str, dict[str, Any]]
    jobs: int | None = None

    @classmethod
    def read(
        cls, path: str | Path, overrides: Mapping[str, Any] = MappingProxyType({})
    ) -> "Sweep":
        """Read a YAML file, such as those of notebooks/sweeps.

        Its parts: `notebooks`; `parameters`, one value for each; `grid`, a list of
        values for each parameter, and `cells`, mappings with a value for each, which
        make the cells; `rows`, mappings with fields of a method, and `curve`, a list of
        values for each field, which make the methods within a cell; `jobs`. Relative
        paths start from the folder of the file. Methods of `method_table` expand and
        re-rank only where the file or `overrides` say so.

        Args:
            path: the file.
            overrides: parameters for all cells, as `source.parse` gives them. What a
                cell or a row has of its own stays, and what all of them have of their
                own cannot be overridden.

        Raises:
            RunError: names the file, the field and what is wrong with it: a part, a
                notebook or parameter that is unknown, of another kind or out of its
                range, two cells of the same name.
        """
        path = Path(path).absolute()
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            _check_parts(content)
            cells = dict(_cells(content, overrides, path.parent))
            for parameters in cells.values():
                for name in content["notebooks"]:
                    source.check(name, parameters)
            return cls(content["notebooks"], cells, content.get("jobs"))
        except FileNotFoundError as error:
            folder = source.ROOT / "notebooks/sweeps"
            hint = source.suggestion(path.stem, [p.stem for p in folder.glob("*.yaml")])
            raise RunError(f"There is no file {path}. In {folder}: {hint}") from error
        except (OSError, ValueError, RuntimeError, yaml.YAMLError) as error:
            raise RunError(f"{path}: {error}") from error


def _check_parts(content: Any) -> None:
    """Refuse what is no sweep, with the field that is wrong."""
    import jsonschema  # takes a second or two

    try:
        jsonschema.validate(content, _SCHEMA)
    except jsonschema.ValidationError as error:
        place = ".".join(map(str, error.absolute_path)) or "the file"
        raise RunError(f"{place}: {error.message}") from error


def _cells(
    content: Mapping[str, Any], overrides: Mapping[str, Any], start: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and parameters of each cell; relative paths start from a folder."""
    shared, listed = _typed(content.get("parameters", {})), content.get("cells", [])
    grid, curve = content.get("grid", {}), content.get("curve", {})
    cells = [*(_product(grid) if grid or not listed else []), *listed]
    rows = content.get("rows", [{}])
    rows = [{**row, **point} for row in rows for point in _product(curve)]
    own = {name for part in (*listed, *rows) for name in part} - shared.keys()
    if fixed := sorted({*own, *grid, *curve} & overrides.keys()):
        raise RunError(f"each cell has its own {' and '.join(fixed)}.")
    takers = [name for name in content["notebooks"] if "rows" in source.defaults(name)]
    if rows != [{}] and not takers:
        raise RunError("none of its notebooks takes `rows` or a `curve`.")
    rows = source.typed("rows", rows)
    shared = _located(shared, start) | _typed(overrides)
    names = set()
    for cell in map(_typed, cells):
        words = [f"{key}-{value}" for key, value in cell.items() if value is not None]
        name = files.file_name("_".join(words)) or "default"
        if name in names:
            raise RunError(f"two of its cells have the same cell name, {name}.")
        names.add(name)
        parameters = {**shared, **_located(cell, start)}
        plain = {field: 0 for field in _EXTRAS if field not in parameters and takers}
        yield name, {**parameters, "rows": [{**plain, **row} for row in rows]}


def _typed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    if own := sorted({*source.FOLDERS, "rows"} & parameters.keys()):
        raise RunError(f"a sweep sets {own[0]} itself.")
    return {name: source.typed(name, value) for name, value in parameters.items()}


def _located(parameters: Mapping[str, Any], start: Path) -> dict[str, Any]:
    return {k: source.located(k, value, start) for k, value in parameters.items()}


def _product(lists: Mapping[str, Sequence]) -> list[dict[str, Any]]:
    """All combinations; one empty one of nothing."""
    combinations = itertools.product(*lists.values())
    return [dict(zip(lists, values, strict=True)) for values in combinations]
