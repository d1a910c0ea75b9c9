"""Whole tensors out of distributed ones and back, and which part of one a process holds."""

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from torchtune.distributed.world import World

__all__ = [
    "Part",
    "computing_device",
    "fill",
    "gather_full",
    "is_distributed",
    "is_first_copy",
    "local_part",
    "part_of",
]


class Part(NamedTuple):
    """A box cut out of a tensor.

    Args:
        offsets: Where it begins, one number a dimension.
        sizes: Its shape; a process without a share of the tensor holds no element.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


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
    if not is_distributed(tensor):
        return tensor.detach()
    near: Any = tensor.to(computing_device(tensor))  # NCCL does not send what is on the CPU
    full: Tensor = near.full_tensor()
    return full.detach().to(tensor.device)


def computing_device(tensor: Tensor) -> torch.device:
    """Return the device that computes with `tensor`, of any shape.

    It is another than the tensor's own for a parameter that `shard` only keeps on the CPU.
    """
    if is_distributed(tensor) and tensor.device_mesh.device_type != tensor.device.type:
        return torch.device(tensor.device_mesh.device_type)
    return tensor.device


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
    part = part_of(parameter)
    box = (slice(begin, begin + size) for begin, size in zip(*part, strict=True))
    local_part(parameter).copy_(full[tuple(box)])


def part_of(tensor: Tensor) -> Part:
    """Return which part of `tensor` this process holds, without communication: all of a plain one.

    Dimensions are cut as `torch.chunk` does. One that is cut twice, over a tensor parallel mesh and
    over the data mesh outside of it, is cut by the inner one first, as FSDP2 does.

    Args:
        tensor: Of any shape; plain or distributed.
    """
    offsets, sizes = [0] * tensor.dim(), list(tensor.shape)
    for dimension, rank, count in _cuts(tensor) if is_distributed(tensor) else ():
        whole = sizes[dimension]
        begin = min(rank * -(-whole // count), whole)
        offsets[dimension] += begin
        sizes[dimension] = min(-(-whole // count), whole - begin)
    return Part(tuple(offsets), tuple(sizes))


def _cuts(tensor: "DTensor") -> list[tuple[int, int, int]]:
    """Return dimension, number of this process's piece and number of pieces for each cut, in order."""
    mesh = tensor.device_mesh
    found = []
    for axis, placement in enumerate(tensor.placements):
        if (dimension := getattr(placement, "dim", None)) is not None:
            late = hasattr(placement, "split_factor")  # cut after the mesh dimensions right of it
            found.append((late, dimension, mesh.get_local_rank(axis), mesh.size(axis)))
    return [cut for _, *cut in sorted(found, key=lambda cut: cut[0])]  # type: ignore[misc]


def is_first_copy(tensor: Tensor, world: "World") -> bool:
    """Say whether, of all processes that hold the same part of `tensor`, this is the first.

    Of a plain tensor every process holds the whole, and the main one is the first.

    Args:
        tensor: Of any shape; plain or distributed.
        world: The processes.
    """
    if not is_distributed(tensor):
        return world.is_main
    mesh = tensor.device_mesh
    axes = [axis for axis, kind in enumerate(tensor.placements) if kind.is_replicate()]
    first = all(mesh.get_local_rank(axis) == 0 for axis in axes)
    return first and bool((mesh.mesh == 0).any())  # other meshes like it hold copies
