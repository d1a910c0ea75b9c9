"""Causal attention over a flat row of documents, none of which sees another.

On a GPU in half precision torch's variable-length kernel takes the row as it is. Elsewhere documents of
like length are gathered into one batched product written out (up to `EXPLICIT_LIMIT` tokens, where that
is faster than torch's fused attention on a CPU), and longer ones go through the fused one by one.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune.modules.attention import Attend
from torchtune.modules.grouped_attention import grouped_attention
from torchtune.modules.kernels import kernels_of

__all__ = ["FlatAttention", "flat_attention"]

EXPLICIT_LIMIT = 768
"""Documents above so many tokens go through torch's fused attention. On two cores in bf16 that takes, of the
written-out form's CPU time, 1.57 at 256 tokens, 1.37 at 512, 1.07 at 768, 0.82 at 1,024, 0.57 at 2,048."""


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
        on_gpu = kernels_of(device) == "cuda"
        self.ends = _ends(lengths, device) if on_gpu else None
        self.written_out = None if on_gpu else _outside_of_graphs()

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
    lengths, on_cpu = row.lengths, kernels_of(q.device) == "cpu"
    if len(lengths) == 1 or (on_cpu and row.longest <= EXPLICIT_LIMIT):
        return _run(q, k, v, lengths)
    runs = _runs(lengths) if on_cpu else [(n,) for n in lengths]
    sizes = [sum(run) for run in runs]
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), runs, strict=True)
    return torch.cat([_run(*part) for part in parts])


def _run(q: Tensor, k: Tensor, v: Tensor, run: tuple[int, ...]) -> Tensor:
    if kernels_of(q.device) == "cpu" and max(run) <= EXPLICIT_LIMIT:
        return grouped_attention(q, k, v, run)
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
