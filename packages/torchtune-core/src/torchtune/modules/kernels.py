"""Whose kernels compute a tensor: its device's, or in an estimate those of a device that is not there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["as_if_on", "kernels_of"]

_instead_of_cpu = "cpu"


def kernels_of(device: torch.device) -> str:
    """Return the type of the device whose kernels are chosen for tensors on `device`.

    It is the device's own but inside of `as_if_on`. Ask this, not ``tensor.device.type``, wherever
    another device takes another way through the arithmetic and so another amount of memory.
    """
    return _instead_of_cpu if device.type == "cpu" else device.type


@contextmanager
def as_if_on(device_type: str) -> Iterator[None]:
    """Choose for tensors on the CPU the kernels of `device_type`, to count what they would hold.

    Only for tensors without values: the CPU has none of those kernels.

    Args:
        device_type: ``cpu``, which changes nothing, or ``cuda``.
    """
    global _instead_of_cpu
    before, _instead_of_cpu = _instead_of_cpu, device_type
    try:
        yield
    finally:
        _instead_of_cpu = before
