"""torch's profiler as a component: traces, a short table, and what memory was held."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

__all__ = ["torch_profiler"]

ROWS = 12
SNAPSHOT_EVENTS = 1_000_000
"""Of the allocator's history, as many as a few steps of a big model make."""


class SnapshotProfile(profile):
    """A profiler that also has the CUDA allocator's history of its cycles recorded."""

    def start(self) -> None:
        """Begin, and have allocations recorded from here on."""
        torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_EVENTS)
        super().start()

    def stop(self) -> None:
        """End, and record no more."""
        super().stop()
        torch.cuda.memory._record_memory_history(enabled=None)


def torch_profiler(
    *,
    output_dir: str | Path = "./output",
    wait_steps: int = 5,
    warmup_steps: int = 3,
    active_steps: int = 2,
    num_cycles: int = 1,
    profile_memory: bool = False,
    with_stack: bool = False,
    record_shapes: bool = True,
    say: Callable[[str, object], None] | None = None,
) -> profile:
    """Build a profiler that writes a trace and a table a cycle, for Perfetto or TensorBoard.

    Call its `start`, `step` after each optimizer step, and `stop`. A recipe profiles its main process
    alone: the others do the same, and each trace of a big model takes hundreds of megabytes.

    Into ``profile`` in the run's folder go ``*.pt.trace.json``, ``table.txt`` with the operations that
    took the most time of their own, and with `profile_memory` on a GPU ``memory_snapshot.pickle``, to be
    dropped onto pytorch.org/memory_viz. On a CPU the trace itself then holds every allocation, and the
    table the most bytes that the traced steps held at once.

    Args:
        output_dir: The run's folder.
        wait_steps: Steps passed over at the start of a cycle.
        warmup_steps: Steps traced and thrown away, as the first are slow.
        active_steps: Steps in the trace.
        num_cycles: How often to repeat; 0 never stops. The table and the snapshot are the last's.
        profile_memory: Record allocations.
        with_stack: Record Python's call stack; slow.
        record_shapes: Record tensor shapes.
        say: Told a label and one line when a cycle is written.
    """
    cuda, folder = torch.cuda.is_available(), Path(output_dir) / "profile"
    write_trace = tensorboard_trace_handler(str(folder))

    def write(done: profile) -> None:
        write_trace(done)
        text = _table(done, cuda, memory=profile_memory and not cuda)
        (folder / "table.txt").write_text(text, encoding="utf-8")
        if profile_memory and cuda:
            torch.cuda.memory._dump_snapshot(str(folder / "memory_snapshot.pickle"))
        if say is not None:
            say("profile", f"{folder}: {text.splitlines()[0]}")

    options: dict[str, Any] = dict(
        profile_memory=profile_memory, with_stack=with_stack, record_shapes=record_shapes
    )
    kind = SnapshotProfile if profile_memory and cuda else profile
    return kind(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])],
        schedule=schedule(
            wait=wait_steps, warmup=warmup_steps, active=active_steps, repeat=num_cycles
        ),
        on_trace_ready=write,
        **options,
    )


def _table(done: profile, cuda: bool, *, memory: bool) -> str:
    """Return a line that says it in short, and the operations by the time they took themselves."""
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    every = (event for event in done.key_averages() if getattr(event, key))
    rows = [event for event in every if not event.key.startswith("ProfilerStep")]
    rows.sort(key=lambda event: getattr(event, key), reverse=True)
    total = max(1, sum(getattr(event, key) for event in rows))
    lines = [f"{getattr(event, key) / 1e3:12,.1f}  {getattr(event, key) / total:6.1%}"
             f"  {event.count:8,}  {event.key}" for event in rows[:ROWS]]  # fmt: skip
    where = "GPU" if cuda else "CPU"
    first = (
        f"{total / 1e3:,.0f} ms of {where} time, {rows[0].key} most of it" if rows else "nothing"
    )
    if memory:
        first += f"; at most {_most_held(done) / 2**20:,.0f} MiB more than at the start"
    head = f"{'self ms':>12}  {'share':>6}  {'calls':>8}  operation"
    return "\n".join([first, "", head, *lines, ""])


def _most_held(done: profile) -> int:
    """Return the highest sum of allocations less frees since the trace began, in bytes."""
    profiler: Any = done.profiler
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
