"""Talk to a checkpoint, in the terminal or on a web page.

What was said before is put to the model again with each question. Ctrl-C stops an answer, Ctrl-D
ends the chat; lines may also come through a pipe. Answers go to stdout, all else to stderr.
"""

import argparse
import shlex
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from torchtune_recipes.commands import at_least_one

if TYPE_CHECKING:
    from torchtune.generation import Conversation, LoadedCheckpoint, Sampling

__all__ = ["add_arguments", "run"]

EXAMPLES = """\
examples:
  tune chat --checkpoint ./output --system "You are brief." --temperature 0.3
  tune chat --checkpoint ./output --ui --compare ./models/Llama-3.2-1B-Instruct
"""
HELP = """\
/reset            forget what was said
/system TEXT      another system message; none without TEXT
/temperature X    0: always the likeliest word; 1: as the model has learned it
/quit             end, as Ctrl-D does; Ctrl-C stops an answer
A message that begins with / is written with a space before it."""
HOST, PORT = "127.0.0.1", 7860


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tune chat``."""
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add(
        "--checkpoint", "--model", required=True, metavar="DIR",
        help="a run's folder (latest step), a step, an adapter, a model, or its name in ./models",
    )  # fmt: skip
    add("--base", metavar="DIR", help="an adapter's base; default: where the adapter says it is")
    add("--system", metavar="TEXT", help="a system message before the conversation")
    add(
        "--max-new-tokens",
        type=at_least_one,
        default=512,
        metavar="N",
        help="of an answer; default 512",
    )
    add("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="default auto")
    add("--dtype", choices=["auto", "bf16", "fp32"], default="auto", help="default auto")
    add("--nproc-per-node", "--nproc_per_node", help=argparse.SUPPRESS)  # refused with what does
    sampling = parser.add_argument_group("sampling").add_argument
    sampling("--temperature", type=float, default=0.7, metavar="X", help="default 0.7; 0 is greedy")
    sampling("--top-k", type=int, metavar="N", help="draw among so many likeliest tokens")
    sampling("--top-p", type=float, metavar="X", help="draw among the likeliest with so much share")
    sampling("--min-p", type=float, metavar="X", help="least share of the likeliest one's")
    sampling("--repetition-penalty", type=float, default=1.0, metavar="X", help="default 1.0: none")
    sampling("--seed", type=int, metavar="N", help="of the draws; default: another each time")
    sampling(
        "--stop", action="append", default=[], metavar="TEXT", help="end before it; repeatable"
    )
    page = parser.add_argument_group("web page").add_argument
    page("--ui", action="store_true", help="serve a page: pip install 'torchtune-integrations[ui]'")
    page("--compare", metavar="DIR", help="a second checkpoint, to answer beside the first")
    page("--host", metavar="NAME", help=f"where to listen; default {HOST}: this machine alone")
    page("--port", type=int, metavar="N", help=f"default {PORT}; 0 takes a free one")


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends; return 0."""
    from torchtune.errors import ConfigError

    if args.nproc_per_node not in (None, "1"):
        do = "answer many prompts with `tune generate --nproc-per-node N --prompts FILE`"
        raise ConfigError("E-USAGE", "a chat is held by one process", do=do)
    alone = [name for name in ("compare", "host", "port") if vars(args)[name] is not None]
    if alone and not args.ui:
        raise ConfigError("E-USAGE", f"--{alone[0]} is for the web page", do="add --ui")
    sampling = _sampling(args)
    _serve(args, sampling) if args.ui else _talk(args, sampling)
    words = ["tune", "evaluate", "--checkpoint", args.checkpoint, "--tasks", "arc_easy"]
    print("next:", shlex.join(words), file=sys.stderr)
    return 0


def _sampling(args: argparse.Namespace) -> "Sampling":
    from torchtune.generation import Sampling

    return Sampling(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )


def _load(args: argparse.Namespace, path: str, base: str | None) -> "LoadedCheckpoint":
    from torchtune.distributed import choose_device, device_facts
    from torchtune.generation import load_checkpoint

    device = choose_device(args.device, device_facts())
    return load_checkpoint(path, base=base, dtype=args.dtype, device=device)


def _serve(args: argparse.Namespace, sampling: "Sampling") -> None:
    from torchtune.config import locate

    serve = locate("chat_page", "gradio")
    serve(
        _load(args, args.checkpoint, args.base),
        compare=_load(args, args.compare, None) if args.compare else None,
        host=args.host or HOST,
        port=PORT if args.port is None else args.port,
        system=args.system,
        sampling=sampling,
        max_new_tokens=args.max_new_tokens,
        stop=args.stop,
    )


def _talk(args: argparse.Namespace, sampling: "Sampling") -> None:
    from torchtune.generation import Conversation

    loaded = _load(args, args.checkpoint, args.base)
    conversation = Conversation(
        loaded,
        system=args.system,
        sampling=sampling,
        max_new_tokens=args.max_new_tokens,
        stop=args.stop,
    )
    _tell(f"{loaded.folder}: write a message; /help shows what else there is, Ctrl-D ends")
    while (line := _line()) is not None and line.strip() != "/quit":
        if line.startswith("/"):
            _obey(conversation, *line[1:].partition(" ")[::2])
        elif line.strip():
            _answer(conversation, line.strip())


def _line() -> str | None:
    """Return what the user writes next; None at the end of it."""
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        _with_history()
        _tell("")
    while True:
        try:
            return input(_prompt() if on_terminal else "")
        except EOFError:
            if on_terminal:
                _tell("")
            return None
        except KeyboardInterrupt:
            _tell("\n(Ctrl-D or /quit ends the chat)")


def _prompt() -> str:
    """Return the prompt for `input`, which would write it among answers that go to a file."""
    if sys.stdout.isatty():
        return "> "
    print("> ", end="", file=sys.stderr, flush=True)
    return ""


def _with_history() -> None:
    """Let the arrow keys edit the line and bring back earlier ones, where Python can."""
    with suppress(ImportError):  # on Windows there is none
        import readline  # noqa: F401 - its import is what does it


def _answer(conversation: "Conversation", question: str) -> None:
    from torchtune.errors import TuneError

    try:
        with closing(conversation.ask(question)) as pieces:
            if conversation.forgotten:
                _tell(f"(no room: the oldest {conversation.forgotten} turns are forgotten)")
            for piece in pieces:
                print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        _tell("(stopped)")
    except TuneError as error:
        _tell(str(error))


def _obey(conversation: "Conversation", command: str, value: str) -> None:
    if command == "reset":
        conversation.reset()
        _tell("(a new conversation)")
    elif command == "system":
        conversation.system = value.strip() or None
        _tell(f"(system message: {conversation.system or 'none'})")
    elif command == "temperature":
        _set_temperature(conversation, value)
    elif command == "help":
        _tell(HELP)
    else:
        _tell(f"there is no command /{command}; /help shows them")


def _set_temperature(conversation: "Conversation", value: str) -> None:
    from dataclasses import replace

    from torchtune.errors import ConfigError

    try:
        conversation.sampling = replace(conversation.sampling, temperature=float(value))
    except ValueError:
        _tell(f"/temperature wants a number, not {value!r}")
    except ConfigError as error:
        _tell(error.what)
    else:
        _tell(f"(temperature: {conversation.sampling.temperature:g})")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
