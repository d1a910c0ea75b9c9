"""One optimizer step."""

import math
import time
import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from torchtune.data import Batch
from torchtune.distributed import World, local_part, one_sum_a_step
from torchtune.errors import ConfigError, TuneError
from torchtune.training.flops import flops_utilization
from torchtune.training.memory import peak_memory
from torchtune.training.progress import StepMetrics
from torchtune.training.updates import StepAfterBackward, Update, Updated

__all__ = ["evaluate", "train_step"]


class SummedLoss(Protocol):
    """A sum of token losses from hidden states, output matrix and labels (`torchtune.losses`)."""

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Return the fp32 sum, shape ()."""


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    world: World,
    *,
    loss: SummedLoss,
    max_norm: float | None = None,
    scheduler: LRScheduler | None = None,
    step: int | None = None,
    update: Update | None = None,
) -> StepMetrics:
    """Take one optimizer step on this rank's share of it and return what it was over all ranks.

    The loss is divided by the supervised tokens of the whole step before backward, so that neither the
    number of micro-batches nor that of processes changes the gradient.

    Args:
        model: Called as `model(batch, loss=loss)`; a Decoder, sharded or not. Put in training mode.
        optimizer: Holds the trainable parameters; its gradients are freed at the end.
        batches: This rank's micro-batches of the step; every rank has as many.
        world: The processes.
        loss: The sum of token losses.
        max_norm: Where the 2-norm of the whole gradient is cut; None does not cut.
        scheduler: Moved on after the step.
        step: The step's number, for the error.
        update: How gradients become weights: `StepAfterBackward` where None, `StepInBackward`, or
            `LossScaling`; made once, on this `optimizer`.

    Raises:
        TuneError: E-NOT-FINITE: the loss or the gradient is not finite; the weights are those before
            the step, except for a gradient with `StepInBackward`. Rows are named, or weights that
            were not finite before the step.
        ConfigError: The `update` cannot do with so many micro-batches, with `max_norm`, or with
            weights that are cut; E-SCHEDULE: the `scheduler` follows a validation's loss.
    """
    if step is not None:
        world.note_step(step)
    began, lr = time.perf_counter(), float(optimizer.param_groups[0]["lr"])
    update = update or StepAfterBackward(optimizer)
    update.begin(micro_batches=len(batches), max_norm=max_norm)
    model.train()
    supervised = world.sum(sum(batch.supervised for batch in batches))
    in_order = one_sum_a_step(model, batches, world)
    sums = [_backward(model, batch, loss, update, supervised, world) for batch in in_order]
    values = torch.stack(sums).tolist()
    total = world.sum(math.fsum(values)) / max(1, supervised)
    if not math.isfinite(total):
        if broken := _broken_weights(model, world):
            raise _weights_not_finite(broken, total, step)
        raise _not_finite("loss", total, step, _rows(batches, values))
    done = update.finish()
    if not (math.isfinite(done.grad_norm) or done.skipped):
        raise _not_finite("gradient norm", done.grad_norm, step, _rows(batches, None), done)
    if scheduler is not None:
        _move_on(scheduler, done)
    tokens = world.sum(sum(batch.num_tokens for batch in batches))
    seconds = time.perf_counter() - began
    return StepMetrics(
        loss=total,
        grad_norm=done.grad_norm,
        lr=lr,
        tokens=tokens,
        supervised_tokens=supervised,
        tokens_per_second=tokens / seconds,
        peak_memory_bytes=world.max(peak_memory(world.device)),
        seconds=seconds,
        mfu=flops_utilization(model, batches, world, seconds),
        loss_scale=done.loss_scale,
    )


def _backward(
    model: nn.Module,
    batch: Batch,
    loss: SummedLoss,
    update: Update,
    supervised: int,
    world: World,
) -> Tensor:
    value = model(batch.to(world.device), loss=loss)
    update.backward(value / max(1, supervised))
    return value.detach()


def _move_on(scheduler: LRScheduler, done: Updated) -> None:
    """Count the step, taken or skipped, as the rows of both are behind us."""
    if isinstance(scheduler, ReduceLROnPlateau):
        what = "ReduceLROnPlateau follows a validation's loss, and a step has none"
        do = "use another schedule, or step this one in a copy of the recipe, after a validation"
        raise ConfigError("E-SCHEDULE", what, where="lr_scheduler", do=do)
    with warnings.catch_warnings():
        if done.skipped:  # torch takes a schedule's step before the optimizer's first for a mistake
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        scheduler.step()


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Sequence[Batch], world: World, *, loss: SummedLoss
) -> float:
    """Return the mean loss over all supervised tokens of `batches`, over all processes.

    Args:
        model: Called as in `train_step`, in evaluation mode.
        batches: This rank's share; every rank has as many.
        world: The processes.
        loss: The sum of token losses.
    """
    was_training = model.training
    model.eval()
    sums = [model(batch.to(world.device), loss=loss) for batch in batches]
    model.train(was_training)
    supervised = world.sum(sum(batch.supervised for batch in batches))
    return world.sum(math.fsum(torch.stack(sums).tolist())) / max(1, supervised)


def _rows(batches: Sequence[Batch], sums: Sequence[float] | None) -> str:
    """Name the rows of this rank's micro-batches, of those whose loss is not finite where known."""
    kept = [
        batch
        for index, batch in enumerate(batches)
        if sums is None or not math.isfinite(sums[index])
    ]
    rows = [row for batch in kept for row in batch.rows]
    return ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")


def _broken_weights(model: nn.Module, world: World) -> list[str]:
    """Name the parameters that hold a value that is not finite, on any process."""
    own = [
        name
        for name, parameter in model.named_parameters()
        if not torch.isfinite(local_part(parameter.detach())).all()
    ]
    return list(dict.fromkeys(name for names in world.gather(own) for name in names))


def _weights_not_finite(broken: Sequence[str], value: float, step: int | None) -> TuneError:
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return TuneError(
        "E-NOT-FINITE",
        f"the loss is {value}" + (f" in step {step}" if step is not None else ""),
        where=f"weights that are not finite before the step: {broken[0]}{more}",
        do="begin from weights that are; where earlier steps broke them, lower the learning rate",
    )


def _not_finite(
    what: str, value: float, step: int | None, rows: str, done: Updated | None = None
) -> TuneError:
    state = "nothing was changed by this step"
    if done is not None and not done.intact:
        state = "weights were changed by this step, so go on from a checkpoint"
    cause = "look at the rows, lower the learning rate, or use fp32"
    if done is not None and done.loss_scale is not None:
        cause = f"the loss scale is down to {done.loss_scale:g}: use bf16 or fp32"
    return TuneError(
        "E-NOT-FINITE",
        f"the {what} is {value}" + (f" in step {step}" if step is not None else ""),
        where=f"rows {rows}" if rows else "rows of another rank",
        do=f"{state}; {cause}",
    )
