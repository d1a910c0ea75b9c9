"""Normalisation layers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RMSNorm"]


class RMSNorm(nn.Module):
    """Scale each vector to a root mean square of one, then by a weight (Zhang and Sennrich, 2019).

    The statistics are taken in fp32 whatever the dtype of the input.

    Args:
        dim: Size of the last dimension.
        eps: Added to the mean square; 1e-5 is Llama's.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., dim]` to its normalised values; shape and dtype are kept."""
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            normed: Tensor = _RMSNorm.apply(x, self.weight, self.eps)
            return normed
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def first_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Return ones of `shape`, whatever `name` and `generator`: a fresh norm only normalises."""
        return torch.ones(shape)


class _RMSNorm(torch.autograd.Function):
    """The norm in few passes, all fp32: on a CPU torch has no kernel of its own, and mixing dtypes
    in one operation costs ten times a conversion."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = _exact_copy(x)
        norm = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return exact.mul_(scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed, exact = _exact_copy(x).mul_(scale), _exact_copy(grad)
        product, exact_weight = normed * exact, weight.to(scale.dtype)
        along = (product @ exact_weight).div_(-x.shape[-1]).unsqueeze(-1)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        grad_x = exact.mul_(exact_weight).addcmul_(normed, along).mul_(scale)
        return grad_x.to(x.dtype), grad_weight, None


def _exact_copy(x: Tensor) -> Tensor:
    """Return `x` in fp32 or more, to be changed in place: new memory costs more than the arithmetic."""
    return x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
