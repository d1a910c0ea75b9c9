"""What sha256 and flushing to disk cost when a checkpoint is saved: `saving.py [FOLDER]`.

Saves SmolLM2-135M in bf16 with its AdamW state (0.8 GB), as a run does and without hashing,
flushing and manifest, in turns, and prints the times and the median of their ratios. Disks are
noisy: every round begins after the last one's bytes have reached the disk.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torchtune.checkpoint import RunFolder, save_model, save_training_state
from torchtune.distributed import World
from torchtune.models.llama import SIZES, llama


def trained_state(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW over `model` as it is after a step, in the parameters' dtype."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, durable: bool) -> None:
    """Write what a step folder holds."""
    world = World()
    save_model(model, folder, world=world, config={}, durable=durable)
    save_training_state(
        folder,
        model=model,
        optimizer=optimizer,
        scheduler=None,
        world=world,
        info={},
        durable=durable,
    )


def save_whole(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Save as a run does: hashed, flushed, sealed, renamed."""
    run = RunFolder(folder, World())
    with run.writing(1) as place:
        save(model, optimizer, place, durable=True)
    run.close()


def seconds(action: Callable[[], None], folder: Path) -> float:
    """Return how long `action` takes to fill the empty `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def main() -> None:
    """Print one line a round, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="on the disk to measure")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    model = llama(**SIZES["smollm2_135m"]).bfloat16()
    optimizer = trained_state(model)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, ratios = Path(name) / "out", []
        for _ in range(arguments.rounds):
            plain = seconds(lambda: save(model, optimizer, folder, durable=False), folder)
            whole = seconds(lambda: save_whole(model, optimizer, folder), folder)
            ratios.append(whole / plain)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(f"plain {plain:.2f} s, whole {whole:.2f} s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"{size / 1e9:.2f} GB, median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
