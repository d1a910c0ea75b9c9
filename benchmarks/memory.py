"""`tune estimate` beside what is measured: `python benchmarks/memory.py [--layers N] [--row N]`.

Runs two steps of the `sft` recipe's own model and optimizer on made-up rows, in the shape of
SmolLM2-135M with fewer layers and 8 heads. On a CPU the most that live storages take, by
torch.profiler's memory events, and of several processes that talk over gloo the fullest one's; where
there is a GPU `torch.cuda.max_memory_allocated`, and one process.
"""

import argparse
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torchtune import training
from torchtune.config import build
from torchtune.data import Batch
from torchtune.distributed import join_world, local_part
from torchtune.testing import run_distributed
from torchtune_recipes import catalog
from torchtune_recipes.estimation import Run, read_run, with_row

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from live_storages import most_held

MASTER = ["master_weights=true", "enable_activation_checkpointing=true"]
CONFIGS = {
    "all weights, fp32": (1, ["dtype=fp32"]),
    "all weights, bf16, `master_weights`, checkpointing": (1, MASTER),
    "LoRA, bf16": (1, ["peft=lora"]),
    "2 processes, `master_weights`, checkpointing": (2, MASTER),
    "2 processes, `tensor=2`, fp32": (2, ["dtype=fp32", "parallel.tensor=2"]),
    "2 processes, `context=2`, LoRA": (2, ["peft=lora", "parallel.context=2"]),
    "4 processes, `data_replicate=2`, as the first of 2": (
        4,
        [*MASTER, "parallel.data_replicate=2"],
    ),
}
SHAPE = dict(vocab_size=49152, num_heads=8, num_kv_heads=4, embed_dim=576, intermediate_dim=1536,
             max_seq_len=2048, tied=True)  # fmt: skip


def steps(run: Run) -> Iterator[int]:
    """Take two optimizer steps; yield what tensors hold when all is set up, and go on."""
    recipe = run.recipe(run.params)
    recipe.world = join_world(run.device, run.params.parallel)
    recipe.model = recipe._setup_model()
    training.init_weights(recipe.model, seed=0)
    recipe.optimizer = recipe._setup_optimizer()
    update, loss = recipe._setup_update(), build("loss", run.params.loss)
    tokens = torch.randint(0, SHAPE["vocab_size"], (run.rows * run.row_tokens,))
    positions = torch.arange(run.row_tokens).repeat(run.rows)
    lengths, names = (run.row_tokens,) * run.rows, ("made up",) * run.rows
    batch = Batch(tokens, tokens.clone(), positions, lengths, len(tokens), names)
    given = [*recipe.model.parameters(), batch.tokens, batch.labels, batch.positions]
    yield sum(local_part(tensor).nbytes for tensor in given)
    for _ in range(2):
        training.train_step(
            recipe.model, recipe.optimizer, [batch], recipe.world, loss=loss, update=update
        )
    yield 0


def measured(words: list[str], processes: int, row_tokens: int) -> int:
    """Return the most bytes that tensors take in two steps on this process."""
    run = read(words, processes, row_tokens)
    taken = steps(run)
    if run.device == "cuda":
        next(taken)
        torch.cuda.reset_peak_memory_stats()
        next(taken)
        return torch.cuda.max_memory_allocated()
    before = next(taken)
    gc.collect()  # what is freed in between must be this run's own
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        next(taken)
    return most_held(found, before)


def read(words: list[str], processes: int, row_tokens: int) -> Run:
    """Return the `sft` recipe's run with these words."""
    run, _ = read_run(catalog.resolve_recipe("sft"), words, gpus=processes)
    return with_row(run, row_tokens, print)


def main() -> None:
    """Print one row a config."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--row", type=int, default=256, help="tokens of a row; there are two")
    args = parser.parse_args()
    shape = [f"model.{key}={value}" for key, value in {**SHAPE, "num_layers": args.layers}.items()]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    common = ["model=llama", *shape, f"device={device}", "batch_size=2", "tokenizer=tokenizer_json"]
    print("| | estimated, MiB | measured, MiB | of it |", "| --- | ---: | ---: | ---: |", sep="\n")
    for name, (processes, own) in CONFIGS.items():
        if device == "cuda" and processes > 1:
            continue
        words = [*common, *own, "tokenizer.path=unused", "dataset=unused.jsonl"]
        estimate = read(words, processes, args.row).estimate().peak_bytes / 2**20
        given = (words, processes, args.row)
        ranks = run_distributed(measured, processes, *given, timeout=600)
        found = max(ranks) / 2**20
        print(f"| {name} | {estimate:,.1f} | {found:,.1f} | {estimate / found:.3f} |", flush=True)


if __name__ == "__main__":
    main()
