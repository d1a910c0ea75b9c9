"""The pages that explain a recipe show the shipped file and speak of what is in it."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "packages" / "torchtune-recipes" / "src" / "torchtune_recipes" / "recipes"


def text(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


def shown_in(page: str) -> str:
    """Return the name of the recipe whose file a page includes."""
    return re.findall(r"^```{literalinclude} \S+/recipes/(\w+)\.py$", text(page), re.M)[0]


PAGES = {path.stem: shown_in(path.stem) for path in sorted(ROOT.glob("docs/recipe_*.md"))}


def defined(recipe: str) -> set[str]:
    """Return the classes of a recipe's file, their methods, and the attributes that they set."""
    nodes = list(ast.walk(ast.parse((RECIPES / f"{recipe}.py").read_text(encoding="utf-8"))))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize(("page", "recipe"), PAGES.items())
def test_every_method_that_is_shown_or_named_is_the_recipes(page, recipe):
    shown = re.findall(r"^:pyobject: \w+\.(\w+)$", text(page), re.M)
    named = re.findall(r"`(?:self\.)?(_\w+)`", text(page))
    assert shown and {*shown, *named} - defined(recipe) == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_function_of_the_library_that_is_named_exists(page):
    rooms = "checkpoint|data|distributed|generation|losses|models|peft|training"
    named = re.findall(rf"`(?:torchtune\.)?({rooms})\.(\w+)`", text(page))
    missing = [n for n in named if not hasattr(importlib.import_module(f"torchtune.{n[0]}"), n[1])]
    assert missing == []


@pytest.mark.parametrize("recipe", [path.stem for path in RECIPES.glob("[a-z]*.py")])
def test_every_recipe_has_a_page_with_its_whole_file_and_loop(recipe):
    pages = [text(page) for page, of in PAGES.items() if of == recipe]
    whole = rf"```{{literalinclude}} \S+/recipes/{recipe}\.py\n:language: python\n```"
    assert any(re.search(whole, page) and "\n## The loop\n" in page for page in pages)
