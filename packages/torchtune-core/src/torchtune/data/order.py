"""The order of an epoch."""

import torch
from torch import Tensor

__all__ = ["permutation"]


def permutation(total: int, *, seed: int, epoch: int) -> Tensor:
    """Return the numbers below `total` in an order that depends on `seed` and `epoch` alone.

    Every number gets a 64-bit key, and the keys are sorted; so no version of torch, no device and
    no number of processes changes the order. Source of the key: SplitMix64 (Steele, Lea, Flood:
    Fast splittable pseudorandom number generators, 2014).

    Returns:
        int64 ``[total]``.
    """
    base = _mixed(_mixed(torch.tensor([seed & (1 << 63) - 1])) + epoch)
    return _mixed(base + torch.arange(total)).argsort(stable=True)


def _mixed(value: Tensor) -> Tensor:
    """Return SplitMix64's output for each state `value`, as int64 with its wrap-around."""
    value = value + _signed(0x9E3779B97F4A7C15)
    value = (value ^ _shifted(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shifted(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64)
