"""Print a recipe or a config."""

import argparse

from torchtune_recipes import catalog

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune cat``."""
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
    return 0
