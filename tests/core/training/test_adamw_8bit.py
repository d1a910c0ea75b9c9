"""AdamW with states in 8 bits: torchao's steps, in every world and with whatever steps it."""

import importlib.util
import math
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torchtune import checkpoint, training
from torchtune.distributed import World, fill, join_world, local_part, shard
from torchtune.errors import MissingError
from torchtune.models.llama import llama
from torchtune.testing import run_distributed
from torchtune.training.fake_weights import fake_weights

TINY = dict(vocab_size=40, num_layers=2, num_heads=2, num_kv_heads=1, embed_dim=64,
            intermediate_dim=96, max_seq_len=32)  # fmt: skip
needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)
STATES = ("exp_avg", "exp_avg_sq")


def tiny(**more) -> nn.Module:
    model = llama(**{**TINY, **more})
    training.init_weights(model, seed=1)
    return model


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, update=None) -> None:
    update = update or training.StepAfterBackward(optimizer)
    for _ in range(count):
        update.begin(micro_batches=1, max_norm=None)
        update.backward(model(torch.arange(8).view(1, 8)).square().mean())
        update.finish()


def step_on(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, count: int) -> None:
    """Step on gradients that follow from a seed, whatever the world."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(count):
        for p in parameters:
            p.grad = torch.zeros_like(p)
            fill(p.grad, torch.randn(p.shape, generator=draw))
        optimizer.step()


def plainly(parameters: Any, **options) -> torch.optim.Optimizer:
    """Return torchao's own optimizer, whose means of squares are kept from being rounded to 0."""
    from torchao.optim import AdamW8bit

    def above_zero(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for state in optimizer.state.values():
            squares = local_part(state["exp_avg_sq"])
            if hasattr(squares, "codes"):
                squares.codes.clamp_(min=1)

    optimizer = AdamW8bit(parameters, **options)
    optimizer.register_step_post_hook(above_zero)
    return optimizer


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return weights and states as this rank has them, codes and scales as they are."""
    found = [local_part(p.detach()) for p in model.parameters()]
    for kept in (optimizer.state[p] for p in model.parameters()):
        for local in (local_part(kept[name]) for name in STATES):
            coded = hasattr(local, "codes")
            found += [local.codes, local.scale] if coded else [local]
    return found


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def matrices(dtype: torch.dtype = torch.float32) -> nn.Module:
    """One of more numbers than are stepped at a time, one that is in no blocks, one too small."""
    torch.manual_seed(0)
    sizes = ((700, 768), (66, 63), (16, 16))
    return nn.Sequential(*(nn.Linear(*size, bias=False) for size in sizes)).to(dtype)


@needs_torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_torchao_s_to_the_bit(dtype):
    pairs = []
    for make in (training.adamw_8bit, plainly):
        model = matrices(dtype)
        groups = [
            {"params": [model[0].weight], "betas": (0.8, 0.9)},
            {"params": [model[1].weight, model[2].weight], "lr": 0.5, "weight_decay": 0.2},
        ]
        optimizer = make(groups, lr=1e-2, weight_decay=0.1)
        with torch.compiler.set_stance("force_eager"):
            step_on(list(model.parameters()), optimizer, 3)
        pairs.append(held(model, optimizer))
    assert len(pairs[0]) == 3 + 2 * 4 and equal(*pairs)


@needs_torchao
@pytest.mark.slow
def test_a_step_is_torchao_s_compiled_one_but_for_rounding():
    start, ours, theirs = matrices(), matrices(), matrices()
    for model, make in ((ours, training.adamw_8bit), (theirs, plainly)):
        step_on(list(model.parameters()), make(model.parameters(), lr=1e-2), 3)
    for mine, other, before in zip(*(m.parameters() for m in (ours, theirs, start)), strict=True):
        assert (mine - other).norm() < 1e-3 * (other - before).norm()


def steps_over_processes(kind: str) -> bool:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    world, pairs = join_world("cpu"), []
    for make in (training.adamw_8bit, plainly):
        model = matrices()
        if kind == "sharded":
            fully_shard(model)
        else:
            mesh = torch.distributed.init_device_mesh("cpu", (world.size,))
            parallelize_module(model, mesh, {"0": RowwiseParallel(), "1": RowwiseParallel()})
        optimizer = make(model.parameters(), lr=1e-2)
        with torch.compiler.set_stance("force_eager"):
            step_on(list(model.parameters()), optimizer, 3)
        pairs.append(held(model, optimizer))
    return equal(*pairs)


@needs_torchao
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sharded", "columns"])
def test_two_processes_step_as_torchao_s_to_the_bit(kind):
    assert run_distributed(steps_over_processes, 2, kind) == [True, True]


@needs_torchao
def test_weights_go_where_adamw_takes_them():
    ours, theirs, start = tiny(), tiny(), tiny()
    small = training.adamw_8bit(ours.parameters(), lr=1e-3)
    steps(ours, small, 5)
    steps(theirs, training.adamw(theirs.parameters(), lr=1e-3), 5)
    for mine, other, before in zip(*(m.parameters() for m in (ours, theirs, start)), strict=True):
        assert (mine - other).norm() < 0.2 * (other - before).norm()
    state = small.state[ours.model.layers[0].mlp.up_proj.weight]
    assert all(state[name].codes.dtype == torch.uint8 for name in STATES)


@needs_torchao
def test_a_number_whose_square_is_lost_in_its_block_is_not_thrown_far():
    """As in an embedding: one row's token is in the text, the others are only not to be said."""
    weight, rates = nn.Parameter(torch.zeros(64, 64)), []
    optimizer = training.adamw_8bit([weight], lr=1.0, weight_decay=0.0)
    for size in (1e-4, 1e-4, 0.0):
        weight.grad = torch.full((64, 64), size)
        weight.grad[::4] = 1.0
        before = weight.detach().clone()
        optimizer.step()
        rates.append(float((weight.detach() - before).abs().max()))
    assert max(rates) < 2  # torchao's alone moves it by thousands of rates in the third step


@needs_torchao
def test_weights_without_values_get_states_without_values():
    with fake_weights():
        weight = nn.Parameter(torch.empty(64, 64))
        weight.grad = torch.zeros_like(weight)
        optimizer = training.adamw_8bit([weight])
        optimizer.step()
    state = optimizer.state[weight]
    assert all(type(state[name].codes).__name__ == "FakeTensor" for name in STATES)


@needs_torchao
@pytest.mark.parametrize("kind", ["in backward", "scaled"])
def test_whatever_steps_it_the_numbers_are_the_same(kind):
    runs = []
    for wrap in ({"in backward": partial(training.StepInBackward, world=World()),
                  "scaled": training.LossScaling}[kind], training.StepAfterBackward):  # fmt: skip
        model = tiny()
        optimizer = training.adamw_8bit(model.parameters(), lr=1e-3)
        steps(model, optimizer, 3, wrap(optimizer))
        runs.append(held(model, optimizer))
    assert equal(*runs)  # the scale is a power of two


@needs_torchao
def test_a_schedule_sets_the_rate_of_every_group_and_is_replayed():
    model = matrices()
    groups = [{"params": [model[0].weight]}, {"params": [model[1].weight], "lr": 0.5}]
    optimizer = training.adamw_8bit(groups, lr=0.1)
    scheduler = training.cosine_schedule(optimizer, num_training_steps=8)
    factors = [0.5 * (1 + math.cos(math.pi * number / 8)) for number in range(4)]
    for factor in factors[:3]:
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        assert rates == pytest.approx([0.1 * factor, 0.5 * factor])
        optimizer.step(), scheduler.step()
    replayed = training.adamw_8bit(model.parameters(), lr=0.1)
    training.replay_schedule(training.cosine_schedule(replayed, num_training_steps=8), 3)
    assert float(replayed.param_groups[0]["lr"]) == pytest.approx(0.1 * factors[3])
    optimizer.step()  # with the rate that the schedule set


@needs_torchao
def test_bf16_weights_at_a_small_rate_are_noted():
    for lr, noted in ((2e-5, True), (1e-4, False)):
        optimizer = training.adamw_8bit(matrices(torch.bfloat16).parameters(), lr=lr)
        assert bool(training.rounding_note(optimizer)) == noted


@needs_torchao
def test_new_settings_on_a_resume_keep_the_states(tmp_path):
    model = matrices()
    optimizer = training.adamw_8bit(model.parameters(), lr=1e-2)
    step_on(list(model.parameters()), optimizer, 2)
    state = {"model": model, "scheduler": None, "world": World()}
    checkpoint.save_training_state(tmp_path, **state, optimizer=optimizer, info={})
    other = training.adamw_8bit(model.parameters(), lr=0.5)
    checkpoint.load_training_state(tmp_path, **state, optimizer=other, settings=False)
    assert float(other.param_groups[0]["lr"]) == 0.5
    assert equal(held(model, other), held(model, optimizer))
    adamw = training.adamw(model.parameters())
    checkpoint.load_training_state(tmp_path, **state, optimizer=adamw, settings=False)
    assert not adamw.state


@dataclass
class In8Bits:
    optimizer: Any = "adamw_8bit"
    dtype: str = "fp32"
    batch_size: int = 1


@needs_torchao
def test_the_memory_of_the_states_is_planned():
    model = tiny(embed_dim=256, intermediate_dim=512, vocab_size=200)
    optimizer = training.adamw_8bit(model.parameters(), lr=1e-3)
    steps(model, optimizer, 1)
    plan = training.plan_memory(model, In8Bits(), row_tokens=16)
    taken = held(model, optimizer)[len(list(model.parameters())) :]
    assert plan.optimizer == pytest.approx(sum(it.nbytes for it in taken), rel=0.1)


class Recipe:
    """The part of a recipe that an estimate runs."""

    def __init__(self, params: In8Bits) -> None:
        self.params, self.world = params, World()

    def _setup_model(self) -> nn.Module:
        with torch.device("meta"):
            model = llama(**{**TINY, "embed_dim": 256})
        return shard(model, self.world).to_empty(device="cpu")

    def _setup_optimizer(self) -> torch.optim.Optimizer:
        return training.adamw_8bit(self.model.parameters())


@needs_torchao
def test_an_estimate_counts_codes_scales_and_tables_on_one_process_and_on_four():
    model = tiny(embed_dim=256)
    optimizer = training.adamw_8bit(model.parameters())
    steps(model, optimizer, 1)
    weights = list(model.parameters())
    states = [optimizer.state[p]["exp_avg"] for p in weights]
    coded = sum(hasattr(state, "codes") for state in states)
    taken = sum(it.nbytes for it in held(model, optimizer)[len(weights) :])
    counted = partial(training.estimate_memory, Recipe, In8Bits(), rows=1, row_tokens=16)
    assert coded > 8
    # and of each parameter its count of steps, of two states the table
    found = counted(device="cpu").most["optimizer"]
    assert found == pytest.approx(taken + 2 * 1024 * coded + 4 * len(weights), rel=1e-3)
    assert counted(device="cuda", processes=4).most["optimizer"] < 0.4 * found


@needs_torchao
def test_small_states_are_advised_with_the_arguments_that_the_optimizer_has():
    adamw = {"_component_": "adamw", "lr": 1e-4, "betas": [0.9, 0.95], "fused": False}
    words = "optimizer=adamw_8bit optimizer.lr=0.0001 optimizer.betas=[0.9,0.95]"
    for given, wanted in ((adamw, words), ("adamw", "optimizer=adamw_8bit")):
        plan = training.plan_memory(tiny(embed_dim=256), In8Bits(given), row_tokens=16)
        assert dict(plan.changes)[wanted] == pytest.approx(0.75 * plan.optimizer)
    for other in ("sgd", "adamw_8bit", {"_component_": "torch.optim.Adagrad"}):
        plan = training.plan_memory(tiny(), In8Bits(other), row_tokens=16)
        assert not any("8bit" in words for words, _ in plan.changes)


def test_without_torchao_the_error_names_the_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchtune.training.states_in_8_bits", raising=False)
    monkeypatch.setitem(sys.modules, "torchao.optim.adam", None)
    with pytest.raises(MissingError, match="adamw_8bit needs torchao") as caught:
        training.adamw_8bit(tiny().parameters())
    assert (caught.value.code, caught.value.where) == ("E-TORCHAO", "optimizer")
    assert caught.value.do == 'pip install "torchao>=0.18"'
