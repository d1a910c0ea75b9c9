"""Optimizers with the defaults that fine-tuning wants."""

from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["adamw", "rounding_note"]

FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}
"""Where torch has a fused AdamW; on a CPU it takes a third of the for-loop's time."""


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float = 2e-5,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """Build torch's AdamW (Loshchilov and Hutter, 2019), fused where torch can.

    Args:
        parameters: What to train.
        lr: Learning rate; 2e-5 suits full fine-tuning, LoRA wants about ten times that.
        betas: Decay of the two running means.
        eps: Added to the denominator.
        weight_decay: Decoupled decay of every parameter, per step times `lr`.
        fused: Whether one kernel does the whole update; None chooses by the device.
    """
    parameters = list(parameters)
    if fused is None:
        fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(
        parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused
    )


def rounding_note(optimizer: torch.optim.Optimizer) -> str:
    """Return a warning where the updates of `optimizer` are too small for weights in bf16, or "".

    bf16 keeps 8 bits: AdamW changes a weight by about the learning rate, and what is less than 1/512
    of the weight is rounded away. Below 1e-4 that is most of a fine-tune of whole weights.
    """
    small = any(
        group["lr"] < 1e-4 and any(p.dtype == torch.bfloat16 for p in group["params"])
        for group in optimizer.param_groups
    )
    advice = "master_weights=true keeps them, for 8 more bytes a trained weight"
    return f"bf16 weights round away most updates of a rate below 1e-4; {advice}" if small else ""
