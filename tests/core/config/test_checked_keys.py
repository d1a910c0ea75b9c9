"""Bounds that stand in a key's type, and what every recipe refuses together."""

from dataclasses import dataclass
from typing import Literal

import jsonschema
import pytest
from torchtune.config import Component, Count, TuneArgumentParser, checks, json_schema
from torchtune.errors import ConfigError, Faults


@dataclass
class Params:
    """Keys of a recipe that saves memory."""

    model: Component = "auto"
    checkpoint: str | None = "./base"
    batch_size: Count = 8
    max_steps: Count | None = None
    gradient_accumulation_steps: Count = 1
    clip_grad_norm: float | None = None
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    master_weights: bool = False
    compile: bool = False
    enable_activation_checkpointing: bool = False
    activation_checkpointing_mode: Literal["full", "selective"] = "full"
    enable_activation_offloading: bool = False
    optimizer_in_bwd: bool = False
    peft: Component | None = None
    fp8: Literal["tensorwise", "rowwise"] | None = None

    def __post_init__(self) -> None:
        with checks(self) as check:
            check.techniques()
            check.auto_has_checkpoint("model")


def faults(*words):
    try:
        TuneArgumentParser(Params).parse_args(words)
    except Faults as several:
        return {fault.where.partition(",")[0]: fault for fault in several.faults}
    except ConfigError as one:
        return {one.where.partition(",")[0]: one}
    return {}


def test_a_count_is_one_or_more_or_null():
    found = faults("batch_size=0", "max_steps=-1")
    assert found.keys() == {"batch_size", "max_steps"}
    assert "must be at least 1, found 0" in found["batch_size"].what
    assert not faults("batch_size=1", "max_steps=null")


def test_an_editor_knows_the_bound_too():
    schema = json_schema(Params)
    jsonschema.validate({"batch_size": 1, "max_steps": None}, schema)
    for wrong in ({"batch_size": 0}, {"max_steps": 0}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize(
    ("words", "key", "do"),
    [
        (["dtype=fp32", "master_weights=true"], "master_weights", "dtype=bf16"),
        (["dtype=fp16"], "dtype", "master_weights=true"),
        (["activation_checkpointing_mode=selective"], "activation_checkpointing_mode",
         "enable_activation_checkpointing=true"),
        (["enable_activation_checkpointing=true", "activation_checkpointing_mode=selective",
          "compile=true"], "activation_checkpointing_mode", "compile=false"),
        (["enable_activation_offloading=true"], "enable_activation_offloading",
         "enable_activation_checkpointing=true"),
        (["optimizer_in_bwd=true", "gradient_accumulation_steps=2"], "optimizer_in_bwd",
         "gradient_accumulation_steps=1"),
        (["optimizer_in_bwd=true", "clip_grad_norm=1"], "optimizer_in_bwd", "clip_grad_norm=null"),
        (["optimizer_in_bwd=true", "dtype=fp16", "master_weights=true"], "optimizer_in_bwd",
         "dtype=bf16"),
        (["fp8=rowwise", "peft=lora"], "fp8", "peft=null or fp8=null"),
        (["fp8=tensorwise", "dtype=fp16", "master_weights=true"], "fp8", "dtype=bf16"),
        (["checkpoint=null"], "model", "checkpoint=DIR"),
    ],
)  # fmt: skip
def test_techniques_that_cannot_go_together_are_named_with_the_way_out(words, key, do):
    (fault,) = faults(*words).items()
    assert (fault[0], fault[1].do) == (key, do)


def test_techniques_that_can_go_together_pass():
    together = ("enable_activation_checkpointing", "enable_activation_offloading", "master_weights")
    assert not faults("dtype=fp16", *(f"{key}=true" for key in together))
    assert not faults("optimizer_in_bwd=true", "compile=true", "dtype=fp32", "fp8=rowwise")
    assert not faults("fp8=tensorwise", "master_weights=true", "peft=null")
