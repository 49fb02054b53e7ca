"""House rules that every source notebook keeps."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
EXPECTED = 7
FACTS = ("Question", "Paper", "Reads", "Writes", "Runtime")
MAX_CELLS = 30
MAX_CODE_LINES = 15
MAX_DEF_LINES = 3

NUMBERED = sorted(NOTEBOOKS.glob("*.ipynb"))
PATHS = [*NUMBERED, *sorted((NOTEBOOKS / "sweeps").glob("*.ipynb"))]


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture(scope="module")
def notebook(path):
    return nbformat.read(path, as_version=4)


def cells_of(notebook, kind):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def python(cell):
    """A code cell as Python: magics and shell lines replaced."""
    return re.sub(r"(?m)^([ \t]*)[%!?].*$", r"\1pass", cell.source)


def headings(notebook):
    """Lines of the markdown cells that start with #, outside fenced code."""
    for cell in cells_of(notebook, "markdown"):
        prose = re.sub(r"(?ms)^```.*?^```", "", cell.source)
        yield from re.findall(r"(?m)^#+ .*$", prose)


def parameter_cells(notebook):
    return [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]


def parameters(cell):
    """Name -> value of a parameters cell.

    Raises:
        ValueError: if a line is anything but ``name = literal``.
    """
    values = {}
    for node in ast.parse(cell.source).body:
        names = node.targets if isinstance(node, ast.Assign) else []
        if len(names) != 1 or not isinstance(names[0], ast.Name):
            raise ValueError(f"not `name = literal`: {ast.unparse(node)}")
        values[names[0].id] = ast.literal_eval(node.value)
    return values


def test_there_are_six_numbered_without_a_gap():
    names = [path.stem for path in NUMBERED]
    assert len(names) >= EXPECTED
    assert [name[:2] for name in names] == [f"{i:02d}" for i in range(len(names))]
    for name in names:  # NN_verb_object
        assert re.fullmatch(r"\d\d_[a-z]+(_[a-z0-9]+)+", name), name


def test_is_stripped(notebook):
    for cell in cells_of(notebook, "code"):
        assert cell.outputs == []
        assert cell.execution_count is None
    assert "widgets" not in notebook.metadata


def test_is_valid_and_runs_in_any_environment(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"


def test_is_short(notebook):
    assert len(notebook.cells) <= MAX_CELLS
    for cell in cells_of(notebook, "code"):
        if cell not in parameter_cells(notebook):  # a list, one line a parameter
            assert len(cell.source.splitlines()) <= MAX_CODE_LINES, cell.source
    assert all(cell.source.strip() for cell in notebook.cells), "an empty cell"


def test_holds_no_logic(notebook):
    for cell in cells_of(notebook, "code"):
        for node in ast.walk(ast.parse(python(cell))):
            assert not isinstance(node, ast.ClassDef), node.name
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= MAX_DEF_LINES, f"move {node.name} to the package"


def test_leaves_saving_and_styling_to_the_package(notebook):
    for cell in cells_of(notebook, "code"):
        assert "savefig(" not in cell.source, "use figures.save_figure"
        assert "rcParams" not in cell.source, "use figures.use_style"


def test_opens_with_its_facts(path, notebook):
    opening = notebook.cells[0]
    assert opening.cell_type == "markdown"
    number = rf"{int(path.stem[:2])}\. " if path in NUMBERED else ""
    assert re.match(rf"# {number}\S", opening.source), opening.source[:60]
    # "**Question**", "**Question.**" and "**Question:**" will do.
    facts = re.findall(rf"\*\*({'|'.join(FACTS)})[.:]?\*\*", opening.source)
    assert tuple(facts) == FACTS


def test_has_one_title(notebook):
    titles = [line for line in headings(notebook) if line.startswith("# ")]
    assert len(titles) == 1


def test_parameters_are_one_cell_of_literals(notebook):
    (cell,) = parameter_cells(notebook)
    code = cells_of(notebook, "code")
    assert cell is code[0], "papermill injects after it: nothing may come before"
    assert parameters(cell)


def test_prose_comes_before_code(notebook):
    # The parameters need no sentence of their own after the opening.
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", cell.source


def test_closes_with_what_we_saw(notebook):
    last = notebook.cells[-1]
    assert last.cell_type == "markdown"
    assert re.match(r"## What we saw\b", last.source), last.source[:60]


def test_what_was_seen_on_the_demo_says_so_and_has_no_numbers(path, notebook):
    """It goes from the copies of other runs; what was measured is printed by code."""
    last = notebook.cells[-1]
    assert (last.metadata.get("tags") == ["demo"]) == (path in NUMBERED)
    assert not re.search(r"\d\.\d|\d (points|%|MiB)", last.source)


def test_a_parameter_has_one_default():
    defaults = defaultdict(dict)
    for path in PATHS:
        for cell in parameter_cells(nbformat.read(path, as_version=4)):
            for name, value in parameters(cell).items():
                defaults[name][path.stem] = value
    clashes = {
        name: by_notebook
        for name, by_notebook in defaults.items()
        if len(set(map(repr, by_notebook.values()))) > 1
    }
    assert not clashes


# The checker itself


@pytest.mark.parametrize("line", ["a = b", "a = f()", "import os", "a, b = 1, 2"])
def test_parameters_refuse_what_is_no_literal(line):
    with pytest.raises(ValueError, match=r"malformed|not `name = literal`"):
        parameters(nbformat.v4.new_code_cell(f"ok = 1\n{line}"))


def test_parameters_read_comments_and_signs():
    cell = nbformat.v4.new_code_cell('# note\na = -1  # why\nb = ["x", None]')
    assert parameters(cell) == {"a": -1, "b": ["x", None]}


def test_headings_pass_over_fenced_code():
    cell = nbformat.v4.new_markdown_cell("# One\n```\n# comment\n```\n## Two")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    assert list(headings(notebook)) == ["# One", "## Two"]


# What is published

RESULTS = NOTEBOOKS.parent / "results"
# A folder of the project, seen from the root of some machine.
PLACE = re.compile(
    r"(?<![\w.:/])/[\w.+-]+(?:/[\w.+-]+)*/(?:cache|data|results|cwr_utils)/"
)


def test_a_place_of_a_machine_is_recognised():
    assert PLACE.search("/home/me/book/cache/monuments: complete")
    assert PLACE.search('"/book/data/x.jpg"')
    for text in ("../cache/monuments", "https://a.org/data/x", "cwr_utils/runs/x.py"):
        assert not PLACE.search(text)


def test_published_runs_name_no_place_of_a_machine():
    files = [
        *RESULTS.rglob("*.ipynb"),
        *RESULTS.rglob("*.json"),
        *RESULTS.rglob("*.md"),
    ]
    runs = RESULTS / "runs"
    shown = {
        str(file.relative_to(RESULTS)): found.group()
        for file in files
        if not file.is_relative_to(runs)
        and (found := PLACE.search(file.read_text(encoding="utf-8")))
    }
    assert not shown
