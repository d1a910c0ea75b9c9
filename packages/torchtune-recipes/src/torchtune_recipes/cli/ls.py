"""List the recipes and, under each, its configs."""

import argparse
import json
import sys

from torchtune.config.names import nearest
from torchtune.errors import ConfigError

from torchtune_recipes import catalog

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  tune ls
  tune ls sft --family llama3_2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune ls``."""
    parser.epilog = _EXAMPLES
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="only this recipe")
    parser.add_argument("--family", metavar="FAMILY", help="only configs of this family of models")
    parser.add_argument("--json", action="store_true", help="print one JSON array of objects")


def run(args: argparse.Namespace) -> int:
    """Print one line for each recipe and each config that was asked for."""
    found = _chosen(catalog.entries(), args.recipe, args.family)
    if args.json:
        facts = [{**e._asdict(), "path": str(e.path), "family": e.family} for e in found]
        print(json.dumps(facts, indent=1))
        return 0
    names = [entry.name if entry.kind == "recipe" else f"  {entry.name}" for entry in found]
    width = max(map(len, names))
    for name, entry in zip(names, found, strict=True):
        print(f"{name:<{width}}  {entry.about}".rstrip())
    print("next: tune cat NAME shows one, tune cp NAME copies it to be changed", file=sys.stderr)
    return 0


def _chosen(
    entries: list[catalog.Entry], recipe: str | None, family: str | None
) -> list[catalog.Entry]:
    """Return the entries of a recipe and of a family; a recipe only above configs of its own."""
    _check(recipe, "recipe", [entry.recipe for entry in entries], [e.family for e in entries])
    kept = [entry for entry in entries if recipe in (None, entry.recipe)]
    if family is None:
        return kept
    _check(family, "family", [entry.family for entry in kept if entry.family], [])
    above = {entry.recipe for entry in kept if entry.family == family}
    return [
        entry
        for entry in kept
        if entry.family == family or (entry.kind == "recipe" and entry.name in above)
    ]


def _check(word: str | None, what: str, known: list[str], families: list[str]) -> None:
    if word is None or word in known:
        return
    names = list(dict.fromkeys(known))
    do = f"did you mean --family {word}?" if word in families else nearest(word, names)
    do = do or (f"there are {', '.join(names)}" if names else "this recipe has no configs")
    codes = {"recipe": "E-NO-RECIPE", "family": "E-NO-FAMILY"}
    raise ConfigError(codes[what], f"no {what} is called {word!r}", do=do)
