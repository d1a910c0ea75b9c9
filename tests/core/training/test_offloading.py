"""Inputs that go to the host and back give the plain numbers, whatever the moment they travel at.

The copies run on `TwoStreams`, where a wait or a reference that is missing makes gradients NaN.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torchtune import training
from torchtune.config import Parallel
from torchtune.data import Documents, Steps
from torchtune.distributed import (
    World,
    context_parallel,
    gather_full,
    join_world,
    shard,
    tensor_parallel,
)
from torchtune.losses import LinearCrossEntropy
from torchtune.models.llama import llama
from torchtune.modules.kernels import as_if_on
from torchtune.peft import lora
from torchtune.testing import run_distributed

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the other processes load this file too
from two_streams import TwoStreams

LAYERS, LOSS = 4, LinearCrossEntropy()
SELECTIVE = partial(training.checkpoint_activations, keep=training.keep_products)


def small_model(change=None, *, adapter=False, layers=LAYERS):
    model = llama(vocab_size=61, num_layers=layers, num_heads=4, num_kv_heads=2, embed_dim=32,
                  intermediate_dim=48, max_seq_len=64, tied=True)  # fmt: skip
    if adapter:
        model = lora(model, rank=4, dropout=0.1)
    training.init_weights(model, seed=3)
    return change(model) if change else model


def offloaded(model, recompute=training.checkpoint_activations):
    return training.offload_activations(recompute(model))


def documents():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 61, (n,), generator=generator).tolist() for n in (5, 30, 12, 17, 9, 3)]
    return Documents.of([(row, [True] * len(row)) for row in rows])


def batches(number=1):
    return next(
        Steps(documents(), max_seq_len=64, batch_size=6 // number, gradient_accumulation_steps=number,
              seed=5).after()
    )  # fmt: skip


def forward(model, batch):
    torch.manual_seed(11)
    return model(batch, loss=LOSS)


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def plain_gradients(**options):
    with as_if_on("cuda"):  # the same attention
        model = small_model(**options)
        loss = forward(model, batches()[0])
        loss.backward()
    return loss, gradients(model)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("layers", [1, 2, LAYERS])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("recompute", [training.checkpoint_activations, SELECTIVE, lambda m: m],
                         ids=["all again", "selective", "nothing again"])  # fmt: skip
def test_loss_and_gradients_are_the_plain_ones(recompute, adapter, layers):
    options = dict(adapter=adapter, layers=layers)
    model = small_model(partial(offloaded, recompute=recompute), **options)
    with TwoStreams() as device:
        loss = forward(model, batches()[0])
        loss.backward()
    assert_same((loss, gradients(model)), plain_gradients(**options))
    assert layers < LAYERS or device.gaps


@pytest.mark.parametrize("recompute", [training.checkpoint_activations, SELECTIVE],
                         ids=["all again", "selective"])  # fmt: skip
def test_two_inputs_are_near_at_a_time_and_no_copy_is_waited_for_at_once(recompute):
    model = small_model(partial(offloaded, recompute=recompute), layers=8)
    with TwoStreams() as device:
        forward(model, batches()[0]).backward()
    assert device.most_near == 2
    assert len(device.gaps) == 2 * 7
    assert min(device.gaps) > 20  # operations of a block


def trained(model, update, number):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    updating = update(optimizer)
    for _ in range(3):
        training.train_step(model, optimizer, batches(number), World(), loss=LOSS, update=updating)
    return model.state_dict()


@pytest.mark.parametrize(
    ("update", "number"),
    [
        (training.StepAfterBackward, 3),
        (lambda optimizer: training.StepInBackward(optimizer, World()), 1),
    ],
    ids=["micro-batches", "steps in backward"],
)
def test_steps_lead_to_the_plain_weights(update, number):
    with TwoStreams():
        found = trained(small_model(offloaded), update, number)
    with as_if_on("cuda"):
        assert_same(found, trained(small_model(), update, number))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forwards_before_their_backwards(order):
    def run(model):
        losses = [forward(model, batch) for batch in batches(2)]
        for number in order:
            losses[number].backward()
        return gradients(model)

    with TwoStreams():
        found = run(small_model(offloaded))
    with as_if_on("cuda"):
        assert_same(found, run(small_model()))


def test_backward_twice_through_one_graph():
    def run(model):
        logits = model(batches()[0])
        return [torch.autograd.grad(logits.sin().sum(), model.parameters(), retain_graph=True)
                for _ in range(2)]  # fmt: skip

    with TwoStreams() as device:
        found = run(small_model(offloaded))
    with as_if_on("cuda"):
        assert_same(found, run(small_model()))
    assert device.most_near == 2


def test_backward_from_the_middle():
    def run(model):
        torch.manual_seed(11)
        hidden = (torch.randn(6, 6) / 10).requires_grad_()
        for block in model.blocks[:-1]:
            hidden = block(hidden)
        hidden.sum().backward()
        return gradients(model)

    with TwoStreams():
        found = run(offloaded(Blocks(number=4)))
    assert_same(found, run(Blocks(number=4)))


def test_host_memory_is_given_back_with_the_graph():
    model = small_model(offloaded)
    with TwoStreams() as device:
        for _ in range(2):
            loss = forward(model, batches()[0])
            assert device.pinned == LAYERS - 1
            loss.backward()
            assert device.pinned == 0


def fail(*_):
    raise KeyboardInterrupt


def cut_in_forward(model):
    handle = model.blocks[2].mlp.register_forward_pre_hook(fail)
    try:
        forward(model, batches()[0])
    finally:
        handle.remove()


def cut_in_backward(model):
    handles = [model.blocks[2].mlp.down_proj.weight.register_hook(fail)]
    try:
        forward(model, batches()[0]).backward()
    finally:
        handles[0].remove()


def without_backward(model):
    forward(model, batches()[0])
    raise KeyboardInterrupt


@pytest.mark.parametrize("cut", [cut_in_forward, cut_in_backward, without_backward])
def test_a_step_that_was_cut_short_leaves_nothing_behind(cut):
    model = small_model(offloaded)
    with TwoStreams() as device:
        with pytest.raises(KeyboardInterrupt):
            cut(model)
        model.zero_grad()
        torch.ones(1, requires_grad=True).backward()  # till then torch holds what was to come next
        loss = forward(model, batches()[0])
        loss.backward()
    assert_same((loss, gradients(model)), plain_gradients())
    assert device.most_near <= 3  # one was on its way


def test_nothing_is_copied_in_evaluation_or_without_a_gpu():
    model = small_model(offloaded)
    with TwoStreams() as device:
        found = training.evaluate(model, batches(), World(), loss=LOSS)
        with as_if_on("cpu"):
            forward(model, batches()[0]).backward()
    assert device.gaps == []
    with as_if_on("cuda"):
        assert found == training.evaluate(small_model(), batches(), World(), loss=LOSS)


class Block(nn.Module):
    """Saves its input in many forms, and its parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6, generator=torch.manual_seed(2)))

    def forward(self, x):
        wide = x[:1].expand(4, 6) * x.t()[:4]
        return x * x + (wide * wide).sum() * (x @ self.weight) * self.weight.sin()


