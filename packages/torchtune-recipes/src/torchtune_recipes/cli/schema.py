"""Print the JSON Schema of a recipe's configs, by which editors check them.

The shipped configs name theirs in their first line, which most editors with YAML support read
(VS Code with its YAML extension, PyCharm, Neovim with yaml-language-server). For a recipe of your
own, or to include the components of plug-ins, write it beside your config and begin that with

    # yaml-language-server: $schema=./my_sft.json
"""

import argparse
import json
import sys

from torchtune_recipes import catalog

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  tune schema sft > sft.json
  tune schema my_sft.py > my_sft.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the argument of ``tune schema``."""
    parser.epilog = _EXAMPLES
    parser.add_argument("recipe", metavar="RECIPE", help="a name that `tune ls` shows, or a file")


def run(args: argparse.Namespace) -> int:
    """Print the schema with every component that is installed here."""
    from torchtune.config import json_schema, read_params

    path = catalog.resolve_recipe(args.recipe)
    shipped = {entry.path for entry in catalog.entries("recipe")}
    name = path.stem if path in shipped else ""  # a config names shipped recipes only
    print(json.dumps(json_schema(read_params(path), recipe=name), indent=1))
    print(f"next: begin a config beside it with `{catalog.MODELINE}./FILE`", file=sys.stderr)
    return 0
