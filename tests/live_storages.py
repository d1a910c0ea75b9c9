"""The most that tensors held at once, by the memory events of torch.profiler."""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from torch.profiler import profile

__all__ = ["most_held"]


def most_held(profiled: profile, before: int) -> int:
    """Return the most bytes that live storages took while `profiled` ran.

    What gloo makes for one call its own thread may free, which the profiler does not see: such a
    storage counts until the next event. Left in, each would stay to the end, now and then.

    Args:
        profiled: Made with ``profile_memory=True``, and left.
        before: Bytes of the storages that were there when it began.
    """
    tree: Any = profiled.profiler.kineto_results.experimental_event_tree()  # type: ignore[union-attr]
    changes: list[tuple[float, int]] = []
    freed_later: set[int] = set()
    for index, (_, place, size, sent) in reversed(list(enumerate(sorted(_events(tree))))):
        changes.append((index, size))
        if size < 0:
            freed_later.add(place)
        elif place in freed_later:
            freed_later.remove(place)
        elif sent:
            changes.append((index + 0.5, -size))
    return max(accumulate((size for _, size in sorted(changes)), initial=before))


def _events(nodes: Iterable[Any], sent: bool = False) -> Iterator[tuple[int, int, int, bool]]:
    """Give time, place, bytes, and whether it was made in a call that communicates."""
    for node in nodes:
        fields = node.extra_fields
        if hasattr(fields, "alloc_size"):
            yield node.start_time_ns, fields.ptr, fields.alloc_size, sent
        yield from _events(node.children, sent or node.name.startswith("c10d::"))
