"""Check a config against its recipe without running it."""

import argparse
import shlex
import sys
from pathlib import Path

from torchtune.errors import ConfigError, TuneError

from torchtune_recipes import catalog

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  tune validate my_run.yaml
  tune validate sft llama3_2/1b_lora batch_size=4 --here
  tune validate my_sft.py --checkpoint ./my-model --dataset ./my.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune validate``."""
    parser.epilog = _EXAMPLES
    parser.usage = "tune validate [RECIPE] [FILE] [key=value ...] [--here]"
    parser.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="[RECIPE] [FILE] [key=value ...]",
        help="without RECIPE it is the config's `recipe:`, or the one that has all its keys; "
        "without FILE what follows RECIPE is as for `tune run`",
    )
    parser.add_argument(
        "--here",
        action="store_true",
        help="what this machine lacks (files, devices) is a fault too, and exits 3",
    )


def run(args: argparse.Namespace) -> int:
    """Print what is wrong, or that nothing is, and what this machine lacks."""
    from torchtune.config import validate

    from torchtune_recipes.cli.run import missing_devices, refuse, with_config_path

    here = args.here or "--here" in args.words
    words = [word for word in args.words if word != "--here"]
    recipe, given, overrides = _sorted(words)
    config = catalog.resolve_config(given) if given else None
    machine = missing_devices(processes=1) if here else None  # only this check loads torch
    path = catalog.resolve_recipe(recipe)
    faults, notes = validate(path, config, with_config_path(overrides), here=here, machine=machine)
    refuse(faults)
    print(f"{config}: no faults (recipe {recipe})" if config else f"{recipe}: no faults")
    for note in notes:
        print(str(note).replace("error[", "note[", 1), file=sys.stderr)
    words = [*(["--config", given] if given else []), *overrides]
    print("next:", shlex.join(["tune", "run", recipe, *words]), file=sys.stderr)
    return 0


def _sorted(words: list[str]) -> tuple[str, str | None, list[str]]:
    """Return the recipe, the config where one is given, and what follows."""
    if not words:
        raise _usage("a recipe or a config is needed")
    if not _is_recipe(words[0]):
        return _recipe_of(catalog.resolve_config(words[0])), words[0], words[1:]
    if len(words) > 1 and not _is_override(words[1]):
        return words[0], words[1], words[2:]
    return words[0], None, words[1:]


def _is_override(word: str) -> bool:
    return word.startswith(("-", "~")) or "=" in word


def _is_recipe(word: str) -> bool:
    names = {entry.name for entry in catalog.entries("recipe")}
    return word in names or word.endswith(".py")


def _recipe_of(config: Path) -> str:
    from torchtune.config import choose_recipe

    shipped = {entry.path: entry.recipe for entry in catalog.entries("config")}
    if config in shipped:
        return shipped[config]
    recipes = {entry.name: entry.path for entry in catalog.entries("recipe")}
    return choose_recipe(config, recipes)


def _usage(what: str) -> TuneError:
    return ConfigError("E-USAGE", f"tune validate: {what}", do="see `tune validate --help`")
