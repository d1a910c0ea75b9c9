"""Show what you changed in a copy, and what a newer version changed in its original.

FILE is a recipe or config that `tune cp` made: its first line says what it is a copy of. The text
that was copied lies in the cache folder of the one who copied it (~/.cache/torchtune/originals);
where it does not, --original gives it.

Prints unified diffs: from the original to your copy, then from the original to the file that is
shipped today. Exits 0 if there is no difference, 1 if there is one.
"""

import argparse
import os
import sys
from pathlib import Path

from torchtune.errors import ConfigError, MissingError

from torchtune_recipes import catalog, copies

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  tune diff my_sft.py
  tune diff my_run.yaml --original 1b_lora_of_0.1.yaml
"""
COLOURS = {"+": "\033[32m", "-": "\033[31m", "@": "\033[36m"}
PLAIN, BOLD = "\033[0m", "\033[1m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune diff``."""
    parser.epilog = _EXAMPLES
    parser.add_argument("file", metavar="FILE", type=Path, help="a copy that `tune cp` made")
    parser.add_argument(
        "--original", metavar="FILE", type=Path, help="the text that was copied, if it is not kept"
    )


def run(args: argparse.Namespace) -> int:
    """Print the differences, and say in a line each whose they are."""
    mine = _read(args.file)
    origin = copies.origin_of(mine)
    if origin is None:
        what = f"{args.file} does not say what it is a copy of"
        do = "only a file that `tune cp` made, with its first line, can be compared"
        raise ConfigError("E-NO-COPY", what, do=do)
    kept, today = _original(args.original, origin), copies.shipped_today(origin)
    if kept is None:
        return _against_today(args.file, mine, origin, today)
    yours = copies.differences(kept, mine, str(origin), str(args.file))
    _show(yours, "you", f"since {origin.package} {origin.version}")
    if today is None:
        print(f"{origin.package} ships no {origin.file} today", file=sys.stderr)
        return int(bool(yours))
    theirs = copies.differences(kept, _read(today.path), str(origin), _name(today))
    _show(theirs, today.package, "since then")
    if theirs:
        print(f"next: tune cp {today.name} NEW gives you today's to change", file=sys.stderr)
    return int(bool(yours or theirs))


def _original(given: Path | None, origin: copies.Origin) -> str | None:
    if given is None:
        return copies.kept_text(origin)
    text = _read(given)
    if not copies.is_original(text, origin):
        what = f"{given} is not the text that was copied: its sha256 is another"
        raise ConfigError("E-NO-ORIGINAL", what, where="--original", do=_get(origin))
    return text


def _against_today(
    file: Path, mine: str, origin: copies.Origin, today: catalog.Entry | None
) -> int:
    """Compare with what is shipped today, as the original is not on this machine."""
    if today is None:
        what = f"neither the original nor a later version of {origin} is on this machine"
        raise MissingError("E-NO-ORIGINAL", what, where=str(file), do=_get(origin))
    both = copies.differences(_read(today.path), mine, _name(today), str(file))
    _show(both, "you and later versions together", f"against {today.package}")
    print(f"the original, {origin}, is not on this machine; {_get(origin)}", file=sys.stderr)
    return int(bool(both))


def _get(origin: copies.Origin) -> str:
    name = Path(origin.file).with_suffix("").as_posix().partition("/")[2]
    return f"with {origin.package} {origin.version}, `tune cat {name}` prints it for --original"


def _name(entry: catalog.Entry) -> str:
    return f"{entry.package}: {entry.file}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise MissingError("E-NO-FILE", f"{path} cannot be read: {reason}") from error


def _show(lines: list[str], whose: str, since: str) -> None:
    """Print a diff, and to stderr whose it is and how long."""
    coloured = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    for line in lines:
        print(_painted(line) if coloured and not os.environ.get("NO_COLOR") else line, end="")
    sys.stdout.flush()  # a terminal shows what follows below
    added = sum(line.startswith("+") for line in lines[2:])
    removed = sum(line.startswith("-") for line in lines[2:])
    count = f"+{added} -{removed} lines" if lines else "no change"
    print(f"{whose}: {count} {since}", file=sys.stderr)


def _painted(line: str) -> str:
    colour = BOLD if line.startswith(("---", "+++")) else COLOURS.get(line[0], "")
    text = line.removesuffix("\n")
    return f"{colour}{text}{PLAIN}\n" if colour else line
