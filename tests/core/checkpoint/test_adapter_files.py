"""Adapter files: PEFT loads what we save, and we load what PEFT saves."""

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchtune.checkpoint import load_adapter, save_adapter
from torchtune.distributed import World
from torchtune.errors import ConfigError, MissingError

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
TARGETS = ["q_proj", "down_proj"]


def base() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=32, num_hidden_layers=2, **sizes)
    return transformers.LlamaForCausalLM(config)


def ours(rank: int = 3) -> nn.Module:
    """A model with our names for the adapter of each target, random."""
    model = base()
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in TARGETS:
            layer.lora_a = nn.Parameter(torch.randn(rank, layer.in_features))
            layer.lora_b = nn.Parameter(torch.randn(layer.out_features, rank))
    return model


def names_of(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters() if ".lora_" in name}


def config_of(rank: int = 3) -> peft.LoraConfig:
    return peft.LoraConfig(r=rank, lora_alpha=6, target_modules=TARGETS, task_type="CAUSAL_LM")


def save(model: nn.Module, folder) -> None:
    config = {**config_of().to_dict(), "target_modules": TARGETS, "base_model_name_or_path": ""}
    config = {key: value for key, value in config.items() if not isinstance(value, set)}
    save_adapter(model, folder, names=names_of(model), config=config, world=World())


def test_peft_loads_the_adapter_we_save(tmp_path):
    model = ours()
    save(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path)
    state = peft.get_peft_model_state_dict(theirs)
    assert len(state) == len(names_of(model)) == 8
    layer = "model.layers.1.self_attn.q_proj"
    matrix = model.get_parameter(f"{layer}.lora_a")
    assert_close(state[f"base_model.model.{layer}.lora_A.weight"], matrix.data, rtol=0, atol=0)
    module = theirs.get_submodule(f"base_model.model.{layer}")
    change = 2.0 * model.get_parameter(f"{layer}.lora_b") @ matrix
    assert_close(module.get_delta_weight("default"), change.data, rtol=1e-6, atol=1e-6)


def test_we_load_the_adapter_that_peft_saves(tmp_path):
    theirs = peft.get_peft_model(base(), config_of())
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    model = ours()
    assert load_adapter(model, tmp_path, names=names_of(model)) == names_of(model)
    for name, value in peft.get_peft_model_state_dict(theirs).items():
        name = name.removeprefix("base_model.model.").replace(".weight", "")
        found = model.get_parameter(name.replace("lora_A", "lora_a").replace("lora_B", "lora_b"))
        assert torch.equal(found, value)


def test_what_we_save_we_load_and_the_config_is_as_given(tmp_path):
    model, other = ours(), ours()
    save(model, tmp_path)
    load_adapter(other, tmp_path, names=names_of(other))
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 3


def test_an_adapter_of_another_rank_or_other_layers_is_refused_by_name(tmp_path):
    save(ours(), tmp_path)
    other = ours(rank=5)
    with pytest.raises(ConfigError, match=r"q_proj\.lora_A\.weight \[3, 16\] for \[5, 16\]"):
        load_adapter(other, tmp_path, names=names_of(other))
    del other.model.layers[1].mlp.down_proj.lora_a
    with pytest.raises(ConfigError, match=r"unexpected: .*1\.mlp\.down_proj\.lora_A"):
        load_adapter(other, tmp_path, names=names_of(other))


def test_an_absent_adapter_is_a_missing_file(tmp_path):
    with pytest.raises(MissingError, match=r"adapter_model\.safetensors"):
        load_adapter(ours(), tmp_path, names=set())
