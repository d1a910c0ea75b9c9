"""Where the memory goes, and what to do when there is too little."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from torchtune.errors import TuneError

__all__ = ["MemoryPlan", "explain_out_of_memory", "peak_memory", "plan_memory"]

GIB = 2**30


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that training takes on one process.

    Args:
        parameters: How many numbers the whole model has.
        trained: How many of them are trained.
        weights: Parameters, trainable and frozen.
        gradients: Of the trainable parameters.
        optimizer: Two running means of each trainable parameter, as AdamW keeps.
        activations: What forward keeps for backward of one micro-batch; an estimate.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "activations")
        named = ", ".join(f"{part} {getattr(self, part) / GIB:.2f}" for part in parts)
        return f"about {self.total / GIB:.2f} GiB ({named})"


def plan_memory(
    model: nn.Module,
    *,
    tokens: int,
    processes: int = 1,
    recompute: bool = False,
    head_tokens: int = 1024,
) -> MemoryPlan:
    """Return what training with AdamW takes, weights shared evenly among the processes.

    Weights, gradients and optimizer are counted; activations are estimated from the widths of the
    linear layers, each of which keeps its input, and the logits of one chunk of the loss.

    Args:
        model: With its adapter, if any; may be on meta.
        tokens: Tokens of one micro-batch.
        processes: Over how many the weights are sharded.
        recompute: Whether activations are computed again in backward.
        head_tokens: Positions whose logits exist at once, in the weights' dtype (`LinearCrossEntropy`).
    """
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in parameters)
    trainable = sum(p.numel() * p.element_size() for p in trained)
    size = parameters[0].element_size()
    width = _kept_per_token(model, recompute)
    vocab = max(p.shape[0] for p in parameters)
    return MemoryPlan(
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in trained),
        weights=weights // processes,
        gradients=trainable // processes,
        optimizer=2 * trainable // processes,
        activations=(tokens * width + min(tokens, head_tokens) * vocab) * size,
    )


def _kept_per_token(model: nn.Module, recompute: bool) -> int:
    """Return how many numbers a token leaves behind in the blocks."""
    blocks = getattr(model, "blocks", [model])
    if recompute:
        return len(blocks) * next(iter(blocks[0].parameters())).shape[-1]
    linears = (m for block in blocks for m in block.modules() if isinstance(m, nn.Linear))
    return sum(linear.in_features + linear.out_features for linear in linears)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held so far: by torch on a GPU `device`, by the process on a CPU."""
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
    """Turn an out-of-memory error into what took the memory and what helps, in the order it helps.

    Args:
        plan: What the run was expected to take.

    Raises:
        TuneError: In place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, a CPU's is nothing more
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise TuneError(
            "E-OUT-OF-MEMORY", f"out of memory; expected {plan}", do=_advice(plan)
        ) from error


def _advice(plan: MemoryPlan) -> str:
    states = (
        "train an adapter (peft=lora)",
        "more processes, which share weights and optimizer (--nproc_per_node)",
    )
    rows = (
        "enable_activation_checkpointing=true",
        "a smaller batch_size with more gradient_accumulation_steps",
        "a smaller max_seq_len",
    )
    first, then = (rows, states) if plan.activations * 2 > plan.total else (states, rows)
    return "try, in this order: " + "; ".join((*first, *then))
