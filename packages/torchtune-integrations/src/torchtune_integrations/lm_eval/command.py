"""Evaluate a checkpoint on benchmarks, alone or beside its base."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchtune.distributed import World

    from torchtune_integrations.lm_eval.tasks import Tasks

__all__ = ["add_arguments", "run"]

EXAMPLES = """\
examples:
  tune evaluate --checkpoint ./output --tasks arc_easy,hellaswag --limit 100
  tune evaluate --checkpoint ./output --tasks my_task --include-path ./my_tasks \\
      --compare ./models/Llama-3.2-1B
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``tune evaluate``."""
    parser.epilog = EXAMPLES
    add = parser.add_argument
    about = "a run's output folder, a step, a model, or the name of one in ./models"
    add("--checkpoint", "--model", required=True, metavar="DIR", help=about)
    add(
        "--tasks", "--tests", nargs="+", required=True, metavar="TASK", help="with spaces or commas"
    )
    add("--include-path", metavar="DIR", help="a folder with task files (YAML) of your own")
    add("--limit", type=float, metavar="N", help="documents of each task; below 1 a share of them")
    add("--num-fewshot", type=int, metavar="N", help="examples before each question")
    add("--apply-chat-template", action="store_true", help="put each question as a chat")
    add("--compare", metavar="BASE", help="evaluate this model too, and print the differences")
    add("--base", metavar="DIR", help="an adapter's base, if it is not where the adapter says")
    add("--output-dir", metavar="DIR", default="./evaluation", help="of the results; ./evaluation")
    add("--log-samples", action="store_true", help="write each question and answer there too")
    add("--dtype", choices=["auto", "bf16", "fp32"], default="auto", help="auto: the checkpoint's")
    add("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    about = "processes that share the questions: a number, gpu or cpu"
    add("--nproc-per-node", "--nproc_per_node", metavar="N", help=about)
    add("--shard", action="store_true", help="cut a model over them that one GPU cannot hold")
    about = "cut each matrix over N of them, as parallel.tensor does"
    add("--tensor", type=int, default=1, metavar="N", help=about)
    add("--batch-tokens", type=int, metavar="N", help="of a forward; 2048 on a CPU, else 16384")
    add("--seed", type=int, default=1234, help="of few-shot examples and drawn answers; 1234")
    add("--confirm-run-unsafe-code", action="store_true", help="let tasks run the model's code")


def run(args: argparse.Namespace) -> int:
    """Print the table of results; with ``--compare`` that of differences too."""
    from torchtune_integrations.lm_eval.installed import check_installed

    check_installed("tune evaluate")
    _check_numbers(args)
    if args.nproc_per_node not in (None, "1"):
        return _launch(args)
    from torchtune.checkpoint import find_checkpoint

    from torchtune_integrations.lm_eval.results import compared, comparison, table

    world = _join_world(args)
    found = find_checkpoint(args.checkpoint, base=args.base, check_base=False)  # the cheap first
    if args.compare:
        find_checkpoint(args.compare, check_base=False)
    results, written = _evaluate_each(args, world)
    if world.is_main:
        print(comparison(compared(*results)) if args.compare else table(results[0]))
        _say_next(args, written, str(found.base) if found.is_adapter else "BASE")
    world.close()
    return 0


def _join_world(args: argparse.Namespace) -> "World":
    from torchtune.config import Parallel
    from torchtune.distributed import join_world

    whole = {} if args.shard else {"data_replicate": -1, "data_shard": 1}
    return join_world(args.device, Parallel(tensor=args.tensor, **whole))


def _evaluate_each(args: argparse.Namespace, world: "World") -> tuple[list[Any], list[Path]]:
    """Return the results of the checkpoint and of what it is compared with, and their files."""
    from torchtune_integrations.lm_eval.evaluator import split_names
    from torchtune_integrations.lm_eval.results import write
    from torchtune_integrations.lm_eval.tasks import load_tasks

    tasks = load_tasks(
        split_names(args.tasks),
        include_path=args.include_path,
        num_fewshot=args.num_fewshot,
        unsafe=args.confirm_run_unsafe_code,
    )
    results, written = [], []
    for checkpoint, base in [(args.checkpoint, args.base), (args.compare, None)]:
        if checkpoint:
            results.append(_evaluate(args, tasks, checkpoint, base, world))
            if world.is_main:
                written.append(write(results[-1], args.output_dir, samples=args.log_samples))
    return results, written


def _launch(args: argparse.Namespace) -> int:
    """Run this command in several processes, each of which finds `args` in its only word."""
    from torchtune.distributed import launch

    os.environ["DISABLE_MULTIPROC"] = "1"  # the harness must not fork processes that communicate
    words = json.dumps({**vars(args), "nproc_per_node": None})
    package = __name__.rpartition(".")[0]
    return launch(["--nproc-per-node", args.nproc_per_node, "-m", package, words])


def _evaluate(
    args: argparse.Namespace, tasks: "Tasks", checkpoint: str, base: str | None, world: "World"
) -> Any:
    from torchtune_integrations.lm_eval.evaluation import Settings, evaluate_checkpoint

    settings = Settings(
        limit=args.limit,
        chat=args.apply_chat_template,
        seed=args.seed,
        batch_tokens=args.batch_tokens,
    )
    terminal = sys.stderr if world.is_main else None
    if terminal:
        print(f"evaluating {checkpoint} on {', '.join(tasks['tasks'])}", file=terminal)
    return evaluate_checkpoint(
        checkpoint, tasks, settings, base=base, dtype=args.dtype, world=world, terminal=terminal
    )


def _check_numbers(args: argparse.Namespace) -> None:
    from torchtune.errors import ConfigError

    positive = {
        "--limit": args.limit,
        "--batch-tokens": args.batch_tokens,
        "--tensor": args.tensor,
    }
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError("E-USAGE", f"{name} is {value:g}; it must be above 0")
    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise ConfigError("E-USAGE", f"--num-fewshot is {args.num_fewshot}; it must be at least 0")


def _say_next(args: argparse.Namespace, written: list[Path], base: str) -> None:
    checkpoint = args.checkpoint
    for path in written:
        print(f"results: {path}", file=sys.stderr)
    if not args.compare:
        tasks = " ".join(args.tasks)
        more = f" --include-path {args.include_path}" if args.include_path else ""
        line = f"tune evaluate --checkpoint {checkpoint} --tasks {tasks}{more} --compare {base}"
        print(f"compare it with its base: {line}", file=sys.stderr)
    line = f"tune push_to_hub --checkpoint {checkpoint} --repo USER/NAME"
    print(f"publish it: {line}", file=sys.stderr)
