"""What can be run and copied: the files in the two folders beside this one, and those of plug-ins.

There is no second list: a recipe is a file in ``recipes/``, a config one in ``configs/<recipe>/``.
A plug-in's entry point of the group ``torchtune.recipes`` names its package that holds two such
folders. Files are read and never imported.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torchtune.errors import ConfigError, MissingError

from torchtune_recipes import __version__
from torchtune_recipes.plugins import entry_points, package_folder

__all__ = [
    "MODELINE",
    "Entry",
    "entries",
    "find",
    "first_line",
    "resolve",
    "resolve_config",
    "resolve_recipe",
]

MODELINE = "# yaml-language-server: $schema="
"""How the first line of a config begins: for editors, it names the JSON Schema of its recipe."""

_HERE = Path(__file__).resolve().parent


class Entry(NamedTuple):
    """A recipe or a config that can be run, shown and copied by its name.

    Args:
        kind: ``"recipe"`` or ``"config"``.
        name: What the user types: ``sft``, ``llama3_2/1b_lora``.
        recipe: The recipe that a config is for; a recipe's own name.
        path: Its file.
        about: The first line of the file's docstring or header.
        package: The package it comes with, and its version.
    """

    kind: str
    name: str
    recipe: str
    path: Path
    about: str
    package: str

    @property
    def file(self) -> str:
        """Where it lies in its package: ``recipes/sft.py``, ``configs/sft/llama3_2/1b_lora.yaml``."""
        folder = "recipes" if self.kind == "recipe" else f"configs/{self.recipe}"
        return f"{folder}/{self.name}{self.path.suffix}"

    @property
    def family(self) -> str:
        """The models that a config is for: ``llama3_2``; empty for a recipe."""
        return self.name.rpartition("/")[0] if self.kind == "config" else ""


def entries(kind: str | None = None) -> list[Entry]:
    """Return all recipes and configs, or those of one `kind`, each recipe before its configs."""
    found = [entry for folder, package in _folders() for entry in _of_folder(folder, package)]
    order = list(dict.fromkeys(entry.recipe for entry in found))
    found.sort(key=lambda entry: order.index(entry.recipe))  # configs of several packages together
    return [entry for entry in found if kind in (None, entry.kind)]


def find(name: str, *, kind: str | None = None, recipe: str | None = None) -> Entry:
    """Return the one entry called `name`; a config's name may begin with its recipe's.

    Args:
        name: ``sft``, ``llama3_2/1b_lora`` or ``sft/llama3_2/1b_lora``.
        kind: Look only among recipes, or only among configs.
        recipe: Look only among the configs of this recipe.

    Raises:
        ConfigError: No entry, or more than one, has the name.
    """
    pool = [entry for entry in entries(kind) if recipe in (None, entry.recipe)]
    hits = [entry for entry in pool if name in (entry.name, f"{entry.recipe}/{entry.name}")]
    if len(hits) == 1:
        return hits[0]
    if hits:
        paths = ", ".join(str(hit.path) for hit in hits)
        raise ConfigError("E-NAME-TWICE", f"{name!r} is the name of {paths}", do="give the path")
    what = kind or "recipe or config"
    of = f" of recipe {recipe!r}" if recipe else ""
    from torchtune.config.names import nearest

    do = nearest(name, (entry.name for entry in pool)) or "`tune ls` shows them all"
    codes = {"recipe": "E-NO-RECIPE", "config": "E-NO-CONFIG", None: "E-NO-ENTRY"}
    raise ConfigError(codes[kind], f"no {what}{of} is called {name!r}", do=do)


def resolve(word: str) -> Path:
    """Return the file of a recipe or config given by name, or by the path of the user's own file.

    Raises:
        ConfigError: The word is neither.
        MissingError: It is a path, but no file is there.
    """
    own = _own_file(word, (".py", ".yaml", ".yml"))
    return own or find(word).path


def resolve_recipe(word: str) -> Path:
    """Return the file of a recipe given by name, or by the path of the user's own file.

    Raises:
        ConfigError: The word is neither.
        MissingError: It is a path, but no file is there.
    """
    return _own_file(word, (".py",)) or find(word, kind="recipe").path


def resolve_config(word: str, *, recipe: str | None = None) -> Path:
    """Return the file of a config given by name, or by the path of the user's own file.

    Args:
        word: A name or a path.
        recipe: The recipe whose configs come into question; None for those of all.

    Raises:
        ConfigError: The word is neither.
        MissingError: It is a path, but no file is there.
    """
    own = _own_file(word, (".yaml", ".yml"))
    return own or find(word, kind="config", recipe=recipe).path


def _own_file(word: str, suffixes: tuple[str, ...]) -> Path | None:
    path = Path(word)
    if path.is_file():
        return path
    if path.suffix in suffixes:
        raise MissingError("E-NO-FILE", f"the file {word} does not exist")
    return None


def _folders() -> Iterator[tuple[Path, str]]:
    yield _HERE, f"torchtune-recipes {__version__}"
    for point in entry_points("torchtune.recipes"):
        folder = package_folder(point.value)
        if folder:
            yield folder, f"{point.package} {point.version}"


def _of_folder(folder: Path, package: str) -> Iterator[Entry]:
    files = sorted((folder / "recipes").glob("[!_]*.py"))
    recipes = {path.stem: path for path in files}
    others = sorted({path.name for path in (folder / "configs").glob("*/")} - {*recipes})
    for recipe in [*recipes, *others]:  # a plug-in may have configs for a recipe of ours
        if path := recipes.get(recipe):
            yield Entry("recipe", recipe, recipe, path, first_line(path), package)
        configs = folder / "configs" / recipe
        for config in sorted(configs.rglob("*.yaml"), key=_natural):
            name = config.relative_to(configs).with_suffix("").as_posix()
            yield Entry("config", name, recipe, config, first_line(config), package)


def _natural(path: Path) -> tuple[str, float, str]:
    """Sort by size: 8b before 70b, 360m before 1_7b."""
    size = re.match(r"(\d+(?:_\d+)?)([mb])", path.stem)
    number = float(size[1].replace("_", ".")) if size else 0.0
    return str(path.parent), number * (1000 if size and size[2] == "b" else 1), path.stem


def first_line(path: Path) -> str:
    """Return the first line that is meant for people, without the marks of a docstring or comment."""
    with path.open(encoding="utf-8") as file:
        line = next((line for line in file if not line.startswith(MODELINE)), "")
    return line.strip().strip('"#').strip()
