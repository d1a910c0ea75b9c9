"""The same run on one process and on two, packed and in mixed precision."""

import pytest


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
