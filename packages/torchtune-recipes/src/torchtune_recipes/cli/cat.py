"""Print a recipe or a config."""

import argparse
import sys

from torchtune_recipes import catalog

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  tune cat sft
  tune cat llama3_2/1b_lora --sort
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune cat``."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "name", metavar="RECIPE|CONFIG|FILE", help="a name that `tune ls` shows, or a file"
    )
    parser.add_argument("--sort", action="store_true", help="sort the keys of a config")


def run(args: argparse.Namespace) -> int:
    """Print the file's text as it is, or a config's keys in the order of the alphabet."""
    path = catalog.resolve(args.name)
    if args.sort and path.suffix != ".py":
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.load(path), sort_keys=True), end="")
    else:
        print(path.read_text(encoding="utf-8"), end="")
    if args.name != str(path):
        print(f"next: tune cp {args.name} NEW copies it to be changed", file=sys.stderr)
    return 0
