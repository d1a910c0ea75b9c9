"""The `tune` command: finds what the first word names, and hands the other words to it."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

__all__ = ["main"]

_HEAD = """\
usage: tune COMMAND ...
       tune [torchrun options] RECIPE [--config CONFIG] [key=value ...]

Fine-tune language models: run a recipe as it is, or copy it and change any line.
"""
_ELSEWHERE = {"download": "huggingface_hub has it: `hf download REPO --local-dir ./models/NAME`"}
_FOOT = "`tune COMMAND --help` and `tune run RECIPE --help` tell more."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `tune` with `arguments`, by default those of the process, and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    clash = _older_package()
    if clash:
        print(clash, file=sys.stderr)
        return 3
    from torchtune.errors import report_errors

    with report_errors():
        return _dispatch(words)


def _older_package() -> str:
    """Look for PyPI's old `torchtune`, whose files take the place of ours, before importing any."""
    from torchtune_recipes.plugins import installed

    old = next((version for name, version, _ in installed() if name == "torchtune"), "")
    return old and (
        f"error[E-OLD-PACKAGE]: the older package torchtune {old} is installed beside "
        "torchtune-core, and both are imported as `torchtune`\n"
        "  pip uninstall -y torchtune && "
        "pip install --force-reinstall --no-deps torchtune-core torchtune-recipes"
    )


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from torchtune import __version__ as core

        from torchtune_recipes import __version__

        print(f"torchtune-recipes {__version__}, torchtune-core {core}")
        return 0
    if words[0].startswith("-"):
        words.insert(0, "run")
    name, module, rest = _command(words)
    parser = _Parser(prog=f"tune {name}", description=module.__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.add_arguments(parser)
    return module.run(parser.parse_args(rest))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        from torchtune.errors import ConfigError

        raise ConfigError("E-USAGE", f"{self.prog}: {message}", do=f"see `{self.prog} --help`")


def _own() -> dict[str, str]:
    """Name each command that has a file in this folder, and its module."""
    files = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return {stem.replace("_", " "): stem for stem in sorted(files) if stem not in _NOT_COMMANDS}


_NOT_COMMANDS = ("__init__", "main")


def _command(words: list[str]) -> tuple[str, ModuleType, list[str]]:
    """Return the name of the command that `words` begin with, its module and the words after it."""
    own = _own()
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in own:
            return name, import_module(f"torchtune_recipes.cli.{own[name]}"), words[count:]
    plugin = _plugin(words[0])
    if plugin:
        return words[0], plugin, words[1:]
    _check_recipe(words[0], list(own))
    return "run", import_module("torchtune_recipes.cli.run"), words


def _plugin(name: str) -> ModuleType | None:
    """Import the module of another package that declares the command `name`, if there is one."""
    from torchtune_recipes.plugins import entry_points

    point = next((p for p in entry_points("torchtune.commands") if p.name == name), None)
    if point is None:
        return None
    try:
        return import_module(point.value)
    except ModuleNotFoundError as error:
        from torchtune.errors import MissingError

        wanted = f"{point.package}[{point.extra}]" if point.extra else point.package
        what = f"`tune {name}` needs the package {error.name!r}, which is not installed"
        raise MissingError("E-COMMAND-PACKAGE", what, do=f"pip install '{wanted}'") from None


def _check_recipe(word: str, commands: list[str]) -> None:
    """Raise unless `word` is a recipe or looks like the path of one."""
    from torchtune.config.names import nearest
    from torchtune.errors import ConfigError

    from torchtune_recipes import catalog
    from torchtune_recipes.plugins import entry_points

    recipes = [entry.name for entry in catalog.entries("recipe")]
    if word in recipes or Path(word).suffix == ".py" or Path(word).is_file():
        return
    names = [*commands, *recipes, *(point.name for point in entry_points("torchtune.commands"))]
    starts = [name for name in names if name.startswith(f"{word} ")]  # `tune data`
    do = f"did you mean `tune {starts[0]}`?" if starts else _ELSEWHERE.get(word)
    do = do or nearest(word, names)
    what = f"`tune` has no command and no recipe {word!r}"
    raise ConfigError("E-NO-COMMAND", what, do=do or "`tune --help` shows them")


def _help() -> str:
    from torchtune_recipes import catalog
    from torchtune_recipes.plugins import entry_points

    folder = Path(__file__).parent  # the files are read, not imported: `--help` is to be quick
    own = [(name, catalog.first_line(folder / f"{file}.py")) for name, file in _own().items()]
    others = [(p.name, f"from {p.package}") for p in entry_points("torchtune.commands")]
    recipes = [(entry.name, entry.about) for entry in catalog.entries("recipe")]
    parts = [_HEAD, "commands:", *_table(own + others), "", "recipes:", *_table(recipes), "", _FOOT]
    return "\n".join(parts)


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return [f"  {name:<12} {about}".rstrip() for name, about in rows]


if __name__ == "__main__":
    sys.exit(main())
