"""The site: `make docs`. Notebooks are executed copies, code is the package's own."""

import ast
import os
import shutil
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive, directives

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

project = "Class-weighted image retrieval"
author = "the cwr-workbook authors"
copyright = "the cwr-workbook authors, MIT licence"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project
html_css_files = ["site.css"]
html_static_path = ["_static"]
nb_execution_mode = "off"
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
default_role = "code"  # single backticks in docstrings are names
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_use_ivar = True
# Sphinx shows files outside docs/ as downloads; folders it cannot show.
suppress_warnings = ["mystnb.unknown_mime_type"]

# The executed notebooks are under version control once, with the results.
EXECUTED = ROOT / "results" / "executed" / "monuments"
COPIES = Path(__file__).parent / "executed"
COPIES.mkdir(exist_ok=True)
for notebook in sorted(EXECUTED.glob("*.ipynb")):
    copy = COPIES / notebook.name
    if not copy.exists() or copy.read_bytes() != notebook.read_bytes():
        shutil.copyfile(notebook, copy)


class Code(Directive):
    """A function of the package as it is, without its docstring, which the API has."""

    required_arguments = 1
    option_spec = {"from": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Read `cwr_utils/<module>.py` and show `<name>`, a function or a method."""
        module, name = self.arguments[0].split(":")
        path = ROOT.joinpath("cwr_utils", *module.split(".")).with_suffix(".py")
        text = path.read_text(encoding="utf-8")
        node, lines = ast.parse(text), text.splitlines()
        for part in name.split("."):
            named = {getattr(n, "name", None): n for n in node.body}
            if part not in named:
                raise self.error(f"{path.name} has no {name}.")
            node = named[part]
        doc = node.body[0]
        start, stop = doc.lineno - 1, doc.end_lineno
        shown = [*lines[node.lineno - 1 : start], *lines[stop : node.end_lineno]]
        indent = min(len(s) - len(s.lstrip()) for s in shown if s.strip())
        code = "\n".join(line[indent:] for line in shown)
        self.state.document.settings.record_dependencies.add(str(path))
        block = nodes.literal_block(code, code, language="python")
        where = nodes.caption("", f"cwr_utils/{path.relative_to(ROOT / 'cwr_utils')}")
        return [nodes.container("", where, block, literal_block=True)]


# What is elsewhere on a code host -> the page here.
MOVED = {
    "../results/executed/monuments/": "executed/",
    "../CONTRIBUTING.md": "contributing.md",
}


def follow(app, page: str, source: list[str]) -> None:
    """Let links to what has a page here lead to that page."""
    for place, here in MOVED.items():
        source[0] = source[0].replace(f"]({place}", f"]({here}")


def setup(app):
    """Register what is above."""
    app.add_directive("body", Code)
    app.connect("source-read", follow)
