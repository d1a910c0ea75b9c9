"""Two processes and one, and plain torch, compute the same losses, norms and gradients."""

import os
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.func import functional_call
from torchtune.config import Parallel
from torchtune.data import Batch
from torchtune.distributed import (
    clip_grad_norm,
    fill,
    gather_full,
    join_world,
    one_sum_a_step,
    shard,
)
from torchtune.losses import LinearCrossEntropy
from torchtune.models import auto, from_pretrained
from torchtune.peft import lora
from torchtune.testing import run_distributed, tiny_checkpoint
from torchtune.training import checkpoint_activations

FP32, BF16 = torch.float32, torch.bfloat16
CASES = {
    "plain": {},
    "tied": {"tied": True},
    "root resharded": {"reshard_root": True},
    "root resharded, tied": {"reshard_root": True, "tied": True},
    "whole weights kept": {"reshard": False},
    "recomputed": {"recompute": True},
    "LoRA on the head": {"targets": ("q_proj", "lm_head"), "reshard_root": True},
    "LoRA, frozen embedding": {"targets": "all-linear", "tied": True},
    "master weights": {"compute": BF16},
    "master weights, tied": {"compute": BF16, "tied": True},
    "master weights, recomputed": {"compute": BF16, "recompute": True},
    "fp32 LoRA on a bf16 base": {"compute": BF16, "base": BF16, "targets": "all-linear"},
    "kept on the CPU": {"offload": True},
    "kept on the CPU, LoRA": {"offload": True, "targets": "all-linear", "compute": BF16},
    "two replicas": {"parallel": {"data_replicate": 2}},
}
LAYOUTS = {
    "four shards": {},
    "two replicas of two": {"data_replicate": 2},
    "four replicas": {"data_replicate": 4},
    "the processes of a row": {"context": 2},
    "the processes of a row, twice": {"data_replicate": 2, "context": 2},
}
KINDS = [
    *(("tied", layout) for layout in LAYOUTS),
    ("fp32 LoRA on a bf16 base", "two replicas of two"),
    ("fp32 LoRA on a bf16 base", "the processes of a row, twice"),
    ("kept on the CPU", "two replicas of two"),
]
OF_FOUR = {
    f"{kind}, {layout}": {**CASES[kind], "parallel": LAYOUTS[layout]} for kind, layout in KINDS
}


def micro_batch(number: int) -> Batch:
    """Return a flat micro-batch of two documents, part of it supervised."""
    generator = torch.Generator().manual_seed(number)
    lengths = (3 + 2 * number, 11 - number)
    tokens = torch.randint(4, 260, (sum(lengths),), generator=generator)
    labels = tokens.roll(-1)
    labels[: 2 * number + 1] = -100
    positions = torch.cat([torch.arange(n) for n in lengths])
    return Batch(tokens, labels, positions, lengths, int((labels >= 0).sum()), (f"row {number}",))


def build(folder, *, tied=False, base=FP32, targets=None, **_):
    """Load the tiny model; with adapters, give `lora_b` values, so that `lora_a` has gradients."""
    model = from_pretrained(Path(folder) / ("tied" if tied else "untied"), dtype=base)
    if targets:
        lora(model, rank=2, targets=targets)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            generator = torch.Generator().manual_seed(len(name))
            parameter.data = torch.randn(parameter.shape, generator=generator).to(FP32) * 0.1
    return model


def join(case):
    """Join the processes in the case's layout; alone there is none."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return join_world("cpu", None if alone else Parallel(**case.get("parallel", {})))


def step(folder, case):
    """Return loss, gradient norm and gradients of one step of four micro-batches."""
    world, model = join(case), build(folder, **case)
    if case.get("recompute"):
        checkpoint_activations(model)
    shard(
        model,
        world,
        compute_dtype=case.get("compute"),
        reshard_after_forward=case.get("reshard", True),
        cpu_offload=case.get("offload", False),
    )
    if world.size > 1 and case.get("reshard_root"):
        model.set_reshard_after_forward(True, recurse=False)
    batches = [micro_batch(i) for i in range(4)][world.data_rank :: world.data_size]
    supervised = world.sum(sum(batch.supervised for batch in batches))
    total = torch.zeros(())
    for batch in one_sum_a_step(model, batches, world):
        loss = model(batch, loss=LinearCrossEntropy())
        # the processes of a row compute the same here, so that each has its share of the gradient
        (loss / supervised / world.context_size).backward()
        total += loss.detach()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: gather_full(p.grad).clone() for name, p in trained.items()}
    norm = clip_grad_norm(trained.values(), None)
    return world.sum(total) / supervised, norm, gradients


def forward_after_filling(folder):
    """Change all weights, held as an optimizer holds them, between two forwards."""
    world = join_world("cpu")
    model, tokens = shard(build(folder), world), torch.arange(4, 9)[None]
    parameters = list(model.parameters())
    with torch.no_grad():
        model(tokens)
        for parameter in parameters:
            parameter.mul_(0.5)
        return model(tokens)


def meta_model(folder):
    """Cut a model that has no memory yet, give it some, and compute."""
    world, loaded = join_world("cpu"), build(folder)
    with torch.device("meta"):
        model = auto(Path(folder) / "untied")
    model = shard(model, world, compute_dtype=BF16).to_empty(device=world.device)
    for (_, empty), (_, full) in zip(
        model.named_parameters(), loaded.named_parameters(), strict=True
    ):
        fill(empty, full.detach())
    with torch.no_grad():
        return model(torch.arange(4, 9)[None])


def step_all(folder):
    """Take the step in every case; one start of processes serves them all."""
    results = {name: step(folder, case) for name, case in CASES.items()}
    return {**results, "filled": forward_after_filling(folder), "meta": meta_model(folder)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints whose sizes do not divide evenly by two everywhere."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("tied", "untied"):
        sizes = {"intermediate_size": 33, "vocab_size": 261}
        tiny_checkpoint(folder / name, tie_word_embeddings=name == "tied", **sizes)
    return folder


@pytest.fixture(scope="module")
def of_two(folder):
    """Each case's results on two processes."""
    return run_distributed(step_all, 2, folder)


