"""Greedy generation at batch 1 in bf16 on a CPU, against transformers' generate.

    python benchmarks/generation.py MODEL [--repeats N] [--prompt-tokens N] [--new-tokens N] [--json]

MODEL is a Llama folder in Hugging Face format; its weights may be random. Both sides continue the
same prompt by the same number of tokens, in turns, in one process; loading is not counted. What
ours does beforehand, `pack_linears`, is what the `generate` recipe does. Prints the medians, in
milliseconds a token, and the median ratio theirs / ours: of CPU time, which other work on the
machine disturbs less, and of wall time beside it. Needs transformers.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torchtune.generation import generate, pack_linears
from torchtune.models import from_pretrained
from transformers import AutoModelForCausalLM
from transformers.utils import logging


def ours(folder: str, prompt: list[int], new_tokens: int) -> Callable[[], list[int]]:
    model = pack_linears(from_pretrained(folder, dtype=torch.bfloat16).requires_grad_(False))
    return lambda: generate(model, [prompt], max_new_tokens=new_tokens)[0]


def theirs(folder: str, prompt: list[int], new_tokens: int) -> Callable[[], list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokens = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    mask = torch.ones_like(tokens)
    return lambda: model.generate(tokens, attention_mask=mask, pad_token_id=0, **options)[
        0, len(prompt) :
    ].tolist()


def times(call: Callable[[], list[int]], new_tokens: int) -> tuple[float, float, list[int]]:
    """Return CPU and wall milliseconds a token, and the tokens."""
    cpu, wall = time.process_time(), time.perf_counter()
    tokens = call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    if len(tokens) != new_tokens:
        raise SystemExit(f"{len(tokens)} tokens came, not {new_tokens}")
    return cpu / new_tokens * 1e3, wall / new_tokens * 1e3, tokens


def compare(folder: str, *, repeats: int, prompt_tokens: int, new_tokens: int) -> dict[str, object]:
    logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, 1000, (prompt_tokens,), generator=generator).tolist()
    calls = [side(folder, prompt, new_tokens) for side in (ours, theirs)]
    same = calls[0]() == calls[1]()  # and a warm-up
    runs = [[times(call, new_tokens)[:2] for call in calls] for _ in range(repeats)]

    def median(side: int, clock: int) -> float:
        return round(statistics.median(run[side][clock] for run in runs), 2)

    def ratio(clock: int) -> float:
        return round(statistics.median(run[1][clock] / run[0][clock] for run in runs), 2)

    return {
        "ours_cpu_ms": median(0, 0),
        "transformers_cpu_ms": median(1, 0),
        "ours_wall_ms": median(0, 1),
        "transformers_wall_ms": median(1, 1),
        "ratio_cpu": ratio(0),
        "ratio_wall": ratio(1),
        "same_tokens": same,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    found = compare(
        args.model,
        repeats=args.repeats,
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
    )
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:22}{value}")


if __name__ == "__main__":
    main()
