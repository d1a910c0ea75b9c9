"""Print sums to learn from, one JSON object a line."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--count", type=int, default=10, help="how many (default: 10)")
    parser.epilog = "examples:\n  tune sums --count 3\n  tune sums --count 1000 > sums.jsonl"


def run(args: argparse.Namespace) -> int:
    """Print them; the heavy imports of a command stand in here."""
    from tune_example.data import sums

    for row in sums(args.count):
        print(json.dumps(row))
    return 0
