"""Grouped-query attention with rotary positions."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from torchtune.modules.rope import Rotation, rotate

__all__ = ["Attend", "Attention", "dense_attention"]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(q [*, heads, head_dim], k [*, kv_heads, head_dim], v like k) -> like q`: who sees whom is inside."""


class Attention(nn.Module):
    """Project, rotate, attend, project: the attention layer of Llama (Ainslie et al., 2023, for GQA).

    Which tokens see which is not decided here but by the `attend` that each forward is given: one for
    flat micro-batches, one for `[batch, seq]`, one with a cache.

    Args:
        dim: Size of the input and of the output.
        heads: Query heads.
        kv_heads: Key and value heads; divides `heads`.
        head_dim: Size of one head.
        bias: Whether the four linear layers have biases.
    """

    def __init__(
        self, dim: int, *, heads: int, kv_heads: int, head_dim: int, bias: bool = False
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * head_dim, dim, bias=bias)

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """Map `x [*, dim]` to `[*, dim]`, where `*` is `tokens` or `batch, seq`.

        `rotation` is what `Rope` gives for the tokens' positions, and `attend` does the attention.
        """
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = attend(rotate(q, rotation), rotate(k, rotation), v)
        return self.o_proj(out.flatten(-2))


def dense_attention(mask: Tensor | None) -> Attend:
    """Return attention over `[batch, seq]`: causal without a mask.

    Args:
        mask: None, or bool `[batch, query, key]`, True where a query may see a key.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        bias = None if mask is None else mask.unsqueeze(1)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2)

    return attend
