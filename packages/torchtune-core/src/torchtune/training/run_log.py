"""What a run tells while it goes: lines and a bar for the eye, figures for loggers."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from torchtune.training.loggers import Logger, without_secrets
from torchtune.training.plot import plot_loss
from torchtune.training.progress import Progress

__all__ = ["RunLog"]

SHOWN = {"loss": "{:.4f}", "val_loss": "{:.4f}", "lr": "{:.2e}", "tokens_per_second": "{:,.0f}"}
"""The figures beside the progress bar."""

SECONDS_BETWEEN_LINES = 30.0
"""How often the bar is drawn into a file, where each drawing stays."""

SECONDS_BETWEEN_PICTURES = 60


class RunLog:
    """Talks to the user on stderr and hands figures to loggers; silent unless it is the main process.

    Args:
        speaks: Whether this is the main process.
        every_n_steps: Hand figures on every so many steps; a validation's always.
    """

    def __init__(self, *, speaks: bool, every_n_steps: int = 1) -> None:
        self.speaks = speaks
        self.every_n_steps = every_n_steps
        self._loggers: Sequence[Logger] = ()
        self._bar: tqdm[Any] | None = None
        self._drawn = time.monotonic()

    def say(self, label: str, text: object) -> None:
        """Print lines on stderr, the first behind `label`; nothing for an empty text."""
        if self.speaks and str(text):
            indented = str(text).replace("\n", "\n" + " " * 11)
            tqdm.write(f"{label:10} {indented}", file=sys.stderr)  # above the bar, if there is one
            sys.stderr.flush()

    def start(self, loggers: Sequence[Logger], *, config: dict[str, Any], total: int) -> None:
        """Take the loggers, tell them the `config`, and keep `total` steps for the bar.

        What looks like a password or an access token in the configuration is hidden from them.
        """
        self._loggers, self._total = loggers, total
        for logger in loggers:
            logger.log_config(without_secrets(config))

    def log(
        self,
        metrics: dict[str, float],
        progress: Progress,
        measured: dict[str, float] | None = None,
    ) -> None:
        """Move the bar on and hand the figures of a step to the loggers where it is time to.

        Args:
            metrics: Those of the step.
            progress: How far the run is.
            measured: What was measured besides, such as ``val_loss``: handed on in any case.
        """
        metrics = {**metrics, **(measured or {})}
        if progress.step % self.every_n_steps == 0 or measured:
            for logger in self._loggers:
                logger.log(metrics, progress)
        if not self.speaks:
            return
        if self._bar is None:
            done = progress.step - 1
            often = 0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
            self._bar = tqdm(total=self._total, initial=done, unit="step", mininterval=often)
        shown = {key: form.format(metrics[key]) for key, form in SHOWN.items() if key in metrics}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(progress.step - self._bar.n)

    def draw(self, folder: Path, *, at_once: bool = False) -> None:
        """Draw `loss.png` from the `metrics.jsonl` of a run's folder, once a minute at most.

        Args:
            folder: The run's output folder.
            at_once: Draw whenever the last time was.
        """
        if self.speaks and (at_once or time.monotonic() - self._drawn > SECONDS_BETWEEN_PICTURES):
            plot_loss(folder / "metrics.jsonl", folder / "loss.png")
            self._drawn = time.monotonic()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        """End the bar, so that what is said next, an error too, begins on a line of its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """End the bar and the loggers."""
        self.__exit__()
        for logger in self._loggers:
            logger.close()
