"""A meeting that nobody waits at: each process leaves a word, and the last to come reads them all."""

import os
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchtune.distributed.world import World

__all__ = ["hurried", "leave_word", "store_line"]

hurried = threading.Event()
"""Set once this process was told a second time to stop: what would take long is left undone."""

PATIENCE = timedelta(seconds=30)
"""How long the store may take to answer; it is there or gone with the process that held it."""


def leave_word(name: str, word: str, world: "World") -> list[str] | None:
    """Leave `word` under `name`; return those of all ranks, in their order, to the last one to come.

    It goes through the store that the processes met at and not through a collective, so that it
    works where the others hang, fail, or have left.

    Args:
        name: The same on every rank, and new for each meeting of these processes.
        word: A text.
        world: The processes.

    Returns:
        None to all but the last, and where the store cannot be reached.
    """
    if world.size == 1:
        return [word]
    store = store_line(f"torchtune/words/{name}", PATIENCE)
    if store is None:
        return None
    try:
        store.set(str(world.rank), word)
        if store.add("count", 1) < world.size:
            return None
        return [store.get(str(rank)).decode() for rank in range(world.size)]
    except RuntimeError:  # whoever holds the store is gone
        return None


def store_line(prefix: str, patience: timedelta) -> Any | None:
    """Return a connection of its own to the store that the processes met at, which none else waits on.

    Args:
        prefix: Of the keys.
        patience: How long the store may take to answer.

    Returns:
        A store of ``torch.distributed``; None where the processes met in another way.
    """
    if "MASTER_ADDR" not in os.environ:
        return None
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        line = TCPStore(address, port, None, False, patience, wait_for_workers=False)
    except RuntimeError:
        return None
    return PrefixStore(prefix, line)
