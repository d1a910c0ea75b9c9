"""What each room and command loads, seen in a fresh interpreter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Rooms that load torch and may load nothing of HEAVY with it.
WITH_TORCH = (
    *("modules", "models", "peft", "data", "losses", "distributed", "checkpoint"),
    *("training", "generation", "recipe_interfaces", "testing"),
)
WITHOUT_TORCH = ("torchtune", "torchtune.errors", "torchtune.config")
HEAVY = {
    *("datasets", "pandas", "pyarrow", "matplotlib", "torchao", "transformers", "accelerate"),
    *("peft", "tensorboard", "wandb", "torch.distributed.checkpoint"),
}
COMMANDS = (
    *(["--help"], ["ls"], ["ls", "--json"], ["cp", "--help"], ["cat", "--help"], ["cat", "sft"]),
    *(["diff", "--help"], ["completion", "bash"], ["schema", "sft"], ["run", "sft", "--help"]),
    ["_complete", "run", "sft", "optimizer."],
)
QUICK = (
    ["--help"],
    ["ls"],
    ["cp", "sft"],
    ["diff", "sft.py"],
    ["completion", "bash"],
    ["_complete", "c"],
)
MOST_SECONDS = 0.2
TUNE = ("-m", "torchtune_recipes.cli.main")


def loaded(code: str) -> set[str]:
    """Return the names in `sys.modules` after `code` ran in a fresh interpreter."""
    report = "\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def with_torch() -> set[str]:
    """What torch itself loads: a room is not blamed for it."""
    return loaded("import torch")


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_a_light_room_loads_no_torch(room):
    assert loaded(f"import {room}") & {"torch", "numpy", *HEAVY} == set()


@pytest.mark.parametrize("room", WITH_TORCH)
def test_a_room_loads_torch_and_nothing_else_that_is_heavy(room, with_torch):
    assert (loaded(f"import torchtune.{room}") - with_torch) & HEAVY == set()


def test_fully_sharded_training_is_loaded_only_when_asked_for(with_torch):
    rooms = "; ".join(f"import torchtune.{room}" for room in WITH_TORCH)
    late = {"torch.distributed.fsdp", "torch.nn.attention.varlen"} - with_torch
    assert loaded(rooms) & late == set()


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_light_command_loads_no_torch(arguments):
    code = f"""
from torchtune_recipes.cli.main import main
try:
    main({arguments!r})
except SystemExit as end:
    if end.code:
        raise
"""
    assert loaded(code) & {"torch", "numpy", *HEAVY} == set()


@pytest.fixture
def folder(tmp_path):
    """A folder with a copy of a recipe, to be compared or written over."""
    subprocess.run([sys.executable, *TUNE, "cp", "sft"], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_a_command_that_only_looks_is_quick(arguments, folder):
    words = [*arguments, "--force"] if arguments[0] == "cp" else arguments
    taken = [seconds_of([sys.executable, *TUNE, *words], folder) for _ in range(5)]
    assert min(taken) < MOST_SECONDS


def seconds_of(command: list[str], folder: Path) -> float:
    """Return the processor time of a program that ends well: a busy machine does not change it."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
