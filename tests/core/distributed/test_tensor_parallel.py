"""Layers cut over processes give torch's own losses and gradients, and the text of one process."""

import zlib

import pytest
import torch
import torch.nn.functional as F
from torch.optim import AdamW
from torchtune.config import Parallel
from torchtune.data import Batch
from torchtune.distributed import (
    World,
    clip_grad_norm,
    gather_full,
    join_world,
    shard,
    tensor_parallel,
)
from torchtune.distributed.fake_world import fake_world
from torchtune.errors import ConfigError
from torchtune.generation import generate
from torchtune.losses import LinearCrossEntropy
from torchtune.models.llama import llama
from torchtune.peft import lora
from torchtune.testing import run_distributed
from torchtune.training import checkpoint_activations, compile_blocks, train_step

SIZES = dict(
    vocab_size=36, num_layers=2, num_heads=8, num_kv_heads=4, embed_dim=32, intermediate_dim=24,
    max_seq_len=64,
)  # fmt: skip
CASES = {
    "full": {},
    "tied": {"model": {"tied": True}},
    "odd vocabulary, smoothed": {"model": {"vocab_size": 37}, "smoothing": 0.1},
    "odd vocabulary, tied, smoothed": {
        "model": {"vocab_size": 37, "tied": True},
        "smoothing": 0.1,
    },
    "biases": {"model": {"attention_bias": True, "mlp_bias": True}},
    "LoRA": {"targets": "all-linear"},
    "LoRA, tied, biases": {
        "model": {"tied": True, "attention_bias": True, "mlp_bias": True},
        "targets": "all-linear",
    },
    "LoRA on the head": {"model": {"vocab_size": 37}, "targets": ("o_proj", "lm_head")},
    "one key head": {"model": {"num_kv_heads": 1, "attention_bias": True}},
    "LoRA, one key head": {
        "model": {"num_kv_heads": 1, "attention_bias": True},
        "targets": "all-linear",
    },
    "recomputed": {"recompute": True},
    "not sharded": {"shard": False},
}

DROPPED = {"targets": "all-linear", "dropout": 0.3, "rows": (0, 4)}  # of even lengths
STEPS = {
    "full": {},
    "LoRA": CASES["LoRA"],
    "dropped": DROPPED,
    "dropped, recomputed": {**DROPPED, "recompute": True},
}

WITH_DATA = (
    "full", "odd vocabulary, tied, smoothed", "LoRA, tied, biases", "LoRA on the head",
    "LoRA, one key head",
)  # fmt: skip
OUTPUTS = ("full", "LoRA on the head", "one key head")


def micro_batch(number: int) -> Batch:
    """Return two documents; every second row has an odd length, and the third trains nothing."""
    generator = torch.Generator().manual_seed(number)
    lengths = (3 + 2 * number, 9 - number)
    tokens = torch.randint(0, 36, (sum(lengths),), generator=generator)
    labels = tokens.roll(-1)
    labels[: 2 * number + 1 if number != 2 else None] = -100
    positions = torch.cat([torch.arange(n) for n in lengths])
    return Batch(tokens, labels, positions, lengths, int((labels >= 0).sum()), ("a", "b"))


def build(case):
    """Build the case's model, every value from its parameter's name."""
    model = llama(**SIZES | case.get("model", {}))
    if targets := case.get("targets"):
        lora(model, rank=2, targets=targets, dropout=case.get("dropout", 0.0))
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1 + ("norm" in name)
    return model


def cut(case, world, *, compute=None):
    """Build the case's model and spread it over the world."""
    model = tensor_parallel(build(case), world)
    if case.get("compile"):
        compile_blocks(model)
    if case.get("recompute"):
        checkpoint_activations(model)
    return shard(model, world, compute_dtype=compute) if case.get("shard", True) else model


def gradients(case, world):
    """Return loss, gradient norm and whole gradients of one step of four micro-batches."""
    model = cut(case, world)
    loss = LinearCrossEntropy(label_smoothing=case.get("smoothing", 0.0), chunk_tokens=3)
    batches = [micro_batch(i) for i in range(4)][world.data_rank :: world.data_size]
    total = 0.0
    for batch in batches:
        value = model(batch, loss=loss)
        value.backward()
        total += value.item()
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = clip_grad_norm(trained, None).item()
    whole = {n: gather_full(p.grad) for n, p in model.named_parameters() if p.requires_grad}
    return world.sum(total), norm, whole


