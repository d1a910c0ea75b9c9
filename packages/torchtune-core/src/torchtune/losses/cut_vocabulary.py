"""Cross-entropy where each process holds some of the vocabulary's logits."""

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["VocabularyShard"]


class VocabularyShard(Protocol):
    """The rows of the output matrix that this process holds, of those that a group of them holds.

    `torchtune.distributed.tensor_parallel` gives one to the loss, with its part of the matrix.
    """

    @property
    def start(self) -> int:
        """The token id of this process's first row."""

    @property
    def size(self) -> int:
        """How many rows all processes hold together: the vocabulary."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the elementwise sum of every process's `values`, of their shape, the same on each."""

    def max(self, values: Tensor) -> Tensor:
        """Return the elementwise largest of every process's `values`, of their shape."""


def losses_and_gradients_of_part(
    logits: Tensor, targets: Tensor, smoothing: float, vocabulary: VocabularyShard, rows: int
) -> Tensor:
    """Return the summed losses; put this process's columns of `softmax - target` in `logits`' place.

    Processes tell each other three numbers a position (Shoeybi et al., 2019, Megatron-LM): the
    log-sum-exp of their logits, the target's logit, and for label smoothing the logits' sum.

    Args:
        logits: This process's columns `[n, V / processes]`.
        targets: Token ids `[n]`, of the whole vocabulary.
        smoothing: Share of the target spread over the whole vocabulary.
        vocabulary: Which columns these are.
        rows: Of how many positions an fp32 form exists at a time.
    """
    own = targets - vocabulary.start
    held = (own >= 0) & (own < logits.shape[1])
    columns = own.where(held, 0).unsqueeze(1)
    normaliser = torch.cat([part.float().logsumexp(-1) for part in logits.split(rows)])
    highest = vocabulary.max(normaliser)
    figures = [(normaliser - highest).exp(), logits.gather(1, columns).squeeze(1).float() * held]
    if smoothing:
        figures.append(torch.cat([part.float().sum(-1) for part in logits.split(rows)]))
    summed = vocabulary.sum(torch.stack(figures))
    normaliser = highest + summed[0].log()
    total = (normaliser - (1 - smoothing) * summed[1]).sum()
    if smoothing:
        total -= smoothing / vocabulary.size * summed[2].sum()
    hits = ((smoothing - 1) * held).unsqueeze(1)
    pieces = (x.split(rows) for x in (logits, normaliser.unsqueeze(1), columns, hits))
    for part, level, column, hit in zip(*pieces, strict=True):
        probabilities = (part.float() - level).exp_()
        if smoothing:
            probabilities -= smoothing / vocabulary.size
        part.copy_(probabilities.scatter_add_(1, column, hit))
    return total
