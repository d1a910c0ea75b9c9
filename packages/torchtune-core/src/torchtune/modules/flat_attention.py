"""Causal attention over a flat row of documents, none of which sees another.

On a GPU in half precision torch's variable-length kernel takes the row as it is. Elsewhere documents of
like length are gathered into one batched product written out (up to `EXPLICIT_LIMIT` tokens, where that
is faster than torch's fused attention on a CPU), and longer ones go through the fused one by one.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune.modules.attention import Attend

__all__ = ["FlatAttention", "flat_attention"]

EXPLICIT_LIMIT = 768
"""Documents above so many tokens go through torch's fused attention (measured, see benchmarks)."""

GROUP_STRETCH, GROUP_SLACK = 1.5, 8
"""A group's longest document is at most this times, plus that many tokens, its shortest (measured)."""


class FlatAttention:
    """Causal attention over `[T, heads, head_dim]`, each document for itself; made once a forward.

    torch.compile guards on this object's type, not on the lengths, which are others in every step.

    Args:
        lengths: The documents' lengths, summing to T.
        device: Where the row is.
    """

    def __init__(self, lengths: tuple[int, ...], device: torch.device) -> None:
        self.lengths = lengths
        self.longest = max(lengths)
        self.ends = _ends(lengths, device) if device.type == "cuda" else None
        self.written_out = None if device.type == "cuda" else _outside_of_graphs()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return `[T, heads, head_dim]` for `q` of that shape and `k`, `v [T, kv_heads, head_dim]`."""
        if self.ends is not None and q.dtype in (torch.bfloat16, torch.float16):
            return _variable_length(q, k, v, self.ends, self.longest)
        return (self.written_out or _one_by_one)(self, q, k, v)


def flat_attention(lengths: tuple[int, ...], device: torch.device | str = "cpu") -> Attend:
    """Return causal attention over a flat row, each document for itself; see `FlatAttention`.

    Args:
        lengths: The documents' lengths, summing to T.
        device: Where the row is.
    """
    return FlatAttention(lengths, torch.device(device))


@cache
def _outside_of_graphs() -> Callable[[FlatAttention, Tensor, Tensor, Tensor], Tensor]:
    """Keep the written-out form, whose shapes are others in every step, out of compiled graphs."""
    kept_out: Callable[[FlatAttention, Tensor, Tensor, Tensor], Tensor]
    kept_out = torch.compiler.disable(_one_by_one)
    return kept_out


def _variable_length(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # a second to import

    out: Tensor = varlen_attn(
        q, k, v, ends, ends, longest, longest,
        window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # type: ignore[assignment]  # fmt: skip
    return out


@lru_cache(maxsize=8)
def _ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return where each document begins and the last ends, int32 `[documents + 1]`."""
    starts = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return starts.to(device)


def _one_by_one(row: FlatAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run each run of short documents grouped, each long one through torch's fused attention."""
    lengths = row.lengths
    if len(lengths) == 1 or (q.device.type == "cpu" and row.longest <= EXPLICIT_LIMIT):
        return _run(q, k, v, lengths)
    runs = _runs(lengths) if q.device.type == "cpu" else [(n,) for n in lengths]
    sizes = [sum(run) for run in runs]
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), runs, strict=True)
    return torch.cat([_run(*part) for part in parts])


def _run(q: Tensor, k: Tensor, v: Tensor, run: tuple[int, ...]) -> Tensor:
    if q.device.type == "cpu" and max(run) <= EXPLICIT_LIMIT:
        return _Grouped.apply(q, k, v, run)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
    return out.squeeze(0).transpose(0, 1)


