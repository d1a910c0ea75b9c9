"""A flat micro-batch: documents side by side in one row of tokens, without padding."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune.data.documents import Documents

__all__ = ["IGNORED", "Batch", "flat_batch", "idle_batch", "pad_batch"]

IGNORED = -100
"""The label of a position that trains nothing, as everywhere in PyTorch."""


@dataclass(frozen=True)
class Batch:
    """Some documents as one row of tokens; ``T`` is the sum of their lengths.

    Args:
        tokens: Token ids, int64 ``[T]``.
        labels: The token that follows each one, int64 ``[T]``; -100 where that token is not
            trained on and at the end of each document. Already shifted: do not shift again.
        positions: Places within each document, from 0, int64 ``[T]``.
        lengths: Tokens of each document.
        supervised: How many labels are not -100, as a Python number: no device is asked.
        rows: Where each document comes from (``file:line``), for error messages. Empty in an
            idle micro-batch, which only keeps a process in step with the others.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    supervised: int
    rows: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Return how many tokens belong to rows of the data: ``T`` less a tail, or 0 when idle."""
        return sum(self.lengths[: len(self.rows)])

    def to(self, device: torch.device | str) -> "Batch":
        """Return this micro-batch with its tensors on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("tokens", "labels", "positions")
        }
        return replace(self, **moved)


def flat_batch(documents: Documents, indices: list[int]) -> Batch:
    """Return the documents `indices` side by side, labels shifted once and positions restarting.

    Args:
        documents: Where they are taken from.
        indices: At least one document, in the order of the row.
    """
    starts = [int(documents.offsets[i]) for i in indices]
    stops = [int(documents.offsets[i + 1]) for i in indices]
    lengths = [stop - start for start, stop in zip(starts, stops, strict=True)]
    spans = [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]
    tokens = torch.cat([documents.tokens[span] for span in spans]).long()
    trained = torch.cat([documents.trained[span] for span in spans])
    counts = torch.tensor(lengths)
    ends = counts.cumsum(0)
    target = torch.zeros_like(trained)
    target[:-1] = trained[1:]
    target[ends - 1] = False  # what follows is another document
    following = torch.roll(tokens, -1)
    first = torch.repeat_interleave(ends - counts, counts, output_size=len(tokens))
    return Batch(
        tokens=tokens,
        labels=torch.where(target, following, IGNORED),
        positions=torch.arange(len(tokens)) - first,
        lengths=tuple(lengths),
        supervised=int(target.sum()),
        rows=tuple(documents.where(i) for i in indices),
    )


def idle_batch() -> Batch:
    """Return one token that trains nothing, for a process that has no rows left in this step."""
    zero = torch.zeros(1, dtype=torch.int64)
    return Batch(zero, torch.full_like(zero, IGNORED), zero.clone(), (1,), 0)


def pad_batch(batch: Batch, multiple: int) -> Batch:
    """Return `batch` with a tail that trains nothing, where its length is no multiple of `multiple`.

    The tail, of token 0, is a document of its own, which no other one sees: losses and gradients are
    those of `batch`. Tensor and context parallel need it, as each process takes an equal part.

    Args:
        batch: Any micro-batch; returned itself where its length fits.
        multiple: What the number of tokens is to be divisible by.
    """
    tail = -len(batch.tokens) % multiple
    if not tail:
        return batch
    places = torch.arange(tail, device=batch.positions.device)
    return replace(
        batch,
        tokens=F.pad(batch.tokens, (0, tail)),
        labels=F.pad(batch.labels, (0, tail), value=IGNORED),
        positions=torch.cat((batch.positions, places)),
        lengths=(*batch.lengths, tail),
    )
