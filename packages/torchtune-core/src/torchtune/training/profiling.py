"""torch's profiler as a component."""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

__all__ = ["torch_profiler"]


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
) -> profile:
    """Build a profiler that writes one trace a cycle, for Perfetto or TensorBoard.

    Call its `start`, `step` after each optimizer step, and `stop`.

    Args:
        output_dir: The run's folder; traces go to ``profile`` in it.
        wait_steps: Steps passed over at the start of a cycle.
        warmup_steps: Steps traced and thrown away, as the first are slow.
        active_steps: Steps in the trace.
        num_cycles: How often to repeat; 0 never stops.
        profile_memory: Record allocations.
        with_stack: Record Python's call stack; slow.
        record_shapes: Record tensor shapes.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    options: dict[str, Any] = dict(
        profile_memory=profile_memory, with_stack=with_stack, record_shapes=record_shapes
    )
    return profile(
        activities=activities,
        schedule=schedule(
            wait=wait_steps, warmup=warmup_steps, active=active_steps, repeat=num_cycles
        ),
        on_trace_ready=tensorboard_trace_handler(str(Path(output_dir) / "profile")),
        **options,
    )
