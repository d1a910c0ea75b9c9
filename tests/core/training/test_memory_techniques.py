"""What saves memory gives the numbers of the plain way, and does save."""

import copy
import gc
import math
from functools import partial

import pytest
import torch
from torchtune import checkpoint, training
from torchtune.data import Documents, Steps
from torchtune.distributed import World, gather_full, join_world, shard
from torchtune.errors import ConfigError, TuneError
from torchtune.losses import LinearCrossEntropy
from torchtune.models.llama import llama
from torchtune.modules import flat_attention
from torchtune.peft import lora
from torchtune.testing import run_distributed

VOCAB = 61
SELECTIVE = partial(training.checkpoint_activations, keep=training.keep_products)


def offloaded(model):
    return training.offload_activations(training.checkpoint_activations(model))


def small_model(*, adapter=False):
    model = llama(vocab_size=VOCAB, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=32,
                  intermediate_dim=48, max_seq_len=64, tied=True)  # fmt: skip
    if adapter:  # without dropout a layer adds its part in place
        model = lora(model, rank=4, dropout=0.1 if adapter == "dropout" else 0.0)
    training.init_weights(model, seed=3)
    if adapter:  # B begins at zero, which would hide a mistake
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.manual_seed(7))
    return model


def some_documents():
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 30, 12, 64, 7, 22, 3, 41]
    rows = [torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    return Documents.of([(row, [i > len(row) // 3 for i in range(len(row))]) for row in rows])


def run(world=None, *, change=None, adapter=False, update=None, max_norm=None, dtype=None, steps=4,
        build=training.adamw, scheduled=True):  # fmt: skip
    """Train a small model; return its metrics, its weights, and its optimizer."""
    world = world or World()
    model = small_model(adapter=adapter)
    model = shard(change(model) if change else model, world, compute_dtype=dtype)
    optimizer = build([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    scheduler = training.constant_schedule(optimizer, num_warmup_steps=2) if scheduled else None
    updating = update(optimizer, world) if update else None
    rows = dict(batch_size=8 // world.data_size, rank=world.data_rank, size=world.data_size)
    batches = Steps(some_documents(), max_seq_len=64, seed=5, **rows).after()
    torch.manual_seed(11)
    metrics = [
        training.train_step(model, optimizer, next(batches), world, loss=LinearCrossEntropy(),
                            max_norm=max_norm, scheduler=scheduler, update=updating)
        for _ in range(steps)
    ]  # fmt: skip
    weights = {name: gather_full(p).clone() for name, p in model.named_parameters()}
    return [(m.loss, m.grad_norm, m.loss_scale) for m in metrics], weights, optimizer


def assert_close(ours, theirs, rtol=1e-5):
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine[:2] == pytest.approx(other[:2], rel=rtol, nan_ok=True)
    for name, weight in ours[1].items():
        assert (weight - theirs[1][name]).norm() <= 10 * rtol * theirs[1][name].norm()


@pytest.mark.parametrize("adapter", [False, True, "dropout"], ids=["full", "lora", "dropout"])
@pytest.mark.parametrize("change", [SELECTIVE, offloaded], ids=["selective", "offloaded"])
def test_recomputing_or_offloading_changes_nothing(change, adapter):
    assert_close(run(change=change, adapter=adapter), run(adapter=adapter))


def test_a_recomputed_block_hands_its_input_alone_to_whoever_stores_it_elsewhere():
    """Offloading stands on this: torch saves the input of a checkpoint like any other tensor."""
    block = training.checkpoint_activations(small_model()).blocks[0]
    rotation = small_model().rope(torch.arange(12), torch.float32)
    hidden, stored = torch.randn(12, 32, requires_grad=True), []

    def store(tensor):
        stored.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
        block(hidden, rotation, flat_attention((12,)))
    assert stored == [hidden.shape]


def peak_of_a_step(change, adapter):
    """Return the most bytes that forward and backward hold at once, from torch's own profiler."""
    from torch.profiler import ProfilerActivity, profile

    model = change(small_model(adapter=adapter))
    batch = next(Steps(some_documents(), max_seq_len=64, batch_size=8).after())[0]
    for _ in range(2):
        gc.collect()  # what was dropped before must not be given back meanwhile
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
            model(batch, loss=LinearCrossEntropy()).backward()
    events = [e for e in traced.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return int(held.cumsum(0).max())


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_recomputing_all_holds_less_than_recomputing_some_than_none(adapter):
    changes = (training.checkpoint_activations, SELECTIVE, lambda model: model)
    full, some, none = (peak_of_a_step(change, adapter) for change in changes)
    assert full < 0.9 * some
    assert some < 0.9 * none


def test_products_are_not_made_again_but_what_is_cheap_is():
    from torch.utils.flop_counter import FlopCounterMode

    def flops(change):
        model = change(small_model())
        batch = next(Steps(some_documents(), max_seq_len=64, batch_size=8).after())[0]
        with FlopCounterMode(display=False) as counter:
            model(batch, loss=LinearCrossEntropy()).backward()
        return counter.get_flop_counts()["Global"][torch.ops.aten.mm]

    none, some, full = flops(lambda m: m), flops(SELECTIVE), flops(training.checkpoint_activations)
    narrow = 2 * 2 * 184 * 2 * 32 * 16  # layers, k and v, tokens, a multiplication is two, [32, 16]
    assert some - none == narrow
    assert full - none > 5 * narrow


class IntoABuffer(torch.autograd.Function):
    """A product that is written into memory at hand, as compiled code does."""

    @staticmethod
    def forward(ctx, x, weight):
        out = torch.mm(x, weight, out=x.new_empty(len(x), weight.shape[1]))
        ctx.save_for_backward(weight, out)
        return out.sin()

    @staticmethod
    def backward(ctx, grad):
        weight, out = ctx.saved_tensors
        return (grad * out.cos()) @ weight.T, None


def test_a_product_that_goes_into_a_buffer_is_made_again():
    block, x, weight = torch.nn.Module(), torch.randn(3, 4, requires_grad=True), torch.randn(4, 5)
    block.forward = lambda x: IntoABuffer.apply(x * 2, weight)
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([block])
    SELECTIVE(model).blocks[0](x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * ((x * 2) @ weight).cos().detach() @ weight.T)


def test_compiled_blocks_cannot_keep_products():
    with pytest.raises(ConfigError, match="hide the operations") as caught:
        SELECTIVE(training.compile_blocks(small_model()))
    assert caught.value.code == "E-COMPILED"


def compiled(adapter):
    """Run compiled and not; return both, and how many graphs the two blocks took."""
    from torch._dynamo.utils import counters

    world = join_world("cpu")
    change = lambda model: training.checkpoint_activations(training.compile_blocks(model))  # noqa: E731
    runs = [run(world, change=how, adapter=adapter, steps=3)[:2] for how in (None, change)]
    return *runs, counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_equal_blocks_share_their_graphs_when_sharded_and_recomputed(adapter):
    plain, changed, graphs = run_distributed(compiled, 2, adapter, timeout=900)[0]
    assert_close(changed, plain)
    # before, in and after attention, for a first length and for any: 12 if blocks shared nothing
    assert 0 < graphs <= 8


def test_a_step_in_backward_is_the_plain_step_to_the_bit():
    plain, inside = run(), run(update=training.StepInBackward)
    assert inside[0] == plain[0]
    assert all(torch.equal(weight, plain[1][name]) for name, weight in inside[1].items())
    kept, expected = inside[2].state_dict(), plain[2].state_dict()
    torch.testing.assert_close(kept, expected, rtol=0, atol=0)


def test_a_step_in_backward_leaves_no_gradient_and_holds_few():
    model, held = small_model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    update = training.StepInBackward(optimizer, World())
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(p.grad is not None for p in model.parameters()))
        )
    batches = next(Steps(some_documents(), max_seq_len=64, batch_size=8).after())
    training.train_step(
        model, optimizer, batches, World(), loss=LinearCrossEntropy(), update=update
    )
    assert max(held) == 0  # hooks run in order: ours has freed the gradient


@pytest.mark.parametrize(
    ("given", "key"),
    [({"max_norm": 1.0}, "clip_grad_norm"), ({"more": 2}, "gradient_accumulation_steps")],
)
def test_a_step_in_backward_refuses_what_needs_all_gradients(given, key):
    model = small_model()
    optimizer = training.adamw(model.parameters())
    update = training.StepInBackward(optimizer, World())
    batches = next(Steps(some_documents(), max_seq_len=64, batch_size=4).after())
    with pytest.raises(ConfigError, match="uses each gradient before") as caught:
        training.train_step(model, optimizer, batches * given.pop("more", 1), World(),
                            loss=LinearCrossEntropy(), update=update, **given)  # fmt: skip
    assert (caught.value.code, caught.value.where) == ("E-STEP-IN-BACKWARD", key)


class CountsInItsGroup(torch.optim.SGD):
    """As some optimizers outside of torch do."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1


def test_an_optimizer_that_asks_for_the_loss_again_is_refused():
    optimizer = torch.optim.LBFGS([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ConfigError, match=r"E-OPTIMIZER-CLOSURE.*LBFGS"):
        training.build_update(optimizer, World(), torch.float32, in_backward=False)


@pytest.mark.filterwarnings("ignore")
def test_an_optimizer_that_cannot_step_cut_weights_is_named():
    model = shard(small_model(), World(), cpu_offload=True)  # cut over a mesh of one
    optimizer = torch.optim.Adafactor(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    update = training.StepAfterBackward(optimizer)
    update.begin(micro_batches=1, max_norm=None)
    with pytest.raises(ConfigError, match=r"E-OPTIMIZER-SHARDED.*Adafactor cannot step"):
        update.finish()
    World().close()  # the group of one that `shard` made


def test_an_optimizer_that_counts_in_its_groups_is_refused_in_backward():
    def build(parameters, lr):
        optimizer = CountsInItsGroup(parameters, lr=lr)
        optimizer.param_groups[0]["count"] = 0
        return optimizer

    with pytest.raises(ConfigError, match=r"CountsInItsGroup counts in its groups \(count\)"):
        run(update=training.StepInBackward, build=build)


@pytest.mark.parametrize("update", [None, training.StepInBackward])
def test_a_loss_that_is_not_finite_changes_nothing(update):
    model = small_model()
    documents = some_documents()
    with torch.no_grad():
        model.model.embed_tokens.weight[int(documents.tokens[0])] = math.nan
    before = copy.deepcopy(model.state_dict())
    optimizer = training.adamw(model.parameters())
    batches = next(Steps(documents, max_seq_len=64, batch_size=8).after())
    with pytest.raises(TuneError, match="the loss is nan"):
        training.train_step(model, optimizer, batches, World(), loss=LinearCrossEntropy(),
                            update=update and update(optimizer, World()))  # fmt: skip
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())


def scaling(optimizer, world, **more):
    return training.LossScaling(optimizer, **more)


@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_a_loss_scale_is_a_power_of_two_and_so_leaves_no_trace_in_fp32(max_norm):
    # SGD, as Adam hides a wrong scale
    build = torch.optim.SGD
    scaled = run(update=scaling, max_norm=max_norm, build=build)
    assert_close(scaled, run(max_norm=max_norm, build=build), rtol=1e-6)
    assert [scale for _, _, scale in scaled[0]] == [2.0**16] * 4


def test_fp16_with_a_loss_scale_is_near_fp32():
    assert_close(run(update=scaling, dtype=torch.float16), run(), rtol=1e-3)


def test_gradients_that_vanish_in_fp16_are_kept_by_the_scale():
    """The smallest number of fp16 is 6e-8, and this gradient is 1e-9 times that of the loss."""

    def gradient(update):
        weight = torch.nn.Parameter(torch.ones(4))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        updating = update(optimizer)
        updating.begin(micro_batches=1, max_norm=None)
        updating.backward((weight.half().float() * 1e-9).sum())
        return updating.finish().grad_norm

    assert gradient(training.StepAfterBackward) == 0
    assert gradient(training.LossScaling) == pytest.approx(2e-9, rel=1e-3)


def overflow(optimizer, updating, factor):
    weight = optimizer.param_groups[0]["params"][0]
    updating.begin(micro_batches=1, max_norm=None)
    updating.backward((weight.half().float() * factor).sum())
    return updating.finish()


def test_a_gradient_that_overflows_skips_the_step_and_halves_the_scale():
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    updating = training.LossScaling(optimizer, initial_scale=4.0, growth_interval=2)
    done = [overflow(optimizer, updating, factor) for factor in (2e4, 2e4, 1.0, 1.0, 1.0)]
    assert [d.skipped for d in done] == [True, False, False, False, False]
    assert [d.loss_scale for d in done] == [4, 2, 2, 4, 4]
    assert weight[0].item() == pytest.approx(1 - 2e4 - 3, rel=1e-3)


def test_a_skipped_step_is_logged_without_its_norm_and_an_exhausted_scale_is_an_error():
    model = small_model()
    optimizer = training.adamw(model.parameters())
    updating = training.LossScaling(optimizer, initial_scale=2.0)
    batches = next(Steps(some_documents(), max_seq_len=64, batch_size=8).after())
    model.model.norm.weight.register_hook(lambda grad: grad * math.inf)
    before = copy.deepcopy(model.state_dict())
    scheduler = training.constant_schedule(optimizer, num_warmup_steps=2)

    def step():
        return training.train_step(model, optimizer, batches, World(), loss=LinearCrossEntropy(),
                                   update=updating, scheduler=scheduler, step=1)  # fmt: skip

    figures = step().figures()
    assert figures["loss_scale"] == 2
    assert "grad_norm" not in figures
    with pytest.raises(TuneError, match="the loss scale is down to 1") as caught:
        step()
    assert caught.value.code == "E-NOT-FINITE"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loss_scale_is_resumed(tmp_path):
    def begin():
        model = torch.nn.Linear(4, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, training.LossScaling(optimizer, initial_scale=8.0)

    model, optimizer, updating = begin()
    scales = [overflow(optimizer, updating, factor).loss_scale for factor in (2e4, 2e4, 1.0)]
    files = dict(scheduler=None, world=World())
    checkpoint.save_training_state(tmp_path, model=model, optimizer=optimizer, info={}, **files)
    again, resumed, scaled = begin()
    checkpoint.load_training_state(tmp_path, model=again, optimizer=resumed, **files)
    assert scales == [8, 4, 2]
    assert overflow(resumed, scaled, 1.0).loss_scale == 2
    assert resumed.param_groups[0]["loss_scale_good_steps"] == 2


def test_weights_in_fp16_are_refused():
    with pytest.raises(ConfigError, match="cannot be trained in fp16"):
        training.LossScaling(training.adamw(small_model().half().parameters()))


def overflows_on_one(optimizer, world):
    """A loss scale that is too much for the second process' gradients alone."""
    return training.LossScaling(optimizer, initial_scale=2.0**24, growth_interval=2)


def everywhere():
    """Run each technique on this process' share."""
    world = join_world("cpu")
    runs = {
        "plain": run(world),
        "in backward": run(world, update=training.StepInBackward),
        "scaled": run(world, update=scaling, max_norm=0.1, build=torch.optim.SGD),
        "clipped": run(world, max_norm=0.1, build=torch.optim.SGD),
        "fp16": run(world, update=overflows_on_one, dtype=torch.float16, steps=6),
        "selective": run(world, change=SELECTIVE),
        "offloaded": run(world, change=offloaded),
    }
    return {name: result[:2] for name, result in runs.items()}


def test_two_processes_do_as_one():
    alone, pair = everywhere(), run_distributed(everywhere, 2)
    for name, result in pair[0].items():
        assert_close(result, alone[name], rtol=1e-3 if name == "fp16" else 1e-5)
        assert repr(pair[1][name][0]) == repr(result[0])  # a skipped step has NaN for a norm
    assert pair[0]["in backward"][0] == pair[0]["plain"][0]
    assert any(not math.isfinite(norm) for _, norm, _ in alone["fp16"][0]), "nothing overflowed"


def test_the_profiler_writes_a_trace_and_a_table_and_says_so(tmp_path):
    said, weight = [], torch.nn.Parameter(torch.ones(256, 256))
    profiler = training.torch_profiler(
        output_dir=tmp_path, wait_steps=0, warmup_steps=1, active_steps=1, profile_memory=True,
        say=lambda label, text: said.append((label, text)),
    )  # fmt: skip
    profiler.start()
    for _ in range(2):
        (weight @ weight).sum().backward()
        profiler.step()
    profiler.stop()
    folder = tmp_path / "profile"
    assert len(list(folder.glob("*.pt.trace.json"))) == 1
    first, _, head, *rows = (folder / "table.txt").read_text().splitlines()
    assert head.split() == ["self", "ms", "share", "calls", "operation"]
    assert {"aten::mm", "aten::sum"} <= {row.split()[-1] for row in rows}
    # two gradients of 256 KiB and what they are added up from: some, and no more than a few
    assert "at most 1 MiB more" in first
    assert said == [("profile", f"{folder}: {first}")]
