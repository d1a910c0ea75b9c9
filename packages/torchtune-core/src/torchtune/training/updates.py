"""How the gradients of a step become new weights: after backward, inside it, or with a scaled loss."""

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchtune.distributed import GradientNorm, clip_grad_norm, is_distributed, local_part
from torchtune.errors import ConfigError

if TYPE_CHECKING:
    from torchtune.distributed import World

__all__ = [
    "LossScaling",
    "StepAfterBackward",
    "StepInBackward",
    "Update",
    "Updated",
    "build_update",
]


@dataclass(frozen=True)
class Updated:
    """What an update did.

    Args:
        grad_norm: 2-norm of the whole gradient before clipping; where it is not finite, no step was
            taken, unless `intact` is false.
        loss_scale: What the loss was multiplied by; None where it was not.
        skipped: The gradient was not finite, as may happen with a loss scale, and the run goes on.
        intact: Whether the weights are those before the step if the gradient was not finite.
    """

    grad_norm: float
    loss_scale: float | None = None
    skipped: bool = False
    intact: bool = True


class Update(Protocol):
    """Runs backward and takes the optimizer's step; `train_step` calls the three in this order."""

    def begin(self, *, micro_batches: int, max_norm: float | None) -> None:
        """Begin a step of so many `micro_batches` whose gradient is cut to the norm `max_norm`."""

    def backward(self, loss: Tensor) -> None:
        """Run backward on a micro-batch's share of the step's mean loss, shape ()."""

    def finish(self) -> Updated:
        """Take the step where the gradient is finite, free the gradients; return what was done.

        Raises:
            ConfigError: E-OPTIMIZER-SHARDED: the optimizer cannot step weights cut over processes.
        """


class StepAfterBackward:
    """The plain way: all gradients, then their norm, then the step.

    Args:
        optimizer: Holds the trainable parameters.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._max_norm: float | None = None

    def begin(self, *, micro_batches: int, max_norm: float | None) -> None:
        """Remember `max_norm`; `micro_batches` may be any number."""
        self._max_norm = max_norm

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, shape ()."""
        loss.backward()

    def finish(self) -> Updated:
        """Clip and step where the norm is finite, and return what was done."""
        norm = clip_grad_norm(_parameters(self.optimizer), self._max_norm).item()
        if math.isfinite(norm):
            _step(self.optimizer)
            self.optimizer.zero_grad(set_to_none=True)
        return Updated(norm)


class StepInBackward:
    """Steps each parameter as soon as backward has its gradient, and frees that at once.

    So no more than one gradient exists at a time (one block's under FSDP). It is one and the same
    optimizer, which sees one parameter at a time: state, groups, schedules and checkpoints are those
    of the plain way, and so is every number. What needs all gradients first is refused: clipping, and
    several micro-batches a step.

    Args:
        optimizer: Keeps its state by parameter, as all of torch.optim do but LBFGS. Call this after
            the model is sharded and has its memory.
        world: The processes.
    """

    def __init__(self, optimizer: Optimizer, world: "World") -> None:
        self.optimizer = optimizer
        self._world = world
        self._norm = GradientNorm()
        self._loss_is_finite = True
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(partial(self._step, number))

    def begin(self, *, micro_batches: int, max_norm: float | None) -> None:
        """Refuse what cannot be done without all gradients.

        Raises:
            ConfigError: E-STEP-IN-BACKWARD: `micro_batches` is more than one, or `max_norm` given.
        """
        if micro_batches > 1 or max_norm is not None:
            key = "clip_grad_norm" if micro_batches == 1 else "gradient_accumulation_steps"
            raise ConfigError(
                "E-STEP-IN-BACKWARD",
                f"a step in backward uses each gradient before the rest is known, so not with {key}",
                where=key, do="set optimizer_in_bwd=false",
            )  # fmt: skip

    def backward(self, loss: Tensor) -> None:
        """Run backward from `loss`, shape (), and the steps in it, if it is finite on every process."""
        if self._world.any(not math.isfinite(loss.item())):
            return
        loss.backward()

    def finish(self) -> Updated:
        """Return the norm of the gradients that are gone; the steps are taken."""
        return Updated(self._norm.total().item(), intact=False)

    def _step(self, number: int, parameter: nn.Parameter) -> None:
        if parameter.grad is None:
            return
        self._norm.add([parameter.grad])
        groups = self.optimizer.param_groups
        alone: dict[str, Any] = {**groups[number], "params": [parameter]}
        self.optimizer.param_groups = [alone]
        try:
            _step(self.optimizer)
        finally:
            self.optimizer.param_groups = groups
        parameter.grad = None
        if changed := [key for key, value in groups[number].items() if _other(alone[key], value)]:
            raise ConfigError(
                "E-STEP-IN-BACKWARD",
                f"{type(self.optimizer).__name__} counts in its groups ({', '.join(changed)}), "
                "so it cannot step one parameter at a time",
                where="optimizer_in_bwd", do="set optimizer_in_bwd=false",
            )  # fmt: skip


