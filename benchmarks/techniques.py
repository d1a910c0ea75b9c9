"""What each memory technique saves and costs: `OMP_NUM_THREADS=1 python benchmarks/techniques.py`.

Trains a decoder of 21 million parameters (six blocks of SmolLM2-135M's shape, a small vocabulary) in
fp32 on 512 tokens, and prints the tables of docs/techniques.md: the most bytes of tensors held in a
step beyond weights and optimizer, from torch's profiler, and this process' CPU time of the step.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torchtune import training
from torchtune.data import Batch
from torchtune.distributed import World
from torchtune.losses import LinearCrossEntropy
from torchtune.models.llama import llama
from torchtune.peft import lora

LENGTHS = (200, 150, 100, 62)
SELECTIVE = partial(training.checkpoint_activations, keep=training.keep_products)
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "none": lambda model: model, "selective": SELECTIVE, "full": training.checkpoint_activations,
}  # fmt: skip
UPDATES = {"after backward": None, "in backward": training.StepInBackward}


def rows() -> Batch:
    """Return four documents of random tokens."""
    tokens = torch.randint(0, 512, (sum(LENGTHS),), generator=torch.manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    return Batch(tokens, tokens.roll(-1), positions, LENGTHS, len(tokens), ("row",) * len(LENGTHS))


def decoder(*, adapter: bool = False) -> Any:
    """Return the model, with first values."""
    model = llama(vocab_size=512, num_layers=6, num_heads=9, num_kv_heads=3, embed_dim=576,
                  intermediate_dim=1536, max_seq_len=512, tied=True)  # fmt: skip
    model = lora(model, rank=8) if adapter else model
    training.init_weights(model, seed=3)
    return model


def plain(state: Any) -> list[torch.Tensor]:
    """Return the tensors that a state consists of."""
    return [state.codes, state.scale, state.qmap] if hasattr(state, "codes") else [state]


def measure(model: Any, build: Callable[..., Any], update: Any = None) -> tuple[int, int, float]:
    """Return the optimizer's bytes, the most that a step holds besides, and its CPU seconds."""
    optimizer = build([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    updating, batch = update and update(optimizer, World()), rows()

    def step() -> None:
        training.train_step(
            model, optimizer, [batch], World(), loss=LinearCrossEntropy(), update=updating
        )

    step()  # the optimizer's state is there after the first
    state = [t for kept in optimizer.state.values() for it in kept.values() for t in plain(it)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        step()
    results: Any = traced.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    sizes = torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    times = []
    for _ in range(5):
        began = time.process_time()
        step()
        times.append(time.process_time() - began)
    return sum(t.numel() * t.element_size() for t in state), int(sizes.cumsum(0).max()), min(times)


def show(name: str, figures: tuple[int, int, float]) -> None:
    """Print a row of a table."""
    state, most, seconds = figures
    print(
        f"| {name} | {state / 2**20:.0f} | {most / 2**20:.0f} | {seconds * 1e3:.0f} |", flush=True
    )


def main() -> None:
    """Print both tables: MiB of the optimizer, MiB of a step, milliseconds."""
    for adapter in (False, True):
        for name, change in ACTIVATIONS.items():
            label = f"{'LoRA' if adapter else 'all weights'}, {name}"
            show(label, measure(change(decoder(adapter=adapter)), training.adamw))
    for build in (training.adamw, training.adamw_8bit):
        for name, update in UPDATES.items():
            recomputed = training.checkpoint_activations(decoder())
            show(f"{build.__name__}, {name}", measure(recomputed, build, update))


if __name__ == "__main__":
    main()
