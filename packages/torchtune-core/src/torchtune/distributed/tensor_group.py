"""What the processes of one tensor group tell each other, each operation with its gradient.

Between layers, hidden states of a flat row `[T, dim]` are cut over the group along T (sequence parallel:
Korthikanti et al., 2022); those of `[batch, seq, dim]` are whole on each process. So the number of
dimensions says how they get into the layers that are cut, and out of them.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["TensorGroup"]


class TensorGroup:
    """The processes that compute one layer together, seen from one of them.

    Args:
        mesh: Of one dimension.
    """

    def __init__(self, mesh: "DeviceMesh") -> None:
        self.mesh = mesh
        self.rank, self.size = mesh.get_local_rank(), mesh.size()
        self.name = mesh.get_group().group_name

    def enter(self, x: Tensor) -> Tensor:
        """Return hidden states as layers cut by columns take them: the whole; gradients are added up."""
        out: Tensor = (_Gather if x.dim() == 2 else _SumGradient).apply(x, self.name, self.size)
        return out

    def leave(self, x: Tensor) -> Tensor:
        """Add up what each process has of hidden states; return this process's rows, or all."""
        out: Tensor = (_SumRows if x.dim() == 2 else _Sum).apply(x, self.name, self.size)
        return out

    def sum_gradient(self, x: Tensor) -> Tensor:
        """Return `x`, the same on each process; gradients that they have of it are added up."""
        out: Tensor = _SumGradient.apply(x, self.name, self.size)
        return out

    def join_columns(self, x: Tensor, total: int) -> Tensor:
        """Return `[*, total]` of each process's `x [*, own]`, cut as `torch.chunk` does.

        What follows must be the same on each process: it has the whole's gradient already.
        """
        out: Tensor = _JoinColumns.apply(x, self.name, self.size, self.rank, total)
        return out

    def reduce(self, x: Tensor, operation: str) -> Tensor:
        """Return `x` reduced over the processes by ``sum`` or ``max``, without a gradient."""
        return _reduce(x, operation, self.name)


def _gather_rows(x: Tensor, name: str, size: int) -> Tensor:
    c10d = torch.ops._c10d_functional
    out: Tensor = c10d.wait_tensor(c10d.all_gather_into_tensor(x.contiguous(), size, name))
    return out


def _sum_rows(x: Tensor, name: str, size: int) -> Tensor:
    c10d = torch.ops._c10d_functional
    out: Tensor = c10d.wait_tensor(c10d.reduce_scatter_tensor(x.contiguous(), "sum", size, name))
    return out


def _reduce(x: Tensor, operation: str, name: str) -> Tensor:
    c10d = torch.ops._c10d_functional
    out: Tensor = c10d.wait_tensor(c10d.all_reduce(x.contiguous(), operation, name))
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, size: int) -> Tensor:
        ctx.group = name, size
        return _gather_rows(x, name, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _sum_rows(grad, *ctx.group), None, None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, size: int) -> Tensor:
        ctx.group = name, size
        return _sum_rows(x, name, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _gather_rows(grad, *ctx.group), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, size: int) -> Tensor:
        return _reduce(x, "sum", name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, size: int) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _reduce(grad, "sum", ctx.name), None, None


class _JoinColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, size: int, rank: int, total: int) -> Tensor:
        most = -(-total // size)  # gloo gathers equal parts only
        ctx.first, ctx.count = rank * most, x.shape[-1]
        filled = torch.nn.functional.pad(x, (0, most - x.shape[-1]))
        parts = _gather_rows(filled, name, size).unflatten(0, (size, -1))
        return parts.movedim(0, -2).flatten(-2)[..., :total]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.narrow(-1, ctx.first, ctx.count), None, None, None, None
