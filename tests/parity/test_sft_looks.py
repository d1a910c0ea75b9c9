"""What a run shows on its way: samples, benchmarks, and the rehearsal before it."""

import json
import signal
import time

import pytest
import torch
from torchtune import training
from torchtune.config import validate
from torchtune.distributed import World
from torchtune.errors import TuneError
from torchtune_recipes import catalog

transformers = pytest.importorskip("transformers")
PROMPTS = ["Once upon a time", "The cat"]
EVALUATOR = '''
"""Count the calls of an evaluator, and what it was called with."""

class Counting:
    def __init__(self, every_n_steps):
        self.every, self.calls = every_n_steps, 0

    def due(self, step, *, last):
        return last or step % self.every == 0

    def __call__(self, model, tokenizer, world, *, few=False):
        self.calls += 1
        size = model.model.embed_tokens.weight.shape[0]
        return {"counting/calls": self.calls, "counting/vocabulary": size}
'''


def theirs(folder, prompt):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[1, *tokenizer.encode(prompt, add_special_tokens=False)]])
    out = model.generate(ids, max_new_tokens=64, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_samples_are_what_transformers_answers_with_the_checkpoint(processes, runs):
    (runs.folder / "rows.jsonl").write_text(json.dumps({"text": "The cat sat on the mat. " * 9}))
    runs.rows = runs.folder / "rows.jsonl"
    runs.run(
        "out", "max_steps=4", "run_val_every_n_steps=2", f"sample_prompts={PROMPTS}",
        "dataset.split=train", processes=processes,
    )  # fmt: skip
    lines = [json.loads(line) for line in (runs.folder / "out/samples.jsonl").open()]
    assert [(line["step"], line["prompt"]) for line in lines] == [
        (step, prompt) for step in (2, 4) for prompt in PROMPTS
    ]
    assert [line["answer"] for line in lines[2:]] == [
        theirs(runs.folder / "out/latest", prompt) for prompt in PROMPTS
    ]
    assert lines[0]["answer"] != lines[2]["answer"]


def test_an_evaluators_figures_stand_with_its_step(runs, monkeypatch):
    (runs.folder / "my_evaluators.py").write_text(EVALUATOR)
    monkeypatch.setenv("PYTHONPATH", str(runs.folder))
    metrics = runs.run(
        "out", "--trust", "my_evaluators", "max_steps=5", "log_every_n_steps=5",
        "evaluate=my_evaluators.Counting", "evaluate.every_n_steps=2",
    )  # fmt: skip
    assert [(line["step"], line["counting/calls"]) for line in metrics] == [(2, 1), (4, 2), (5, 3)]
    assert {line["counting/vocabulary"] for line in metrics} == {512}


def test_arguments_alone_mean_the_usual_evaluator(runs):
    pytest.importorskip("torchtune_integrations")
    config = runs.folder / "my.yaml"
    config.write_text("dataset: x.jsonl\ncheckpoint: m\nevaluate: {tasks: [a], evry_n_steps: 2}\n")
    faults, _ = validate(catalog.resolve_recipe("sft"), config, [])
    said = "\n".join(map(str, faults))
    assert "my.yaml:3" in said and "'every_n_steps'" in said


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_rehearsal_does_everything_and_leaves_nothing(processes, runs):
    arguments = ["max_steps=9", "validation_split=0.1", "peft=lora", "batch_size=2"]
    assert runs.run("out", *arguments, "--rehearse", processes=processes) == []
    assert "all well" in runs.said and "9 steps take at most" in runs.said
    assert not (runs.folder / "out").exists()
    assert len(runs.run("out", *arguments)) == 9


def test_a_rehearsal_finds_what_a_run_would_end_with(runs):
    runs.run("out", "max_steps=1")
    runs.run("out", "--rehearse", code=2)
    assert "E-FOLDER-HAS-RUN" in runs.said


def test_ctrl_c_ends_a_rehearsal_at_once(runs):
    command = runs.start("out", "max_steps=9", "--rehearse")
    while not (runs.folder / "out/.rehearsal.partial/step_000001").exists():
        assert command.poll() is None
        time.sleep(0.01)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=300)
    assert (command.returncode, "all well" in said) == (130, False)
    assert len(runs.run("out", "max_steps=1")) == 1  # what it left is cleared away


class Saves:
    save_every_n_steps, keep_last_n_checkpoints = 10, None


def metrics(loss):
    return training.StepMetrics(loss, 1.0, 1e-4, 10, 5, 100.0, 2**30, 0.1)


def test_a_step_that_differs_after_a_reload_is_an_error(tmp_path):
    with pytest.raises(TuneError, match="E-REHEARSAL-RESUME"):
        training.rehearsed(metrics(2.0), metrics(2.1), 100, Saves(), tmp_path, World())


def test_checkpoints_that_do_not_fit_on_the_disk_are_an_error(tmp_path):
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(2**43)  # sparse: it takes no room itself
    with pytest.raises(TuneError, match="E-REHEARSAL-DISK"):
        training.rehearsed(metrics(2.0), metrics(2.0), 100, Saves(), tmp_path, World())
