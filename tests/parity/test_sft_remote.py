"""A run whose data and output lie on another machine, and that goes on on a third."""

import os
import subprocess

import pytest

LENGTH = ("max_steps=4", "save_every_n_steps=2", "batch_size=2")


def start(runs, machine, *words):
    tune = runs.command("any")[0]
    return subprocess.run(
        [tune, *words], cwd=runs.folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TUNE_CACHE": str(runs.folder / machine)},
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_on_another_machine_and_answers_from_there(runs, shared):
    whole = runs.run("whole", *LENGTH)
    url = f"file://{runs.folder}/remote"
    there = {f"dataset={runs.rows}": f"dataset=file://{runs.rows}", f"{runs.folder}/run": url}
    command = [there.get(word, word) for word in runs.command("run", *LENGTH)[1:]]
    first = start(runs, "one", *command, "max_steps=2", "resume_from_checkpoint=auto")
    assert first.returncode == 0, first.stderr
    assert f"{url}/latest" in first.stderr
    again = start(runs, "two", *command, "resume_from_checkpoint=auto")
    assert again.returncode == 0, again.stderr
    ours, theirs = ((runs.folder / name / "step_000004") for name in ("remote", "whole"))
    for file in theirs.rglob("*.safetensors"):
        assert (ours / file.relative_to(theirs)).read_bytes() == file.read_bytes()
    assert [line["loss"] for line in runs.metrics("remote")] == [line["loss"] for line in whole]
    words = ("generate", "--checkpoint", url, "--prompt", "Hello", "--max-new-tokens", "4")
    answers = [start(runs, "three", *words)]
    answers.append(start(runs, "three", *words[:2], str(theirs), *words[3:]))
    assert answers[0].returncode == 0, answers[0].stderr
    assert answers[0].stdout == answers[1].stdout
