"""What a run will hold at most, without the hardware: its recipe run on weights without values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from torchtune.config import Parallel, build
from torchtune.data import Batch
from torchtune.distributed import World, fake_world
from torchtune.modules.kernels import as_if_on
from torchtune.training.fake_weights import fake_weights
from torchtune.training.live_memory import LiveMemory
from torchtune.training.step import train_step

__all__ = ["MemoryEstimate", "SetsUp", "estimate_memory"]


class SetsUp(Protocol):
    """The part of a recipe that makes what is trained, of params and a world.

    A recipe that also has ``_setup_update`` says with it how gradients become weights.
    """

    world: World
    model: nn.Module
    optimizer: Optimizer

    def _setup_model(self) -> nn.Module: ...

    def _setup_optimizer(self) -> Optimizer: ...


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process holds, counted tensor by tensor.

    Args:
        parts: At the fullest moment of a step: `weights` (with copies in the dtype of the
            computation), `gradients`, `optimizer`, `activations`, `loss` and `communication`.
        most: Of each part when that part was the most, which is seldom the same moment; `host` is
            what lies in the host's memory beside a GPU's.
    """

    parts: dict[str, int]
    most: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        """The sum of `parts`."""
        return sum(self.parts.values())


def estimate_memory(
    recipe: type,
    params: Any,
    *,
    rows: int,
    row_tokens: int,
    processes: int = 1,
    device: str = "cuda",
) -> MemoryEstimate:
    """Run an optimizer step of `recipe` on weights without values and count what it holds.

    The recipe's own code makes the model and the optimizer, in a world whose other processes do
    not exist; the step is `train_step`, in which every token is supervised. Compiled blocks are
    counted as if they were not. On top come a GPU's context, the workspaces of its libraries and
    what the allocator cannot fill, together some 5 to 10 %.

    Args:
        recipe: Its class; see `SetsUp`. Made with `params` alone.
        params: Its keys that matter beside the recipe are `parallel`, `loss`, `clip_grad_norm`,
            `gradient_accumulation_steps` and those that keep something on the host.
        rows: Documents of one micro-batch on one process.
        row_tokens: Tokens of each.
        processes: Over how many the model is spread.
        device: Whose kernels are counted, ``cpu`` or ``cuda``; nothing of it need be there.

    Returns:
        The bytes on the first process, by part.
    """
    if hasattr(params, "compile"):
        params = replace(params, compile=False)
    micro_batches = min(2, getattr(params, "gradient_accumulation_steps", 1))  # more hold no more
    batches = [_batch(rows, row_tokens)] * micro_batches
    parallel = getattr(params, "parallel", Parallel())
    with (
        fake_world(processes, parallel) as world,
        as_if_on(device),
        fake_weights(),
        LiveMemory() as memory,
    ):
        _take_step(recipe(params), params, batches, world, memory)
    on_host = _on_host(params, device)
    most = memory.most()
    most["host"] += sum(most[part] for part in on_host)
    return MemoryEstimate(memory.peak(without={"host", *on_host}), most)


def _take_step(
    recipe: Any,
    params: Any,
    batches: Sequence[Batch],
    world: World,
    memory: LiveMemory,
) -> None:
    recipe.world = world
    recipe.model = recipe._setup_model()
    memory.watch(recipe.model)
    recipe.optimizer = recipe._setup_optimizer()
    update = recipe._setup_update() if hasattr(recipe, "_setup_update") else None
    loss = build("loss", getattr(params, "loss", "linear_cross_entropy"))
    norm = getattr(params, "clip_grad_norm", None)
    _make_states(recipe.optimizer)
    memory.start()
    train_step(
        recipe.model, recipe.optimizer, batches, world, loss=loss, max_norm=norm, update=update
    )


def _make_states(optimizer: Optimizer) -> None:
    """Let the optimizer make its states, as a run's first step does: the second one is fuller."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _on_host(params: Any, device: str) -> set[str]:
    """Return the parts that FSDP keeps in the host's memory."""
    offloaded = device != "cpu" and getattr(params, "fsdp_cpu_offload", False)
    return {"weights", "gradients", "optimizer"} if offloaded else set()


def _batch(rows: int, row_tokens: int) -> Batch:
    tokens = torch.zeros(rows * row_tokens, dtype=torch.int64)
    positions = torch.arange(row_tokens).repeat(rows)
    lengths, names = (row_tokens,) * rows, ("",) * rows
    return Batch(tokens, tokens.clone(), positions, lengths, len(tokens), names)
