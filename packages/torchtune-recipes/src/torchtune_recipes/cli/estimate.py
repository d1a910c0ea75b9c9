"""Count the memory that a run needs on each GPU, without a GPU, and say what makes it fit.

The recipe's own code is run on weights that have sizes and no values. Exits 0 if the run fits, or
if no --gpu-memory is given, and 1 if it does not fit as it is, whatever else would.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torchtune_recipes import catalog
from torchtune_recipes.cli.run import with_config_path
from torchtune_recipes.commands import Parser, at_least_one

if TYPE_CHECKING:
    from torchtune.training import MemoryEstimate

    from torchtune_recipes.estimation import Fit, Run

__all__ = ["add_arguments", "run"]

EXAMPLES = """\
examples:
  tune estimate sft --config llama3_2/1b_lora --gpu-memory 24GB
  tune estimate sft --config llama3_1/8b_full --gpus 8 --gpu-memory 80GB --json
"""
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune estimate``."""
    parser.epilog = EXAMPLES
    parser.usage = "tune estimate RECIPE [--config CONFIG] [key=value ...] [options]"
    parser.add_argument("recipe", metavar="RECIPE", help="a name that `tune ls` shows, or a file")
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="as for `tune run`: --config NAME|FILE, key=value, ~key",
    )
    _options(parser)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus", type=at_least_one, metavar="N", help="GPUs in all; as `parallel` asks for"
    )
    parser.add_argument("--gpu-memory", metavar="SIZE", help="of each: 80GB, 24GiB")
    parser.add_argument(
        "--row-tokens",
        type=at_least_one,
        metavar="N",
        help="of the longest row; else as in the data",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the memory by part, and what makes it fit where it does not."""
    own = Parser(prog="tune estimate", add_help=False, allow_abbrev=False)
    _options(own)  # they may stand behind the recipe, among its keys
    _, words = own.parse_known_args(args.arguments, args)
    path = catalog.resolve_recipe(args.recipe)
    from torchtune_recipes.estimation import bytes_of, read_run, with_row

    limit = bytes_of(args.gpu_memory) if args.gpu_memory else None
    found, notes = read_run(path, with_config_path(words), args.gpus)
    for note in notes:
        _say(f"note: {note}")
    report = _report(with_row(found, args.row_tokens, _say), limit)
    print(json.dumps(_facts(report), indent=2) if args.json else "\n".join(_lines(report)))
    _say(_next(args, words, report))
    return 1 if report.fits is False else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@dataclass(frozen=True)
class Report:
    """What there is to print of an estimate.

    Args:
        run: The run as it was asked for.
        estimate: What it needs.
        limit: Bytes of a GPU; None where not given.
        fits: Whether it fits; None without a limit.
        changes: Settings that need less, where it does not fit.
        together: Several of them.
    """

    run: "Run"
    estimate: "MemoryEstimate"
    limit: int | None = None
    fits: bool | None = None
    changes: list["Fit"] = field(default_factory=list)
    together: "Fit | None" = None


def _report(run: "Run", limit: int | None) -> Report:
    from torchtune_recipes.estimation import find_fits, room_in

    estimate = run.estimate()
    if limit is None:
        return Report(run, estimate)
    if estimate.peak_bytes <= room_in(limit):
        return Report(run, estimate, limit, fits=True)
    found = find_fits(run, estimate.peak_bytes, limit, _say)
    return Report(run, estimate, limit, False, *found)


def _facts(report: Report) -> dict[str, Any]:
    run, estimate = report.run, report.estimate
    return {
        "device": run.device,
        "processes": run.processes,
        "rows": run.rows,
        "row_tokens": run.row_tokens,
        "peak_bytes": estimate.peak_bytes,
        "parts": estimate.parts,
        "most": estimate.most,
        "limit_bytes": report.limit,
        "fits": report.fits,
        "changes": [asdict(change) for change in report.changes],
        "together": asdict(report.together) if report.together else None,
    }


def _lines(report: Report) -> list[str]:
    run, estimate = report.run, report.estimate
    kind = "GPU" if run.device != "cpu" else "process"
    each = f"each {kind} of {run.processes}" if run.processes > 1 else f"one {kind}"
    lines = [f"{each}, micro-batches of {run.rows:,} x {run.row_tokens:,} tokens", ""]
    lines.append(f"{'':<16}{'at the fullest':>14}{'at most':>14}")
    lines += [
        f"{part:<16}{_amount(size):>14}{_amount(estimate.most[part]):>14}"
        for part, size in estimate.parts.items()
        if estimate.most[part]
    ]
    lines.append(f"{'all':<16}{_amount(estimate.peak_bytes):>14}")
    if host := estimate.most["host"]:
        lines.append(f"{'in host memory':<16}{'':>14}{_amount(host):>14}")
    return [*lines, *_verdict(report)]


def _verdict(report: Report) -> list[str]:
    from torchtune_recipes.estimation import room_in

    if report.limit is None:
        return []
    room = f"the {_amount(room_in(report.limit))} that tensors can fill of {_amount(report.limit)}"
    if report.fits:
        return ["", f"fits into {room}"]
    lines = ["", f"does not fit into {room}"]
    if changes := report.changes:
        wide = max(len(change.words) for change in changes) + 2
        lines += ["", f"{'change':<{wide}}{'frees':>10}{'then':>11}          costs"]
    for change in changes:
        verdict = "fits" if change.fits else ""
        sizes = f"{_amount(change.frees_bytes):>10}{_amount(change.peak_bytes):>11}"
        lines.append(f"{change.words:<{wide}}{sizes}  {verdict:<6}  {change.costs}")
    if together := report.together:
        verdict = "fits" if together.fits else "is the least, and does not fit"
        lines += ["", f"together {verdict}, with {_amount(together.peak_bytes)}:", together.words]
    elif not changes:
        lines.append("no setting of this recipe would free any of it")
    return lines


def _amount(size: int) -> str:
    if size < 2**20 / 20:
        return "0"
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB"


def _next(args: argparse.Namespace, words: list[str], report: Report) -> str:
    if report.fits is False:
        return "next: the same with one of these changes"
    if report.limit is None:
        return "next: the same with --gpu-memory 24GB says what makes it fit"
    several = ["--nproc_per_node", str(args.gpus)] if (args.gpus or 1) > 1 else []
    return "next: " + shlex.join(["tune", "run", *several, args.recipe, *words])
