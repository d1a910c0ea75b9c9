"""One optimizer step: the same numbers however its rows are laid out."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torchtune import training
from torchtune.data import Documents, Steps
from torchtune.distributed import World
from torchtune.errors import TuneError
from torchtune.losses import LinearCrossEntropy
from torchtune.models.llama import llama

VOCAB = 61


@pytest.fixture(scope="module")
def model():
    built = llama(vocab_size=VOCAB, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=32,
                  intermediate_dim=48, max_seq_len=64, tied=True)  # fmt: skip
    training.init_weights(built, seed=3)
    return built


@pytest.fixture(scope="module")
def documents():
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 30, 12, 64, 7, 22, 3, 41]
    rows = [torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    return Documents.of([(row, [i > len(row) // 3 for i in range(len(row))]) for row in rows])


def run(model, documents, steps=3, *, loss=None, dtype=torch.float32, change=None, **layout):
    """Train a copy for some epochs of one step; return losses, norms and weights."""
    model = copy.deepcopy(model).to(dtype)
    model = change(model) if change else model
    optimizer = training.adamw(model.parameters(), lr=1e-3)
    batches = iter(Steps(documents, max_seq_len=64, seed=5, **layout).after())
    metrics = [
        training.train_step(
            model, optimizer, next(batches), World(), loss=loss or LinearCrossEntropy()
        )
        for _ in range(steps)
    ]
    return metrics, dict(model.named_parameters())


def assert_same_run(ours, theirs):
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine.loss == pytest.approx(other.loss, rel=1e-5)
        assert mine.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
        assert mine.supervised_tokens == other.supervised_tokens
    for name, weight in ours[1].items():
        assert (weight - theirs[1][name]).norm() <= 1e-4 * theirs[1][name].norm()


def plain_loop(model, documents, steps=3):
    """The same training in plain torch, row by row."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    losses, norms = [], []
    for _ in range(steps):
        total, count = torch.zeros(()), 0
        for start, stop in zip(documents.offsets, documents.offsets[1:], strict=False):
            ids = documents.tokens[start:stop].long()
            labels = torch.where(documents.trained[start:stop], ids, -100)[1:]
            logits = model(ids.unsqueeze(0))[0, :-1]
            total = total + F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
            count += int((labels != -100).sum())
        (total / count).backward()
        losses.append((total / count).item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms


def test_steps_are_those_of_a_plain_loop(model, documents):
    metrics, _ = run(model, documents, batch_size=8, shuffle=False)
    losses, norms = plain_loop(model, documents)
    assert [m.loss for m in metrics] == pytest.approx(losses, rel=1e-5)
    assert [m.grad_norm for m in metrics] == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize(
    "layout",
    [
        {"batch_size": 2, "gradient_accumulation_steps": 4},
        {"batch_size": 3, "gradient_accumulation_steps": 3},
        {"batch_size": 1, "gradient_accumulation_steps": 8},
        {"batch_size": 2, "gradient_accumulation_steps": 4, "packed": True},
        {"batch_size": 8, "shuffle": False},
    ],
    ids=str,
)
def test_the_layout_of_a_steps_rows_changes_nothing(layout, model, documents):
    assert_same_run(run(model, documents, **layout), run(model, documents, batch_size=8))


def test_chunks_change_nothing(model, documents):
    chunked = run(model, documents, batch_size=8, loss=LinearCrossEntropy(chunk_tokens=5))
    assert_same_run(chunked, run(model, documents, batch_size=8))


def test_recomputed_activations_change_nothing(model, documents):
    recomputed = run(model, documents, batch_size=8, change=training.checkpoint_activations)
    assert_same_run(recomputed, run(model, documents, batch_size=8))
    assert set(recomputed[1]) == set(dict(model.named_parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_blocks_change_nothing_and_share_their_graphs(recomputed, model, documents):
    from torch._dynamo.utils import counters

    def change(model):
        model = training.compile_blocks(model)
        return training.checkpoint_activations(model) if recomputed else model

    counters.clear()
    torch._dynamo.reset()
    layout = {"batch_size": 2, "gradient_accumulation_steps": 2}  # rows of other lengths each time
    assert_same_run(
        run(model, documents, steps=6, change=change, **layout),
        run(model, documents, steps=6, **layout),
    )
    assert 0 < counters["stats"]["unique_graphs"] <= 6


def test_clipping_cuts_the_step_and_reports_the_norm_before(model, documents):
    free = run(model, documents, 1, batch_size=8)
    clipped = copy.deepcopy(model)
    optimizer = torch.optim.SGD(clipped.parameters(), lr=1.0)
    batches = next(Steps(documents, max_seq_len=64, batch_size=8).after())
    metrics = training.train_step(
        clipped, optimizer, batches, World(), loss=LinearCrossEntropy(), max_norm=0.1
    )
    moved = [a - b for a, b in zip(clipped.parameters(), model.parameters(), strict=True)]
    assert metrics.grad_norm == pytest.approx(free[0][0].grad_norm, rel=1e-5)
    assert torch.stack([m.norm() for m in moved]).norm().item() == pytest.approx(0.1, rel=1e-3)


def test_a_loss_that_is_not_finite_names_the_rows_and_changes_nothing(model, documents):
    sound = copy.deepcopy(model)
    before = copy.deepcopy(sound.state_dict())
    layout = {"batch_size": 4, "gradient_accumulation_steps": 2, "shuffle": False}
    batches = next(Steps(documents, max_seq_len=64, **layout).after())
    sums = iter([1.0, math.nan])
    with pytest.raises(TuneError, match="the loss is nan\n") as caught:
        training.train_step(
            sound, training.adamw(sound.parameters()), batches, World(),
            loss=lambda *given: LinearCrossEntropy()(*given) * next(sums),
        )  # fmt: skip
    assert caught.value.code == "E-NOT-FINITE"
    assert caught.value.where == "rows memory:5, memory:6, memory:7, memory:8"
    for name, value in sound.state_dict().items():
        assert torch.equal(value, before[name])


def test_weights_that_are_not_finite_are_named_and_no_row_is_blamed(model, documents):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        for block in broken.blocks:
            block.mlp.up_proj.weight[3, 1] = math.nan
    batches = next(Steps(documents, max_seq_len=64, batch_size=8, shuffle=False).after())
    with pytest.raises(TuneError, match="the loss is nan\n") as caught:
        training.train_step(
            broken, training.adamw(broken.parameters()), batches, World(), loss=LinearCrossEntropy()
        )
    assert "model.layers.0.mlp.up_proj.weight and 1 more" in caught.value.where
    assert "memory" not in caught.value.where


def test_a_schedule_that_follows_validations_is_refused(model, documents):
    model = copy.deepcopy(model)
    optimizer = training.adamw(model.parameters())
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    batches = next(Steps(documents, batch_size=2, max_seq_len=64).after())
    with pytest.raises(TuneError, match=r"E-SCHEDULE.*ReduceLROnPlateau"):
        training.train_step(
            model, optimizer, batches, World(), loss=LinearCrossEntropy(), scheduler=schedule
        )


def test_validation_is_the_mean_over_all_tokens(model, documents):
    from torchtune.data import validation_batches

    expected = plain_loop(model, documents, steps=1)[0][0]
    for size in (1, 3, 8):
        batches = list(validation_batches(documents, batch_size=size, max_seq_len=64))
        found = training.evaluate(model, batches, World(), loss=LinearCrossEntropy())
        assert found == pytest.approx(expected, rel=1e-5)
