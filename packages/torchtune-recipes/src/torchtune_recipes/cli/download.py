"""Download a model or an adapter from the Hugging Face Hub.

Only what training and answering need comes: safetensors, config, tokenizer, chat templates, card
and licence. Run it again after a break, and it goes on with what is missing.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  tune download HuggingFaceTB/SmolLM2-135M-Instruct
  tune download meta-llama/Llama-3.2-1B-Instruct --revision main --output-dir /data/llama

Log in once with `hf auth login`, or set HF_TOKEN, for private models and those with terms to accept.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune download``."""
    parser.epilog = _EXAMPLES
    parser.add_argument("repo", metavar="REPO", help="USER/NAME, as on the hub's page")
    parser.add_argument(
        "--output-dir", "--output_dir", type=Path, metavar="DIR", help="default: ./models/NAME"
    )
    parser.add_argument("--revision", metavar="R", help="a branch, tag or commit; default: main")
    for name, about in (
        ("include", "bring the files that match, whatever they are, and no others"),
        ("ignore", "leave out the files that match"),
    ):
        parser.add_argument(
            f"--{name}-patterns",
            f"--{name}_patterns",
            nargs="+",
            action="extend",
            default=[],
            metavar="P",
            help=f"{about}: '*.json'",
        )
    parser.add_argument(
        *("--hf-token", "--hf-auth-token", "--hf_token", "--hf_auth_token"),
        dest="token",
        metavar="T",
        help="used if neither HF_TOKEN nor `hf auth login` gives one; others see it in `ps`",
    )


def run(args: argparse.Namespace) -> int:
    """Download, print the folder, and say what to type next."""
    from torchtune.checkpoint import download, download_folder

    from torchtune_recipes.downloads import what_next

    folder = args.output_dir or download_folder(args.repo)
    patterns = {"include": args.include_patterns, "exclude": args.ignore_patterns}
    signal.signal(signal.SIGINT, _leave)
    download(args.repo, folder, revision=args.revision, token=args.token, **patterns)
    print(folder)
    print(what_next(folder), file=sys.stderr)
    return 0


def _leave(*_: object) -> None:
    """Stop at once: the library's threads would first finish their files, which takes minutes."""
    print("\nstopped; the same command goes on with what is missing", file=sys.stderr, flush=True)
    os._exit(75)
