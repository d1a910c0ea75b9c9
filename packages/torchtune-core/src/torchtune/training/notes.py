"""What a user is to know of a run before its first step."""

from typing import Any

from torch.optim import Optimizer

from torchtune.training.activations import HasBlocks
from torchtune.training.fp8 import fp8_note
from torchtune.training.optimizers import rounding_note
from torchtune.training.schedules import warmup_note

__all__ = ["run_notes"]


def run_notes(model: HasBlocks, optimizer: Optimizer, params: Any, num_training_steps: int) -> str:
    """Return what is noteworthy of a run's settings, a line each: `fp8_note` and the other two.

    Args:
        model: As it will train.
        optimizer: Over its parameters.
        params: A recipe's; ``lr_scheduler`` is read.
        num_training_steps: Optimizer steps of the whole run.
    """
    notes = (
        fp8_note(model),
        rounding_note(optimizer),
        warmup_note(params.lr_scheduler, num_training_steps),
    )
    return "\n".join(filter(None, notes))
