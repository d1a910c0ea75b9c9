"""Rows cut over processes take the steps that one process takes on whole rows."""

from pathlib import Path

import pytest
import torch
from torchtune.config import Parallel
from torchtune.data import Batch, idle_batch
from torchtune.distributed import World, context_parallel, gather_full, join_world, shard
from torchtune.errors import ConfigError
from torchtune.losses import LinearCrossEntropy
from torchtune.models import from_pretrained
from torchtune.models.llama import llama
from torchtune.peft import lora
from torchtune.testing import run_distributed, tiny_checkpoint
from torchtune.training import checkpoint_activations, compile_blocks, train_step

CASES = {
    "full": {},
    "recomputed": {"recompute": True},
    "LoRA": {"targets": "all-linear"},
    "three key heads": {"heads": "three"},
    "one key head": {"heads": "one"},
}
COMPILED = {"compiled and recomputed": {"compile": True, "recompute": True}}
ROWS = [((5, 3, 8), 2), ((17,), 14), ((1, 2), 3), ((3, 29, 2), 0), ((9, 4), 12), ((23,), 1)]
"""Lengths that no number of processes divides, and how many tokens at the front train nothing."""


def micro_batch(lengths, untrained):
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.randint(4, 260, (sum(lengths),), generator=generator)
    labels = tokens.roll(-1)
    labels[torch.tensor(lengths).cumsum(0) - 1] = -100
    labels[:untrained] = -100
    positions = torch.cat([torch.arange(n) for n in lengths])
    rows = tuple(f"row {n}" for n in lengths)
    return Batch(tokens, labels, positions, lengths, int((labels >= 0).sum()), rows)


def build(folder, world, *, heads="two", targets=None, compile=False, recompute=False):
    """Load a model; adapters get values, so that `lora_a` has gradients; then cut it."""
    model = from_pretrained(Path(folder) / heads, dtype=torch.float32)
    if targets:
        lora(model, rank=2, targets=targets)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            generator = torch.Generator().manual_seed(len(name))
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model = context_parallel(model, world)
    model = compile_blocks(model) if compile else model
    model = checkpoint_activations(model) if recompute else model
    return shard(model, world)


def steps(folder, world, case):
    """Return loss and norm of three clipped steps on two micro-batches, and the weights after them."""
    model = build(folder, world, **case)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    found = []
    for number in range(3):
        step = [micro_batch(*row) for row in ROWS[2 * number : 2 * number + 2]]
        own = [*step[world.data_rank :: world.data_size], idle_batch()]
        metrics = train_step(
            model, optimizer, own, world, loss=LinearCrossEntropy(), max_norm=1.0, step=number
        )
        found.append((metrics.loss, metrics.grad_norm, metrics.tokens))
    weights = {name: gather_full(p).clone() for name, p in model.named_parameters()}
    return torch.tensor(found, dtype=torch.float64), weights


def other_forwards(folder, world):
    """Return logits of ids and of a flat row, the loss with an own `attend`, and its gradient."""
    model, row = build(folder, world), micro_batch((4, 3), 1)
    with torch.no_grad():
        found = [model(row.tokens[None])[0], model(row)]

    def itself(q, k, v):
        return v.repeat_interleave(q.shape[1] // v.shape[1], 1)

    loss = model(row, loss=LinearCrossEntropy(), attend=itself)
    (loss / world.data_size).backward()
    return [*found, loss.detach(), gather_full(model.model.norm.weight.grad)]


def both_sizes(folder, context, cases):
    """Take each case's steps; one start of the processes serves them all."""
    world = join_world("cpu", Parallel(context=context))
    found = {name: steps(folder, world, case) for name, case in cases.items()}
    refusals = [refused(heads, world) for heads in (9, 7)] if world.size > 1 else []
    return found | {"others": other_forwards(folder, world), "refused": refusals}


def refused(heads, world):
    """Return what is said of a model with so many heads."""
    sizes = dict(num_layers=1, num_kv_heads=1, embed_dim=heads * 4, intermediate_dim=8)
    with torch.device("meta"):
        model = llama(vocab_size=8, max_seq_len=8, num_heads=heads, **sizes)
    with pytest.raises(ConfigError) as caught:
        context_parallel(model, world)
    return str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_checkpoint(folder / "two")
    tiny_checkpoint(folder / "one", num_key_value_heads=1)
    three = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}
    tiny_checkpoint(folder / "three", **three)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return both_sizes(folder, 1, CASES)


@pytest.fixture(scope="module", params=[2, 4], ids="{} processes".format)
def cut(folder, request):
    """The results of every rank; four processes have two shares of the rows, each cut in two."""
    return run_distributed(both_sizes, request.param, folder, 2, CASES)


def assert_same_steps(mine, theirs):
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-5, atol=0)
    for name, weight in theirs[1].items():
        assert (mine[1][name] - weight).norm() <= 1e-4 * weight.norm(), name


@pytest.mark.parametrize("case", CASES)
def test_a_row_over_processes_takes_the_steps_of_one(cut, alone, case):
    for rank in cut:
        assert_same_steps(rank[case], alone[case])


def test_what_is_not_cut_is_as_on_one_process(cut, alone):
    for rank in cut:
        for mine, theirs in zip(rank["others"], alone["others"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled_blocks_take_the_same_steps(folder):
    expected = steps(folder, World(), {})
    for rank in run_distributed(both_sizes, 2, folder, 2, COMPILED, timeout=500):
        for name in COMPILED:
            assert_same_steps(rank[name], expected)


def test_heads_that_do_not_divide_are_refused_with_what_would(cut):
    for rank in cut:
        nine, seven = rank["refused"]
        assert "E-PARALLEL" in nine and "the 9 attention heads do not divide by 2" in nine
        assert "parallel.context" in nine and "sizes that divide: 1, 3, 9" in nine
        assert "sizes that divide: 1, 7" in seven


def test_a_world_of_one_leaves_the_model_as_it_is(folder):
    model = from_pretrained(folder / "two", dtype=torch.float32)
    forward = model.forward
    assert context_parallel(model, World()).forward == forward
