"""What each room and command loads, seen in a fresh interpreter."""

import json
import os
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
# Torch is loaded once; what each line of imports adds to it is seen in a copy of the process.
AFTER_TORCH = """
import json, os, sys
import torch
before = set(sys.modules)
for line in sys.argv[1:]:
    if not (copy := os.fork()):
        exec(line)
        print(json.dumps([line, sorted(set(sys.modules) - before)]), flush=True)
        os._exit(0)
    if os.waitpid(copy, 0)[1]:
        sys.exit(line)
"""
ALL_ROOMS = "; ".join(f"import torchtune.{room}" for room in WITH_TORCH)


def loaded(code: str) -> set[str]:
    """Return the names in `sys.modules` after `code` ran in a fresh interpreter."""
    report = "\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def added() -> dict[str, set[str]]:
    """What imports load besides torch and what it loads itself."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    lines = [*(f"import torchtune.{room}" for room in WITH_TORCH), ALL_ROOMS]
    command = [sys.executable, "-c", AFTER_TORCH, *lines]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {line: set(names) for line, names in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_a_light_room_loads_no_torch(room):
    assert loaded(f"import {room}") & {"torch", "numpy", *HEAVY} == set()


@pytest.mark.parametrize("room", WITH_TORCH)
def test_a_room_loads_torch_and_nothing_else_that_is_heavy(room, added):
    assert added[f"import torchtune.{room}"] & HEAVY == set()


def test_fully_sharded_training_is_loaded_only_when_asked_for(added):
    late = {"torch.distributed.fsdp", "torch.nn.attention.varlen"}
    assert added[ALL_ROOMS] & late == set()


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
    taken = (seconds_of([sys.executable, *TUNE, *words], folder) for _ in range(20))
    assert any(seconds < MOST_SECONDS for seconds in taken)  # the first that nothing disturbed


def seconds_of(command: list[str], folder: Path) -> float:
    """Return the processor time of a program that ends well: a busy machine does not change it."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
