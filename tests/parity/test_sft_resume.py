"""Killed, stopped, changed, damaged or finished: a run goes on as if nothing had been, or says why not."""

import json
import math
import os
import random
import signal
import sys
import time
from contextlib import suppress

import pytest
import torch
from killed_runs import processes_below
from torchtune.checkpoint import read_weights

STEPS = 12
LENGTH = (f"max_steps={STEPS}", "save_every_n_steps=2", "batch_size=2", "lr_scheduler=cosine")
AUTO = "resume_from_checkpoint=auto"
SAME = ("step", "epoch", "loss", "grad_norm", "lr", "tokens", "supervised_tokens")


@pytest.fixture(scope="module")
def whole(module_runs):
    """What returns the name of a run that was left alone, by its number of processes."""
    done: dict[int, str] = {}

    def whole(processes: int = 1) -> str:
        if processes not in done:
            done[processes] = f"whole_{processes}"
            module_runs.run(done[processes], *LENGTH, processes=processes)
        return done[processes]

    return whole


def kill(process):
    """Kill all processes of a run at once."""
    for pid in [process.pid, *processes_below(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def wait_for_line(runs, name, process, count):
    """Wait until the run has logged `count` steps or is over."""
    path = runs.folder / name / "metrics.jsonl"
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") < count):
        time.sleep(0.02)


def tensors(runs, name):
    """Return the bytes of every tensor file of the last checkpoint."""
    latest = runs.folder / name / "latest"
    return {str(p.relative_to(latest)): p.read_bytes() for p in latest.rglob("*.safetensors")}


def assert_same_run(runs, name, other):
    ours, theirs = tensors(runs, name), tensors(runs, other)
    assert ours.keys() == theirs.keys()
    assert not [file for file in ours if ours[file] != theirs[file]]
    for line, expected in zip(runs.metrics(name), runs.metrics(other), strict=True):
        assert {key: line[key] for key in SAME} == {key: expected[key] for key in SAME}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_run_ends_in_the_same_bits(processes, module_runs, whole):
    name, expected = f"killed_{processes}", whole(processes)
    process = module_runs.start(name, *LENGTH, AUTO, processes=processes)
    wait_for_line(module_runs, name, process, 5)
    time.sleep(random.Random(name).random() * 0.2)
    kill(process)
    module_runs.run(name, *LENGTH, AUTO, processes=processes)
    assert_same_run(module_runs, name, expected)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM")
@pytest.mark.parametrize(
    ("processes", "number"), [(1, signal.SIGTERM), pytest.param(2, signal.SIGINT, marks=pytest.mark.slow)]
)  # fmt: skip
def test_a_stopped_run_saves_exits_75_and_goes_on(processes, number, module_runs, whole):
    name, expected = f"stopped_{processes}", whole(processes)
    process = module_runs.start(name, *LENGTH, processes=processes)
    wait_for_line(module_runs, name, process, 3)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 75, said
    assert AUTO in said.splitlines()[-1]
    before = (module_runs.folder / name / "metrics.jsonl").read_bytes()
    module_runs.run(name, *LENGTH, AUTO, processes=processes)
    assert (module_runs.folder / name / "metrics.jsonl").read_bytes().startswith(before)
    assert_same_run(module_runs, name, expected)


LONG_STEP = (
    "max_steps=3",
    "save_every_n_steps=1",
    "batch_size=8",
    "gradient_accumulation_steps=20",
)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM")
@pytest.mark.parametrize(
    ("processes", "number", "code"),
    [
        (1, signal.SIGINT, 130),
        pytest.param(1, signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_a_second_signal_stops_at_once_and_loses_nothing_older(processes, number, code, runs):
    process = runs.start("run", *LONG_STEP, "dataset.split=train[:600]", processes=processes)
    wait_for_line(runs, "run", process, 1)
    latest = runs.folder / "run/latest"
    while not latest.exists():
        time.sleep(0.02)
    process.send_signal(number)
    time.sleep(1.2)  # closer together they would be one
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == code
    assert [line["step"] for line in runs.metrics("run")] == [1]
    assert latest.resolve().name == "step_000001"
    same_rows = (*LONG_STEP, "dataset.split=train[:600]", f"batch_size={8 * processes}")
    runs.here("run", *same_rows, AUTO, "max_steps=1")
    assert "nothing left to do" in runs.said


def test_a_folder_with_a_checkpoint_is_not_written_over(module_runs, whole):
    before = module_runs.metrics(whole())
    assert module_runs.here(whole(), *LENGTH, code=2) == before
    assert AUTO in module_runs.said
    module_runs.here(whole(), *LENGTH, AUTO)
    assert "nothing left to do" in module_runs.said


def test_a_changed_config_is_refused_by_all_its_keys(module_runs, whole):
    folder = module_runs.copy(whole(), "changed")
    config = (folder / "config.yaml").read_text()
    changes = (
        "seed=5",
        "peft=lora",
        "optimizer.lr=0.5",
        "dataset.split=train[:90]",
        "batch_size=4",
    )
    module_runs.here("changed", *LENGTH, AUTO, *changes, code=2)
    refused = ("seed (was 0, is 5)", "peft (was null, is lora)", "optimizer.lr (was 0.001, is 0.5)",
               "dataset.split (was train[:120], is train[:90])", "batch_size (was 2 rows a step")  # fmt: skip
    assert [change for change in refused if change not in module_runs.said] == []
    assert (folder / "config.yaml").read_text() == config
    module_runs.here("changed", *LENGTH, AUTO, "--allow-change", "sed", code=2)
    assert "did you mean 'seed'?" in module_runs.said


def cosine(lr, step, total):
    """Return the rate of a step, from 1, of a cosine without a warm-up."""
    return lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / total))


def test_an_allowed_change_of_the_optimizer_takes_the_new_numbers(module_runs, whole):
    module_runs.copy(whole(), "allowed")
    more = ("optimizer.lr=0.01", "optimizer.weight_decay=0.5", "max_steps=14")
    module_runs.here("allowed", *LENGTH, AUTO, *more, "--allow-change", "optimizer")
    rates = [line["lr"] for line in module_runs.metrics("allowed")[STEPS:]]
    assert rates == pytest.approx([cosine(0.01, step, 14) for step in (13, 14)])
    state = json.loads(
        (module_runs.folder / "allowed/latest/training_state/state.json").read_text()
    )
    options = state["optimizer"]["groups"][0]["options"]
    assert options["weight_decay"] == 0.5 and options["initial_lr"] == 0.01
    module_runs.here("allowed", *LENGTH, AUTO, *more, "max_steps=15", "~lr_scheduler",
                     "--allow-change", "lr_scheduler")  # fmt: skip
    assert module_runs.metrics("allowed")[-1]["lr"] == 0.01


def test_a_longer_run_goes_on_and_its_schedule_stretches(module_runs, whole):
    module_runs.copy(whole(), "longer")
    module_runs.here("longer", *LENGTH, AUTO, "max_steps=16", "save_every_n_steps=5")
    assert "12 steps and has 16" in module_runs.said
    rates = [line["lr"] for line in module_runs.metrics("longer")[STEPS:]]
    assert rates == pytest.approx([cosine(1e-3, step, 16) for step in (13, 14, 15, 16)])


def damage(folder, how):
    """Cut, change or remove a file of a step folder; return its name."""
    file = folder / {"cut": "model.safetensors", "changed": "config.json"}.get(
        how, "tokenizer.json"
    )
    if how == "cut":
        os.truncate(file, file.stat().st_size - 1)
    elif how == "changed":
        file.write_text(file.read_text().replace("e", "E", 1))
    else:
        file.unlink()
    return file.name


def test_damaged_checkpoints_are_named_and_the_newest_whole_one_is_offered(module_runs, whole):
    folder = module_runs.copy(whole(), "damaged")
    steps = {
        how: folder / f"step_0000{step}"
        for how, step in (("cut", 12), ("changed", 10), ("gone", "08"))
    }
    names = {how: damage(step, how) for how, step in steps.items()}
    for how, step in steps.items():
        module_runs.here("damaged", *LENGTH, f"resume_from_checkpoint={step}", code=3)
        assert f"{step.name} is not as it was saved: {names[how]}" in module_runs.said
        assert f"resume_from_checkpoint={folder}/step_000006" in module_runs.said
    module_runs.here("damaged", *LENGTH, AUTO)
    assert [
        how for how, step in steps.items() if f"warning: {step.name}" not in module_runs.said
    ] == []
    assert f"resume     {folder}/step_000006" in module_runs.said
    assert_same_run(module_runs, "damaged", whole())


def assert_close_to(runs, name, other):
    """Compare figures and last weights of runs of other worlds."""
    for line, expected in zip(runs.metrics(name), runs.metrics(other), strict=True):
        for key in ("loss", "grad_norm", "lr"):
            assert line[key] == pytest.approx(expected[key], rel=1e-5)
        assert line["tokens"] == expected["tokens"]
    ours, theirs = (read_weights(runs.folder / run / "latest") for run in (name, other))
    for key, wanted in theirs.items():
        assert torch.linalg.norm(ours[key] - wanted) <= 1e-4 * torch.linalg.norm(wanted)


def test_a_run_goes_from_one_process_to_two_and_back_with_the_same_rows(module_runs, whole):
    folder = module_runs.copy(whole(), "worlds")
    at = "resume_from_checkpoint={}/step_0000{}"
    module_runs.run("worlds", *LENGTH, "batch_size=1", at.format(folder, "04"), processes=2)
    assert "world_size (was 1, is 2)" in module_runs.said
    assert "equal to rounding" in module_runs.said
    module_runs.here("worlds", *LENGTH, at.format(folder, "08"))
    assert_close_to(module_runs, "worlds", whole())


@pytest.mark.slow
def test_a_run_goes_from_two_processes_to_four_with_the_same_rows(module_runs):
    form = (*LENGTH, "batch_size=4", "clip_grad_norm=0.5", "optimizer.weight_decay=0.1")
    module_runs.run("two", *form, processes=2)
    folder = module_runs.copy("two", "four")
    at = f"resume_from_checkpoint={folder}/step_000006"
    module_runs.run("four", *form, "batch_size=2", at, processes=4)
    assert_close_to(module_runs, "four", "two")


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_patience_ends_the_run(runs):
    held_out = ("validation_split=0.2", "run_val_every_n_steps=1", "keep_best=true", "patience=3")
    many = ("max_steps=60", "keep_last_n_checkpoints=1", "optimizer.lr=0.02")
    metrics = runs.run("best", *held_out, *many)
    losses = [line["val_loss"] for line in metrics]
    best = losses.index(min(losses)) + 1
    assert len(metrics) == best + 3 < 60
    kept = sorted(p.name for p in (runs.folder / "best").glob("step_*"))
    assert kept == [f"step_{best:06}", f"step_{best + 3:06}"]
    state = json.loads((runs.folder / "best/latest/training_state/state.json").read_text())
    assert state["info"]["progress"]["best_step"] == best
