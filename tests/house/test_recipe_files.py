"""What holds for every recipe file: self-contained, short, readable without torch."""

import ast
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "packages/torchtune-recipes/src/torchtune_recipes"
FILES = sorted((RECIPES / "recipes").glob("[!_]*.py"))
MOST_LINES = {"generate": 200}  # others: 400


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_imports_the_standard_library_torch_and_torchtune(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or ".").split(".")[0])
    assert imported - set(sys.stdlib_module_names) <= {"torch", "torchtune"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_stays_short_enough_to_read(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES.get(path.stem, 400)
