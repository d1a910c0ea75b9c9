"""The commands of `tune`: the files in `cli/` and what plug-ins declare, listed without an import.

A command is a module with ``add_arguments(parser)`` and ``run(args) -> int``; the first line of its
docstring is its line in ``tune --help``, and ``add_arguments`` sets ``parser.epilog`` to examples.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, NoReturn

from torchtune.errors import ConfigError, MissingError

from torchtune_recipes import catalog
from torchtune_recipes.plugins import EntryPoint, entry_points, module_path

__all__ = [
    "JOURNEY",
    "Command",
    "Parser",
    "at_least_one",
    "command_parser",
    "commands",
    "find_command",
    "load_command",
]

JOURNEY = {
    "find and fetch a model": ("ls", "cat", "download", "inspect"),
    "check before you train": ("data check", "validate", "estimate", "doctor"),
    "make it yours": ("cp", "diff", "schema"),
    "train": ("run",),
    "look at the result": ("chat", "evaluate"),
    "hand it on": ("merge", "export", "push_to_hub"),
    "your shell": ("completion",),
}
"""The commands in the order in which one needs them; any other comes after these."""

_ELSEWHERE = {
    "evaluate": ("Score a checkpoint on tasks of lm-eval", "torchtune-integrations", "eval"),
    "export": ("Write a checkpoint in another program's format", "torchtune-integrations", "gguf"),
    "push_to_hub": ("Publish a checkpoint with its model card", "torchtune-integrations", "hub"),
}
_HERE = Path(__file__).parent / "cli"
_NOT_COMMANDS = ("__init__", "main")


class Command(NamedTuple):
    """One command of `tune`.

    Args:
        name: What the user types after ``tune``; may be two words.
        about: Its line in ``tune --help``.
        module: The module that holds it; empty where its package is not installed.
        package: What ``pip install`` has to bring, with the extra, for all of it to work.
    """

    name: str
    about: str
    module: str
    package: str


def commands() -> list[Command]:
    """Return all commands: ours, those of plug-ins, those of packages that are not installed."""
    files = sorted(path for path in _HERE.glob("*.py") if path.stem not in _NOT_COMMANDS)
    found = {command.name: command for command in map(_own, files)}
    for point in entry_points("torchtune.commands"):
        found.setdefault(point.name, _plugged(point))
    for name, (about, package, extra) in _ELSEWHERE.items():
        brought = _wanted(package, extra)
        about = f'{about} (pip install "{brought}")'
        found.setdefault(name, Command(name, about, "", brought))
    return list(found.values())


def _own(file: Path) -> Command:
    module = f"torchtune_recipes.cli.{file.stem}"
    name = file.stem.replace("_", " ")
    return Command(name, catalog.first_line(file), module, "torchtune-recipes")


def _plugged(point: EntryPoint) -> Command:
    path = module_path(point.value)
    about = catalog.first_line(path) if path else ""
    package = _wanted(point.package, point.extra)
    return Command(point.name, about or f"from {point.package}", point.value, package)


def _wanted(package: str, extra: str) -> str:
    return f"{package}[{extra}]" if extra else package


def find_command(words: Sequence[str]) -> tuple[Command, list[str]] | None:
    """Return the command that `words` begin with and the words after it, None if there is none."""
    known = {command.name: command for command in commands()}
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in known and len(words) >= count:
            return known[name], list(words[count:])
    return None


def load_command(command: Command) -> ModuleType:
    """Import the module of a command.

    Raises:
        MissingError: A package that it needs is not installed.
    """
    missing = command.package.partition("[")[0]
    if command.module:
        try:
            return import_module(command.module)
        except ModuleNotFoundError as error:
            missing = error.name or missing
    what = f"`tune {command.name}` needs the package {missing!r}, which is not installed"
    raise MissingError("E-COMMAND-PACKAGE", what, do=f'pip install "{command.package}"')


class Parser(argparse.ArgumentParser):
    """Raises `ConfigError` for a wrong word, which no usage text then hides."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError("E-USAGE", f"{self.prog}: {message}", do=f"see `{self.prog} --help`")


def at_least_one(text: str) -> int:
    """Return the number that an option was given, for `type=`; argparse names the option."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text}; it must be a whole number of at least 1")
    return int(text)


def command_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """Return the parser of a command's own words; a wrong word raises `ConfigError`."""
    parser = Parser(prog=f"tune {name}", description=module.__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.add_arguments(parser)
    return parser
