"""Copy a recipe or a config, to be changed and run as it is."""

import argparse
import sys
from pathlib import Path

from torchtune.errors import ConfigError, MissingError

from torchtune_recipes import catalog

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune cp``."""
    parser.add_argument("name", metavar="RECIPE|CONFIG", help="a name that `tune ls` shows")
    parser.add_argument(
        "destination",
        metavar="DEST",
        nargs="?",
        default=".",
        help="a file or folder; default: here",
    )
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")
    parser.add_argument(
        "-n", "--no-clobber", action="store_true", help="leave a file that is there, and exit 0"
    )
    parser.add_argument("--make-parents", action="store_true", help="make the folders of DEST")


def run(args: argparse.Namespace) -> int:
    """Write the copy, and print its path and how to run it."""
    entry = catalog.find(args.name)
    destination = _destination(entry, args.destination)
    if destination.exists() and args.no_clobber:
        print(f"{destination} is there and was left as it is", file=sys.stderr)
        return 0
    _check(destination, args)
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_text(
        _header(entry) + entry.path.read_text(encoding="utf-8"), encoding="utf-8"
    )
    print(destination)
    print(f"run it: {_command(entry, destination)}", file=sys.stderr)
    return 0


def _destination(entry: catalog.Entry, word: str) -> Path:
    path = Path(word)
    if path.is_dir() or word.endswith(("/", "\\")):
        return path / entry.path.name
    return path if path.suffix == entry.path.suffix else Path(f"{path}{entry.path.suffix}")


def _check(destination: Path, args: argparse.Namespace) -> None:
    if destination.exists() and not args.force:
        do = "--force overwrites it, -n leaves it"
        raise ConfigError("E-FILE-EXISTS", f"{destination} exists already", do=do)
    if not destination.parent.is_dir() and not args.make_parents:
        what = f"the folder {destination.parent} does not exist"
        raise MissingError("E-NO-FOLDER", what, do="--make-parents makes it")


def _header(entry: catalog.Entry) -> str:
    folder = "recipes" if entry.kind == "recipe" else f"configs/{entry.recipe}"
    return f"# Copied from {entry.package}: {folder}/{entry.name}{entry.path.suffix}\n"


def _command(entry: catalog.Entry, destination: Path) -> str:
    if entry.kind == "recipe":
        return f"tune run {destination} --help"
    return f"tune run {entry.recipe} --config {destination}"
