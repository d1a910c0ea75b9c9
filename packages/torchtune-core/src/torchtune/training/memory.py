"""Where a run's memory will go, in closed form, and how much it has taken."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from torchtune.distributed import World
from torchtune.errors import ConfigError, Faults, TuneError
from torchtune.training.memory_changes import memory_changes
from torchtune.training.memory_formula import fullest_moment
from torchtune.training.memory_sizes import ModelSizes, Settings

__all__ = ["MemoryPlan", "explain_out_of_memory", "peak_memory", "plan_memory"]

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one process holds at the fullest moment of a step, by formula.

    Args:
        parameters: How many numbers the whole model has.
        trained: How many of them are trained.
        weights: Parameters, trainable and frozen, and their copies in the dtype of the computation.
        gradients: Those that are there at that moment.
        optimizer: Two running means of each trainable parameter, as AdamW keeps.
        activations: What forward keeps for backward of one micro-batch.
        loss: Logits, their gradient, and that of the output matrix.
        communication: Weights gathered from other processes.
        changes: What would need less, as overrides, with the bytes that each frees, most first.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int = 0
    communication: int = 0
    changes: tuple[tuple[str, int], ...] = ()

    @property
    def total(self) -> int:
        """The sum."""
        return sum(getattr(self, part) for part in _PARTS)

    def __str__(self) -> str:
        name, unit = ("GiB", GIB) if self.total >= GIB / 10 else ("MiB", MIB)
        named = ((part, getattr(self, part) / unit) for part in _PARTS)
        told = ", ".join(f"{part} {size:.2f}" for part, size in named if size >= 0.005)
        return f"about {self.total / unit:.2f} {name}" + (f" ({told})" if told else "")


_PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "communication")


def plan_memory(
    model: nn.Module, params: Any, *, row_tokens: int, world: World | None = None
) -> MemoryPlan:
    """Return what training with `params` takes at its fullest moment, by a formula.

    For the line that a run prints before its first step, and for the moment when there is no memory
    left to count with; `estimate_memory` counts tensor by tensor, takes seconds and cannot
    run where processes have met. The two agree within 15 %.

    Args:
        model: With its adapter, if any; may be on meta, sharded, or not.
        params: A dataclass, whose `batch_size`, `dtype`, `enable_activation_checkpointing` and other
            keys say what is kept; a key that is not there counts as off.
        row_tokens: Tokens of the longest row, of which a micro-batch holds `batch_size`.
        world: The processes that share the weights; None is one on the CPU.
    """
    world = world or World()
    sizes, settings = ModelSizes.of(model), Settings.of(params, row_tokens, world)
    plan = _plan(sizes, settings)
    changes = []
    for change in memory_changes(params, on_gpu=settings.on_gpu, row_tokens=row_tokens):
        try:
            changed = replace(params, **change.values)
        except (ConfigError, Faults):  # the keys do not go together
            continue
        row = min(row_tokens, change.values.get("max_seq_len", row_tokens))
        other = _plan(sizes.changed(change.values), Settings.of(changed, row, world))
        changes.append((change.overrides, plan.total - other.total))
    helpful = sorted((c for c in changes if c[1] > 0), key=lambda change: -change[1])
    return replace(plan, changes=tuple(helpful))


def _plan(sizes: ModelSizes, settings: Settings) -> MemoryPlan:
    parts: dict[str, Any] = {**fullest_moment(sizes, settings)}
    return MemoryPlan(sizes.parameters, sizes.trained, **parts)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held so far: by torch on a GPU `device`, by the process on a CPU.

    Counting tensors on a CPU takes a dispatch mode or the profiler, which see every operation of every
    step; asking the system for the process takes microseconds.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def explain_out_of_memory(plan: MemoryPlan) -> Iterator[None]:
    """Turn an out-of-memory error into what took the memory and the three changes that free most.

    Args:
        plan: What the run was expected to take, which also says what each change would free: once
            memory is out it is too late to count.

    Raises:
        TuneError: In place of torch's error. Checkpoints that were saved are as they were.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, a CPU's is nothing more
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        what = f"out of memory; expected {plan}{_allocated(error)}"
        raise TuneError("E-OUT-OF-MEMORY", what, do=_advice(plan)) from error


def _allocated(error: RuntimeError) -> str:
    """Say what a GPU's allocator had given out; its counters lie in the host's memory."""
    if not isinstance(error, torch.OutOfMemoryError) or not torch.cuda.is_available():
        return ""
    device = torch.cuda.current_device()
    total = torch.cuda.get_device_properties(device).total_memory
    tensors, reserved = (
        torch.cuda.max_memory_allocated(device), torch.cuda.memory_reserved(device)
    )  # fmt: skip
    return (
        f"; tensors held {tensors / GIB:.2f} GiB at most, the allocator {reserved / GIB:.2f}, "
        f"of {total / GIB:.2f} there are"
    )


def _advice(plan: MemoryPlan) -> str:
    if not plan.changes:
        return "take a smaller model, shorter rows or more processes (--nproc_per_node)"
    told = (f"{overrides} (frees {_amount(freed)})" for overrides, freed in plan.changes[:3])
    return "try " + ", or ".join(told) + "; `tune estimate` counts what they need together"


def _amount(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
