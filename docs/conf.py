"""Sphinx reads this: `hatch run docs`."""

import json
import sys

import torchtune
import torchtune_recipes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.pycode import ModuleAnalyzer

project = "torchtune"
author = "the torchtune authors"
release = torchtune.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown", ".ipynb": "notebook"}
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "pydata_sphinx_theme"
html_title = f"torchtune {release}"
html_show_sourcelink = False
html_theme_options = {
    "navbar_center": [],  # all pages stand at the side, under their captions
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
}
html_sidebars = {"**": ["all_pages.html"]}
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["pages.css"]
myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_substitutions = {"recipes_version": torchtune_recipes.__version__}
myst_heading_anchors = 3

# The reference is what a room's __all__ lists; types stand in signatures alone.
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
default_role = "code"  # single backquotes in docstrings are code


def document_data(app, what, name, thing, options, lines):
    """Give a re-exported constant or alias the string that follows its assignment."""
    if what != "data":
        return
    room, _, short = name.rpartition(".")
    for module in [each for each in sys.modules if each.startswith(f"{room}.")]:
        comments = ModuleAnalyzer.for_module(module).find_attr_docs()
        if ("", short) in comments:
            lines[:] = comments["", short]


class NotebookParser(MystParser):
    """Read a notebook as the page that its cells are, each with the text that it printed."""

    supported = ("notebook",)

    def parse(self, inputstring, document):
        """Hand the cells on as Markdown."""
        cells = map(self.page_of, json.loads(inputstring)["cells"])
        super().parse("\n\n".join(cells), document)

    @staticmethod
    def page_of(cell):
        """Return the Markdown of one cell."""
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            return source
        printed = "".join("".join(each.get("text", "")) for each in cell["outputs"])
        return f"```python\n{source}\n```\n" + (f"\n```text\n{printed}```\n" if printed else "")


def setup(app):
    """Connect what autodoc cannot find by itself, and what reads notebooks."""
    app.connect("autodoc-process-docstring", document_data)
    app.add_source_parser(NotebookParser)
