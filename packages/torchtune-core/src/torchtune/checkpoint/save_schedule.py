"""When a run saves."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchtune.distributed import World

__all__ = ["SaveSchedule"]


class SaveSchedule:
    """Says after each step whether a save is due, the same on every rank.

    Args:
        world: The processes; the main one's clock decides.
        every_n_steps: Optimizer steps from one save to the next; None does not count them.
        every_minutes: Minutes from one save, or the start, to the next; None does not count them.
    """

    def __init__(
        self,
        world: "World",
        every_n_steps: int | None = None,
        every_minutes: float | None = None,
    ) -> None:
        self._world = world
        self._steps = every_n_steps
        self._seconds = None if every_minutes is None else 60 * every_minutes
        self._saved = time.monotonic()

    def due(self, step: int, *, best: bool = False) -> bool:
        """Say whether to save now. All ranks call this together, after each step.

        Args:
            step: Optimizer steps done.
            best: Whether a save is due for another reason, such as a best validation.
        """
        late = False
        if self._seconds is not None:
            late = self._world.any(
                time.monotonic() - self._saved >= self._seconds and self._world.is_main
            )
        due = late or best or (self._steps is not None and step % self._steps == 0)
        if due:
            self._saved = time.monotonic()
        return due
