"""A run with products in fp8 learns, stops and goes on, and its files are those of any other run."""

import pytest
import torch
from torchtune.checkpoint import read_weights
from torchtune.models import from_pretrained

transformers = pytest.importorskip("transformers")
pytest.importorskip("torchao")
LENGTH = ("max_steps=6", "batch_size=2", "save_every_n_steps=3")
SAME = ("step", "loss", "grad_norm", "val_loss")


def figures(metrics):
    return [{key: line.get(key) for key in SAME} for line in metrics]


def test_a_run_in_fp8_learns_goes_on_to_the_bit_and_loads_in_transformers(runs):
    plain = runs.here("plain", *LENGTH)
    runs.here("whole", *LENGTH, "fp8=rowwise")
    assert "fp8 in 20 of 35 linear layers" in runs.said  # 172 features are no multiple of 16
    whole, folder = runs.metrics("whole"), runs.folder / "whole"
    expected = [line["loss"] for line in plain]
    assert [line["loss"] for line in whole] == pytest.approx(expected, rel=1e-2)
    assert figures(whole) != figures(plain)
    again = runs.here(
        "part", *LENGTH, "fp8=rowwise", f"resume_from_checkpoint={folder / 'step_000003'}"
    )
    assert figures(again)[-3:] == figures(whole)[-3:]
    weights, others = (read_weights(runs.folder / name / "latest") for name in ("whole", "part"))
    assert weights.keys() == others.keys() == read_weights(runs.folder / "plain/latest").keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "latest")
    ids = torch.arange(3, 27).view(1, 24)
    ours = from_pretrained(folder / "latest", dtype=torch.float32)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_another_precision_is_another_run_unless_it_is_allowed(runs):
    runs.here("run", "max_steps=1", "batch_size=2", "fp8=tensorwise")
    runs.copy("run", "other")
    on = ("max_steps=2", "batch_size=2", "resume_from_checkpoint=auto")
    runs.here("run", *on, code=2)
    assert "fp8 (was tensorwise, is null)" in runs.said
    assert len(runs.here("other", *on, "allow_change=[fp8]")) == 2


def test_what_cannot_go_with_fp8_is_said_at_once(runs):
    runs.here("run", "fp8=tensorwise", "peft=lora", "dtype=fp16", "master_weights=true", code=2)
    assert "an adapter's stay frozen" in runs.said
    assert "'fp8' goes with bf16 and fp32" in runs.said
    assert not (runs.folder / "run").exists()


def test_a_rehearsal_tries_all_of_a_run_in_fp8(runs):
    runs.here(
        "run", "fp8=rowwise", "dtype=bf16", "master_weights=true", "validation_split=0.1",
        "enable_activation_checkpointing=true", "activation_checkpointing_mode=selective",
        "fsdp_cpu_offload=true", "max_steps=2", "batch_size=2", "--rehearse",
    )  # fmt: skip
    assert "all well: steps, validation, saving, reloading, generation" in runs.said
