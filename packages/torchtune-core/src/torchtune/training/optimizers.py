"""Optimizers with the defaults that fine-tuning wants."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from torchtune.distributed import is_distributed
from torchtune.errors import ConfigError

__all__ = ["adamw", "adamw_8bit", "check_shards", "rounding_note"]

FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}
"""Where torch has a fused AdamW; on a CPU it takes a third of the for-loop's time."""


def adamw(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    lr: float = 2e-5,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """Build torch's AdamW (Loshchilov and Hutter, 2019), fused where torch can.

    Args:
        parameters: What to train, or groups of it with options of their own.
        lr: Learning rate; 2e-5 suits full fine-tuning, LoRA wants about ten times that.
        betas: Decay of the two running means.
        eps: Added to the denominator.
        weight_decay: Decoupled decay of every parameter, per step times `lr`.
        fused: Whether one kernel does the whole update; None chooses by the device.
    """
    groups: list[Any] = list(parameters)
    if fused is None:
        each = _each(groups)
        fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in each)
    return torch.optim.AdamW(
        groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused
    )


def adamw_8bit(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    lr: float = 2e-5,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """Build torchao's AdamW, whose two means take a byte a number (Dettmers et al., 2022).

    That is a quarter of fp32's. Each process keeps the means of its part of a parameter in blocks of
    256 numbers; parts of fewer than 4,096 numbers, or not a multiple of 256, keep theirs in the
    parameter's dtype. On a GPU the step is compiled. Rates are tensors (``group["lr"].fill_``), which
    schedules know.

    Args:
        parameters: What to train, or groups of it with options of their own.
        lr: Learning rate; 2e-5 suits full fine-tuning, LoRA wants about ten times that.
        betas: Decay of the two running means.
        eps: Added to the denominator.
        weight_decay: Decoupled decay of every parameter, per step times `lr`.

    Raises:
        MissingError: E-TORCHAO: torchao is not installed.
    """
    from torchtune.training.states_in_8_bits import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(
        list(parameters), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
    )
    return made


def _each(groups: Iterable[Any]) -> Iterable[nn.Parameter]:
    for group in groups:
        yield from group["params"] if isinstance(group, dict) else [group]


def check_shards(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer of bitsandbytes, whose kernels see plain tensors, where weights are cut.

    Raises:
        ConfigError: E-OPTIMIZER-SHARDED: the parameters are cut over processes.
    """
    theirs = type(optimizer).__module__.partition(".")[0] == "bitsandbytes"
    if theirs and any(is_distributed(p) for p in _each(optimizer.param_groups)):
        raise ConfigError(
            "E-OPTIMIZER-SHARDED", "bitsandbytes' optimizers cannot step weights cut over processes",
            where="optimizer", do="use optimizer=adamw_8bit, or one process",
        )  # fmt: skip


def rounding_note(optimizer: torch.optim.Optimizer) -> str:
    """Return a warning where the updates of `optimizer` are too small for weights in bf16, or "".

    bf16 keeps 8 bits: AdamW changes a weight by about the learning rate, and what is less than 1/512
    of the weight is rounded away. Below 1e-4 that is most of a fine-tune of whole weights.
    """
    small = any(
        # a schedule puts the rate of its first step into lr, in a warm-up 0
        group.get("initial_lr", group["lr"]) < 1e-4
        and any(p.dtype == torch.bfloat16 for p in group["params"])
        for group in optimizer.param_groups
    )
    advice = "master_weights=true keeps them, for 8 more bytes a trained weight"
    return f"bf16 weights round away most updates of a rate below 1e-4; {advice}" if small else ""
