"""Memory: counted before a run against what torch's profiler measures, and explained when it is out."""

import gc
import sys
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torchtune import training
from torchtune.config import Parallel
from torchtune.data import Batch
from torchtune.distributed import (
    World,
    context_parallel,
    fake_world,
    join_world,
    master_weights,
    shard,
    tensor_parallel,
)
from torchtune.errors import TuneError
from torchtune.losses import LinearCrossEntropy
from torchtune.models.llama import llama
from torchtune.modules.kernels import as_if_on
from torchtune.peft import lora
from torchtune.testing import run_distributed
from torchtune.training.fake_weights import fake_weights
from torchtune.training.live_memory import LiveMemory

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the other processes load this file too
from live_storages import most_held

SIZE = dict(vocab_size=2048, num_layers=4, num_heads=4, num_kv_heads=2, embed_dim=128,
            intermediate_dim=384, max_seq_len=512, tied=True)  # fmt: skip
ROWS, ROW = 4, 64


@dataclass(frozen=True)
class Params:
    dtype: str = "bf16"
    master_weights: bool = False
    peft: Any = None
    enable_activation_checkpointing: bool = False
    batch_size: int = ROWS
    gradient_accumulation_steps: int = 1
    optimizer_in_bwd: bool = False
    parallel: Parallel = field(default_factory=Parallel)
    fp8: str | None = None


class Recipe:
    """What of a recipe an estimate runs."""

    def __init__(self, params):
        self.params = params

    def _setup_model(self):
        p = self.params
        with torch.device("meta"):
            model = llama(**SIZE)
            model = lora(model, rank=4) if p.peft else model
        model = model.to({"bf16": torch.bfloat16, "fp32": torch.float32}[p.dtype])
        model = master_weights(model) if p.master_weights else model
        model = training.train_in_fp8(model, p.fp8, self.world) if p.fp8 else model
        model = context_parallel(tensor_parallel(model, self.world), self.world)
        if p.enable_activation_checkpointing:
            model = training.checkpoint_activations(model)
        compute = torch.bfloat16 if p.master_weights else None
        return shard(model, self.world, compute_dtype=compute).to_empty(device="cpu")

    def _setup_optimizer(self):
        return training.adamw([p for p in self.model.parameters() if p.requires_grad])

    def _setup_update(self):
        early, dtype = self.params.optimizer_in_bwd, torch.bfloat16
        return training.build_update(self.optimizer, self.world, dtype, in_backward=early)


def batch():
    tokens = torch.arange(ROWS * ROW) % SIZE["vocab_size"]
    positions = torch.arange(ROW).repeat(ROWS)
    return Batch(tokens, tokens.clone(), positions, (ROW,) * ROWS, len(tokens), ("row",) * ROWS)


def measured(params, world=None):
    """Return the most bytes of live storages in two steps, by torch.profiler's memory events."""
    recipe = Recipe(params)
    recipe.world = world or World()
    recipe.model = recipe._setup_model()
    training.init_weights(recipe.model, seed=0)
    recipe.optimizer = recipe._setup_optimizer()
    update = recipe._setup_update()
    batches = [batch()] * params.gradient_accumulation_steps
    parameters = list(recipe.model.parameters())
    local = [p.to_local() if hasattr(p, "to_local") else p for p in parameters]
    now = sum(p.numel() * p.element_size() for p in local)
    now += sum(x.nbytes for x in (batches[0].tokens, batches[0].labels, batches[0].positions))
    gc.collect()  # else what earlier tests left is freed in between, and less seems to be held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        for _ in range(2):
            training.train_step(recipe.model, recipe.optimizer, batches, recipe.world,
                                loss=LinearCrossEntropy(), update=update)  # fmt: skip
    return most_held(found, now)


def estimated(params, **more):
    return training.estimate_memory(Recipe, params, rows=ROWS, row_tokens=ROW, **more)


FP32, BF16, MASTER = Params(dtype="fp32"), Params(), Params(master_weights=True)
LORA = Params(peft="lora")
AGAIN = dict(enable_activation_checkpointing=True)


