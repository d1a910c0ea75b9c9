"""Say what a model, adapter, tokenizer, data set, run or config is, and whether it is whole.

Headers and small files are read, never the weights. Exits 3 if something is missing or damaged.
"""

import argparse
import json
import sys

__all__ = ["add_arguments", "run"]

EXAMPLES = """\
examples:
  tune inspect ./models/Llama-3.2-1B-Instruct
  tune inspect ./output --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune inspect``."""
    parser.epilog = EXAMPLES
    parser.add_argument("path", metavar="PATH", help="a file or folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all facts")


def run(args: argparse.Namespace) -> int:
    """Print what is at the path; return 3 where it is not whole."""
    from torchtune.checkpoint import describe

    from torchtune_recipes.description_text import next_command, text_of

    report = describe(args.path)
    if args.json:
        print(json.dumps(report, indent=2, ensure_ascii=False, default=str))
    else:
        print(text_of(report))
    print(f"next: {next_command(report)}", file=sys.stderr)
    return 3 if report["problems"] else 0
