"""Whole tensors out of distributed ones, and back."""

import sys
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["fill", "gather_full", "is_distributed", "local_part"]


def is_distributed(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Say whether `tensor`, of any shape, is cut over processes. Loads nothing anew."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of `tensor`, sharing its memory: a plain one in its whole shape."""
    return tensor.to_local() if is_distributed(tensor) else tensor


@torch.no_grad()
def gather_full(tensor: Tensor) -> Tensor:
    """Return the whole of a possibly distributed `tensor`, of any shape, detached.

    Every process must call this for a distributed tensor, and each gets the whole. A plain
    tensor comes back as it is, sharing memory.
    """
    return (tensor.full_tensor() if is_distributed(tensor) else tensor).detach()


@torch.no_grad()
def fill(parameter: Tensor, full: Tensor) -> None:
    """Copy `full`, the same on every process, into a possibly distributed `parameter`.

    Each process takes its own part and nothing is sent. The dtype is converted.

    Args:
        parameter: Of the whole shape ``full.shape``; must hold memory (not meta).
        full: The whole tensor, on any device.

    Raises:
        ValueError: The shapes differ.
    """
    if parameter.shape != full.shape:
        raise ValueError(f"cannot fill {tuple(parameter.shape)} from {tuple(full.shape)}")
    if is_distributed(parameter):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements
        # no source rank: every process cuts its own part, without communication
        part = distribute_tensor(full.detach(), mesh, placements, src_data_rank=None)
        parameter.to_local().copy_(part.to_local())
    else:
        parameter.copy_(full)