def _runs(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Join neighbouring short documents; a long one stands alone."""
    runs: list[tuple[int, ...]] = []
    for length in lengths:
        if runs and max(length, *runs[-1]) <= EXPLICIT_LIMIT:
            runs[-1] = (*runs[-1], length)
        else:
            runs.append((length,))
    return runs


@lru_cache(maxsize=8)
def _plan(lengths: tuple[int, ...]) -> tuple[list[tuple[int, Tensor, Tensor]], Tensor]:
    """Group documents of like length.

    Returns:
        For each group its padded length m, the row indices `[documents * m]` to gather (a shorter
        document's tail repeats its last token) and the causal bias `[m, m]`; and for each token of the
        row its place among the gathered ones of all groups.
    """
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    groups, place, base = [], torch.empty(starts[-1], dtype=torch.long), 0
    for members, longest in _groups(lengths):
        steps = torch.arange(longest)
        rows = [starts[i] + steps.clamp(max=lengths[i] - 1) for i in members]
        for order, i in enumerate(members):
            first = base + order * longest
            place[starts[i] : starts[i + 1]] = torch.arange(first, first + lengths[i])
        base += longest * len(members)
        bias = torch.full((longest, longest), -math.inf).triu(1)
        groups.append((longest, torch.cat(rows), bias))
    return groups, place


def _groups(lengths: tuple[int, ...]) -> list[tuple[list[int], int]]:
    """Return documents of like length, by index, each group with its length in multiples of 8."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups: list[list[int]] = []
    for i in order:
        if groups and lengths[i] <= GROUP_STRETCH * lengths[groups[-1][0]] + GROUP_SLACK:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [(group, -(-lengths[group[-1]] // 8) * 8) for group in groups]


class _Grouped(torch.autograd.Function):
    """softmax(Q K^T) V in groups; gathers and scatters are plain selections, also in backward.

    The later keys that a shorter document's tail repeats are hidden from its real queries by the causal
    bias, and the tail's own outputs are dropped, so their gradients are zero.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        groups, place = _plan(lengths)
        outs, saved = [], []
        for length, rows, bias in groups:
            q_, k_, v_ = (_gather(x, rows, length, k.shape[1]) for x in (q, k, v))
            weights = _weights(q_, k_, bias)
            outs.append(_ungroup(torch.bmm(weights, v_), length, q.shape[1], k.shape[1]))
            saved += [weights]
        ctx.save_for_backward(q, k, v, *saved)
        ctx.lengths = lengths
        return torch.cat(outs).index_select(0, place)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        groups, place = _plan(ctx.lengths)
        kept = _kept(ctx.lengths)
        kv_heads, scale = k.shape[1], q.shape[-1] ** -0.5
        grads: tuple[list[Tensor], ...] = ([], [], [])
        for (length, rows, _), real, weights in zip(groups, kept, saved, strict=True):
            g = grad.index_select(0, rows) * real.to(grad.dtype)[:, None, None]
            g_ = _group(g, length, kv_heads)
            q_, k_, v_ = (_gather(x, rows, length, kv_heads) for x in (q, k, v))
            grad_weights = torch.bmm(g_, v_.transpose(1, 2))
            scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            scores = scores.mul_(scale)
            parts = (
                (torch.bmm(scores, k_), q.shape[1]),
                (torch.bmm(scores.transpose(1, 2), q_), kv_heads),
                (torch.bmm(weights.transpose(1, 2), g_), kv_heads),
            )
            for out, (part, heads) in zip(grads, parts, strict=True):
                out.append(_ungroup(part, length, heads, kv_heads))
        return *(torch.cat(part).index_select(0, place) for part in grads), None


@lru_cache(maxsize=8)
def _kept(lengths: tuple[int, ...]) -> list[Tensor]:
    """Return for each group which gathered rows are real, bool `[documents * m]`."""
    kept = []
    for members, longest in _groups(lengths):
        sizes = torch.tensor([lengths[i] for i in members])
        kept.append((torch.arange(longest) < sizes[:, None]).flatten())
    return kept


def _weights(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """Return the attention weights `[n, queries, m]` in the inputs' dtype."""
    length = bias.shape[0]
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))
    scores.view(-1, length, length).add_(bias.to(scores.dtype))
    return torch.softmax(scores, -1)


def _gather(x: Tensor, rows: Tensor, length: int, kv_heads: int) -> Tensor:
    return _group(x.index_select(0, rows), length, kv_heads)


def _group(x: Tensor, length: int, kv_heads: int) -> Tensor:
    """`[documents * m, heads, d]` to `[documents * kv_heads, heads / kv_heads * m, d]`."""
    heads, size = x.shape[1:]
    x = x.view(-1, length, kv_heads, heads // kv_heads, size).permute(0, 2, 3, 1, 4)
    return x.reshape(-1, heads // kv_heads * length, size)


def _ungroup(x: Tensor, length: int, heads: int, kv_heads: int) -> Tensor:
    """The inverse of `_group`."""
    x = x.view(-1, kv_heads, heads // kv_heads, length, x.shape[-1]).permute(0, 3, 1, 2, 4)
    return x.reshape(-1, heads, x.shape[-1])
