"""Adapters in PEFT's format: PEFT follows our config, and we follow PEFT's."""

import json

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from torchtune.checkpoint import load_adapter, read_adapter_config
from torchtune.errors import ConfigError
from torchtune.peft import adapter_config, adapter_names, adapters, lora, lora_from_config
from transformers import AutoModelForCausalLM

PARTS = {"lora_a": "lora_A", "lora_b": "lora_B"}


def file_name(name):
    """Return a parameter's name in an adapter_model.safetensors."""
    return f"base_model.model.{name[:-6]}{PARTS[name[-6:]]}.weight"


@pytest.mark.parametrize(
    "case",
    [
        {"rank": 4, "alpha": 16.0},
        {"rank": 3, "alpha": 5.0, "rslora": True, "targets": ["v_proj", "lm_head"]},
    ],
)
def test_peft_loads_ours_with_the_same_logits(case, untied, load, tokens, tmp_path):
    model = lora(load(untied), **case)
    for name in sorted(adapter_names(model)):
        torch.nn.init.normal_(model.get_parameter(name), std=0.2)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(adapter_config(model, base=str(untied)))
    )
    values = {file_name(name): model.get_parameter(name).data for name in adapter_names(model)}
    save_file(values, tmp_path / "adapter_model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(untied)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path)
    assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["o_proj", "lm_head"], "use_rslora": True, "lora_dropout": 0.1},
        {"target_modules": r".*layers\.1\..*(q|up)_proj", "init_lora_weights": "gaussian"},
        {"target_modules": ["layers.0.mlp.down_proj"]},
    ],
)
def test_we_load_pefts_with_the_same_logits(options, untied, load, tokens, tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=6, **options)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(untied), config).eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    model = lora_from_config(load(untied), written)
    assert load_adapter(model, tmp_path, names=adapter_names(model)) == adapter_names(model)
    assert_close(model.eval()(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


def test_a_config_of_ours_builds_the_same_adapter_again(untied, load):
    first = lora_from_config(
        load(untied), {"peft_type": "LORA", "r": 2, "target_modules": r".*layers\.1\.mlp.*"}
    )
    again = lora_from_config(load(untied), adapter_config(first, base="x"))
    assert set(adapters(again)) == set(adapters(first)) != set()
    assert adapter_config(again, base="x") == adapter_config(first, base="x")


def test_all_that_is_not_supported_is_named_at_once(untied, load):
    config = peft.LoraConfig(
        target_modules=["q_proj"], bias="all", use_dora=True, rank_pattern={"q": 2},
        modules_to_save=["lm_head"], init_lora_weights="pissa",
    ).to_dict()  # fmt: skip
    config["peft_type"] = "LOHA"
    with pytest.raises(ConfigError, match="E-ADAPTER-CONFIG") as error:
        lora_from_config(load(untied), config)
    for wrong in ("LOHA", "bias='all'", "use_dora", "rank_pattern", "modules_to_save", "pissa"):
        assert wrong in error.value.what
    with pytest.raises(ConfigError, match="no 'r', no 'target_modules'"):
        lora_from_config(load(untied), {"peft_type": "LORA"})


@pytest.mark.parametrize(
    ("key", "value"),
    [("r", "8"), ("r", -1), ("r", 2.5), ("lora_alpha", "x"), ("lora_dropout", 1.5)],
)
def test_a_number_that_is_none_is_named_before_it_is_used(key, value, untied, load):
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], key: value}
    with pytest.raises(ConfigError, match=f"E-ADAPTER-CONFIG.*{key}={value!r}"):
        lora_from_config(load(untied), config)


def test_a_file_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="E-FILE-DAMAGED"):
        read_adapter_config(tmp_path)


def test_a_pattern_or_a_layer_that_fits_nothing_is_refused(untied, load):
    for targets in (r".*nothing.*", "[", ["embed_tokens"]):
        with pytest.raises(ConfigError, match="E-LORA-TARGET"):
            lora_from_config(load(untied), {"peft_type": "LORA", "r": 2, "target_modules": targets})


def test_a_model_without_an_adapter_has_no_config(untied, load):
    with pytest.raises(ConfigError, match="E-ADAPTER"):
        adapter_config(load(untied), base="x")
