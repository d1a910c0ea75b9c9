"""The `tune` command: finds what the first word names, and hands the other words to it."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchtune_recipes.commands import Command

__all__ = ["main"]

_HEAD = """\
usage: tune COMMAND ...
       tune [torchrun options] RECIPE [--config CONFIG] [key=value ...]

Fine-tune language models: run a recipe as it is, or copy it and change any line.
"""
_FOOT = "`tune COMMAND --help` and `tune run RECIPE --help` tell more."
_READER_LEFT = 141  # what a shell gives for a program that SIGPIPE ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `tune` with `arguments`, by default those of the process, and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    clash = _older_package()
    if clash and words[:1] == ["doctor"]:
        return _examine(words[1:])
    if clash:
        print(clash, file=sys.stderr)
        return 3
    from torchtune.errors import report_errors

    try:
        with report_errors():
            code = _dispatch(words)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_LEFT
    return code


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


def _examine(words: list[str]) -> int:
    """Run `tune doctor`, which tells of the older package and imports nothing of either."""
    import argparse

    from torchtune_recipes.cli import doctor

    parser = argparse.ArgumentParser(prog="tune doctor")
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(words))


def _dispatch(words: list[str]) -> int:
    from torchtune_recipes.commands import command_parser, load_command

    if not words or words[0] in ("-h", "--help"):
        print(_help(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from torchtune import __version__ as core

        from torchtune_recipes import __version__

        print(f"torchtune-recipes {__version__}, torchtune-core {core}")
        return 0
    if words[0] == "_complete":  # asked by the scripts of `tune completion`
        from torchtune_recipes.completion import complete

        sys.stdout.writelines(f"{word}\n" for word in complete(words[1:]))
        return 0
    if words[0].startswith("-"):
        words.insert(0, "run")
    command, rest = _command(words)
    module = load_command(command)
    code: int = module.run(command_parser(command.name, module).parse_args(rest))
    return code


def _command(words: list[str]) -> "tuple[Command, list[str]]":
    """Return the command that `words` begin with and the words after it; a recipe alone is run."""
    from torchtune_recipes.commands import find_command

    found = find_command(words)
    if found is not None:
        return found
    _check_recipe(words[0])
    return _command(["run", *words])


def _check_recipe(word: str) -> None:
    """Raise unless `word` is a recipe or looks like the path of one."""
    from torchtune.config.names import nearest
    from torchtune.errors import ConfigError

    from torchtune_recipes import catalog
    from torchtune_recipes.commands import commands

    recipes = [entry.name for entry in catalog.entries("recipe")]
    if word in recipes or Path(word).suffix == ".py" or Path(word).is_file():
        return
    names = [*(command.name for command in commands()), *recipes]
    starts = [name for name in names if name.startswith(f"{word} ")]  # `tune data`
    do = f"did you mean `tune {starts[0]}`?" if starts else nearest(word, names)
    what = f"`tune` has no command and no recipe {word!r}"
    raise ConfigError("E-NO-COMMAND", what, do=do or "`tune --help` shows them")


def _help() -> str:
    from torchtune_recipes import catalog
    from torchtune_recipes.commands import JOURNEY, commands

    left = {command.name: command.about for command in commands()}
    tables = [
        (title, [(name, left.pop(name)) for name in names if name in left])
        for title, names in JOURNEY.items()
    ]
    recipes = [(entry.name, entry.about) for entry in catalog.entries("recipe")]
    tables += [("more commands", list(left.items())), ("recipes", recipes)]
    width = max(len(name) for _, rows in tables for name, _ in rows)
    parts = [_HEAD]
    for title, rows in tables:
        lines = [f"  {name:<{width}}  {about}".rstrip() for name, about in rows]
        parts += [f"{title}:", *lines, ""] if rows else []
    return "\n".join([*parts, _FOOT])


if __name__ == "__main__":
    sys.exit(main())
