"""The help of every command ends with examples that its own parser takes."""

import re
import shlex
from pathlib import Path

import pytest
from torchtune.config import TuneArgumentParser, read_params
from torchtune.errors import MissingError, TuneError
from torchtune_recipes import catalog
from torchtune_recipes.commands import JOURNEY, command_parser, commands, find_command, load_command

SHELL = {">", ">>", "|", "<", "&&", ";"}
each_command = pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)


def parser_of(command):
    try:
        return command_parser(command.name, load_command(command))
    except MissingError as error:
        pytest.skip(f"needs {command.package}: {error}")


def examples(parser):
    """Return the words of each line of the examples that begins with `tune`, up to the shell's."""
    lines = (parser.epilog or "").replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    ends = [next((n for n, word in enumerate(words) if word in SHELL), None) for words in found]
    found = [words[:end] for words, end in zip(found, ends, strict=True)]
    return [words[1:] for words in found if words[:1] == ["tune"]]


@each_command
def test_a_command_shows_two_examples_that_it_takes(command):
    parser = parser_of(command)
    shown = [words for words in examples(parser) if find_command(words)[0].name == command.name]
    assert len(shown) >= 2
    for words in shown:
        parser.parse_args(find_command(words)[1])  # a wrong word raises


@each_command
def test_recipes_configs_and_keys_of_an_example_exist(command):
    parser = parser_of(command)
    for words in examples(parser):
        args = parser.parse_args(find_command(words)[1])
        if command.name == "run":
            recipe = catalog.resolve_recipe(args.recipe)
            configs = [
                b
                for a, b in zip(args.arguments, args.arguments[1:], strict=False)
                if a == "--config"
            ]
            assert all(map(catalog.resolve_config, configs))
            rest = [word for word in args.arguments if word not in ("--config", *configs)]
            assert unknown_keys(recipe, rest) == []
        elif command.name in ("cat", "cp"):
            assert catalog.find(args.name)


def unknown_keys(recipe, words):
    """Return what the recipe's own parser calls unknown, whatever it says of the files named."""
    try:
        TuneArgumentParser(read_params(recipe)).parse_args(words)
    except TuneError as error:
        return [
            str(fault)
            for fault in getattr(error, "faults", [error])
            if fault.code
            in ("E-ARGUMENT", "E-CONFIG-KEY", "E-COMPONENT-NAME", "E-COMPONENT-ARGUMENT")
        ]
    return []


@each_command
def test_a_command_has_one_line_in_the_help_page(command):
    assert command.about and len(f"  push_to_hub  {command.about}") <= 110


def test_every_command_of_ours_has_its_place_in_the_journey():
    placed = {name for names in JOURNEY.values() for name in names}
    known = {command.name for command in commands()}
    assert known <= placed


def test_the_page_of_the_command_line_has_every_command():
    page = (Path(__file__).resolve().parents[2] / "docs/command_line.md").read_text("utf-8")
    rows = re.findall(r"^\| `tune (.+?)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(command.name for command in commands())