def outputs(case, world):
    """Return logits of ids, of a flat row and with an attention of one's own, and greedy ids."""
    model = cut(case, world).eval()
    ids, row = torch.arange(14).view(2, 7), micro_batch(1)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, :3] = False
    whole = torch.ones(len(row.tokens), len(row.tokens), dtype=torch.bool)

    def attend(q, k, v):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, whole, enable_gqa=True).transpose(0, 1)

    with torch.no_grad():
        logits = [model(ids), model(ids, mask=mask), model(row), model(row, attend=attend)]
    return logits, generate(model, [[1, 2, 3], [4]], max_new_tokens=6)


def train(case, world):
    """Return the losses and norms of six clipped steps, and the weights after them."""
    model = cut(case, world)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    torch.manual_seed(world.seed_offset)
    rows = case.get("rows", range(4))
    batches = [micro_batch(i) for i in rows][world.data_rank :: world.data_size]
    metrics = [
        train_step(model, optimizer, batches, world, loss=LinearCrossEntropy(), max_norm=0.5)
        for _ in range(6)
    ]
    weights = {name: gather_full(p).clone() for name, p in model.named_parameters()}
    return [m.loss for m in metrics], [m.grad_norm for m in metrics], weights


def in_bf16(world):
    """Return the loss in bf16 on fp32 weights, and the dtypes of its gradients."""
    model = cut({}, world, compute=torch.bfloat16)
    loss = model(micro_batch(1), loss=LinearCrossEntropy())
    loss.backward()
    return loss.item(), {p.grad.dtype for p in model.parameters()}


def compiled(tensor):
    """Return what `gradients` does with compiled, recomputed blocks."""
    return gradients(
        {"compile": True, "recompute": True}, join_world("cpu", Parallel(tensor=tensor))
    )


def everything(tensor):
    """Run every case in one start of the processes."""
    world = join_world("cpu", Parallel(tensor=tensor))
    names = CASES if world.data_size == 1 else WITH_DATA
    found = {"gradients": {name: gradients(CASES[name], world) for name in names}}
    found["outputs"] = {name: outputs(CASES[name], world) for name in OUTPUTS}
    found["steps"] = {name: train(STEPS[name], world) for name in STEPS}
    found["bf16"] = in_bf16(world)
    if world.data_size > 1:
        replicas = join_world("cpu", Parallel(tensor=tensor, data_replicate=world.data_size))
        found["gradients"]["tied"] = gradients(CASES["tied"], replicas)
    return found


@pytest.fixture(scope="module")
def alone():
    """What one process computes."""
    return everything(1)


@pytest.fixture(scope="module", params=[2, 4], ids=["tensor", "tensor and data"])
def cut_over_two(request):
    """What each of two processes, and of two times two, computes at a tensor size of two."""
    return run_distributed(everything, request.param, 2, timeout=600.0)


def plain_gradients(case):
    """Return loss and gradients by torch's own cross-entropy of whole logits."""
    model, total = build(case), 0.0
    for batch in map(micro_batch, range(4)):
        smoothing = case.get("smoothing", 0.0)
        loss = F.cross_entropy(
            model(batch), batch.labels, reduction="sum", label_smoothing=smoothing
        )
        loss.backward()
        total += loss.item()
    return total, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def test_losses_and_gradients_are_torch_s_own(cut_over_two):
    for name, (loss, norm, found) in cut_over_two[0]["gradients"].items():
        expected_loss, expected = plain_gradients(CASES[name])
        expected_norm = torch.nn.utils.get_total_norm(list(expected.values())).item()
        assert (loss, norm) == pytest.approx((expected_loss, expected_norm), rel=1e-5), name
        assert found.keys() == expected.keys()
        for parameter, gradient in expected.items():
            error = (found[parameter] - gradient).norm()
            assert error <= 1e-5 * max(gradient.norm(), 1e-3), (name, parameter)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradients():
    loss, norm, _ = run_distributed(compiled, 2, 2, timeout=900.0)[0]
    expected_loss, expected = plain_gradients({})
    expected_norm = torch.nn.utils.get_total_norm(list(expected.values())).item()
    assert (loss, norm) == pytest.approx((expected_loss, expected_norm), rel=1e-5)


