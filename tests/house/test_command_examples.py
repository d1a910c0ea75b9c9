"""The help of every command ends with examples that its own parser takes."""

import re
import shlex
from pathlib import Path

import pytest
from torchtune.config import TuneArgumentParser, read_params
from torchtune.config.helptext import help_text
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


def examples(text):
    """Return the words of each line of the examples that begins with `tune`, up to the shell's."""
    lines = text.rpartition("examples:")[2].replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    ends = [next((n for n, word in enumerate(words) if word in SHELL), None) for words in found]
    found = [words[:end] for words, end in zip(found, ends, strict=True)]
    return [words[1:] for words in found if words[:1] == ["tune"]]


@each_command
def test_a_command_shows_two_examples_that_it_takes(command):
    parser = parser_of(command)
    shown = [
        words
        for words in examples(parser.epilog or "")
        if find_command(words)[0].name == command.name
    ]
    assert len(shown) >= 2
    for words in shown:
        parser.parse_args(find_command(words)[1])  # a wrong word raises


@each_command
def test_recipes_configs_and_keys_of_an_example_exist(command):
    parser = parser_of(command)
    for words in examples(parser.epilog or ""):
        args = parser.parse_args(find_command(words)[1])
        if command.name == "run":
            assert faults_of_words(args.recipe, args.arguments) == []
        elif command.name in ("cat", "cp"):
            assert catalog.find(args.name)


@pytest.mark.parametrize("recipe", catalog.entries("recipe"), ids=lambda entry: entry.name)
def test_the_help_of_a_recipe_shows_two_examples_that_it_takes(recipe):
    shown = examples(help_text(read_params(recipe.path)))
    assert len(shown) >= 2
    run = next(command for command in commands() if command.name == "run")
    for words in shown:
        args = parser_of(run).parse_args(words[1:] if words[0] == "run" else words)
        assert args.recipe == recipe.name
        assert faults_of_words(args.recipe, args.arguments) == []


def faults_of_words(recipe, words):
    """Return what a recipe's parser says of the words alone, not of the files that they name."""
    named = [n + 1 for n, word in enumerate(words) if word == "--config"]
    words = [
        str(catalog.resolve_config(word)) if n in named else word for n, word in enumerate(words)
    ]
    try:
        TuneArgumentParser(read_params(catalog.resolve_recipe(recipe))).parse_args(words)
    except TuneError as error:
        faults = [str(fault) for fault in getattr(error, "faults", [error])]
        return [fault for fault in faults if "E-FILE" not in fault]
    return []


@each_command
def test_a_command_has_one_line_in_the_help_page(command):
    assert command.about and len(f"  push_to_hub  {command.about}") <= 110


def test_every_command_of_ours_has_its_place_in_the_journey():
    placed = {name for names in JOURNEY.values() for name in names}
    known = {command.name for command in commands()}
    assert known <= placed


def test_without_integrations_each_of_its_commands_says_what_brings_it(monkeypatch):
    there = {each.name: each.package for each in commands() if "integrations" in each.package}
    monkeypatch.setattr("torchtune_recipes.commands.entry_points", lambda group: [])
    missing = {each.name: each.package for each in commands() if not each.module}
    assert there and missing == there


def test_the_page_of_the_command_line_has_every_command():
    page = (Path(__file__).resolve().parents[2] / "docs/command_line.md").read_text("utf-8")
    rows = re.findall(r"^\| `tune (.+?)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(command.name for command in commands())
