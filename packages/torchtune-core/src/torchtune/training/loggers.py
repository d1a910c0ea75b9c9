"""Where figures go."""

import json
from pathlib import Path
from typing import Any, Protocol

from torchtune.training.progress import Progress

__all__ = ["JsonlLogger", "Logger"]


class Logger(Protocol):
    """Whoever listens to a run; only the main process has one."""

    def log_config(self, config: dict[str, Any]) -> None:
        """Take the resolved configuration, once, before the first step."""

    def log(self, metrics: dict[str, float], progress: Progress) -> None:
        """Take the figures of one step."""

    def close(self) -> None:
        """Finish writing."""


class JsonlLogger:
    """One JSON object a line, flushed line by line, so that a killed run keeps what it logged.

    Args:
        path: The file; lines are added at its end.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def log_config(self, config: dict[str, Any]) -> None:
        """Do nothing: the configuration has a file of its own."""

    def log(self, metrics: dict[str, float], progress: Progress) -> None:
        """Write one line: step and epoch, then the metrics."""
        line = {"step": progress.step, "epoch": progress.epoch, **metrics}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
