"""Learning-rate schedules: a factor on the optimizer's rate for each optimizer step.

The factor at step 0 is that of the first step. With warm-up it is 0 there, as in transformers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from torchtune.errors import ConfigError

__all__ = [
    "constant_schedule",
    "cosine_schedule",
    "linear_schedule",
    "warmup_note",
    "wsd_schedule",
]


def cosine_schedule(
    optimizer: Optimizer,
    *,
    num_training_steps: int,
    num_warmup_steps: int = 0,
    num_cycles: float = 0.5,
    min_lr_ratio: float = 0.0,
) -> LambdaLR:
    """Return a schedule that rises linearly, then falls along a cosine (Loshchilov and Hutter, 2017).

    Args:
        optimizer: Whose rate to scale.
        num_training_steps: Optimizer steps of the whole run; the recipe gives it.
        num_warmup_steps: Steps of the rise from 0.
        num_cycles: Cosine waves after the rise; 0.5 falls once.
        min_lr_ratio: The factor's floor.
    """

    def fall(share: float) -> float:
        wave = 0.5 * (1 + math.cos(math.pi * num_cycles * 2 * share))
        return min_lr_ratio + (1 - min_lr_ratio) * wave

    return _schedule(optimizer, num_warmup_steps, num_training_steps, fall)


def linear_schedule(
    optimizer: Optimizer,
    *,
    num_training_steps: int,
    num_warmup_steps: int = 0,
    min_lr_ratio: float = 0.0,
) -> LambdaLR:
    """Return a schedule that rises, then falls linearly to `min_lr_ratio` at `num_training_steps`.

    Args:
        optimizer: Whose rate to scale.
        num_training_steps: Optimizer steps of the whole run; the recipe gives it.
        num_warmup_steps: Steps of the rise from 0.
        min_lr_ratio: The factor at the end.
    """

    def fall(share: float) -> float:
        return min_lr_ratio + (1 - min_lr_ratio) * max(0.0, 1 - share)

    return _schedule(optimizer, num_warmup_steps, num_training_steps, fall)


def constant_schedule(optimizer: Optimizer, *, num_warmup_steps: int = 0) -> LambdaLR:
    """Return a schedule that rises linearly over `num_warmup_steps`, then stays.

    Args:
        optimizer: Whose rate to scale.
        num_warmup_steps: Steps of the rise from 0.
    """
    return _schedule(optimizer, num_warmup_steps, num_warmup_steps + 1, lambda share: 1.0)


def wsd_schedule(
    optimizer: Optimizer,
    *,
    num_training_steps: int,
    num_decay_steps: int,
    num_warmup_steps: int = 0,
    min_lr_ratio: float = 0.0,
) -> LambdaLR:
    """Return a schedule of warm-up, stable, decay (Hu et al., 2024, MiniCPM): up, level, down.

    Args:
        optimizer: Whose rate to scale.
        num_training_steps: Optimizer steps of the whole run; the recipe gives it.
        num_decay_steps: Steps of the fall at the end.
        num_warmup_steps: Steps of the rise from 0.
        min_lr_ratio: The factor at the end.

    Raises:
        ConfigError: Rise and fall are longer than the run.
    """
    if num_warmup_steps + num_decay_steps > num_training_steps:
        what = f"warm-up {num_warmup_steps} + decay {num_decay_steps} exceed {num_training_steps} steps"
        raise ConfigError("E-SCHEDULE", what, where="lr_scheduler")
    stable = num_training_steps - num_decay_steps

    def fall(share: float) -> float:
        step = num_warmup_steps + share * (num_training_steps - num_warmup_steps)
        left = min(1.0, (num_training_steps - step) / max(1, num_training_steps - stable))
        return min_lr_ratio + (1 - min_lr_ratio) * max(0.0, left)

    return _schedule(optimizer, num_warmup_steps, num_training_steps, fall)


def warmup_note(lr_scheduler: Mapping[str, Any] | str | None, num_training_steps: int) -> str:
    """Return a warning where a run ends before the rate has risen to the optimizer's own, or "".

    A run may be meant to be short, as one that is to be gone on with, so that this is no error.

    Args:
        lr_scheduler: A recipe's component, with its arguments.
        num_training_steps: Optimizer steps of the whole run.
    """
    arguments = lr_scheduler if isinstance(lr_scheduler, Mapping) else {}
    rise = arguments.get("num_warmup_steps", 0)
    if not isinstance(rise, int) or rise < num_training_steps:
        return ""
    share = (num_training_steps - 1) / max(1, rise)
    short = f"with a warm-up of {rise:,} steps a run of {num_training_steps:,}"
    return f"{short} never comes to the full rate: its last step has {share:.0%} of it"


def _schedule(
    optimizer: Optimizer, warmup: int, total: int, fall: Callable[[float], float]
) -> LambdaLR:
    """Scale by `step / warmup`, then by `fall(share of the rest that is done)`."""
    if warmup < 0:
        what = f"must not be negative, found {warmup}"
        raise ConfigError("E-RANGE", what, where="lr_scheduler.num_warmup_steps")

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        return fall((step - warmup) / max(1, total - warmup))

    return LambdaLR(optimizer, factor)
