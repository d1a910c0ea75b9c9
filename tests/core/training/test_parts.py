"""The smaller parts of a training loop."""

import hashlib
import json
import os
import signal
from dataclasses import dataclass

import pytest
import torch
from torchtune import training
from torchtune.config import Component
from torchtune.distributed import World
from torchtune.errors import ConfigError
from torchtune.models.llama import llama
from torchtune.peft import lora
from torchtune.training import Progress, StepMetrics

TINY = dict(vocab_size=40, num_layers=2, num_heads=2, num_kv_heads=1, embed_dim=16,
            intermediate_dim=24, max_seq_len=32)  # fmt: skip


def metrics(**more):
    return StepMetrics(loss=1.0, grad_norm=1.0, lr=1e-3, tokens=10, supervised_tokens=4,
                       tokens_per_second=5.0, peak_memory_bytes=1, seconds=2.0, **more)  # fmt: skip


def test_first_values_follow_from_seed_and_name_alone():
    first, second = llama(**TINY), llama(**{**TINY, "num_layers": 1})
    training.init_weights(first, seed=1)
    training.init_weights(second, seed=1)
    for name, value in second.state_dict().items():
        assert torch.equal(value, first.state_dict()[name])
    training.init_weights(second, seed=2)
    assert not torch.equal(second.output_matrix(), first.output_matrix())
    assert first.output_matrix().std().item() == pytest.approx(0.02, rel=0.1)


def test_what_a_checkpoint_filled_keeps_its_value():
    model = llama(**TINY)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(7)
    training.init_weights(model, seed=1, skip={"model.embed_tokens.weight"})
    assert (model.model.embed_tokens.weight == 7).all()


def test_the_base_begins_the_same_with_and_without_an_adapter():
    plain, adapted = llama(**TINY), lora(llama(**TINY), rank=2)
    for model in (plain, adapted):
        training.init_weights(model, seed=1)
    state = adapted.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)
    assert state["model.layers.0.self_attn.q_proj.weight"].std() > 0.01


@pytest.mark.parametrize("fused", [None, True, False])
def test_adamw_is_torchs(fused):
    def train(build):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 12))
        optimizer = build([weight])
        for _ in range(5):
            weight.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return weight

    ours = train(lambda p: training.adamw(p, lr=0.1, fused=fused))
    theirs = train(lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("dtype", "lr", "noted"),
    [(torch.bfloat16, 2e-5, True), (torch.bfloat16, 2e-4, False), (torch.float32, 2e-5, False)],
)
def test_updates_that_round_away_are_noted(dtype, lr, noted):
    weight = torch.nn.Parameter(torch.full((100,), 0.02, dtype=dtype))
    optimizer = training.adamw([weight], lr=lr, weight_decay=0.0)
    training.linear_schedule(optimizer, num_warmup_steps=4, num_training_steps=8)
    assert bool(training.rounding_note(optimizer)) == noted
    optimizer.param_groups[0]["lr"] = lr
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert (weight == torch.tensor(0.02, dtype=dtype)).all().item() == noted


def test_progress_counts_and_remembers_the_best():
    progress = Progress()
    for _ in range(3):
        progress = progress.after(metrics(), steps_per_epoch=2)
    assert (progress.step, progress.epoch, progress.tokens) == (3, 1, 30)
    progress = progress.validated(2.0).validated(1.0).validated(1.5).validated(float("nan"))
    assert (progress.best_loss, progress.best_step) == (1.0, 3)
    assert progress.validations_since_best == 2


def test_metrics_are_flushed_line_by_line(tmp_path):
    logger = training.JsonlLogger(tmp_path / "m.jsonl")
    logger.log({"loss": 1.5}, Progress(step=1))
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1, "epoch": 0, "loss": 1.5}
    logger.close()


def test_figures_are_logged_when_due_and_with_every_validation(tmp_path, capsys):
    log = training.RunLog(speaks=True, every_n_steps=2)
    logger = training.JsonlLogger(tmp_path / "m.jsonl")
    log.start([logger], config={}, total=4)
    for step in range(1, 5):
        measured = {"val_loss": 1.0} if step == 3 else {}
        log.log({"loss": 1.0}, Progress(step=step), measured)
    log.say("label", "one\ntwo")
    log.close()
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3, 4]
    assert "label      one\n           two\n" in capsys.readouterr().err


def test_a_picture_of_the_losses_is_drawn(tmp_path):
    lines = [
        {"step": i, "loss": 3 / i, **({"val_loss": 4 / i} if i % 3 == 0 else {})}
        for i in range(1, 20)
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    training.plot_loss(tmp_path / "m.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "m.jsonl").write_text("")
    training.plot_loss(tmp_path / "m.jsonl", tmp_path / "empty.png")


@dataclass
class Params:
    """Some of a recipe's arguments."""

    checkpoint: str | None = None
    dataset: Component | None = None


def test_the_record_holds_versions_and_digests(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    dataset = {"_component_": "rows", "source": str(tmp_path / "rows.jsonl")}
    expected = hashlib.sha256(b"{}").hexdigest()
    training.record_run(tmp_path, Params(checkpoint="./base", dataset=dataset), base_sha256="ab")
    record = json.loads((tmp_path / "environment.json").read_text())
    assert record["data"] == {str(tmp_path / "rows.jsonl"): expected}
    assert record["base"] == {"path": "./base", "sha256": "ab"}
    assert record["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (tmp_path / "config.yaml").read_text().startswith("checkpoint: ./base\ndataset:\n")


def test_a_signal_is_remembered_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    stop = training.StopSignal()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested and not stop.agreed
    assert stop.agree(World()) and stop.agreed
    stop.close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_same_seed_draws_the_same_numbers():
    training.set_seed(5)
    first = torch.rand(3)
    training.set_seed(5)
    assert torch.equal(first, torch.rand(3))


def test_the_profiler_writes_a_trace(tmp_path):
    profiler = training.torch_profiler(
        output_dir=tmp_path, wait_steps=0, warmup_steps=1, active_steps=1
    )
    profiler.start()
    for _ in range(3):
        torch.ones(3).sum()
        profiler.step()
    profiler.stop()
    assert list((tmp_path / "profile").glob("*.json*"))


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 10**30])
def test_a_seed_of_more_than_64_bits_is_refused(seed):
    with pytest.raises(ConfigError, match="'seed' must be a number of 64 bits"):
        training.set_seed(seed)
