"""How many operations a step of training needs, and which share of the device's peak that is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from torchtune.data import Batch
from torchtune.distributed import World
from torchtune.modules import Decoder

__all__ = ["ModelFlops", "flops_utilization", "model_flops", "peak_flops"]

PEAKS = {
    r"\bB200\b": 2250e12,
    r"\bH200\b": 989e12,
    r"\bH100 NVL\b": 835e12,
    r"\bH100 PCIe\b": 756e12,
    r"\bH100\b": 989e12,
    r"\bA100\b": 312e12,
    r"\bL40S\b": 362e12,
    r"\bL4\b": 121e12,
    r"\bA10\b": 125e12,
    r"\bV100\b": 125e12,
    r"\bT4\b": 65e12,
}
"""Dense operations a second in half precision by device name, from NVIDIA's data sheets; the first
that fits. bf16, or fp16 where a device has no bf16."""


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations of forward and backward, by what they are proportional to.

    Args:
        per_token: Of the blocks' matrices, for a token.
        per_supervised_token: Of the output matrix, which only supervised tokens meet.
        per_pair: Of attention, for a token and each token that it sees, itself too.
    """

    per_token: int
    per_supervised_token: int
    per_pair: int

    def of(self, batches: Sequence[Batch]) -> int:
        """Return the operations of `batches`."""
        documents = (n for batch in batches for n in batch.lengths[: len(batch.rows)])
        pairs = sum(n * (n + 1) // 2 for n in documents)
        tokens = sum(batch.num_tokens for batch in batches)
        supervised = sum(batch.supervised for batch in batches)
        return (
            tokens * self.per_token + supervised * self.per_supervised_token + pairs * self.per_pair
        )


def model_flops(model: Decoder) -> ModelFlops:
    """Return the operations that training a Decoder needs, without what is computed twice.

    A matrix of N numbers takes 2 N for a token in forward and 2 N for the gradient of its input; where
    it is trained, 2 N more for its own. So full training takes 6 N, and LoRA 4 N for the frozen N and
    6 for each number of the adapter. A head of queries `[T, heads, head_dim]` takes `4 head_dim` in
    forward for a pair of tokens, and twice that in backward. Embeddings, norms and what is computed
    again count nothing (PaLM, Chowdhery et al., 2022, appendix B, who count every pair of positions).

    Args:
        model: Plain or sharded, with its adapter if any.
    """
    blocks: Any = model.blocks
    head = model.model.embed_tokens if model.lm_head is None else model.lm_head
    matrices = [p for p in blocks.parameters() if p.dim() == 2]
    of_head = [p for p in head.parameters() if p.dim() == 2]
    queries = sum(block.self_attn.q_proj.weight.shape[0] for block in blocks)
    return ModelFlops(
        per_token=sum(map(_per_token, matrices)),
        per_supervised_token=sum(map(_per_token, of_head)),
        per_pair=3 * 4 * queries,
    )


def _per_token(matrix: nn.Parameter) -> int:
    return matrix.numel() * (6 if matrix.requires_grad else 4)


def peak_flops(device_name: str) -> float | None:
    """Return the dense half-precision operations a second of a device, None where not known.

    Args:
        device_name: As ``torch.cuda.get_device_name()`` gives it, such as ``NVIDIA H200``.
    """
    return next((peak for name, peak in PEAKS.items() if re.search(name, device_name)), None)


def flops_utilization(
    model: nn.Module, batches: Sequence[Batch], world: World, seconds: float
) -> float | None:
    """Return the model's operations in a step over what the devices could do in that time.

    The peak is that of half precision whatever the run computes in. None where it is not known, and
    for a model of another kind.

    Args:
        model: A Decoder; see `model_flops`.
        batches: This rank's micro-batches.
        world: The processes, each with a device of its own.
        seconds: How long the step took.
    """
    if world.device.type != "cuda" or not isinstance(model, Decoder):
        return None
    done = world.sum(model_flops(model).of(batches))
    peak = peak_flops(_device_name(world.device))
    return None if peak is None else done / (peak * world.size * seconds)


@lru_cache(maxsize=8)
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)
