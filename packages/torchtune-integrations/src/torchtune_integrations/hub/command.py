"""Publish a checkpoint on the Hugging Face Hub, with a model card made from its run."""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from torchtune.errors import ConfigError, TuneError

if TYPE_CHECKING:
    from torchtune_integrations.hub import Publication

__all__ = ["add_arguments", "run"]

DRAFT = Path("model_card.md")

EXAMPLES = """\
examples:
  tune push_to_hub --checkpoint ./output --repo me/my-model --dry-run
  tune push_to_hub --checkpoint ./output --repo me/my-model --card model_card.md --private
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tune push_to_hub``."""
    parser.epilog = EXAMPLES
    which = parser.add_mutually_exclusive_group(required=True)
    add = which.add_argument
    add("--checkpoint", metavar="DIR", help="a run's output folder, a step folder or a model")
    add("--config", metavar="FILE", help="the YAML of a run: its output_dir is the checkpoint")
    add = parser.add_argument
    add("--repo", required=True, metavar="USER/NAME", help="where to; made if it is not there")
    add("--private", action="store_true", help="only you, or your organisation, may see it")
    add("--card", metavar="FILE", help="a model card of yours instead of the one from the run")
    add("--dry-run", action="store_true", help=f"write the card to {DRAFT} and push nothing")
    add("--yes", action="store_true", help="push without asking")
    add("--license", metavar="ID", help="the base's if not given, and never wider than it")
    add("--base-model", metavar="USER/NAME", help="the base's id, where its download does not tell")
    add(
        *("--hf-token", "--hf-auth-token"),
        dest="token",
        metavar="TOKEN",
        help="used where neither HF_TOKEN nor `hf auth login` gives one; never shown or kept",
    )


def run(args: argparse.Namespace) -> int:
    """Show the card and the files, ask, and push; print the model's address."""
    from torchtune_integrations.hub import push

    publication = _prepared(args)
    _show(publication)
    if args.dry_run:
        return _keep_draft(publication, args)
    publication.check()
    if not args.yes:
        answered = _ask(publication)
        if answered is None:
            _say("nothing was pushed")
            return 1
        publication = answered
    print(push(publication, token=args.token))
    _say(f"next: {_next(publication)}")
    return 0


def _prepared(args: argparse.Namespace) -> "Publication":
    from torchtune_integrations.hub import prepare
    from torchtune_integrations.hub.trained_model import output_dir_of

    if args.card and args.license:
        do = "write `license:` into the card, or leave --card out"
        raise ConfigError("E-USAGE", "--license is for a card made from the run", do=do)
    return prepare(
        args.checkpoint or output_dir_of(args.config),
        args.repo,
        private=args.private,
        licence=args.license,
        base_model=args.base_model,
        card=args.card,
        token=args.token,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(publication: "Publication") -> None:
    _say(publication.card)
    sizes = publication.sizes()
    width = max(map(len, sizes))
    seen = "private" if publication.private else "public"
    _say(f"{'-' * 72}\nto {publication.repo}, {seen}, {len(sizes)} files:")
    for name, size in sizes.items():
        _say(f"  {name:<{width}}  {_readable(size):>9}")
    for note in publication.notes():
        _say(f"note: {note}")


def _readable(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def _keep_draft(publication: "Publication", args: argparse.Namespace) -> int:
    """Write the card where there is none of the author's yet; say how to go on."""
    draft = Path(args.card or DRAFT)
    if not args.card:
        if draft.exists() and draft.read_text(encoding="utf-8") != publication.card:
            do = f"--card {draft} takes it as it is; or move it away"
            raise ConfigError("E-FILE-EXISTS", f"{draft} exists already", do=do)
        draft.write_text(publication.card, encoding="utf-8")
    print(draft)
    source = ["--checkpoint", args.checkpoint] if args.checkpoint else ["--config", args.config]
    words = [*source, "--repo", args.repo, "--card", str(draft)]
    words += ["--private"] if args.private else []
    words += ["--base-model", args.base_model] if args.base_model else []
    _say(f"nothing was pushed. Edit {draft}, then: tune push_to_hub {shlex.join(words)}")
    return 0


def _ask(publication: "Publication") -> "Publication | None":
    """Ask until the user pushes, leaves, or is done editing; None if nothing is to be pushed."""
    if not sys.stdin.isatty():
        what = "there is no terminal to ask whether this shall be pushed"
        raise ConfigError("E-PUSH-ASK", what, do="--yes pushes without asking, --dry-run does not")
    ready: Publication | None = publication
    card = publication.card
    while True:
        way = (
            "[y]es, [N]o, [e]dit the card"
            if ready
            else "it cannot go like this: [N]o, [e]dit again"
        )
        _say(f"push this to {publication.repo}? {way}")
        answer = sys.stdin.readline().strip().lower()
        if answer not in ("e", "edit"):
            return ready if answer in ("y", "yes") else None
        try:
            card = _edited(card)
            ready = publication.with_card(card, where="the model card")
            ready.check()
            _show(ready)
        except TuneError as error:
            _say(str(error))
            ready = None


def _edited(card: str) -> str:
    """Return the card as the user's editor leaves it."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model_card.md")
        path.write_text(card, encoding="utf-8")
        try:
            subprocess.run([*shlex.split(editor), str(path)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            do = "set EDITOR, or use --dry-run and --card"
            raise ConfigError("E-EDITOR", f"{editor!r} failed: {error}", do=do) from None
        return path.read_text(encoding="utf-8")


def _next(publication: "Publication") -> str:
    name = publication.repo.rpartition("/")[2]
    there = f"tune download {publication.repo}"
    return (
        f"{there}, then tune generate --checkpoint ./models/{name}; its page tells how to load it"
    )
