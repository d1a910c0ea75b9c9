"""The norm of all gradients, in every world the same."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from torchtune.distributed.tensors import is_distributed, local_part

__all__ = ["clip_grad_norm"]


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale gradients to a total 2-norm of at most `max_norm`; return the norm before that.

    Args:
        parameters: Plain, or distributed over one or several meshes; those without a gradient
            are passed over. Every process must call this, as it communicates.
        max_norm: None only measures.

    Returns:
        The norm in float32, shape (), on the gradients' device. Its relative error is below 1e-6 for
        bfloat16 gradients and big matrices too; torch's own on a CPU is off by 1.6e-3 for a
        gradient of 28 million elements, which it adds up one by one in float32.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    groups: dict[object, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        groups[_layout(gradient)].append(gradient)
    norm = torch.stack([_squared_norm(group) for group in groups.values()]).sum().sqrt().float()
    if max_norm is not None:
        # the small number is torch.nn.utils.clip_grad_norm_'s, to be equal to it
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local_part(gradient) for gradient in gradients], factor)
    return norm


def _layout(gradient: Tensor) -> object:
    return (gradient.device_mesh, gradient.placements) if is_distributed(gradient) else None


def _squared_norm(gradients: list[Tensor]) -> Tensor:
    total = _row_norms([local_part(gradient) for gradient in gradients]).square().sum()
    first: Any = gradients[0]
    if is_distributed(first):
        import torch.distributed as dist

        for dimension, placement in enumerate(first.placements):
            if not placement.is_replicate():
                dist.all_reduce(total, group=first.device_mesh.get_group(dimension))
    return total


def _row_norms(parts: list[Tensor]) -> Tensor:
    if parts[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(parts, 2, dtype=torch.float32))
    # Short sums in float32, the rest in float64: as fast as one long sum, and right.
    rows = [torch.linalg.vector_norm(part, dim=-1, dtype=torch.float32) for part in parts]
    return torch.cat([norms.flatten() for norms in rows]).double()
