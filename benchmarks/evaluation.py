"""Evaluation on a CPU against lm-evaluation-harness's own Hugging Face backend.

    python benchmarks/evaluation.py MODEL --include-path TASKS [--tasks A B] [--limit N]
        [--num-fewshot N] [--batch-sizes 1 8] [--repeats N]

MODEL is a Llama folder in Hugging Face format; its weights may be random. Both sides answer the same
requests in the checkpoint's dtype, in turns, in one process; loading and counting are not timed,
tokenizing is. The harness's backend runs at each batch size, and its best one counts. Prints medians of
CPU seconds a task, wall seconds beside them, and the median ratio theirs / ours of CPU time, which
other work on the machine disturbs less. Needs lm-eval with its extra `hf`.
"""

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lm_eval.models.huggingface import HFLM
from torchtune.generation import load_checkpoint
from torchtune_integrations.lm_eval.model import TorchtuneLM
from torchtune_integrations.lm_eval.tasks import load_tasks
from transformers.utils import logging

KINDS = {"multiple_choice": "loglikelihood"}
Times = tuple[float, float]


def requests(task: Any, limit: int) -> list[Any]:
    """Return what the harness asks of a model for a task."""
    task.set_fewshot_seed(1234)
    with contextlib.redirect_stderr(io.StringIO()):
        task.build_all_requests(limit=limit, rank=0, world_size=1)
    return list(task.instances)


def timed(call: Callable[[], Any]) -> Times:
    """Return CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        call()
    return time.process_time() - cpu, time.perf_counter() - wall


def compare(sides: Sequence[Callable[[], Any]], repeats: int) -> list[list[Times]]:
    """Return the times of each side, taken in turns, after one turn that does not count."""
    turns = [[timed(side) for side in sides] for _ in range(repeats + 1)][1:]
    return [list(times) for times in zip(*turns, strict=True)]


def line(name: str, times: list[list[Times]]) -> str:
    """Return a row of the table: ours first, then the best of the others."""
    cpu = [statistics.median(one for one, _ in side) for side in times]
    best = min(range(1, len(times)), key=cpu.__getitem__)
    wall = [statistics.median(one for _, one in times[side]) for side in (0, best)]
    ratios = [other / own for (own, _), (other, _) in zip(times[0], times[best], strict=True)]
    seconds = f"{cpu[0]:8.2f} {cpu[best]:8.2f} {wall[0]:8.2f} {wall[1]:8.2f}"
    return f"{name:20} {seconds} {statistics.median(ratios):8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--include-path", required=True)
    parser.add_argument("--tasks", nargs="+", default=["local_arc_easy", "local_hellaswag"])
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    logging.disable_progress_bar()
    loaded = load_checkpoint(args.model)

    def ours() -> TorchtuneLM:
        return TorchtuneLM(loaded.model, loaded.tokenizer, batch_tokens=args.batch_tokens)

    theirs = [HFLM(args.model, device="cpu", batch_size=size) for size in args.batch_sizes]
    tasks = load_tasks(args.tasks, include_path=args.include_path, num_fewshot=args.num_fewshot)
    print(f"{'task':20} {'ours':>8} {'theirs':>8} {'wall':>8} {'wall':>8} {'ratio':>8}")
    for name, task in tasks["tasks"].items():
        asked = requests(task, args.limit)
        kind = KINDS.get(task.OUTPUT_TYPE, task.OUTPUT_TYPE)
        methods = [lambda asked, kind=kind: getattr(ours(), kind)(asked)]  # its cache begins empty
        methods += [getattr(backend, kind) for backend in theirs]
        sides = [partial(method, asked) for method in methods]
        print(line(name, compare(sides, args.repeats)), flush=True)


if __name__ == "__main__":
    main()
