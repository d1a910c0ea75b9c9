"""What saving and loading a checkpoint costs: `saving.py [FOLDER] [--rounds 7]`.

Saves SmolLM2-135M in bf16 with its AdamW state (0.8 GB) in turns: as a run does, and without sha256
and flushing; copies the same files with `cp`, and again with flushing; then loads all. Then takes
steps (products of matrices, and the optimizer's) on one core, with a save before them, with one in the
background beside them and with none: for how long the loop is held by a save, and what it loses in
all. Elsewhere that one core would wait for a GPU, so the threads that save beside it have the others.
Prints a line a round, then medians, and memory beside the model. Disks are noisy: everything begins
after the last one's bytes have reached the disk.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchtune.checkpoint import (
    RunFolder,
    load_model,
    load_training_state,
    save_model,
    save_training_state,
)
from torchtune.distributed import World
from torchtune.models.llama import SIZES, llama

WORLD = World()
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
STEPS_CORE = {min(CORES)} if CORES else set()
STEPS, PRODUCTS = 12, 8
"""How many steps follow a save, so that it ends while they last, and products a step."""


def trained_state(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW over `model` as it is after a step, in the parameters' dtype; gradients stay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


class Bench:
    """A model with its optimizer, and a folder to save them into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = llama(**SIZES["smollm2_135m"]).bfloat16()
        self.state = {"model": self.model, "optimizer": trained_state(self.model)}
        self.state |= {"scheduler": None, "world": WORLD}
        self.run = RunFolder(folder / "run", WORLD)  # as a run does, it keeps the copies' memory
        self.matrix = torch.randn(1024, 1024)
        self.held = 0.0

    def save(self, folder: Path, *, durable: bool = True) -> None:
        """Write what a step folder holds."""
        save_model(self.model, folder, world=WORLD, config={}, durable=durable)
        save_training_state(folder, **self.state, info={}, durable=durable)

    def save_plain(self) -> None:
        """Save without sha256, flushing and manifest."""
        self.save(self.folder / "plain", durable=False)

    def save_whole(self, *, background: bool = False) -> None:
        """Save as a run does: hashed, flushed, sealed, renamed."""
        with self.run.writing(1, background=background) as place:
            self.save(place)

    def copy(self) -> None:
        """Copy the same files, not flushed."""
        command = ["cp", "-r", self.folder / "run/step_000001", self.folder / "copy"]
        subprocess.run(command, check=True)

    def copy_flushed(self) -> None:
        """Copy the same files and wait until they are on the disk, as a save does."""
        self.copy()
        os.sync()

    def load(self) -> None:
        """Load all into the model and the optimizer."""
        load_model(self.model, self.folder / "run/step_000001")
        load_training_state(self.folder / "run/step_000001", **self.state)

    def steps(self) -> None:
        """Train, as far as time goes."""
        for _ in range(STEPS):
            for _ in range(PRODUCTS):
                self.matrix @ self.matrix
            self.state["optimizer"].step()
            with threads_on(CORES - STEPS_CORE), self.holding():
                self.run.poll()
        with self.holding():
            self.run.wait()

    def steps_after(self) -> None:
        """Train after a save that the loop waits for."""
        with threads_on(CORES), self.holding():
            self.save_whole()
        self.steps()

    def steps_beside(self) -> None:
        """Train while a save goes on."""
        waits = register_optimizer_step_pre_hook(lambda *_: self.hold(begin=True))
        waited = self.state["optimizer"].register_step_pre_hook(lambda *_: self.hold(begin=False))
        with threads_on(CORES - STEPS_CORE), self.holding():
            self.save_whole(background=True)
        self.steps()
        waits.remove()
        waited.remove()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Count the block's time as time in which no step goes on."""
        self.hold(begin=True)
        yield
        self.hold(begin=False)

    def hold(self, *, begin: bool) -> None:
        """Begin or end such a time; between the two hooks around a save's own it waits for copies."""
        self.held += -time.perf_counter() if begin else time.perf_counter()


@contextmanager
def threads_on(cores: set[int]) -> Iterator[None]:
    """Let threads that begin in the block use these cores, which they inherit, where Linux can."""
    before = os.sched_getaffinity(0) if CORES else set()
    if before and cores:
        os.sched_setaffinity(0, cores)
    yield
    if before:
        os.sched_setaffinity(0, before)


def seconds(action: Callable[[], object], *emptied: Path) -> float:
    """Return how long `action` takes, once the disk is at rest."""
    for folder in emptied:
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def peak(action: Callable[[], object]) -> float:
    """Return by how many MB the resident memory rises at most while `action` runs."""
    if sys.platform != "linux":
        return float("nan")
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    action()
    return (_memory("VmHWM") - before) / 1e6


def _memory(key: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])


def measure(bench: Bench) -> dict[str, float]:
    """Return the seconds of one round."""
    found = {
        "whole": seconds(bench.save_whole, bench.folder / "run/step_000001"),
        "plain": seconds(bench.save_plain, bench.folder / "plain"),
        "cp": seconds(bench.copy, bench.folder / "copy"),
        "cp, flushed": seconds(bench.copy_flushed, bench.folder / "copy"),
        "load": seconds(bench.load),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threads_on(STEPS_CORE):
        for name in ("steps", "steps_after", "steps_beside"):
            bench.held = 0.0
            found[name] = seconds(getattr(bench, name))
            found[name.replace("steps", "held")] = bench.held
    torch.set_num_threads(threads)
    found["lost after"] = found.pop("steps_after") - found["steps"]
    found["lost beside"] = found.pop("steps_beside") - found["steps"]
    return found


def main() -> None:
    """Print one line a round, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="on the disk to measure")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        bench = Bench(Path(name))
        memory = {"save": peak(bench.save_whole), "load": peak(bench.load)}
        memory["copies"] = peak(bench.steps_beside)
        rounds = []
        for _ in range(arguments.rounds):
            rounds.append(measure(bench))
            print(
                "  ".join(f"{key} {value:.2f} s" for key, value in rounds[-1].items()), flush=True
            )
        size = sum(p.stat().st_size for p in (bench.folder / "copy").rglob("*")) / 1e9
        bench.run.close()
    middle = {key: statistics.median(it[key] for it in rounds) for key in rounds[0]}
    print(f"{size:.2f} GB; GB/s: " + ", ".join(f"{k} {size / v:.2f}" for k, v in middle.items()))
    for over, under in (
        ("whole", "plain"),
        ("whole", "cp"),
        ("whole", "cp, flushed"),
        ("held_beside", "held_after"),
        ("lost beside", "lost after"),
    ):
        ratio = statistics.median(it[over] / it[under] for it in rounds)
        print(f"{over} / {under}: {ratio:.2f}")
    print("memory, MB: " + ", ".join(f"{key} {value:.0f}" for key, value in memory.items()))


if __name__ == "__main__":
    main()
