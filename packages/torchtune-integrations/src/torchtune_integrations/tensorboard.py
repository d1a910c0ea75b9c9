"""Metrics to TensorBoard; needs the extra `tensorboard`."""

import json
from pathlib import Path
from typing import Any

from torchtune.errors import MissingError
from torchtune.training import Progress

from torchtune_integrations.result_files import result_files

__all__ = ["TensorBoardLogger"]

TEXTS = ("config.yaml", "environment.json", "samples.jsonl")


class TensorBoardLogger:
    """Write each figure as a scalar over steps, and the configuration as text.

    A resumed run hides what an interrupted one wrote after the step that it goes on from. Each
    step is written at once, so that a killed run keeps what it logged.

    Args:
        log_dir: Folder of the event files; ``<output_dir>/tensorboard`` where not given.
        log_files: Show environment, samples and the loss picture too, when the run ends.
        output_dir: The run's folder; the recipe gives it.
        progress: How far the run is; the recipe gives it.

    Raises:
        MissingError: TensorBoard is not installed.
    """

    def __init__(
        self,
        log_dir: str | None = None,
        log_files: bool = False,
        output_dir: str = ".",
        progress: Progress | None = None,
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingError(
                "E-PACKAGE",
                "the metric logger 'tensorboard' needs a package that is not installed",
                where="metric_logger",
                do="pip install 'torchtune-integrations[tensorboard]'",
            ) from error
        self._files, self._folder = log_files, Path(output_dir)
        self._step = progress.step if progress else 0
        folder = Path(log_dir) if log_dir else self._folder / "tensorboard"
        self._writer = SummaryWriter(str(folder), purge_step=self._step + 1)

    def log_config(self, config: dict[str, Any]) -> None:
        """Show the configuration as indented JSON."""
        self._show("config", json.dumps(config, indent=2, default=str))

    def log(self, metrics: dict[str, float], progress: Progress) -> None:
        """Write the figures of one step under their names."""
        self._step = progress.step
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, progress.step)
        self._writer.flush()

    def close(self) -> None:
        """Show the files that were asked for, and close the event file."""
        for path in result_files(self._folder) if self._files else []:
            if path.name in TEXTS:
                self._show(path.name, path.read_text(encoding="utf-8"))
            elif path.suffix == ".png":
                self._picture(path)
        self._writer.close()

    def _show(self, name: str, text: str) -> None:
        self._writer.add_text(name, f"```\n{text}\n```", self._step)

    def _picture(self, path: Path) -> None:
        from matplotlib.image import imread

        self._writer.add_image(path.stem, imread(path)[..., :3], self._step, dataformats="HWC")
