"""Print the script by which a shell completes the words of `tune`.

Install it once, for new shells:

  bash   tune completion bash >> ~/.bashrc
  zsh    tune completion zsh > ~/.zfunc/_tune, with `fpath+=~/.zfunc; autoload -U compinit; compinit`
         in ~/.zshrc
  fish   tune completion fish > ~/.config/fish/completions/tune.fish
"""

import argparse
import sys
from pathlib import Path

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  tune completion bash >> ~/.bashrc
  tune completion fish > ~/.config/fish/completions/tune.fish
"""
_SCRIPTS = Path(__file__).resolve().parents[1] / "shells"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the argument of ``tune completion``."""
    parser.epilog = _EXAMPLES
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell to write for")


def run(args: argparse.Namespace) -> int:
    """Print the script as it is; all that changes is asked of `tune` at each press of the key."""
    print((_SCRIPTS / f"tune.{args.shell}").read_text(encoding="utf-8"), end="")
    if sys.stdout.isatty():
        print("next: see `tune completion --help` for where to put it", file=sys.stderr)
    return 0
