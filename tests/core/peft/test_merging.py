"""Merging an adapter against PEFT's, and taking it out again."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from torchtune.peft import adapter_names, lora, merge, unmerge
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def adapted(load, folder, dtype):
    model = lora(load(folder, dtype=dtype), rank=4, targets=TARGETS)
    generator = torch.Generator().manual_seed(3)
    for name in sorted(adapter_names(model)):
        parameter = model.get_parameter(name)
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_are_those_of_peft(dtype, untied, load):
    model = adapted(load, untied, dtype)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS)
    base = AutoModelForCausalLM.from_pretrained(untied, dtype=dtype)
    theirs = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
    for name in adapter_names(model):
        part = {"lora_a": "lora_A", "lora_b": "lora_B"}[name[-6:]]
        where = f"base_model.model.{name[:-6]}{part}.default.weight"
        theirs.get_parameter(where).data.copy_(model.get_parameter(name).data)
    wanted = theirs.merge_and_unload().state_dict()
    merged = merge(model).state_dict()
    assert set(merged) == set(wanted)
    assert all(torch.equal(merged[name], wanted[name]) for name in wanted)


def test_unmerge_restores_every_weight_to_the_bit(untied, load, tokens):
    model = adapted(load, untied, torch.bfloat16)
    before, logits = {k: v.clone() for k, v in model.state_dict().items()}, model(tokens)
    merge(model)
    base = load_file(untied / "model.safetensors")
    assert not torch.equal(model.lm_head.weight.float(), base["lm_head.weight"].bfloat16().float())
    assert (model(tokens) - logits).abs().max() < 0.1 * logits.abs().max()
    after = unmerge(model).state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(model(tokens), logits)