def test_every_process_has_the_same_numbers(cut_over_two):
    first, *others = cut_over_two
    for other in others:
        for name, (losses, norms, weights) in first["steps"].items():
            assert other["steps"][name][:2] == (losses, norms)
            for parameter, weight in weights.items():  # those that are whole on each stay the same
                assert torch.equal(other["steps"][name][2][parameter], weight), parameter
        for name in first["outputs"]:
            for mine, its in zip(first["outputs"][name][0], other["outputs"][name][0], strict=True):
                assert torch.equal(mine, its)  # else processes would sample different tokens


def test_logits_and_text_are_those_of_one_process(cut_over_two, alone):
    for name, (expected, text) in alone["outputs"].items():
        found, found_text = cut_over_two[0]["outputs"][name]
        for ours, logits in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-5)
        assert found_text == text


def test_training_takes_the_same_steps(cut_over_two, alone):
    alike = [name for name in STEPS if len(cut_over_two) == 2 or "dropped" not in name]
    for name in alike:  # shares of the data drop other inputs than one process does
        losses, norms, weights = alone["steps"][name]
        found_losses, found_norms, found = cut_over_two[0]["steps"][name]
        assert found_losses == pytest.approx(losses, rel=1e-5)
        assert found_norms == pytest.approx(norms, rel=1e-5)
        for parameter, weight in weights.items():
            assert (found[parameter] - weight).norm() <= 1e-4 * weight.norm(), parameter


def test_master_weights_are_computed_with_in_bf16(cut_over_two, alone):
    loss, dtypes = cut_over_two[0]["bf16"]
    assert loss == pytest.approx(alone["bf16"][0], rel=2e-2)
    assert dtypes == {torch.float32}


def test_a_world_of_one_leaves_the_model_as_it_is():
    model = build({})
    forward = model.forward
    assert tensor_parallel(model, World()) is model
    assert model.forward == forward


@pytest.mark.parametrize(
    "size, model, message",
    [
        (3, {}, "8 heads (q_proj, o_proj), 4 heads (k_proj, v_proj) do not divide by 3"),
        (
            2,
            {"num_heads": 6, "num_kv_heads": 3, "embed_dim": 36},
            "3 heads (k_proj, v_proj) do not",
        ),
        (2, {"intermediate_dim": 23}, "23 features (gate_proj, up_proj, down_proj)"),
        (2, {"vocab_size": 1}, "1 token ids"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(size, model, message):
    model = llama(**SIZES | model)
    with fake_world(size, Parallel(tensor=size)) as world, pytest.raises(ConfigError) as error:
        tensor_parallel(model, world)
    assert (error.value.code, error.value.where) == ("E-PARALLEL", "parallel.tensor")
    assert message in str(error.value)


def test_the_sizes_that_divide_are_named():
    sizes = SIZES | dict(num_heads=8, num_kv_heads=2)  # two heads go on eight processes, too
    with fake_world(3, Parallel(tensor=3)) as world, pytest.raises(ConfigError) as error:
        tensor_parallel(llama(**sizes), world)
    assert error.value.do == "use tensor=1, 2, 4 or 8"


def test_dropout_drops_something(alone):
    losses = {name: found[0] for name, found in alone["steps"].items()}
    assert losses["dropped"] == losses["dropped, recomputed"] != losses["LoRA"]


def test_a_layer_that_the_plan_leaves_out_is_refused():
    model = llama(**SIZES)
    model.blocks[0].mlp.gate_norm = torch.nn.LayerNorm(24)
    with fake_world(2, Parallel(tensor=2)) as world, pytest.raises(ConfigError, match="gate_norm"):
        tensor_parallel(model, world)


def plain_loss(hidden, weight, labels):
    """Stand for a loss that knows nothing of a cut vocabulary."""
    return F.linear(hidden, weight).sum()


def test_a_loss_that_cannot_be_cut_is_refused():
    with fake_world(2, Parallel(tensor=2)) as world:
        model = tensor_parallel(llama(**SIZES), world)
        with pytest.raises(ConfigError, match="plain_loss") as error:
            model(micro_batch(1), loss=plain_loss)
    assert error.value.where == "loss"
