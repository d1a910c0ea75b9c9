"""Products in fp8 are torchao's own, fit a GPU's rules, and go with what else changes a model."""

import copy
import sys
from functools import partial

import pytest
import torch
import torch._meta_registrations as of_torch
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
from torchtune.errors import ConfigError, MissingError
from torchtune.generation import generate
from torchtune.losses import LinearCrossEntropy
from torchtune.models.llama import llama
from torchtune.peft import lora
from torchtune.testing import run_distributed

pytest.importorskip("torchao")

RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
VOCAB = 61
STEP = 2**-4  # the largest error of a number in e4m3, which keeps three bits, relative to it


def small_model(*, dtype=torch.float32, **sizes):
    model = llama(vocab_size=VOCAB, num_layers=2, num_heads=4, num_kv_heads=2, max_seq_len=64,
                  **{"embed_dim": 64, "intermediate_dim": 96, "tied": True} | sizes)  # fmt: skip
    training.init_weights(model, seed=3)
    return model.to(dtype)


def some_documents():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in (5, 30, 12, 64)]
    return Documents.of([(row, [True] * len(row)) for row in rows])


def run(world=None, recipe=None, *, change=None, dtype=None, of_ranks=None, steps=5):
    """Train a small model on four rows a step; return losses, gradient norms and weights.

    With `of_ranks` one process takes the micro-batches of so many, one after the other.
    """
    world = world or World()
    model = small_model()
    if recipe:
        model = training.train_in_fp8(model, recipe, world)
    model = context_parallel(tensor_parallel(model, world), world)
    model = shard(change(model) if change else model, world, compute_dtype=dtype)
    optimizer = training.adamw(model.parameters(), lr=1e-3)
    size = of_ranks or world.data_size
    shares = [
        Steps(some_documents(), max_seq_len=64, seed=5, batch_size=4 // size, rank=rank, size=size)
        for rank in (range(of_ranks) if of_ranks else [world.data_rank])
    ]
    coming = [share.after() for share in shares]
    metrics = [
        training.train_step(
            model, optimizer, [batch for share in coming for batch in next(share)], world,
            loss=LinearCrossEntropy(),
        )
        for _ in range(steps)
    ]  # fmt: skip
    weights = {name: gather_full(p).clone() for name, p in model.named_parameters()}
    return [m.loss for m in metrics], [m.grad_norm for m in metrics], weights


def assert_close(ours, theirs, *, losses, norms):
    assert ours[0] == pytest.approx(theirs[0], rel=losses)
    assert ours[1] == pytest.approx(theirs[1], rel=norms)


def assert_same_bits(ours, theirs):
    assert ours[:2] == theirs[:2]
    assert all(torch.equal(weight, theirs[2][name]) for name, weight in ours[2].items())


def loss_of(model, tokens):
    """Return the loss of one row of so many tokens, with gradients in the parameters."""
    documents = Documents.of([((list(range(VOCAB)) * 2)[: tokens + 1], [True] * (tokens + 1))])
    (batch,) = next(Steps(documents, max_seq_len=tokens + 1, batch_size=1).after())
    loss = model(batch, loss=LinearCrossEntropy())
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("recipe", RECIPES)
def test_layers_are_torchao_s_with_the_names_and_parameters_of_before(recipe):
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    plain = small_model()
    ours, theirs = copy.deepcopy(plain), copy.deepcopy(plain)
    parameters = dict(ours.named_parameters())
    ours = training.train_in_fp8(ours, recipe, World())
    convert_to_float8_training(theirs.blocks, config=Float8LinearConfig.from_recipe_name(recipe))
    assert loss_of(ours, 37) == loss_of(theirs, 37) != loss_of(plain, 37)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert type(mine) is nn.Parameter
        assert mine is parameters[name]
        assert torch.equal(mine.grad, other.grad), name
    assert ours.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_goes_as_in_the_dtype_of_the_weights(recipe):
    """Both numbers of each product of the sum are off by at most a step, and their errors cancel."""
    layer = nn.Linear(64, 64, bias=True)
    block = nn.Module()
    block.blocks = nn.ModuleList([copy.deepcopy(layer)])
    x = torch.randn(37, 64, generator=torch.manual_seed(0))
    out = training.train_in_fp8(block, recipe, World()).blocks[0](x)
    assert 1e-3 < (out - layer(x)).norm() / layer(x).norm() < STEP
    assert_close(run(recipe=recipe), run(), losses=1e-3, norms=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_product_keeps_the_rules_of_a_gpu(recipe, dtype, monkeypatch):
    """The rules are torch's own, by which it checks CUDA's products without a GPU."""
    seen, product = set(), torch._scaled_mm

    def check(a, b, **options):
        of_torch._check_scaled_mm_sizes(a, b, **options)
        assert torch.float8_e4m3fn in (a.dtype, b.dtype)  # cuBLASLt has none of two e5m2
        by_row = options["scale_a"].numel() > 1
        assert options["out_dtype"] == torch.bfloat16 or (dtype == torch.float32 and not by_row)
        seen.add((a.shape[1] % 16, by_row))
        return product(a, b, **options)

    monkeypatch.setattr(of_torch, "device_hint", lambda _: "cuda")
    monkeypatch.setattr(torch, "_scaled_mm", check)
    model = training.train_in_fp8(small_model(dtype=dtype), recipe, World())
    for tokens in (1, 17, 32):
        loss_of(model, tokens)
        assert all(p.grad.isfinite().all() for p in model.parameters())
    assert seen == ({(0, False)} if recipe == "tensorwise" else {(0, False), (0, True)})


@pytest.mark.parametrize("recipe", RECIPES)
def test_evaluation_and_generation_are_those_of_the_saved_model(recipe):
    plain = small_model().eval()
    model = training.train_in_fp8(copy.deepcopy(plain), recipe, World())
    tokens = torch.arange(24).view(2, 12)
    assert not torch.equal(model(tokens), plain(tokens))
    assert torch.equal(model.eval()(tokens), plain(tokens))
    answers = [generate(m, [[1, 2, 3], [4, 5]], max_new_tokens=6) for m in (model.train(), plain)]
    assert answers[0] == answers[1]


class OfItsOwn(nn.Linear):
    """A layer whose forward is not a plain layer's."""


def test_layers_that_cannot_be_in_fp8_stay_as_they_are():
    model = small_model(embed_dim=64, intermediate_dim=40)  # the three layers of the MLP do not fit
    assert training.fp8_note(model) == ""
    training.train_only(model, [r"layers\.0\.", "q_proj"])
    model = training.train_in_fp8(model, "tensorwise", World())
    assert training.fp8_note(model) == "fp8 in 5 of 14 linear layers of the blocks"
    frozen = model.blocks[1].self_attn
    assert (type(frozen.k_proj), type(model.blocks[0].mlp.up_proj)) == (nn.Linear, nn.Linear)
    own = small_model()
    own.blocks[0].mlp.up_proj = OfItsOwn(64, 96)
    own = training.train_in_fp8(own, "rowwise", World())
    assert training.fp8_note(own) == "fp8 in 13 of 14 linear layers of the blocks"
    untied = training.train_in_fp8(small_model(tied=False), "rowwise", World())
    assert type(untied.lm_head) is type(small_model(tied=False).lm_head)


@pytest.mark.parametrize(
    "model", [partial(small_model, embed_dim=8, intermediate_dim=40), lambda: lora(small_model())]
)
def test_a_model_without_a_layer_for_it_is_refused(model):
    with pytest.raises(ConfigError, match="no linear layer") as caught:
        training.train_in_fp8(model(), "tensorwise", World())
    assert (caught.value.code, caught.value.where) == ("E-FP8-LAYERS", "fp8")


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ConfigError, match="no recipe 'fast'") as caught:
        training.train_in_fp8(small_model(), "fast", World())
    assert caught.value.do == "use tensorwise, rowwise, rowwise_with_gw_hp"


@pytest.mark.parametrize(
    ("kind", "found", "hip", "able"),
    [
        ("cuda", (8, 0), None, ()),
        ("cuda", (8, 9), None, ("tensorwise",)),
        ("cuda", (9, 0), None, RECIPES),
        ("cuda", (10, 0), None, RECIPES),
        ("cuda", (9, 4), "6.4", ()),
        ("mps", None, None, ()),
    ],
)
def test_a_device_without_these_products_is_refused_before_anything_loads(
    kind, found, hip, able, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: found)
    monkeypatch.setattr(torch.version, "hip", hip)
    world = World(device=torch.device(kind))
    for recipe in RECIPES:
        with torch.device("meta"):
            model = llama(vocab_size=8, num_layers=1, num_heads=4, num_kv_heads=2, embed_dim=64,
                          intermediate_dim=64, max_seq_len=8, tied=True)  # fmt: skip
        if recipe in able:
            training.train_in_fp8(model, recipe, world)
            continue
        with pytest.raises(MissingError, match="is none") as caught:
            training.train_in_fp8(model, recipe, world)
        assert caught.value.code == "E-FP8-DEVICE"
        assert training.fp8_note(model) == ""


def test_without_torchao_the_error_names_the_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(MissingError, match="training in fp8 needs torchao") as caught:
        training.train_in_fp8(small_model(), "rowwise", World())
    assert caught.value.do == 'pip install "torchao>=0.18"'


SELECTIVE = partial(training.checkpoint_activations, keep=training.keep_products)


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_recomputing_changes_no_bit_and_makes_fewer_products_again_where_it_chooses(
    recipe, monkeypatch
):
    product, made = torch._scaled_mm, []
    monkeypatch.setattr(torch, "_scaled_mm", lambda *a, **k: made.append(0) or product(*a, **k))
    plain, counts = run(recipe=recipe, steps=2), [len(made)]
    for change in (SELECTIVE, training.checkpoint_activations):
        assert_same_bits(run(recipe=recipe, steps=2, change=change), plain)
        counts.append(len(made) - sum(counts))
    # of seven layers of two blocks in two steps, k, v and down are no wider than what they take
    assert counts == [2 * 2 * 21, 2 * 2 * (21 + 3), 2 * 2 * (21 + 7)]


def test_master_weights_compute_as_weights_in_bf16_do():
    run_in_bf16 = partial(run, recipe="tensorwise", dtype=torch.bfloat16)
    assert_close(run_in_bf16(), run(recipe="tensorwise"), losses=1e-3, norms=2e-2)
    assert {weight.dtype for weight in run_in_bf16(steps=1)[2].values()} == {torch.float32}


def everywhere():
    """Train in each arrangement of the processes; each makes the rows of a step that one would."""
    arrangements = {
        "data_shard": Parallel(),
        "data_replicate": Parallel(data_replicate=2, data_shard=1),
        "tensor": Parallel(tensor=2),
        "context": Parallel(context=2),
    }
    return {
        (name, recipe): run(join_world("cpu", parallel), recipe)
        for name, parallel in arrangements.items()
        for recipe in ("tensorwise", "rowwise")
    }


@pytest.mark.slow
def test_two_processes_do_as_one():
    """The same micro-batches have the same scales; rows or matrices that are cut have others."""
    pair = run_distributed(everywhere, 2, timeout=600.0)
    for (name, recipe), found in pair[0].items():
        if name.startswith("data"):
            alone, bounds = run(recipe=recipe, of_ranks=2), dict(losses=1e-5, norms=1e-4)
        else:
            alone, bounds = run(recipe=recipe), dict(losses=1e-3, norms=2e-2)
        assert_close(found, alone, **bounds)
        assert pair[1][name, recipe][:2] == found[:2]


def test_a_matrix_is_cut_into_parts_that_fit():
    """On 4 processes those of q and o; the world only says its size here, and nothing is cut."""
    model = training.train_in_fp8(small_model(), "tensorwise", TensorWorld())
    assert training.fp8_note(model) == "fp8 in 4 of 14 linear layers of the blocks"


class TensorWorld(World):
    tensor_size = 4


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_compiled_blocks_change_nothing_and_share_their_graphs(recipe):
    from torch._dynamo.utils import counters

    graphs = []
    for wanted in (None, recipe):
        torch._dynamo.reset()
        counters.clear()
        compiled = run(
            recipe=wanted,
            change=lambda m: training.checkpoint_activations(training.compile_blocks(m)),
        )
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]
    assert_close(compiled, run(recipe=recipe), losses=1e-4, norms=1e-3)
