"""What each room and command loads, seen in a fresh interpreter."""

import json
import subprocess
import sys

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
COMMANDS = (["--help"], ["ls"], ["cp", "--help"], ["cat", "--help"], ["run", "sft", "--help"])


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