class Blocks(nn.Module):
    def __init__(self, block=Block, number=3):
        super().__init__()
        self.blocks = nn.ModuleList([block() for _ in range(number)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x.sum()


@pytest.mark.parametrize("change", [lambda m: m, training.checkpoint_activations])
def test_inputs_saved_twice_as_views_and_expanded(change):
    def run(model):
        x = torch.linspace(-0.3, 0.3, 36, requires_grad=True)
        model(x.view(6, 6)).backward()
        return x.grad, gradients(model)

    with TwoStreams():
        found = run(training.offload_activations(change(Blocks())))
    assert_same(found, run(Blocks()))


class SavesItsWeight(Block):
    def forward(self, x):
        return x + self.weight.t().sin()


def test_weights_stay_where_they_are():
    with TwoStreams() as device:
        training.offload_activations(Blocks(SavesItsWeight))(torch.ones(6, 6)).backward()
    assert device.gaps == []


class InPlace(nn.Module):
    def forward(self, x):
        return x.add_(1).sin()


def test_an_input_that_changes_while_it_is_copied_is_an_error():
    model = training.offload_activations(training.checkpoint_activations(Blocks(InPlace)))
    with TwoStreams(), pytest.raises(RuntimeError, match="changed its input in place"):
        model(torch.ones(6, 6, requires_grad=True) * 1)
    with TwoStreams():  # and the error is gone
        small = small_model(offloaded)
        forward(small, batches()[0]).backward()
    assert_same(gradients(small), plain_gradients()[1])


def sharded(change, parallel):
    """Return the metrics and weights of two steps on this process' share, with what was copied."""
    world = join_world("cpu", parallel)
    model = context_parallel(tensor_parallel(small_model(), world), world)
    model = shard(change(model), world)
    rows = dict(batch_size=6 // world.data_size, rank=world.data_rank, size=world.data_size)
    steps = Steps(documents(), max_seq_len=64, seed=5, **rows).after()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    metrics = [
        training.train_step(model, optimizer, next(steps), world, loss=LOSS) for _ in range(2)
    ]
    weights = {name: gather_full(p).clone() for name, p in model.named_parameters()}
    return [(m.loss, m.grad_norm) for m in metrics], weights


def offloaded_and_plain(parallels):
    """Return, for each way to share the work, both runs and the number of copies."""
    found = []
    for parallel in parallels:
        with TwoStreams() as device:
            ours = sharded(offloaded, parallel)
        with as_if_on("cuda"):
            found.append(
                (ours, sharded(training.checkpoint_activations, parallel), len(device.gaps))
            )
    return found


@pytest.mark.slow
def test_two_processes_have_the_plain_numbers():
    ways = [Parallel(), Parallel(tensor=2), Parallel(context=2)]
    for ours, plain, copies in run_distributed(offloaded_and_plain, 2, ways, timeout=300)[0]:
        assert_same(ours, plain)
        assert copies == 2 * 2 * (LAYERS - 1)


@dataclass(frozen=True)
class Params:
    layers: int
    enable_activation_offloading: bool
    enable_activation_checkpointing: bool = True
    dtype: str = "fp32"
    batch_size: int = 4
    optimizer: str = "sgd"


class Recipe:
    """What of a recipe an estimate runs."""

    def __init__(self, params):
        self.params = params

    def _setup_model(self):
        with torch.device("meta"):
            model = llama(vocab_size=64, num_layers=self.params.layers, num_heads=4, num_kv_heads=2,
                          embed_dim=128, intermediate_dim=384, max_seq_len=512, tied=True)  # fmt: skip
        model = training.checkpoint_activations(model)
        if self.params.enable_activation_offloading:
            model = training.offload_activations(model)
        return model.to_empty(device="cpu")

    def _setup_optimizer(self):
        return torch.optim.SGD(self.model.parameters())


@pytest.mark.parametrize("layers", [4, 8])
def test_an_estimate_counts_two_inputs_on_the_gpu_and_the_others_on_the_host(layers):
    size = 4 * 256 * 128 * 4  # rows, tokens, numbers, bytes
    on, off = (Params(layers, offload) for offload in (True, False))
    found, kept = (
        training.estimate_memory(Recipe, params, rows=4, row_tokens=256) for params in (on, off)
    )
    assert found.most["host"] == (layers - 1) * size
    assert kept.most["activations"] - found.most["activations"] == pytest.approx(
        (layers - 2) * size, rel=1e-3
    )
    with as_if_on("cuda"):
        plan = training.plan_memory(Recipe(on)._setup_model(), on, row_tokens=256)
    assert plan.total == pytest.approx(found.peak_bytes, rel=0.15)
