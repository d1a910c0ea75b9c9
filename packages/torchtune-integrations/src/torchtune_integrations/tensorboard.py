"""Metrics to TensorBoard; needs the extra `tensorboard`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchtune.errors import MissingError
from torchtune.training import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger:
    """Write each figure as a scalar over steps, and the configuration as text.

    A resumed run hides what an interrupted one wrote after the step that it goes on from.

    Args:
        log_dir: Folder of the event files; ``<output_dir>/tensorboard`` where not given.
        output_dir: The run's folder; the recipe gives it.

    Raises:
        MissingError: TensorBoard is not installed.
    """

    def __init__(self, log_dir: str | None = None, output_dir: str = ".") -> None:
        try:
            from torch.utils import tensorboard
        except ImportError as error:
            raise MissingError(
                "E-PACKAGE",
                "the metric logger 'tensorboard' needs a package that is not installed",
                where="metric_logger",
                do="pip install 'torchtune-integrations[tensorboard]'",
            ) from error
        self._open = tensorboard.SummaryWriter
        self._log_dir = Path(log_dir) if log_dir else Path(output_dir) / "tensorboard"
        self._config: dict[str, Any] = {}
        self._writer: SummaryWriter | None = None

    def log_config(self, config: dict[str, Any]) -> None:
        """Keep the configuration; it is written, as indented JSON, with the first figures."""
        self._config = config

    def log(self, metrics: dict[str, float], progress: Progress) -> None:
        """Write the figures of one step under their names."""
        if self._writer is None:
            self._writer = self._open(str(self._log_dir), purge_step=progress.step)
            text = json.dumps(self._config, indent=2, default=str)
            self._writer.add_text("config", f"```\n{text}\n```", progress.step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, progress.step)

    def close(self) -> None:
        """Write out what is kept back and close the file."""
        if self._writer is not None:
            self._writer.close()
