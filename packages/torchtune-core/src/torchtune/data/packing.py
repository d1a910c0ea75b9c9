"""Best-fit decreasing: fill token budgets with whole documents, leaving almost nothing over."""

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Packing", "best_fit"]


class Packing:
    """Which slots share a micro-batch; a slot is a place in the list of documents by falling length.

    The pattern depends on lengths alone, so it is made once. Documents of equal length change
    places from epoch to epoch (`fill`), so that rows do not meet the same neighbours every time.

    Args:
        lengths: Tokens of each document, int64 ``[documents]``, each at most `budget`.
        budget: Tokens that one micro-batch may hold.
    """

    def __init__(self, lengths: Tensor, budget: int) -> None:
        self._lengths = lengths
        sizes, counts = torch.unique_consecutive(
            lengths.sort(descending=True).values, return_counts=True
        )
        bins = torch.tensor(best_fit(sizes.tolist(), counts.tolist(), budget), dtype=torch.int64)
        self._slots = bins.argsort(stable=True)
        filled = torch.bincount(bins)
        self._offsets = torch.cat([torch.zeros(1, dtype=torch.int64), filled.cumsum(0)])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def fill(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Put documents into the pattern; those of equal length in the order they have in `order`.

        Args:
            order: A permutation of the documents, int64 ``[documents]``.

        Returns:
            Documents micro-batch by micro-batch, int64 ``[documents]``, and where each
            micro-batch begins, int64 ``[micro-batches + 1]``.
        """
        falling = self._lengths[order].argsort(descending=True, stable=True)
        return order[falling][self._slots], self._offsets


def best_fit(sizes: Sequence[int], counts: Sequence[int], budget: int) -> list[int]:
    """Pack items into as few bins as best-fit decreasing finds; return the bin of each item.

    Each item goes to the fullest bin that still has room for it. Bins with equal room and items
    of equal size are handled together, so that ten million documents take seconds.
    Source: D. S. Johnson, Near-optimal bin packing algorithms (1973).

    Args:
        sizes: Distinct sizes, falling, each from 1 to `budget`.
        counts: How many items there are of each size.
        budget: Room of a bin.

    Returns:
        Bin numbers from 0, the items of ``sizes[0]`` first.
    """
    bins: list[int] = []
    open_bins = _OpenBins(budget)
    for size, count in zip(sizes, counts, strict=True):
        while count:
            room, free = open_bins.take(size, count)
            fit = room // size
            whole, rest = divmod(count, fit)  # bins that can be filled with this size, items over
            filled = free[:whole]
            bins.extend(number for number in filled for _ in range(fit))
            open_bins.keep(room - fit * size, filled)
            count -= fit * len(filled)
            if len(free) > whole and rest:
                bins.extend([free[whole]] * rest)
                open_bins.keep(room - rest * size, free[whole : whole + 1])
                count, whole = 0, whole + 1
            open_bins.keep(room, free[whole:])
    return bins


class _OpenBins:
    """Bins that have room left, by how much."""

    def __init__(self, budget: int) -> None:
        self._budget, self._opened = budget, 0
        self._rooms: list[int] = []  # distinct rooms, rising
        self._bins: dict[int, list[int]] = {}  # room -> bins that have just that much

    def take(self, size: int, count: int) -> tuple[int, list[int]]:
        """Take out the fullest bins with room for `size`, or new ones for `count` items."""
        at = bisect_left(self._rooms, size)
        if at < len(self._rooms):
            room = self._rooms.pop(at)
            return room, self._bins.pop(room)
        first = self._opened
        self._opened += -(-count // (self._budget // size))
        return self._budget, list(range(first, self._opened))

    def keep(self, room: int, bins: list[int]) -> None:
        """Put bins back that have `room` left."""
        if not room or not bins:
            return
        if room not in self._bins:
            self._bins[room] = []
            insort(self._rooms, room)
        self._bins[room].extend(bins)
