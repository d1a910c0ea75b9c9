"""What can stand next in a command line of `tune`: a shell asks at each press of the tab key.

Answers come from where the words come from: a command's own help, the catalog, a recipe's Params.
Nothing here loads torch. No answer means that a path or any other text is wanted.
"""

import argparse
import re
from collections.abc import Sequence

from torchtune.errors import TuneError

from torchtune_recipes import catalog
from torchtune_recipes.commands import (
    Command,
    command_parser,
    commands,
    find_command,
    load_command,
)

__all__ = ["complete"]


def complete(words: Sequence[str]) -> list[str]:
    """Return what the last of `words` can become.

    Args:
        words: What stands after ``tune`` up to the cursor; the last one, maybe empty, is begun.
    """
    *before, begun = words or [""]
    try:
        found = _offered(before, begun)
    except TuneError:  # something before is wrong; the command itself will say what
        return []
    return list(dict.fromkeys(word for word in found if word.startswith(begun)))


def _offered(before: list[str], begun: str) -> list[str]:
    names = [command.name for command in commands()]
    if not before:
        words = [name.split()[0] for name in names] + _recipes()
        return ["--version", *_run([], begun)] if begun.startswith("-") else words
    found = find_command(before)
    if found is None:
        starts = [name.split() for name in names if name.startswith(f"{before[0]} ")]
        if starts and len(before) == 1:  # `tune data`
            return [second for _, second in starts]
        return _run(before, begun) if _is_run(before[0]) else []
    command, rest = found
    special = {"run": _run, "validate": _validate, "estimate": _estimate}.get(command.name)
    return special(rest, begun) if special else _plain(command, rest, begun)


def _is_run(word: str) -> bool:
    """Whether `run` may be left out before this word: a recipe, or an option of torchrun."""
    return word in _recipes() or word.startswith("-") or word.endswith(".py")


def _recipes() -> list[str]:
    return [entry.name for entry in catalog.entries("recipe")]


def _configs(recipe: str | None = None) -> list[str]:
    found = catalog.entries("config")
    return [entry.name for entry in found if recipe in (None, entry.recipe)]


def _run(rest: list[str], begun: str) -> list[str]:
    """Complete ``[torchrun options] RECIPE [--config CONFIG] [key=value ...]``."""
    options = _Words.of("run").options
    place = 0
    while place < len(rest) and rest[place].startswith("-"):
        place += 1 if "=" in rest[place] or not options.get(rest[place]) else 2
    if place > len(rest):
        return []  # the value of an option
    if place == len(rest):
        return [*options] if begun.startswith("-") else _recipes()
    return _of_recipe(rest[place], rest[place + 1 :], begun)


def _of_recipe(recipe: str, after: list[str], begun: str) -> list[str]:
    from torchtune.config import read_params, suggest

    path = catalog.resolve_recipe(recipe)
    known = recipe if recipe in _recipes() else None
    if after[-1:] == ["--config"]:
        return _configs(known)
    if begun.startswith("--config="):
        return [f"--config={name}" for name in _configs(known)]
    return suggest(read_params(path), [*after, begun])


def _validate(rest: list[str], begun: str) -> list[str]:
    """Complete ``[RECIPE] FILE [key=value ...]``."""
    if begun.startswith("--") and begun in "--here":
        return ["--here"]
    if not rest:
        return [*_recipes(), *_configs()]
    if _is_run(rest[0]):
        named, rest = rest[0], rest[1:]
        return _of_recipe(named, rest[1:], begun) if rest else _configs(named)
    own = next((e.recipe for e in catalog.entries("config") if e.name == rest[0]), None)
    return _of_recipe(own, rest[1:], begun) if own else []


def _estimate(rest: list[str], begun: str) -> list[str]:
    """Complete ``RECIPE [--config CONFIG] [key=value ...] [options]``."""
    own = [*_Words.of("estimate").options] if begun.startswith("-") else []
    return [*own, *(_of_recipe(rest[0], rest[1:], begun) if rest else _recipes())]


def _plain(command: Command, rest: list[str], begun: str) -> list[str]:
    """Complete the words of a command by what its help calls them."""
    words = _Words(command_parser(command.name, load_command(command)))
    awaited = words.options.get(rest[-1]) if rest else None
    if awaited:
        return _called(awaited)
    if begun.startswith("-"):
        return [*words.options]
    count = sum(not word.startswith("-") for word in rest)
    return _called(words.positionals[min(count, len(words.positionals) - 1)])


class _Words:
    """A parser's options, each with what its value is called, and what its other words are called."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        parser.description = parser.epilog = None
        lines = re.findall(r"^  (\S.*?)(?:  .*)?$", parser.format_help(), re.MULTILINE)
        heads = [line for line in lines if line.startswith("-")]
        self.positionals = [line for line in lines if not line.startswith("-")] or [""]
        self.options: dict[str, str] = {}
        for head in heads:
            value = "" if head.split()[-1].startswith("-") else head.split()[-1]
            self.options |= dict.fromkeys(re.findall(r"--[\w-]+", head), value)

    @classmethod
    def of(cls, name: str) -> "_Words":
        """Return the words of one of our commands."""
        found = find_command([name])
        assert found
        return cls(command_parser(name, load_command(found[0])))


def _called(name: str) -> list[str]:
    """Return the words for ``RECIPE|CONFIG``, ``FAMILY`` or ``{bash,zsh}``; none for the others."""
    families = [entry.family for entry in catalog.entries("config")]
    known = {"RECIPE": _recipes, "CONFIG": _configs, "FAMILY": lambda: families}
    if name.startswith("{"):
        return name.strip("{}").split(",")
    return [word for part in name.split("|") if part in known for word in known[part]()]
