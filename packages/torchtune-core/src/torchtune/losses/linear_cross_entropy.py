"""Cross-entropy over the vocabulary that never holds the logits of a whole micro-batch."""

from typing import Any

import torch
from torch import Tensor

from torchtune.data import IGNORED
from torchtune.errors import ConfigError
from torchtune.losses.cut_vocabulary import VocabularyShard, losses_and_gradients_of_part
from torchtune.modules.kernels import kernels_of

__all__ = ["LinearCrossEntropy"]


ELEMENTS_AT_ONCE = {False: 2**20, True: 2**25}
"""Logits in fp32 at a time, off and on a GPU: 4 MiB stay in a cache, 128 MiB keep a GPU busy."""


class LinearCrossEntropy:
    """Sum of token losses from hidden states and the output matrix, over supervised positions only.

    Logits exist for `chunk_tokens` positions at a time. Their gradients are made in the same pass and
    place, so that backward only scales what was made, and can run only once. Log-sum-exp and the sum
    are in fp32 whatever the dtype; the matrix' gradient adds up in its own dtype, chunk by chunk. The
    idea is that of Liger Kernel (Hsu et al., 2024).

    Args:
        label_smoothing: Share of the target spread evenly over the vocabulary (Szegedy et al., 2016).
        chunk_tokens: Supervised positions a chunk. The logits take `chunk_tokens * vocab` numbers in
            the weights' dtype; above 1024 nothing gets faster.

    Raises:
        ConfigError: A number out of range.
    """

    def __init__(self, *, label_smoothing: float = 0.0, chunk_tokens: int = 1024) -> None:
        if not 0 <= label_smoothing < 1:
            what = f"must be at least 0 and below 1, found {label_smoothing}"
            raise ConfigError("E-RANGE", what, where="loss.label_smoothing")
        if chunk_tokens < 1:
            what = f"must be at least 1, found {chunk_tokens}"
            raise ConfigError("E-RANGE", what, where="loss.chunk_tokens")
        self.label_smoothing = label_smoothing
        self.chunk_tokens = chunk_tokens

    def __call__(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        *,
        vocabulary: VocabularyShard | None = None,
    ) -> Tensor:
        """Return the fp32 sum of the supervised positions' losses, shape ().

        Args:
            hidden: Last hidden states `[T, D]`.
            weight: Output matrix `[V, D]`.
            labels: Target ids `[T]`, -100 where untrained. Without any the sum is 0, and its
                gradients are zeros, so that every process can run backward.
            vocabulary: Where `weight` is one process's rows of the matrix: which. All processes
                then call this together and get the whole sum; the gradient of `hidden` is this
                process's part of it, to be added up over them.

        Raises:
            ValueError: `labels` are not one for each of `hidden`.
        """
        if hidden.dim() != 2 or labels.shape != hidden.shape[:1]:
            shapes = f"hidden {list(hidden.shape)}, labels {list(labels.shape)}"
            raise ValueError(f"wanted are hidden [T, D] and labels [T], found {shapes}")
        rows = (labels != IGNORED).nonzero().flatten()
        result: Tensor = _ChunkedSum.apply(
            hidden, weight, labels, rows, self.label_smoothing, self.chunk_tokens, vocabulary
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
        vocabulary: VocabularyShard | None,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        logits = hidden.new_empty(min(chunk, len(rows)), weight.shape[0])  # one for all chunks
        for number, part in enumerate(rows.split(chunk) if len(rows) else ()):
            states, targets = hidden.index_select(0, part), labels.index_select(0, part)
            grad = torch.mm(states, weight.t(), out=logits[: len(part)])
            total += _losses_and_gradients(grad, targets, smoothing, vocabulary)
            if grad_hidden is not None:
                grad_hidden.index_copy_(0, part, grad @ weight)
            if grad_weight is not None:
                torch.addmm(grad_weight, grad.t(), states, beta=int(number > 0), out=grad_weight)
        if grad_weight is not None and not len(rows):
            grad_weight.zero_()
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.spent = False
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.spent:  # scaled in place, as a copy of the matrix' gradient takes time and memory
            raise RuntimeError("backward through this loss can run only once")
        ctx.spent = True
        grads = (None if made is None else made.mul_(grad) for made in ctx.saved_tensors)
        return *grads, None, None, None, None, None


def _losses_and_gradients(
    logits: Tensor, targets: Tensor, smoothing: float, vocabulary: VocabularyShard | None
) -> Tensor:
    """Return the summed losses; put `softmax - target` in the place of `logits [n, V]`.

    The fp32 form of the logits exists for so few rows at a time that it stays in a CPU's cache.
    """
    rows = max(1, ELEMENTS_AT_ONCE[kernels_of(logits.device) == "cuda"] // logits.shape[1])
    if vocabulary is not None:
        return losses_and_gradients_of_part(logits, targets, smoothing, vocabulary, rows)
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    for part, target in zip(logits.split(rows), targets.unsqueeze(1).split(rows), strict=True):
        probabilities = torch.softmax(part, -1, dtype=torch.float32)
        highest = part.amax(-1).float()
        normaliser = highest - probabilities.amax(-1).log()  # log-sum-exp, without a second pass
        total += (normaliser - (1 - smoothing) * part.gather(1, target).squeeze(1).float()).sum()
        if smoothing:
            total -= smoothing * part.float().mean(-1).sum()
            probabilities -= smoothing / part.shape[1]
        hit = torch.full_like(target, smoothing - 1, dtype=torch.float32)
        part.copy_(probabilities.scatter_add_(1, target, hit))
    return total
