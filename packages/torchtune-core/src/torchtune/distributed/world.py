"""The processes of a run and what they tell each other; one process is a world of size one."""

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from torchtune.config import Parallel
from torchtune.distributed.devices import choose_device, device_facts
from torchtune.distributed.hang_watch import PATIENCE, note_step, stop_watching, watch_for_hangs
from torchtune.distributed.launcher_watch import (
    end_with_launcher,
    leave_at_once_when_done,
    report_to_launcher,
    work_is_done,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["World", "join_world"]

MEETING_TIME = timedelta(minutes=30)
"""How long processes wait for one another at the start; torch's own."""

T = TypeVar("T")
Figure = TypeVar("Figure", Tensor, int, float)


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. `join_world` makes it.

    Every method that communicates must be called by all processes, in the same order; with one
    process each is a plain function. Numbers and objects go over gloo and never wait for a GPU.

    Args:
        rank: This process's number, from 0.
        size: How many processes there are.
        device: Where this process computes.
        mesh: The devices in their arrangement, always with the four dimensions of
            `torchtune.config.Parallel`, outermost first; None for one process.
        data_group: The processes at this one's place in `context` and `tensor`, which hold the
            other shares of the data; None where that is all.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: "DeviceMesh | None" = None
    data_group: "ProcessGroup | None" = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once: files, logs, the progress bar."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """The number of this process's share of each step's rows."""
        return self._place("data_replicate") * self._size("data_shard") + self._place("data_shard")

    @property
    def data_size(self) -> int:
        """In how many shares the rows of a step are cut."""
        return self._size("data_replicate") * self._size("data_shard")

    @property
    def replica(self) -> int:
        """The number of the whole model that this process holds, or holds a part of."""
        return self._place("data_replicate")

    @property
    def replicas(self) -> int:
        """How many whole models there are; each is held by as many neighbouring ranks."""
        return self._size("data_replicate")

    @property
    def context_size(self) -> int:
        """In how many parts the tokens of a micro-batch are cut."""
        return self._size("context")

    @property
    def tensor_size(self) -> int:
        """In how many parts a matrix is cut."""
        return self._size("tensor")

    @property
    def seed_offset(self) -> int:
        """What to add to a seed so that only processes of one `tensor` group draw the same numbers.

        They compute on the same activations, so that a dropout mask must be the same on each.
        """
        return self.data_rank * self.context_size + self._place("context")

    def _place(self, dimension: str) -> int:
        return self.mesh.get_local_rank(dimension) if self.mesh else 0

    def _size(self, dimension: str) -> int:
        return self.mesh[dimension].size() if self.mesh else 1

    def sum(self, value: Figure) -> Figure:
        """Return `value` added up over the shares of the data, in the form it came in.

        Processes that hold the same share, parts of it or parts of the model, count once, and give
        the same `value`. Integers are added exactly (int64), Python floats in float64, tensors
        in their own dtype.
        """
        return self._reduce(value, "SUM", self.data_group)

    def max(self, value: Figure) -> Figure:
        """Return the largest `value` of all processes, elementwise for a tensor."""
        return self._reduce(value, "MAX", None)

    def _reduce(self, value: Figure, operation: str, group: "ProcessGroup | None") -> Figure:
        if self.size == 1:
            return value
        import torch.distributed as dist

        how = getattr(dist.ReduceOp, operation)
        if isinstance(value, Tensor):
            total = value.detach().clone()
            dist.all_reduce(total, op=how, group=group)
            return total
        box = torch.tensor(value, dtype=_exact_dtype(value))
        dist.all_reduce(box, op=how, group=group)
        number: Any = box.item()
        return number

    def any(self, flag: bool) -> bool:
        """Say whether `flag` is true on any process: how all agree to stop at the same step."""
        return bool(self.max(int(flag)))

    def broadcast(self, value: T, *, source: int = 0) -> T:
        """Return the `value` of the process `source`; the others' are ignored."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=source)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Return every process's `value` in the order of ranks, to every process."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes

    def barrier(self) -> None:
        """Wait until every process has come this far."""
        self.max(0)

    def note_step(self, step: int) -> None:
        """Note which optimizer step this process begins, to be named should it hang in it.

        Costs a write to memory.

        Args:
            step: From 1.
        """
        note_step(step)

    def close(self) -> None:
        """Leave; save and flush before. Not for a `finally`: after an error it would wait.

        Afterwards nothing that communicates may be called, and with several processes the process
        ends at once after its last line.
        """
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            return
        self.barrier()  # a process that leaves early makes gloo abort in its peers
        stop_watching()
        dist.destroy_process_group()  # `shard` may have made one for a single process
        if self.size > 1:
            work_is_done()


def _exact_dtype(value: int | float) -> torch.dtype:
    return torch.float64 if isinstance(value, float) else torch.int64


def join_world(
    device: str = "auto",
    parallel: Parallel | None = None,
    *,
    timeout_minutes: float | None = None,
) -> World:
    """Join the processes that torchrun started (``RANK``, ``WORLD_SIZE``), or be alone.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``; see `choose_device`.
        parallel: How the processes share the work; None cuts the weights over all of them.
        timeout_minutes: How long a process may give no sign of life before it is named and the
            run ends with E-HANG: its stack stays the same, and it neither computes nor reads nor
            writes. The others wait a day for one that works. None waits for all as long as torch
            does: 10 minutes on CUDA, 30 elsewhere.

    Returns:
        The world of this process. More than one process talk over gloo on CPU, and over NCCL
        for tensors on CUDA. An existing process group is used as it is.

    Raises:
        ConfigError: No device has that name, or `parallel` asks for another number of processes.
        MissingError: The device is missing, or there are more processes than devices.
    """
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    sizes = (parallel or Parallel()).sizes(size)
    local_rank, local_size = _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", size)
    place = choose_device(device, device_facts(), local_rank=local_rank, local_size=local_size)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    end_with_launcher()
    report_to_launcher()
    if size == 1:
        return World(device=place)
    leave_at_once_when_done()
    timeout = PATIENCE if timeout_minutes else None
    _meet(place, timeout)
    if timeout_minutes:
        watch_for_hangs(rank, size, timeout_minutes * 60)
    mesh = _make_mesh(place, sizes, timeout)
    return World(rank, size, place, mesh, _data_group(mesh, timeout))


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _meet(device: torch.device, timeout: timedelta | None) -> None:
    import torch.distributed as dist

    if not dist.is_initialized():
        cuda = device.type == "cuda"
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, device_id=device if cuda else None, **_own_store())
    if timeout is not None and dist.group.WORLD is not None:
        dist.group.WORLD.set_timeout(timeout)  # only now: who never came is not to be waited for