def step_layouts(folder):
    """Take the step in every layout of four processes, one after the other; count sums of replicas."""
    results = {name: step(folder, case) for name, case in OF_FOUR.items()}
    return {**results, "sums": [sums_over_replicas(folder, count) for count in (1, 3)]}


def sums_over_replicas(folder, micro_batches):
    """Return how often two replicas of two add up gradients in a step of so many micro-batches."""
    world = join_world("cpu", Parallel(data_replicate=2))
    model = shard(build(folder), world)
    with patch.object(dist, "all_reduce", wraps=dist.all_reduce) as sums:
        for batch in one_sum_a_step(model, [micro_batch(1)] * micro_batches, world):
            model(batch, loss=LinearCrossEntropy()).backward()
    return sums.call_count


@pytest.fixture(scope="module")
def of_four(folder):
    """Each layout's results on four processes."""
    return run_distributed(step_layouts, 4, folder)


def assert_same_step(mine, theirs, *, rtol=1e-5):
    """Compare loss, norm, and each gradient by the norm of the difference."""
    torch.testing.assert_close(mine[0], theirs[0], rtol=rtol, atol=0)
    torch.testing.assert_close(mine[1], theirs[1], rtol=rtol, atol=0)
    assert mine[2].keys() == theirs[2].keys()
    for name, gradient in theirs[2].items():
        assert mine[2][name].dtype == gradient.dtype
        assert (mine[2][name] - gradient).norm() <= rtol * gradient.norm(), name


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_step_of_one(folder, of_two, name):
    alone = step(folder, {**CASES[name], "offload": False})
    for rank in of_two:
        assert_same_step(rank[name], alone)


@pytest.mark.parametrize("name", OF_FOUR)
def test_four_processes_take_the_step_of_one_in_every_layout(folder, of_four, name):
    alone = step(folder, {**OF_FOUR[name], "offload": False})
    for rank in of_four:
        assert_same_step(rank[name], alone)


def test_replicas_add_up_once_a_step(of_four):
    assert of_four[0]["sums"] == [3, 3]  # two blocks, and what lies outside of them


@pytest.fixture
def no_group_left():
    """Let the process be alone again after the test."""
    yield
    join_world("cpu").close()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("name", ["kept on the CPU", "kept on the CPU, LoRA"])
@pytest.mark.usefixtures("no_group_left")
def test_one_process_that_keeps_its_weights_on_the_cpu_takes_the_same_step(folder, name):
    offloaded, plain = (step(folder, {**CASES[name], "offload": on}) for on in (True, False))
    assert_same_step(offloaded, plain)


def reference(folder, case):
    """Take the same step with weights cast by functional_call; in fp32 with plain cross-entropy."""
    model = build(folder, **case)
    total, supervised = torch.zeros(()), sum(micro_batch(i).supervised for i in range(4))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for batch in map(micro_batch, range(4)):
        dtype = case.get("compute", FP32)
        weights = {name: p.to(dtype) for name, p in model.named_parameters()}
        if dtype == FP32:
            logits = functional_call(model, weights, (batch,))
            loss = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
        else:
            loss = functional_call(model, weights, (batch,), {"loss": LinearCrossEntropy()})
        (loss / supervised).backward()
        total += loss.detach()
    gradients = {name: p.grad for name, p in trained.items()}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    return total / supervised, norm, gradients


REFERENCED = ["plain", "tied", "LoRA on the head", "master weights", "master weights, tied"]


@pytest.mark.parametrize("name", [*REFERENCED, "fp32 LoRA on a bf16 base"])
def test_one_process_takes_the_step_of_plain_torch(folder, name):
    assert_same_step(step(folder, CASES[name]), reference(folder, CASES[name]))


def test_outside_of_the_forward_the_weights_are_the_masters(folder):
    model = build(folder)
    names = {name: parameter.dtype for name, parameter in model.named_parameters()}
    shard(model, join_world("cpu"), compute_dtype=BF16)
    with torch.no_grad():
        assert model(torch.arange(4, 9)[None]).dtype == BF16
    with pytest.raises(IndexError):
        model(torch.tensor([[10_000]]))  # a forward that fails leaves the masters, too
    assert {name: parameter.dtype for name, parameter in model.named_parameters()} == names
    assert model.output_matrix().dtype == FP32


def test_a_forward_without_backward_leaves_no_stale_weights(folder, of_two):
    for rank in of_two:
        torch.testing.assert_close(rank["filled"], forward_after_filling(folder))


def test_a_model_may_be_cut_before_it_has_memory(folder, of_two):
    expected = build(folder, base=BF16)(torch.arange(4, 9)[None]).detach()
    for logits in [meta_model(folder), *(rank["meta"] for rank in of_two)]:
        assert torch.equal(logits, expected)
