"""Feed-forward layers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SwiGLU"]


class SwiGLU(nn.Module):
    """The gated feed-forward layer of Llama: `down(silu(gate(x)) * up(x))` (Shazeer, 2020).

    Args:
        dim: Size of the input and of the output.
        hidden: Size in between.
        bias: Whether the three linear layers have biases.
    """

    def __init__(self, dim: int, hidden: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=bias)
        self.up_proj = nn.Linear(dim, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., dim]` to `[..., dim]`."""
        return self.down_proj(_GatedSiLU.apply(self.gate_proj(x), self.up_proj(x)))


class _GatedSiLU(torch.autograd.Function):
    """`silu(gate) * up` that keeps its two inputs alone and makes silu again in backward."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up, grad_gate = F.silu(gate).mul_(grad), grad * up
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_gate, grad_up
