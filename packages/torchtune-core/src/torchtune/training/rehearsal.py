"""What a rehearsal of a run has found: whether it resumes, how long it takes, what it writes."""

import math
import shutil
from pathlib import Path
from typing import Protocol

from torchtune.distributed import World
from torchtune.errors import TuneError
from torchtune.training.progress import StepMetrics

__all__ = ["rehearsed"]

CLOSE = 1e-3
"""Relative: a GPU repeats a step to rounding, unless it is told to be deterministic."""


class HasSaves(Protocol):
    """Params of a recipe that saves."""

    save_every_n_steps: int | None
    keep_last_n_checkpoints: int | None


def rehearsed(
    step: StepMetrics,
    repeated: StepMetrics,
    steps: int,
    params: HasSaves,
    folder: Path,
    world: World,
) -> str:
    """Compare a step with itself after saving and loading, and say what the whole run will take.

    Args:
        step: The step as it was taken first.
        repeated: The same step, after everything was loaded again from the checkpoint before it.
        steps: Optimizer steps of the whole run.
        params: The recipe's params, which say how often it saves.
        folder: A step folder that the rehearsal has saved.
        world: The processes, which all call this; the main one alone looks into the folder.

    Returns:
        A few lines for the user. The time is an upper bound where the rows were the longest.

    Raises:
        TuneError: E-REHEARSAL-RESUME: the repeated step differs, so a resumed run would;
            E-REHEARSAL-DISK: the run's checkpoints do not fit on the disk.
    """
    if not math.isclose(step.loss, repeated.loss, rel_tol=CLOSE):
        what = f"a step taken again after a reload has loss {repeated.loss}, not {step.loss}"
        do = "a model or optimizer of your own may keep state outside of its state_dict"
        raise TuneError("E-REHEARSAL-RESUME", what, do=do)
    saves = _folders(steps, params.save_every_n_steps, params.keep_last_n_checkpoints)
    measured = _measure(folder) if world.is_main else (0, 0)
    size, free = world.broadcast(measured)  # after this the main rank may delete the folder
    _check_disk(saves * size, free)
    seconds = min(step.seconds, repeated.seconds)
    return (
        f"all well: steps, validation, saving, reloading, generation\n"
        f"{seconds:.2f} s a step of the longest rows: {steps:,} steps take at most "
        f"{_duration(seconds * steps)}\n"
        f"{saves} checkpoint{'s' if saves > 1 else ''} of {size / 1e6:,.1f} MB, "
        f"{step.peak_memory_bytes / 2**30:.2f} GiB of memory at most"
    )


def _folders(steps: int, every: int | None, keep: int | None) -> int:
    """Return how many step folders lie there at the most; a new one is whole before an old one goes."""
    written = -(-steps // every) if every else 1
    return min(written, keep + 1) if keep else written


def _measure(folder: Path) -> tuple[int, int]:
    """Return the bytes in a folder, and those that are free beside it."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return size, shutil.disk_usage(folder).free


def _check_disk(needed: int, free: int) -> None:
    if needed > free:
        what = f"the checkpoints take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
        do = "keep_last_n_checkpoints=2, a larger save_every_n_steps, or another output_dir"
        raise TuneError("E-REHEARSAL-DISK", what, where="output_dir", do=do)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
