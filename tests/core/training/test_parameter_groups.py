"""Which parameters are trained, at which rates, by whichever optimizer."""

import importlib.util
from functools import partial

import pytest
import torch
import torchtune.config.registry
from torchtune import checkpoint, training
from torchtune.config import build
from torchtune.distributed import World, is_distributed, join_world, shard
from torchtune.errors import ConfigError, Faults
from torchtune.models.llama import llama
from torchtune.peft import lora
from torchtune.testing import run_distributed

TINY = dict(vocab_size=40, num_layers=2, num_heads=2, num_kv_heads=1, embed_dim=16,
            intermediate_dim=24, max_seq_len=32)  # fmt: skip
GROUPS = [
    {"params": r"layers\.1\.", "lr": 1e-2},
    {"params": "norm.weight$|layernorm.weight$", "weight_decay": 0.0},
]
LAST_AND_NORMS = [{**GROUPS[0]}, {"params": r"layers\.0\..*norm|model\.norm", "weight_decay": 0.0}]
needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def tiny(**more):
    model = llama(**{**TINY, **more})
    training.init_weights(model, seed=1)
    return model


def trained(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


def test_only_what_is_named_is_trained():
    model = training.train_only(tiny(), [r"layers\.1\.mlp", r"^lm_head"])
    named = [f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    assert trained(model) == [*named, "lm_head.weight"]


def test_under_an_adapter_the_base_stays_frozen():
    model = training.train_only(lora(tiny(), rank=2), ["q_proj"])
    expected = [f"model.layers.{i}.self_attn.q_proj.lora_{part}" for i in (0, 1) for part in "ab"]
    assert sorted(trained(model)) == expected


def test_frozen_parameters_get_no_gradient_and_do_not_move():
    model = training.train_only(tiny(), ["mlp"])
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = training.grouped_optimizer(model, training.adamw)
    model(torch.arange(8).view(1, 8)).square().sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "mlp" in name}
    assert all(p.grad is None for name, p in model.named_parameters() if "mlp" not in name)


def test_every_fault_is_reported_at_once_with_near_names():
    with pytest.raises(Faults) as caught:
        training.train_only(tiny(), ["q_prj", "layers.7", "(", "mlp"])
    first, second, third = caught.value.faults
    assert (first.where, first.do) == ("trainable[0]", "did you mean 'q_proj'?")
    assert second.do.startswith("names are such as model.embed_tokens.weight, ")
    assert "no regex" in third.what
    assert {fault.code for fault in caught.value.faults} == {"E-TRAINABLE"}


def test_every_trainable_parameter_is_in_one_group_the_rest_first():
    model = training.train_only(tiny(), ["layers", r"model\.norm"])
    groups = training.parameter_groups(model, LAST_AND_NORMS)
    names = {id(p): name for name, p in model.named_parameters()}
    held = [[names[id(p)] for p in group["params"]] for group in groups]
    assert sorted(name for names in held for name in names) == sorted(trained(model))
    assert all("layers.1." in name for name in held[1])
    assert all("norm" in name for name in held[2])
    assert [sorted(group.keys() - {"params"}) for group in groups] == [[], ["lr"], ["weight_decay"]]
    assert len(training.parameter_groups(model, [{"params": "."}])) == 1


@pytest.mark.parametrize(
    ("groups", "said", "where"),
    [
        ([{"params": "mlp"}, {"params": "up_proj"}], r"up_proj.weight and 1 more", "[1].params"),
        ([{"params": "embed"}, {"params": "mpl"}], "'mpl' is found in no", "[1].params"),
        ([{"lr": 1.0}], "'' is found in no", "[0].params"),
        ([{"params": "mlp", "weight_deacy": 1.0}], "no option 'weight_deacy'", "[0].weight_deacy"),
        ([{"params": "mlp", "lr": "fast"}], "a number of at least 0", "[0].lr"),
        ([{"params": "mlp", "lr": -1}], "a number of at least 0", "[0].lr"),
    ],
)
def test_wrong_groups_are_refused(groups, said, where):
    with pytest.raises(ConfigError, match=said) as caught:
        training.grouped_optimizer(tiny(), training.adamw, groups)
    assert (caught.value.code, caught.value.where) == ("E-PARAM-GROUPS", "param_groups" + where)


@pytest.mark.parametrize("component", ["adamw", "sgd", "torch.optim.RMSprop"])
def test_groups_step_as_optimizers_of_their_own_and_a_schedule_scales_each(component):
    model, apart = tiny(), tiny()
    make = partial(build, "optimizer", {"_component_": component, "lr": 1e-3})
    together = training.grouped_optimizer(model, make, GROUPS[:1])
    last = [p for name, p in apart.named_parameters() if "layers.1." in name]
    rest = [p for name, p in apart.named_parameters() if "layers.1." not in name]
    alone = [make(rest), build("optimizer", {"_component_": component, "lr": 1e-2}, last)]
    moved = [training.constant_schedule(o, num_warmup_steps=4) for o in (together, *alone)]
    for _ in range(3):
        for each in (model, apart):
            each(torch.arange(8).view(1, 8)).square().mean().backward()
        for optimizer in (together, *alone):
            optimizer.step()
            optimizer.zero_grad()
        for schedule in moved:
            schedule.step()
    assert [group["lr"] for group in together.param_groups] == pytest.approx([7.5e-4, 7.5e-3])
    for mine, other in zip(model.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def steps(model, optimizer, count):
    torch.manual_seed(3)
    for _ in range(count):
        model(torch.arange(8).view(1, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def saved_and_resumed(folder, world, make):
    """Train 2 steps, save, and train 2 more, in the same run and in a resumed one."""

    def begin():
        model = shard(tiny(embed_dim=64, intermediate_dim=96), world)
        return model, training.grouped_optimizer(model, make, GROUPS[:1])

    model, optimizer = begin()
    steps(model, optimizer, 2)
    checkpoint.save_training_state(
        folder, model=model, optimizer=optimizer, scheduler=None, world=world, info={}, weights=True
    )
    steps(model, optimizer, 2)
    again, resumed = begin()
    checkpoint.load_training_state(
        folder, model=again, optimizer=resumed, scheduler=None, world=world
    )
    steps(again, resumed, 2)
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    equal = [
        torch.equal(*(x.to_local() if is_distributed(x) else x for x in pair)) for pair in pairs
    ]
    return equal, [group["lr"] for group in resumed.param_groups]


THEIRS = "bitsandbytes.optim.AdamW8bit"


@pytest.mark.parametrize(
    "component",
    [
        "adamw",
        pytest.param("adamw_8bit", marks=needs_torchao),
        pytest.param(THEIRS, marks=needs_bitsandbytes),
    ],
)
def test_groups_and_their_state_are_resumed_to_the_bit(component, tmp_path, theirs_allowed):
    make = partial(build, "optimizer", {"_component_": component, "lr": 1e-3})
    equal, rates = saved_and_resumed(tmp_path, World(), make)
    assert all(equal)
    assert [float(rate) for rate in rates] == pytest.approx([1e-3, 1e-2])


@pytest.fixture
def theirs_allowed(monkeypatch):
    monkeypatch.setattr(torchtune.config.registry, "_trusted", {"bitsandbytes"})


def refused_over_processes():
    from bitsandbytes.optim import AdamW8bit

    model = shard(tiny(), join_world("cpu"))
    try:
        training.grouped_optimizer(model, AdamW8bit)
    except ConfigError as error:
        return error.code
    return None


@needs_bitsandbytes
@pytest.mark.slow
def test_bitsandbytes_is_refused_over_processes():
    assert run_distributed(refused_over_processes, 2) == ["E-OPTIMIZER-SHARDED"] * 2


@needs_torchao
def test_a_group_cannot_have_what_8_bits_cannot_do():
    groups = [{"params": "mlp", "amsgrad": True}]
    with pytest.raises(ConfigError, match="cannot do amsgrad"):
        training.grouped_optimizer(tiny(), training.adamw_8bit, groups)
