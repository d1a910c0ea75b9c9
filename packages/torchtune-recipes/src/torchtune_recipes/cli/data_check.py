"""Show what a model will see of your rows, and what is wrong with them.

Each row in the order of the data: its place, its tokens with those that are trained marked (green,
or {+so+} without colours), and its faults. Exits 4 if there are any, having shown all rows.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchtune_recipes.commands import at_least_one

if TYPE_CHECKING:
    from torchtune.data import ChatFormat, CheckedRow, Rows

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  tune data check my.jsonl --checkpoint ./my-model --rows 3
  tune data check owner/name --checkpoint ./my-model --columns question=q answer=a
"""
GREEN, RED, DIM, PLAIN = "\033[32m", "\033[31m", "\033[2m", "\033[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tune data check``."""
    parser.epilog = _EXAMPLES
    add = parser.add_argument
    add("path", metavar="PATH", help="a file, a folder, or the id of a data set on the hub")
    add("--checkpoint", required=True, metavar="DIR", help="the model's folder, for its tokenizer")
    add("--rows", type=at_least_one, metavar="N", help="show the first N rows; all if not given")
    add("--json", action="store_true", help="print one JSON object a row, and nothing else")
    add("--chat-template", metavar="NAME", help="a built-in chat template, or the path of one")
    add(
        "--max-seq-len",
        type=at_least_one,
        metavar="N",
        help="cut rows here; the model's positions if not given",
    )
    add("--train-on", choices=["all", "last"], default="all", help="turns of the assistant")
    add("--split", default="train", help="of a folder or hub data set; train[:100] is a part")
    add("--name", help="configuration of a hub data set")
    add("--format", help="alpaca, sharegpt, messages, qa, text or tokens; else seen by the columns")
    add(
        "--columns",
        nargs="+",
        default=[],
        metavar="PART=COLUMN",
        help="where columns have other names",
    )
    add("--transform", metavar="MODULE.FUNCTION", help="a function of yours from row to messages")


def run(args: argparse.Namespace) -> int:
    """Print the rows and, to stderr, a summary; return 4 where a row has a fault, else 0."""
    from torchtune.data import ChatFormat, CheckSummary, auto_tokenizer, check_rows

    tokenizer = auto_tokenizer(args.checkpoint, chat_template=args.chat_template)
    format, summary = ChatFormat(tokenizer), CheckSummary()
    rows, length = _rows(args), _max_seq_len(args)
    try:
        for row in check_rows(rows, format, max_seq_len=length, limit=args.rows):
            summary.add(row)
            _print_json(row) if args.json else _print_row(row, format)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(summary, file=sys.stderr)
    if summary.faulty:
        return 4
    words = ["tune", "run", "sft", "--checkpoint", args.checkpoint, "--dataset", args.path]
    print("next:", shlex.join(words), file=sys.stderr)
    return 0


def _rows(args: argparse.Namespace) -> "Rows":
    from torchtune.config import trust
    from torchtune.data import load_rows

    if args.transform:
        sys.path.insert(0, str(Path.cwd()))
        trust(args.transform.split(".")[0])  # named on the command line, by the user
    return load_rows(
        args.path,
        split=args.split,
        name=args.name,
        format=args.format,
        columns=_columns(args.columns),
        transform=args.transform,
        train_on=args.train_on,
    )


def _columns(words: list[str]) -> dict[str, str] | None:
    from torchtune.errors import ConfigError

    pairs = [word.partition("=") for word in words]
    wrong = next((word for word, (_, sign, _) in zip(words, pairs, strict=True) if not sign), None)
    if wrong:
        do = "write --columns question=q answer=a"
        raise ConfigError("E-USAGE", f"{wrong!r} is not PART=COLUMN", where="--columns", do=do)
    return {part: column for part, _, column in pairs} or None


def _max_seq_len(args: argparse.Namespace) -> int:
    """Return where rows are cut: what was asked for, at most the model's positions."""
    from torchtune.errors import ConfigError

    config = Path(args.checkpoint).expanduser() / "config.json"
    known = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    positions = known.get("max_position_embeddings")
    asked = args.max_seq_len
    if asked and positions and asked > positions:
        what = f"{asked} tokens are more than the model's {positions} positions"
        raise ConfigError("E-MAX-SEQ-LEN", what, where="--max-seq-len", do=f"at most {positions}")
    return asked or positions or sys.maxsize


def _print_json(row: "CheckedRow") -> None:
    names = [fault.name for fault in row.faults]
    shown = {"row": row.number, "input_ids": row.tokens, "labels": row.labels, "faults": names}
    print(json.dumps(shown))
    for fault in row.faults:
        print(f"row {row.number} ({row.where}): {fault}", file=sys.stderr)


def _print_row(row: "CheckedRow", format: "ChatFormat") -> None:
    cut = f", cut from {row.length:,}" if row.length > len(row.tokens) else ""
    counts = f"{len(row.tokens):,} tokens{cut}, {row.supervised:,} trained"
    print(_painted(f"row {row.number}  {row.where}  {counts}", DIM))
    if row.tokens:
        print(_marked(row, format))
    for fault in row.faults:
        print(_painted(f"  fault: {fault}", RED))
    print()


def _marked(row: "CheckedRow", format: "ChatFormat") -> str:
    """Return the row's text, special tokens written out, with the trained parts marked."""
    parts: list[tuple[bool, list[int]]] = []
    for token, label in zip(row.tokens, row.labels, strict=True):
        trained = label == token
        if not parts or parts[-1][0] != trained:
            parts.append((trained, []))
        parts[-1][1].append(token)
    texts = [(trained, format.tokenizer.decode(ids, special=True)) for trained, ids in parts]
    if _colours():
        return "".join(_painted(text, GREEN if trained else DIM) for trained, text in texts)
    return "".join(f"{{+{text}+}}" if trained else text for trained, text in texts)


def _painted(text: str, colour: str) -> str:
    return f"{colour}{text}{PLAIN}" if _colours() else text


def _colours() -> bool:
    wanted: Any = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return bool(wanted) and not os.environ.get("NO_COLOR")
