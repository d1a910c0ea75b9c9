"""Stopping when asked to."""

import os
import signal
import time
from pathlib import Path
from types import FrameType

from torchtune.distributed import World, hurried
from torchtune.errors import Interrupted

__all__ = ["StopSignal", "interrupted"]


ONE_STOP_SECONDS = 1.0
"""Signals closer together are one: a stop may reach a process twice, by its group and by its parent."""


class StopSignal:
    """Remember SIGTERM and SIGINT instead of dying of them, so that the step ends and is saved.

    A second one, for whoever cannot wait, raises KeyboardInterrupt (SIGINT) or SystemExit with 143
    (SIGTERM); a SIGTERM under torchrun does not, as its launcher ends the workers itself then.
    `close` puts the former handlers back.
    """

    def __init__(self) -> None:
        self.requested = False
        self.agreed = False
        self._first = 0.0
        self._former = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._first = True, time.monotonic()
        elif number == signal.SIGINT:
            hurried.set()
            raise KeyboardInterrupt
        elif time.monotonic() - self._first > ONE_STOP_SECONDS and not _is_launched():
            hurried.set()
            raise SystemExit(128 + number)

    def agree(self, world: World) -> bool:
        """Return whether any process was asked to stop, also as `agreed`; all must call this.

        Args:
            world: The processes.
        """
        self.agreed = world.any(self.requested)
        return self.agreed

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


def _is_launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
