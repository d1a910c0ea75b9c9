"""Metrics as a table."""

import csv
from pathlib import Path
from typing import Any

from torchtune.training import Progress


class CsvLogger:
    """Write one row a step into ``logs/metrics.csv`` of the run's folder.

    Args:
        columns: Which figures, in this order.
        output_dir: The run's folder; the recipe gives it.
        progress: How far the run is; the recipe gives it.
    """

    def __init__(
        self,
        columns: list[str],
        output_dir: str = ".",
        progress: Progress | None = None,
    ) -> None:
        path = Path(output_dir, "logs", "metrics.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _rows(path, progress.step if progress else 0)
        self._columns = columns
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerows(kept or [["step", *columns]])

    def log_config(self, config: dict[str, Any]) -> None:
        """Do nothing: a table has no place for it."""

    def log(self, metrics: dict[str, float], progress: Progress) -> None:
        """Write one row; a figure that the step has not is left empty."""
        self._writer.writerow([progress.step, *(metrics.get(name, "") for name in self._columns)])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rows(path: Path, step: int) -> list[list[str]]:
    """Return the head and the rows up to the step that a run goes on from; nothing for a fresh run."""
    if not step or not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = list(csv.reader(file))
    return [head, *(row for row in rows if int(row[0]) <= step)]
