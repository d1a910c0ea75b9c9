"""`tune estimate` beside what is measured: `python benchmarks/memory.py [--layers N] [--row N]`.

Runs two steps of the `sft` recipe's own model and optimizer on made-up rows, in the shape of
SmolLM2-135M with fewer layers. On a CPU the most that live storages take, by torch.profiler's memory
events; where there is a GPU `torch.cuda.max_memory_allocated`.
"""

import argparse
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile
from torchtune import training
from torchtune.config import build
from torchtune.data import Batch
from torchtune.distributed import join_world
from torchtune_recipes import catalog
from torchtune_recipes.estimation import Run, read_run, with_row

CONFIGS = {
    "all weights, fp32": ["dtype=fp32"],
    "all weights, bf16, master_weights, checkpointing": [
        "master_weights=true",
        "enable_activation_checkpointing=true",
    ],
    "LoRA, bf16": ["peft=lora"],
}
SHAPE = dict(vocab_size=49152, num_heads=9, num_kv_heads=3, embed_dim=576, intermediate_dim=1536,
             max_seq_len=2048, tied=True)  # fmt: skip


def steps(run: Run) -> Iterator[int]:
    """Take two optimizer steps; yield what tensors hold when all is set up, and go on."""
    recipe = run.recipe(run.params)
    recipe.world = join_world(run.device)
    recipe.model = recipe._setup_model()
    training.init_weights(recipe.model, seed=0)
    recipe.optimizer = recipe._setup_optimizer()
    update, loss = recipe._setup_update(), build("loss", run.params.loss)
    tokens = torch.randint(0, SHAPE["vocab_size"], (run.rows * run.row_tokens,))
    positions = torch.arange(run.row_tokens).repeat(run.rows)
    lengths, names = (run.row_tokens,) * run.rows, ("made up",) * run.rows
    batch = Batch(tokens, tokens.clone(), positions, lengths, len(tokens), names)
    given = [*recipe.model.parameters(), batch.tokens, batch.labels, batch.positions]
    yield sum(tensor.nbytes for tensor in given)
    for _ in range(2):
        training.train_step(
            recipe.model, recipe.optimizer, [batch], recipe.world, loss=loss, update=update
        )
    yield 0


def measured(run: Run) -> int:
    """Return the most bytes that tensors take in two steps."""
    taken = steps(run)
    if run.device == "cuda":
        next(taken)
        torch.cuda.reset_peak_memory_stats()
        next(taken)
        return torch.cuda.max_memory_allocated()
    most = now = next(taken)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        next(taken)
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


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
    for name, words in CONFIGS.items():
        words = [*common, *words, "tokenizer.path=unused", "dataset=unused.jsonl"]
        run, _ = read_run(catalog.resolve_recipe("sft"), words, gpus=1)
        run = with_row(run, args.row, print)
        expected, found = run.estimate().peak_bytes / 2**20, measured(run) / 2**20
        print(f"| {name} | {expected:,.1f} | {found:,.1f} | {expected / found:.3f} |", flush=True)


if __name__ == "__main__":
    main()
