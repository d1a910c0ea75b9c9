"""Work that needs no gradients, shared by processes that each have the whole model."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torchtune.distributed.world import World

__all__ = ["in_turns"]

Given = TypeVar("Given")
Done = TypeVar("Done")


def in_turns(parts: Sequence[Given], work: Callable[[Given], Done], world: World) -> Iterator[Done]:
    """Yield ``work(part)`` of each of `parts`, in order, on every process.

    Replicas of the model (`World.replicas`) take turns: the first does the first part, the second the
    second, and when each has done one they tell each other. The processes that hold one replica
    together all do its parts, in step.

    Args:
        parts: The same on every process; every process must take all that is yielded.
        work: What it returns must be picklable. An exception ends the run.
        world: The processes.
    """
    together = world.size // world.replicas
    for first in range(0, len(parts), world.replicas):
        own = first + world.replica
        done = [work(part) for part in parts[own : own + 1]]
        for found in world.gather(done)[::together]:
            yield from found