INITIAL_SCALE, GROWTH_INTERVAL = 2.0**16, 2000
"""As torch.amp.GradScaler has them."""


class LossScaling:
    """Multiplies the loss so that small gradients do not vanish in fp16 (Micikevicius et al., 2018).

    A step whose gradient is not finite on any process is skipped on all, and the scale is halved;
    after `growth_interval` good steps in a row it is doubled. Gradients are divided by it before
    clipping. The scale is exhausted when the gradient is not finite at 1. Weights must be fp32, with
    fp16 only to compute in (`master_weights`, `shard`).

    Scale and count are among the options of the optimizer's first group, ``loss_scale`` and
    ``loss_scale_good_steps``, so whoever saves the optimizer has saved them.

    Args:
        optimizer: Holds the trainable parameters.
        initial_scale: Where to begin.
        growth_interval: Good steps after which the scale is doubled.

    Raises:
        ConfigError: E-FP16-WEIGHTS: a trainable parameter is in fp16.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        initial_scale: float = INITIAL_SCALE,
        growth_interval: int = GROWTH_INTERVAL,
    ) -> None:
        if any(p.dtype == torch.float16 for p in _parameters(optimizer)):
            raise ConfigError(
                "E-FP16-WEIGHTS",
                "weights cannot be trained in fp16: it rounds small updates away and ends at 65,504",
                where="dtype", do="set master_weights=true: fp32 weights, computed with in fp16",
            )  # fmt: skip
        self.optimizer = optimizer
        self.growth_interval = growth_interval
        self._max_norm: float | None = None
        optimizer.param_groups[0].update(loss_scale=initial_scale, loss_scale_good_steps=0)

    def begin(self, *, micro_batches: int, max_norm: float | None) -> None:
        """Remember `max_norm`; `micro_batches` may be any number."""
        self._max_norm = max_norm

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, shape (), multiplied by the scale."""
        (loss * self.optimizer.param_groups[0]["loss_scale"]).backward()

    def finish(self) -> Updated:
        """Divide, clip and step, or skip the step; move the scale, and return what was done."""
        kept = self.optimizer.param_groups[0]
        scale = float(kept["loss_scale"])
        norm = clip_grad_norm(_parameters(self.optimizer), None).item() / scale
        finite = math.isfinite(norm)
        if finite:
            self._scale_gradients(1 / scale, norm)
            _step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        good = kept["loss_scale_good_steps"] + 1 if finite else 0
        if not finite:
            kept["loss_scale"] = scale / 2
        elif good == self.growth_interval:
            kept["loss_scale"], good = scale * 2, 0
        kept["loss_scale_good_steps"] = good
        return Updated(norm, loss_scale=scale, skipped=not finite and scale > 1)

    def _scale_gradients(self, factor: float, norm: float) -> None:
        if self._max_norm is not None:
            factor *= min(1.0, self._max_norm / (norm + 1e-6))  # as `clip_grad_norm` cuts
        gradients = [p.grad for p in _parameters(self.optimizer) if p.grad is not None]
        torch._foreach_mul_([local_part(gradient) for gradient in gradients], factor)


def _step(optimizer: Optimizer) -> None:
    try:
        optimizer.step()
    except (NotImplementedError, RuntimeError) as error:
        cut = any(is_distributed(parameter) for parameter in _parameters(optimizer))
        if not cut or "harding" not in str(error):  # of DTensor, which lacks an operation
            raise
        raise ConfigError(
            "E-OPTIMIZER-SHARDED",
            f"{type(optimizer).__name__} cannot step weights cut over processes",
            where="optimizer", do="use optimizer=adamw, or one process",
        ) from error  # fmt: skip


def _check_closure(optimizer: Optimizer) -> None:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            "E-OPTIMIZER-CLOSURE",
            f"{type(optimizer).__name__} computes the loss several times in a step",
            where="optimizer", do="use optimizer=adamw, or a loop of your own",
        )  # fmt: skip


def _parameters(optimizer: Optimizer) -> Iterable[nn.Parameter]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _other(value: object, before: object) -> bool:
    """Whether an option was changed; the list of parameters is another one in any case."""
    return value is not before and not isinstance(before, list) and bool(value != before)


def build_update(
    optimizer: Optimizer, world: "World", dtype: torch.dtype, *, in_backward: bool
) -> Update:
    """Return the update for a run: plain, in backward, or with a scaled loss.

    Args:
        optimizer: Holds the trainable parameters.
        world: The processes.
        dtype: What the model computes in; float16 needs a scaled loss.
        in_backward: Step each parameter in backward.

    Raises:
        ConfigError: E-OPTIMIZER-CLOSURE: its step needs a function that computes the loss again.
    """
    _check_closure(optimizer)
    if in_backward:
        return StepInBackward(optimizer, world)
    return LossScaling(optimizer) if dtype == torch.float16 else StepAfterBackward(optimizer)
