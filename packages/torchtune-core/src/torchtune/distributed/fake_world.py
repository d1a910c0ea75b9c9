"""A world of many processes of which one alone is there, to see what it would hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch

from torchtune.config import Parallel
from torchtune.distributed.world import Figure, World, _data_group, _make_mesh

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["fake_world"]

T = TypeVar("T")


class _FakeWorld(World):
    """A world whose other processes say what this one says."""

    def _reduce(self, value: Figure, operation: str, group: "ProcessGroup | None") -> Figure:
        return value

    def broadcast(self, value: T, *, source: int = 0) -> T:
        return value

    def gather(self, value: T) -> list[T]:
        return [value] * self.size


@contextmanager
def fake_world(size: int = 1, parallel: Parallel | None = None) -> Iterator[World]:
    """Give the world of rank 0 of `size` processes where the others do not exist.

    Models are cut as in the real world, and what is sent is forgotten: shapes, dtypes and memory are
    right, values are not. Numbers that are added up over processes stay this one's own.

    Args:
        size: How many processes to pretend.
        parallel: How they share the work; None cuts the weights over all of them.

    Raises:
        ConfigError: `parallel` asks for another number of processes.
        RuntimeError: This process belongs to a real world of several.
    """
    sizes = (parallel or Parallel()).sizes(size)
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError("a fake world cannot be made inside of a real one")
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        if size == 1:  # the group is there for what meets processes even when alone
            yield World()
            return
        mesh = _make_mesh(torch.device("cpu"), sizes, None)
        yield _FakeWorld(size=size, mesh=mesh, data_group=_data_group(mesh, None))
    finally:
        dist.destroy_process_group()