def _own_store() -> dict[str, Any]:
    """Return how to meet where torchrun's agent holds the store, which outlives an attempt.

    Processes started again would find in it the addresses of those that have died, and wait.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], _number("MASTER_PORT", 0)
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    store = TCPStore(address, port, size, is_master=False, timeout=MEETING_TIME)
    attempt = f"attempt_{_number('TORCHELASTIC_RESTART_COUNT', 0)}"
    return {"store": PrefixStore(attempt, store), "rank": rank, "world_size": size}


def _make_mesh(
    device: torch.device, sizes: dict[str, int], timeout: timedelta | None
) -> "DeviceMesh":
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    if timeout is not None:
        for group in mesh.get_all_groups():  # they have torch's own, not that of all processes
            group.set_timeout(timeout)
    return mesh


def _data_group(mesh: "DeviceMesh", timeout: timedelta | None) -> "ProcessGroup | None":
    """Make the group of the processes that hold the other shares of the data."""
    if mesh["context"].size() * mesh["tensor"].size() == 1:
        return None
    import torch.distributed as dist

    own = None
    for ranks in mesh.mesh.flatten(0, 1).flatten(1).T.tolist():  # each makes every group
        group = dist.new_group(ranks, timeout=timeout)
        own = group if dist.get_rank() in ranks else own
    return own
