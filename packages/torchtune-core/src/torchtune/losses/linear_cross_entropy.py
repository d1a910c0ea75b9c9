"""Cross-entropy over the vocabulary that never holds the logits of a whole micro-batch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune.errors import ConfigError

__all__ = ["LinearCrossEntropy"]

IGNORED = -100
"""The label of a position that is not trained, as everywhere in PyTorch."""


class LinearCrossEntropy:
    """Sum of token losses from hidden states and the output matrix, over supervised positions only.

    Logits exist for `chunk_tokens` positions at a time; their gradients are made in the same pass, so
    that backward only scales them. Log-sum-exp and the sum are in fp32 whatever the dtype. The matrix'
    gradient adds up in its own dtype, chunk by chunk. The idea is that of Hsu et al. (2024), Liger Kernel.

    Args:
        label_smoothing: Share of the target spread evenly over the vocabulary (Szegedy et al., 2016).
        chunk_tokens: Supervised positions a chunk; more is faster until the logits, at
            `chunk_tokens * vocab * 4` bytes, leave the cache or the memory.

    Raises:
        ConfigError: A number out of range.
    """

    def __init__(self, *, label_smoothing: float = 0.0, chunk_tokens: int = 512) -> None:
        if not 0 <= label_smoothing < 1:
            what = f"must be at least 0 and below 1, found {label_smoothing}"
            raise ConfigError("E-RANGE", what, where="loss.label_smoothing")
        if chunk_tokens < 1:
            what = f"must be at least 1, found {chunk_tokens}"
            raise ConfigError("E-RANGE", what, where="loss.chunk_tokens")
        self.label_smoothing = label_smoothing
        self.chunk_tokens = chunk_tokens

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Return the fp32 sum of the supervised positions' losses, shape ().

        Args:
            hidden: Last hidden states `[T, D]`.
            weight: Output matrix `[V, D]`.
            labels: Target ids `[T]`, -100 where untrained. Without any the sum is 0, and its
                gradients are zeros, so that every process can run backward.
        """
        rows = (labels != IGNORED).nonzero().flatten()
        result: Tensor = _ChunkedSum.apply(
            hidden, weight, labels, rows, self.label_smoothing, self.chunk_tokens
        )
        return result


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        rows: Tensor,
        smoothing: float,
        chunk: int,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for part in rows.split(chunk):
            states, targets = hidden.index_select(0, part), labels.index_select(0, part)
            logits = F.linear(states, weight).float()
            total += _losses(logits, targets, smoothing)
            if grad_hidden is None and grad_weight is None:
                continue
            grad = _logit_gradient(logits, targets, smoothing).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden.index_copy_(0, part, grad @ weight)
            if grad_weight is not None:
                grad_weight.addmm_(grad.t(), states)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if made is None else made * grad for made in ctx.saved_tensors)
        return *grads, None, None, None, None


def _losses(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return the summed losses; `logits [n, V]` are turned into log-probabilities in place."""
    logits -= logits.logsumexp(-1, keepdim=True)
    total = -logits.gather(1, targets.unsqueeze(1)).sum()
    if smoothing:
        total = (1 - smoothing) * total - smoothing * logits.mean(-1).sum()
    return total


def _logit_gradient(log_probabilities: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return `softmax - target`, in place of the log-probabilities `[n, V]`."""
    grad = log_probabilities.exp_()
    if smoothing:
        grad -= smoothing / grad.shape[1]
    hit = torch.full_like(targets, smoothing - 1, dtype=grad.dtype).unsqueeze(1)
    return grad.scatter_add_(1, targets.unsqueeze(1), hit)
