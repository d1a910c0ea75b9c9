"""Killed, stopped or finished: a run goes on as if nothing had been."""

import json
import os
import random
import signal
import time

import pytest

LENGTH = ("max_steps=12", "save_every_n_steps=2", "batch_size=2", "lr_scheduler=cosine")
FORMS = {
    "full": (),
    "adapter": ("peft=lora", "peft.dropout=0.1"),
    "master": ("dtype=bf16", "master_weights=true", "clip_grad_norm=1.0"),
}
SAME = ("step", "epoch", "loss", "grad_norm", "lr", "tokens", "supervised_tokens")


def kill(process):
    """Kill the whole tree of a run."""
    os.killpg(process.pid, signal.SIGKILL)
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


def killed_run(runs, name, form, moments, processes):
    """Kill the run once at each moment (steps logged), resuming it each time; then let it end."""
    chance = random.Random(name)
    for moment in moments:
        process = runs.start(
            name, *LENGTH, *form, "resume_from_checkpoint=auto", processes=processes
        )
        wait_for_line(runs, name, process, moment)
        time.sleep(chance.random() * 0.2)
        kill(process)
    return runs.run(name, *LENGTH, *form, "resume_from_checkpoint=auto", processes=processes)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_ends_in_the_same_bits(processes, runs):
    runs.run("whole", *LENGTH, processes=processes)
    killed_run(runs, "killed", (), [5], processes)
    assert_same_run(runs, "killed", "whole")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("processes", [1, 2])
def test_runs_of_every_form_survive_many_kills(form, processes, runs):
    runs.run("whole", *LENGTH, *FORMS[form], processes=processes)
    killed_run(runs, "killed", FORMS[form], [0, 1, 3, 6, 7, 10], processes)
    assert_same_run(runs, "killed", "whole")


def test_a_stopped_run_saves_exits_75_and_goes_on(runs):
    runs.run("whole", *LENGTH)
    process = runs.start("stopped", *LENGTH)
    wait_for_line(runs, "stopped", process, 3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "resume_from_checkpoint=auto" in said.splitlines()[-1]
    before = (runs.folder / "stopped/metrics.jsonl").read_bytes()
    runs.run("stopped", *LENGTH, "resume_from_checkpoint=auto")
    assert (runs.folder / "stopped/metrics.jsonl").read_bytes().startswith(before)
    assert_same_run(runs, "stopped", "whole")
    runs.run("stopped", *LENGTH, "resume_from_checkpoint=auto")
    assert "nothing left to do" in runs.said


def test_a_folder_with_a_checkpoint_is_not_written_over(runs):
    first = runs.run("run", "max_steps=1")
    assert runs.run("run", "max_steps=1", code=2) == first
    assert "resume_from_checkpoint=auto" in runs.said
    runs.run("run", "max_steps=3", "resume_from_checkpoint=auto", "seed=5", code=2)
    assert "seed (was 0, is 5)" in runs.said


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
