"""The same run however its rows are shared, accumulated or packed."""

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def alone(module_runs):
    """One process, eight rows at once."""
    return module_runs.run("alone", "max_steps=4", "batch_size=8")


def assert_same_steps(runs, name, metrics, expected, *, tolerance=1e-5):
    for line, other in zip(metrics, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=tolerance)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=tolerance)
        assert line["tokens"] == other["tokens"]
    ours = load_file(runs.folder / name / "latest/model.safetensors")
    theirs = load_file(runs.folder / "alone/latest/model.safetensors")
    for key, weight in theirs.items():
        assert torch.linalg.norm(ours[key] - weight) <= 1e-4 * torch.linalg.norm(weight)


@pytest.mark.parametrize(
    ("processes", "batch_size", "accumulated"), [(1, 2, 4), (2, 4, 1), (2, 2, 2)]
)
def test_processes_and_accumulation_change_nothing(
    processes, batch_size, accumulated, module_runs, alone
):
    name = f"{processes}_{batch_size}_{accumulated}"
    layout = (f"batch_size={batch_size}", f"gradient_accumulation_steps={accumulated}")
    metrics = module_runs.run(name, "max_steps=4", *layout, processes=processes)
    assert_same_steps(module_runs, name, metrics, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    ["loss.chunk_tokens=7", "compile=true", "enable_activation_checkpointing=true"],
)
def test_techniques_change_nothing(change, module_runs, alone):
    name = change.split("=")[0]
    metrics = module_runs.run(name, "max_steps=4", "batch_size=8", change)
    assert_same_steps(module_runs, name, metrics, alone)


@pytest.mark.slow
def test_packed_rows_are_the_same_on_two_processes(module_runs):
    packed = ("max_steps=4", "packed=true", "peft=lora")
    one = module_runs.run("packed_1", *packed, "batch_size=4", "gradient_accumulation_steps=2")
    two = module_runs.run("packed_2", *packed, "batch_size=4", processes=2)
    for line, other in zip(two, one, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_master_weights_are_the_same_on_two_processes(module_runs):
    master = ("max_steps=6", "dtype=bf16", "master_weights=true")
    one = module_runs.run("master_1", *master, "batch_size=8")
    two = module_runs.run("master_2", *master, "batch_size=4", processes=2)
    for line, other in zip(two, one, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=2e-3)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-2)
