"""Merge an adapter into its base: one folder that transformers and vLLM load as it is."""

import argparse
import shlex
import sys

__all__ = ["add_arguments", "run"]

EXAMPLES = """\
examples:
  tune merge ./models/Llama-3.2-1B-Instruct ./output ./merged
  tune merge ./models/Llama-3.2-1B-Instruct ./output/step_000400 ./merged --dtype bf16 --force
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune merge``."""
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("base", metavar="BASE", help="the folder of the model that the adapter was trained on")
    add("adapter", metavar="ADAPTER", help="a run's folder (latest step), a step, or one of PEFT's")
    add("folder", metavar="OUT", help="the folder to write")
    add("--dtype", choices=["bf16", "fp32", "fp16"], help="of the weights; default: as in BASE")
    add("--force", action="store_true", help="replace the model that is in OUT")


def run(args: argparse.Namespace) -> int:
    """Write the merged model and print its folder."""
    from torchtune.checkpoint import merge_adapter
    from torchtune.distributed import DTYPES

    dtype = DTYPES.get(args.dtype)
    merge_adapter(args.base, args.adapter, args.folder, dtype=dtype, force=args.force)
    print(args.folder)
    folder = shlex.quote(str(args.folder))
    print(f'next: tune generate --checkpoint {folder} --prompt "..."', file=sys.stderr)
    return 0
