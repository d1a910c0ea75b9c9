"""Normalisation layers."""

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
        """Normalise `x [..., dim]`; shape and dtype are kept."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def first_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Return ones: a fresh norm only normalises."""
        return torch.ones(shape)
