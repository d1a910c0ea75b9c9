"""What saving and loading a checkpoint costs: `saving.py [FOLDER] [--rounds 7]`.

Saves SmolLM2-135M in bf16 with its AdamW state (0.8 GB) in turns: as a run does, as a run does in the
background beside a loop of matrix products, without sha256 and flushing, and copies the same files
with `cp`; then loads all again. Prints a line a round, then medians, and memory beside the model.
Disks are noisy: everything begins after the last one's bytes have reached the disk.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
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


def trained_state(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW over `model` as it is after a step, in the parameters' dtype."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


class Bench:
    """A model with its optimizer, and a folder to save them into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = llama(**SIZES["smollm2_135m"]).bfloat16()
        self.state = {"model": self.model, "optimizer": trained_state(self.model)}
        self.state |= {"scheduler": None, "world": WORLD}
        self.run = RunFolder(folder / "run", WORLD)  # as a run does, it keeps the copies' memory
        self.matrix = torch.randn(512, 512)

    def save(self, folder: Path, *, durable: bool = True) -> None:
        """Write what a step folder holds."""
        save_model(self.model, folder, world=WORLD, config={}, durable=durable)
        save_training_state(folder, **self.state, info={}, durable=durable)

    def save_plain(self) -> None:
        """Save without sha256, flushing and manifest."""
        self.save(self.folder / "plain", durable=False)

    def save_whole(self) -> None:
        """Save as a run does: hashed, flushed, sealed, renamed."""
        with self.run.writing(1) as place:
            self.save(place)

    def copy(self) -> None:
        """Copy the same files, not flushed."""
        command = ["cp", "-r", self.folder / "run/step_000001", self.folder / "copy"]
        subprocess.run(command, check=True)

    def load(self) -> None:
        """Load all into the model and the optimizer."""
        load_model(self.model, self.folder / "run/step_000001")
        load_training_state(self.folder / "run/step_000001", **self.state)

    def save_beside(self, seconds: float) -> tuple[float, float]:
        """Save while products are computed; return how long the loop was held, and slowed in all."""
        count = self.compute(until=time.perf_counter() + seconds)
        begin = time.perf_counter()
        with self.run.writing(1, background=True) as place:
            self.save(place)
        held = time.perf_counter() - begin
        for _ in range(count):
            self.matrix @ self.matrix
            before = time.perf_counter()
            self.run.poll()
            held += time.perf_counter() - before
        slowed = time.perf_counter() - begin - seconds
        self.run.wait()
        return held, slowed

    def compute(self, *, until: float) -> int:
        """Return how many products were computed."""
        count = 0
        while time.perf_counter() < until:
            self.matrix @ self.matrix
            count += 1
        return count


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
        "load": seconds(bench.load),
    }
    os.sync()
    found["held"], found["slowed"] = bench.save_beside(3 * found["whole"])
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
        memory["copies"] = peak(lambda: bench.save_beside(1))
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
    for over, under in (("whole", "plain"), ("held", "whole"), ("slowed", "whole")):
        ratio = statistics.median(it[over] / it[under] for it in rounds)
        print(f"{over} / {under}: {ratio:.2f}")
    print("memory, MB: " + ", ".join(f"{key} {value:.0f}" for key, value in memory.items()))


if __name__ == "__main__":
    main()
