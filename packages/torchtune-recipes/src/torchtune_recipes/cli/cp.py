"""Copy a recipe or a config, to be changed and run as it is.

The copy's first line names the package and version that it came from. `tune diff` reads it later,
to tell your changes from those of a newer version.
"""

import argparse
import shlex
import sys
from pathlib import Path

from torchtune.errors import ConfigError, MissingError, TuneError

from torchtune_recipes import catalog
from torchtune_recipes.copies import copy_of

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  tune cp sft my_sft.py
  tune cp llama3_2/1b_lora configs/my_run.yaml --make-parents
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune cp``."""
    parser.epilog = _EXAMPLES
    parser.add_argument("name", metavar="RECIPE|CONFIG", help="a name that `tune ls` shows")
    parser.add_argument(
        "destination",
        metavar="DEST",
        nargs="?",
        default=".",
        help="a file or folder; default: here",
    )
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--force", action="store_true", help="overwrite a file that is there")
    there.add_argument(
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
    _check(entry, destination, args)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_text(copy_of(entry), encoding="utf-8")
    except OSError as error:
        raise TuneError("E-WRITE", f"cannot write {destination}: {error.strerror}") from error
    print(destination)
    print(f"next: {_command(entry, destination)}", file=sys.stderr)
    return 0


def _destination(entry: catalog.Entry, word: str) -> Path:
    path, wanted = Path(word), entry.path.suffix
    if path.is_dir() or word.endswith(("/", "\\")):
        return path / entry.path.name
    if path.suffix == wanted or (wanted, path.suffix) == (".yaml", ".yml"):
        return path
    if path.suffix in (".py", ".yaml", ".yml"):
        what = f"a copy of {entry.name} is a {wanted} file, not {path.name}"
        raise ConfigError("E-USAGE", what, do=f"did you mean {path.with_suffix(wanted)}?")
    return Path(f"{path}{wanted}")


def _check(entry: catalog.Entry, destination: Path, args: argparse.Namespace) -> None:
    if destination.exists() and destination.samefile(entry.path):
        what = f"{destination} is the shipped file itself"
        raise ConfigError("E-FILE-EXISTS", what, do="name another place for the copy")
    if destination.exists() and not args.force:
        do = "--force overwrites it, -n leaves it"
        raise ConfigError("E-FILE-EXISTS", f"{destination} exists already", do=do)
    if not destination.parent.is_dir() and not args.make_parents:
        what = f"the folder {destination.parent} does not exist"
        raise MissingError("E-NO-FOLDER", what, do="--make-parents makes it")


def _command(entry: catalog.Entry, destination: Path) -> str:
    path = shlex.quote(str(destination))
    if entry.kind == "recipe":
        return f"tune run {path} --help"
    return f"tune run {entry.recipe} --config {path}"
