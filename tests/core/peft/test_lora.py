"""LoRA against PEFT and its paper's formula."""

import peft
import pytest
import torch
from torch.testing import assert_close
from torchtune.errors import ConfigError, Faults
from torchtune.peft import adapter_names, lora
from torchtune.peft.lora import LoRALinear
from transformers import AutoModelForCausalLM

CASES = [
    {"rank": 4, "alpha": 16.0},
    {"rank": 3, "alpha": 5.0, "rslora": True},
    {"rank": 2, "alpha": 2.0, "targets": ["q_proj", "down_proj"]},
    {"rank": 2, "alpha": 8.0, "targets": ["all-linear", "lm_head"]},
]


def random_adapter(model):
    """Give the adapter values that matter: a fresh one changes nothing."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if name in adapter_names(model):
            values = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.data.copy_(values)
    return model


def pefts(folder, model, *, rank, alpha, rslora=False, targets="all-linear"):
    """Return PEFT's model of the same base and the same adapter values."""
    if "lm_head" in targets:  # beside the head, PEFT's all-linear means nothing in a list
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        targets.append("lm_head")
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=targets)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    values = {
        f"base_model.model.{name}.weight".replace("lora_a", "lora_A.default").replace(
            "lora_b", "lora_B.default"
        ): value
        for name, value in model.state_dict().items()
        if name in adapter_names(model)
    }
    trained = {name for name, value in theirs.named_parameters() if value.requires_grad}
    assert trained == set(values)
    theirs.load_state_dict(values, strict=False)
    return theirs


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_peft(case, untied, load, tokens):
    model = random_adapter(lora(load(untied), **case))
    theirs = pefts(untied, model, **case)
    ours, wanted = model(tokens), theirs(tokens).logits
    assert_close(ours, wanted, rtol=0, atol=1e-4)
    ours.logsumexp(-1).sum().backward()
    wanted.logsumexp(-1).sum().backward()
    reference = [p.grad for p in theirs.parameters() if p.requires_grad]
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    for got, want in zip(gradients, reference, strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm()  # sums of thousands, of either sign


def test_a_fresh_adapter_adds_keys_renames_none_and_changes_no_logit(tied, load, tokens):
    base = load(tied)
    wanted, keys = base(tokens), set(base.state_dict())
    model = lora(base)
    assert model is base
    assert torch.equal(model(tokens), wanted)
    assert set(model.state_dict()) == keys | adapter_names(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == adapter_names(model)


def test_first_values_follow_from_seed_and_name_alone(untied, load):
    name = "model.layers.1.mlp.up_proj.lora_a"
    state = lora(load(untied)).state_dict()
    values = state[name]
    assert not torch.equal(values, state["model.layers.0.mlp.up_proj.lora_a"])
    assert torch.equal(values, lora(load(untied), targets=["up_proj"]).state_dict()[name])
    assert not torch.equal(values, lora(load(untied), seed=1).state_dict()[name])
    assert values.abs().max() <= 64**-0.5  # Kaiming's bound for 64 inputs
    assert_close(values.std(), torch.tensor((3 * 64) ** -0.5), rtol=0.1, atol=0)


def test_without_blocks_all_linear_is_every_linear_layer_but_the_head():
    layers = {name: torch.nn.Linear(8, 8) for name in ("a", "b", "lm_head")}
    model = lora(torch.nn.ModuleDict({**layers, "norm": torch.nn.LayerNorm(8)}))
    assert adapter_names(model) == {"a.lora_a", "a.lora_b", "b.lora_a", "b.lora_b"}


def test_the_meta_device_and_the_dtype_of_the_base_are_kept(untied, load):
    with torch.device("meta"):
        layer = torch.nn.Linear(8, 8)
        model = lora(torch.nn.ModuleDict({"q_proj": layer}), rank=2)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert {p.dtype for p in lora(load(untied, dtype=torch.bfloat16)).parameters()} == {
        torch.bfloat16
    }


def test_dropout_acts_in_training_alone_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = LoRALinear(torch.nn.Linear(64, 8), rank=4, alpha=4, dropout=0.5)
    for parameter in (layer.lora_a, layer.lora_b):
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(64)
    mean = torch.stack([layer(x) for _ in range(4000)]).mean(0)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    formula = layer.weight @ x + layer.bias + layer.lora_b @ layer.lora_a @ x
    assert_close(layer(x), formula, rtol=1e-5, atol=1e-5)
    assert_close(mean, formula, rtol=0.1, atol=0.1)


def test_a_target_that_no_layer_has_is_named_with_the_nearest(untied, load):
    with pytest.raises(ConfigError, match=r"E-LORA-TARGET.*'q_prj'; this model has q_proj") as one:
        lora(load(untied), targets=["k_proj", "q_prj"])
    assert one.value.where == "peft.targets[1]"
    assert one.value.do == "did you mean 'q_proj'?"
    with pytest.raises(Faults, match=r"'q_prj'(.|\n)*'zzz'") as both:
        lora(load(untied), targets=["q_prj", "zzz"])
    assert both.value.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"rank": 0}, "peft.rank"),
        ({"alpha": -1.0}, "peft.alpha"),
        ({"dropout": 1.0}, "peft.dropout"),
        ({"dropout": 0.1, "targets": ["lm_head"]}, "peft.dropout"),
        ({"targets": []}, "peft.targets"),
        ({"targets": "lm_haed"}, "peft.targets"),
    ],
)
def test_what_cannot_work_is_refused_with_its_key(arguments, where, untied, load):
    with pytest.raises(ConfigError) as error:
        lora(load(untied), **arguments)
    assert error.value.where == where


def test_a_tied_head_and_a_second_adapter_are_refused(tied, load):
    with pytest.raises(ConfigError, match=r"E-LORA-TARGET.*no lm_head.*tied"):
        lora(load(tied), targets=["lm_head"])
    with pytest.raises(ConfigError, match="already"):
        lora(lora(load(tied)))
