"""How far a run is."""

import math
from dataclasses import asdict, dataclass, replace

__all__ = ["Progress", "StepMetrics"]


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step was, over all processes.

    Args:
        loss: Mean over the step's supervised tokens, in nats.
        grad_norm: 2-norm of the whole gradient before clipping; not finite where the step was skipped,
            which only a loss scale does.
        lr: Learning rate of the step.
        tokens: Real tokens.
        supervised_tokens: Tokens that trained.
        tokens_per_second: Real tokens over `seconds`.
        peak_memory_bytes: The most that any process has held so far.
        seconds: From the first forward to the end of the update.
        mfu: Share of the devices' peak that went into the model (`model_flops`); None where the peak
            is not known, as on a CPU.
        loss_scale: What the loss was multiplied by; None where it was not.
    """

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    supervised_tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    seconds: float
    mfu: float | None = None
    loss_scale: float | None = None

    def figures(self) -> dict[str, float]:
        """Return the figures by name without those that are None or not finite."""
        named = asdict(self).items()
        return {name: value for name, value in named if value is not None and math.isfinite(value)}


@dataclass(frozen=True)
class Progress:
    """How far the run is; with weights and optimizer, all that a resume needs.

    Args:
        step: Optimizer steps done.
        epoch: Passes over the data done.
        tokens: Real tokens seen, over all processes.
        supervised_tokens: Tokens trained on.
        best_loss: Lowest validation loss so far.
        best_step: The step it was measured after.
        validations_since_best: Validations since then; `patience` counts these.
    """

    step: int = 0
    epoch: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    best_loss: float | None = None
    best_step: int = 0
    validations_since_best: int = 0

    def after(self, metrics: StepMetrics, *, steps_per_epoch: int) -> "Progress":
        """Return the progress one step later; `metrics` are that step's.

        Args:
            metrics: Of the step, for its tokens.
            steps_per_epoch: By which the epoch is counted.
        """
        return replace(
            self,
            step=self.step + 1,
            epoch=(self.step + 1) // steps_per_epoch,
            tokens=self.tokens + metrics.tokens,
            supervised_tokens=self.supervised_tokens + metrics.supervised_tokens,
        )

    def validated(self, loss: float) -> "Progress":
        """Return the progress after a validation with this mean loss."""
        best = math.inf if self.best_loss is None else self.best_loss
        if loss < best:  # never true of NaN
            return replace(self, best_loss=loss, best_step=self.step, validations_since_best=0)
        return replace(self, validations_since_best=self.validations_since_best + 1)
