"""Stopping when asked to."""

import signal
from pathlib import Path
from types import FrameType

from torchtune.errors import Interrupted

__all__ = ["StopSignal", "interrupted"]


class StopSignal:
    """Remember SIGTERM and SIGINT instead of dying of them, so that the step ends and is saved.

    A second SIGINT raises KeyboardInterrupt, for whoever cannot wait. `close` puts the former
    handlers back.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def close(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)


def interrupted(step: int, folder: Path) -> Interrupted:
    """Return the error that ends a run which was asked to stop, and has saved: exit code 75.

    Args:
        step: Optimizer steps done.
        folder: The run's output folder.
    """
    what = f"stopped after step {step} as asked, and saved"
    do = "resume_from_checkpoint=auto goes on from there"
    return Interrupted("E-INTERRUPTED", what, where=str(folder), do=do)
