"""Which rows make up which optimizer step, as a function of seed, epoch and step alone."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from torchtune.data.batch import Batch, flat_batch, idle_batch
from torchtune.data.documents import Documents
from torchtune.data.order import permutation
from torchtune.data.packing import Packing
from torchtune.errors import ConfigError, DataError

__all__ = ["Steps", "row_limit", "validation_batches"]


class HasStep(Protocol):
    """Whatever knows how many optimizer steps are done."""

    @property
    def step(self) -> int:
        """Optimizer steps done so far."""
        ...


class Steps:
    """The micro-batches of every optimizer step, this process's share.

    The rows of a step follow from the seed, the epoch, the step and the number of rows a step
    (``batch_size * gradient_accumulation_steps * size``); how the processes share them changes
    nothing. A step never crosses an epoch; the last of an epoch is short and never dropped. In one
    step all processes get the same number of micro-batches, the missing ones being idle.

    Args:
        documents: The data.
        batch_size: Rows of one micro-batch on one process.
        gradient_accumulation_steps: Micro-batches of one process in one step.
        max_seq_len: Longest document; with `packed`, a micro-batch holds up to
            ``batch_size * max_seq_len`` tokens.
        packed: Fill micro-batches best-fit to that budget instead of by number of rows.
        shuffle: Another order in each epoch, instead of the order of the data (when packed: the
            same micro-batches in the same order).
        seed: Of the order.
        rank: This process among those that share the data.
        size: How many share the data.
        max_steps_per_epoch: Leave an epoch after so many steps.

    Raises:
        DataError: No documents, or one that is longer than a micro-batch may be.
    """

    def __init__(
        self,
        documents: Documents,
        *,
        batch_size: int,
        max_seq_len: int,
        gradient_accumulation_steps: int = 1,
        packed: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        size: int = 1,
        max_steps_per_epoch: int | None = None,
    ) -> None:
        _check_lengths(documents, batch_size * max_seq_len if packed else max_seq_len)
        self.documents, self.batch_size, self.max_seq_len = documents, batch_size, max_seq_len
        self.shuffle, self.seed, self.rank, self.size = shuffle, seed, rank, size
        self._budget = batch_size * max_seq_len if packed else 0  # tokens of a micro-batch
        self._packing = Packing(documents.lengths, self._budget) if packed else None
        units = len(documents) if self._packing is None else len(self._packing)
        self._round = size * (1 if packed else batch_size)  # units of one micro-batch, all ranks
        self._units, self._step = units, self._round * gradient_accumulation_steps
        whole = -(-units // self._step)
        self.per_epoch: int = min(whole, max_steps_per_epoch or whole)
        """Optimizer steps of one epoch."""

    def total(self, *, epochs: int | None = None, max_steps: int | None = None) -> int:
        """Return the optimizer steps of a run: `epochs` or `max_steps`, what ends first; else one epoch."""
        by_epochs = epochs * self.per_epoch if epochs else None
        return min(filter(None, (by_epochs, max_steps)), default=self.per_epoch)

    def identity(self) -> dict[str, int | bool | str]:
        """Return what the rows of each step follow from: equal identities, equal steps.

        The number of processes is not in it, only the rows that all take together in a step.
        """
        return {
            "data_sha256": self.documents.digest(),
            "packed_micro_batches_per_step" if self._budget else "rows_per_step": self._step,
            "steps_per_epoch": self.per_epoch,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "packed_tokens": self._budget,
        }

    def after(self, progress: HasStep | None = None) -> Iterator[list[Batch]]:
        """Yield one list of micro-batches an optimizer step, epoch after epoch, without an end.

        Args:
            progress: How far the run is; None for the beginning.
        """
        epoch, step = divmod(progress.step if progress else 0, self.per_epoch)
        while True:
            yield from self.epoch(epoch, first=step)
            epoch, step = epoch + 1, 0

    def epoch(self, number: int, *, first: int = 0) -> Iterator[list[Batch]]:
        """Yield the steps of epoch `number` (from 0), beginning with step `first` (from 0)."""
        order, offsets = self._order(number)
        for step in range(first, self.per_epoch):
            stop = min(self._units, (step + 1) * self._step)
            starts = range(step * self._step, stop, self._round)
            yield [
                self._batch(order, offsets, range(at, min(stop, at + self._round))) for at in starts
            ]

    def held_out(self, documents: Documents, *, batch_size: int | None = None) -> list[Batch]:
        """Return other documents as `validation_batches` in the form of these steps.

        Args:
            documents: Rows to validate on.
            batch_size: Rows of one of their micro-batches; None for that of the steps.
        """
        batches = validation_batches(
            documents, batch_size=batch_size or self.batch_size, max_seq_len=self.max_seq_len,
            packed=self._packing is not None, rank=self.rank, size=self.size,
        )  # fmt: skip
        return list(batches)

    def _order(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Return the documents in the epoch's order and, when packed, where each bin begins."""
        total = len(self.documents)
        shuffled = permutation(total, seed=self.seed, epoch=epoch) if self.shuffle else None
        order = torch.arange(total) if shuffled is None else shuffled
        if self._packing is None:
            return order, None
        filled, offsets = self._packing.fill(order)
        if not self.shuffle:
            return filled, offsets
        bins = permutation(len(self._packing), seed=self.seed, epoch=~epoch)
        counts = (offsets[1:] - offsets[:-1])[bins]
        moved = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        shift = torch.repeat_interleave(offsets[bins] - moved[:-1], counts)
        return filled[torch.arange(total) + shift], moved

    def _batch(self, order: Tensor, offsets: Tensor | None, units: range) -> Batch:
        """Return this rank's part of the units that all ranks take in one micro-batch."""
        if offsets is None:
            rows = order[units.start : units.stop].tolist()
            mine = self._share(rows)
        else:
            at = units.start + self.rank
            inside = at < units.stop
            mine = order[offsets[at] : offsets[at + 1]].tolist() if inside else []
        return flat_batch(self.documents, mine) if mine else idle_batch()

    def _share(self, rows: list[int]) -> list[int]:
        """Deal rows to the ranks, longest first to whoever has fewest tokens: all finish together.

        No rank gets more than its part of the rows, and each keeps the epoch's order.
        """
        if self.size == 1:
            return rows
        part = -(-len(rows) // self.size)
        lengths = [self.documents.length(row) for row in rows]
        tokens = [0] * self.size
        shares: list[list[int]] = [[] for _ in tokens]
        for place in sorted(range(len(rows)), key=lambda place: (-lengths[place], place)):
            open_ranks = (r for r in range(self.size) if len(shares[r]) < part)
            rank = min(open_ranks, key=lambda r: (tokens[r], r))
            shares[rank].append(place)
            tokens[rank] += lengths[place]
        return [rows[place] for place in sorted(shares[self.rank])]


def validation_batches(
    documents: Documents,
    *,
    batch_size: int,
    max_seq_len: int,
    packed: bool = False,
    rank: int = 0,
    size: int = 1,
) -> Iterator[Batch]:
    """Yield held-out documents once, in order, this process's share.

    All processes get the same number of micro-batches, the missing ones being idle.
    Arguments and errors are those of `Steps`.
    """
    steps = Steps(
        documents,
        batch_size=batch_size,
        max_seq_len=max_seq_len,
        packed=packed,
        shuffle=False,
        rank=rank,
        size=size,
    )
    for batches in steps.epoch(0):
        yield from batches


def row_limit(max_seq_len: int | None, *, positions: int) -> int:
    """Return how many tokens a row may have: `max_seq_len`, by default the model's positions.

    Raises:
        ConfigError: E-MAX-SEQ-LEN: it is more than the model's positions.
    """
    if max_seq_len is not None and max_seq_len > positions:
        what = f"{max_seq_len} tokens are more than the model's {positions} positions"
        raise ConfigError("E-MAX-SEQ-LEN", what, where="max_seq_len", do=f"at most {positions}")
    return max_seq_len or positions


def _check_lengths(documents: Documents, most: int) -> None:
    if not len(documents):
        raise DataError("E-DATA-EMPTY", "there are no rows to train on", where="dataset")
    longest = int(documents.lengths.argmax())
    found = int(documents.lengths[longest])
    if found > most:
        raise DataError(
            "E-DATA-LENGTH",
            f"a row has {found} tokens and a micro-batch holds {most}",
            where=documents.where(longest),
            do="cut rows to max_seq_len when they are tokenized",
        )
