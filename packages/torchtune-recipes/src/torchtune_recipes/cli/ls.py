"""List the recipes and, under each, its configs."""

import argparse
import json

from torchtune_recipes import catalog

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tune ls``."""
    parser.add_argument("--json", action="store_true", help="print one JSON array of objects")


def run(args: argparse.Namespace) -> int:
    """Print one line for each recipe and each config."""
    found = catalog.entries()
    if args.json:
        print(json.dumps([{**entry._asdict(), "path": str(entry.path)} for entry in found]))
        return 0
    for entry in found:
        name = entry.name if entry.kind == "recipe" else f"  {entry.name}"
        print(f"{name:<24} {entry.about}".rstrip())
    return 0
