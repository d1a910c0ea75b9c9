"""The name under which a service knows a run, kept beside the run's files."""

from collections.abc import Callable
from pathlib import Path

from torchtune.training import Progress

__all__ = ["kept_run_id"]


def kept_run_id(file: Path, progress: Progress | None, new: Callable[[], str]) -> str:
    """Return the id that `file` holds if the run goes on, else a new one, kept there.

    A run that starts from step 0 over what an interrupted one left is another run.

    Args:
        file: Made with its folder where absent.
        progress: How far the run is.
        new: Makes an id.
    """
    if progress is not None and progress.step and file.exists():
        return file.read_text(encoding="utf-8").strip()
    made = new()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(made, encoding="utf-8")
    return made
