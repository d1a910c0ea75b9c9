"""Write a checkpoint in another program's format: GGUF, for llama.cpp."""

import argparse
import sys

from torchtune_integrations.gguf.export import KINDS, export_gguf

__all__ = ["add_arguments", "run"]

EXAMPLES = """\
examples:
  tune export --gguf ./merged ./merged.gguf
  tune export --gguf ./models/Llama-3.2-1B-Instruct ./llama.gguf --type q8_0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune export``."""
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("--gguf", action="store_true", required=True, help="the format; there is this one")
    add("checkpoint", metavar="CHECKPOINT", help="a Llama model's folder, or a run's (no adapter)")
    add("file", metavar="OUT", help="the file to write")
    add("--type", choices=[*KINDS], default="f16", help="of the matrices; default: f16")
    add("--force", action="store_true", help="overwrite OUT")


def run(args: argparse.Namespace) -> int:
    """Write the file and print its path."""
    export_gguf(args.checkpoint, args.file, kind=args.type, force=args.force)
    print(args.file)
    print(f"next: llama-cli -m {args.file}", file=sys.stderr)
    return 0