@pytest.mark.parametrize(
    "params",
    [
        FP32,
        replace(MASTER, **AGAIN),
        LORA,
        pytest.param(MASTER, marks=pytest.mark.slow),
        pytest.param(BF16, marks=pytest.mark.slow),
        pytest.param(replace(FP32, **AGAIN), marks=pytest.mark.slow),
        pytest.param(replace(BF16, **AGAIN), marks=pytest.mark.slow),
        pytest.param(replace(LORA, **AGAIN), marks=pytest.mark.slow),
        pytest.param(replace(MASTER, gradient_accumulation_steps=3), marks=pytest.mark.slow),
        pytest.param(replace(BF16, optimizer_in_bwd=True), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_the_estimate_is_what_the_profiler_measures(params):
    expected = measured(params)
    found = estimated(params, device="cpu").peak_bytes
    assert found == pytest.approx(expected, rel=0.1)
    plan = training.plan_memory(model_of(params), params, row_tokens=ROW)
    assert plan.total == pytest.approx(found, rel=0.15)


def model_of(params):
    recipe = Recipe(params)
    recipe.world = World()
    return recipe._setup_model()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_casting_to_fp8_is_planned(again, monkeypatch):
    """Few token ids make backward the fullest. A CPU's own product has copies that no trace shows."""
    for key, value in {"vocab_size": 128, "num_layers": 2}.items():
        monkeypatch.setitem(SIZE, key, value)
    monkeypatch.setattr(sys.modules[__name__], "ROWS", 32)
    params = Params(batch_size=32, enable_activation_checkpointing=again, fp8="tensorwise")
    expected, found = measured(params), estimated(params, device="cpu").peak_bytes
    plan = training.plan_memory(model_of(params), params, row_tokens=ROW)
    assert 0.85 * expected < found <= expected
    assert plan.total == pytest.approx(expected, rel=0.1)
    plain = replace(params, fp8=None)
    assert found > 1.1 * estimated(plain, device="cpu").peak_bytes


def measured_here(runs):
    """Return what this process measures of each run, one after the other."""
    return [measured(params, join_world("cpu", params.parallel)) for params in runs]


def check_processes(processes, runs):
    ranks = run_distributed(measured_here, processes, runs, timeout=600)
    for params, expected in zip(runs, map(max, zip(*ranks, strict=True)), strict=True):
        found = estimated(params, processes=processes, device="cpu").peak_bytes
        assert found == pytest.approx(expected, rel=0.1), params
        with fake_world(processes, params.parallel) as world:
            recipe = Recipe(params)
            recipe.world = world
            plan = training.plan_memory(recipe._setup_model(), params, row_tokens=ROW, world=world)
        assert plan.total == pytest.approx(found, rel=0.15), params


def test_the_estimate_for_two_processes_is_what_they_measure():
    cut, rows = Parallel(tensor=2), Parallel(context=2)
    check_processes(
        2,
        [
            replace(MASTER, **AGAIN),
            replace(LORA, parallel=cut),
            replace(FP32, parallel=rows),
        ],
    )


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_gloo_works_on_a_copy_and_nccl_in_place():
    held = {}
    for device in ("cpu", "cuda"):
        with fake_world(2), as_if_on(device), LiveMemory() as memory:
            torch.distributed.reduce_scatter_tensor(torch.empty(512), torch.zeros(1024))
            torch.distributed.all_gather_into_tensor(torch.empty(512), torch.zeros(256))
        held[device] = sum(memory.peak().values())
    assert held["cpu"] - held["cuda"] == 1024 * 4


@pytest.mark.slow
def test_the_estimate_for_four_processes_is_what_they_measure():
    several = [Parallel(data_replicate=2), Parallel(tensor=2), Parallel(tensor=2, context=2)]
    kinds = [FP32, LORA, replace(MASTER, **AGAIN)]
    check_processes(4, [replace(kind, parallel=each) for kind in kinds for each in several])


@pytest.mark.parametrize("replicas", [1, 2])
def test_gradients_that_wait_for_other_replicas_are_planned_in_float32(replicas):
    params = replace(FP32, dtype="bf16", parallel=Parallel(data_replicate=replicas))
    params, plans = replace(params, gradient_accumulation_steps=3), []
    counted = estimated(params, processes=4).peak_bytes
    for each in (params, replace(params, gradient_accumulation_steps=1)):
        with fake_world(4, each.parallel) as world:
            recipe = Recipe(each)
            recipe.world = world
            model = recipe._setup_model()
            plans.append(training.plan_memory(model, each, row_tokens=ROW, world=world))
    assert plans[0].total == pytest.approx(counted, rel=0.02)
    size = 4 if replicas > 1 else 2
    assert plans[0].total - plans[1].total == plans[0].trained * size / (4 / replicas)


def test_states_are_counted_to_the_byte_and_cut_over_processes_that_are_not_there():
    count = sum(p.numel() for p in llama(**SIZE).parameters())
    most = estimated(FP32, processes=4).most
    assert most["weights"] == most["gradients"] == count
    assert most["optimizer"] == pytest.approx(2 * count, rel=0.01)  # and the numbers of steps
    assert most["communication"] > 4 * 2048 * 128  # the whole embedding
    with fake_world(4) as world:
        plan = training.plan_memory(llama(**SIZE), FP32, row_tokens=ROW, world=world)
    assert (plan.weights, plan.optimizer) == (count, 2 * count)


def test_attention_on_a_gpu_is_counted_as_that_of_a_gpu():
    longer = dict(rows=1, row_tokens=512)
    gpu = training.estimate_memory(Recipe, LORA, device="cuda", **longer).most["activations"]
    cpu = training.estimate_memory(Recipe, LORA, device="cpu", **longer).most["activations"]
    scores = 4 * 512 * 512 * 2 * SIZE["num_layers"]  # written out on a CPU, never made on a GPU
    # kept in each layer, half of them or all, and made anew for one in backward
    assert scores / 2 < cpu - gpu < 2 * scores


LABELS = torch.tensor([3, -100, 5, 6, -100])
MASKED = {
    "taken": lambda w: w[LABELS != -100],
    "taken of the second dimension": lambda w: w[:, LABELS[:4] != -100],
    "selected": lambda w: torch.masked_select(w, (LABELS != -100).unsqueeze(1)),
    "written": lambda w: w.clone().index_put((LABELS == -100,), torch.tensor(0.0)),
    "found": lambda w: w[(LABELS != -100).nonzero(as_tuple=True)],
}


@pytest.mark.parametrize("take", MASKED.values(), ids=MASKED)
def test_a_mask_takes_as_many_of_weights_without_values_as_of_real_ones(take):
    def shapes():
        weight = nn.Linear(4, 5, device="meta").to_empty(device="cpu").weight
        take(weight).sum().backward()
        return take(weight).shape, weight.grad.shape

    with fake_weights():
        fake = shapes()
    assert fake == shapes()


def test_a_mask_made_of_weights_without_values_takes_all():
    with fake_weights():
        weight = nn.Linear(4, 5, device="meta").to_empty(device="cpu").weight
        assert weight[weight > 0].shape == (20,)


def test_a_run_after_an_estimate_computes_with_values():
    estimated(BF16, device="cpu")
    model = model_of(BF16)
    training.init_weights(model, seed=0)
    assert model(batch(), loss=LinearCrossEntropy()).isfinite()


@pytest.mark.parametrize(
    "text", ["CUDA out of memory. Tried to allocate 2 GiB", "can't allocate memory: 5"]
)
def test_running_out_of_memory_says_what_took_it_and_what_each_change_frees(text):
    with as_if_on("cpu"):
        plan = training.plan_memory(llama(**SIZE), Params(), row_tokens=10**5)
    with (
        pytest.raises(TuneError, match="activations") as caught,
        training.explain_out_of_memory(plan),
    ):
        raise RuntimeError(text)
    first, second, third = caught.value.do.split(", or ")
    assert first.startswith("try ") and "GiB)" in first
    named = {word.partition("=")[0] for part in (first, second, third) for word in part.split()}
    assert "enable_activation_checkpointing" in named and "batch_size" in named
    freed = [size for _, size in plan.changes]
    assert freed == sorted(freed, reverse=True) and min(freed) > 0


@pytest.mark.parametrize(("rows", "unit", "size"), [(1, "MiB", 2**20), (200, "GiB", 2**30)])
def test_a_plan_is_told_in_the_unit_that_fits_it(rows, unit, size):
    plan = training.plan_memory(llama(**SIZE), Params(batch_size=rows), row_tokens=512)
    assert str(plan).startswith(f"about {plan.total / size:.2f} {unit} (weights ")


def test_only_keys_that_a_recipe_has_are_advised():
    @dataclass
    class Few:
        batch_size: int = 8

    plan = training.plan_memory(llama(**SIZE), Few(), row_tokens=64)
    assert plan.changes == ()
    with (
        pytest.raises(TuneError) as caught,
        training.explain_out_of_memory(plan),
    ):
        raise RuntimeError("out of memory")
    assert "=" not in caught.value.do


def test_other_errors_pass_through():
    plan = training.plan_memory(llama(**SIZE), Params(), row_tokens=10)
    with pytest.raises(RuntimeError, match="shape"), training.explain_out_of_memory(plan):
        raise RuntimeError("shape mismatch")
