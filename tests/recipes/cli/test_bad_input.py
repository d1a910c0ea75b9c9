"""What people get wrong: each ends in one clear error, its exit code, and nothing lost."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchtune.testing import tiny_checkpoint, tiny_rows
from torchtune_recipes.cli.main import main


class Run:
    """A run of sft that is right as it stands; a test breaks one thing and starts it."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys
        self.model = tiny_checkpoint(folder / "model")
        self.rows = tiny_rows(folder, 8)
        self.output = folder / "output"

    def start(self, *words):
        """Run ``tune sft`` here; return its exit code and the lines of its error."""
        paths = [f"checkpoint={self.model}", f"dataset={self.rows}", f"output_dir={self.output}"]
        settings = ["device=cpu", "dtype=fp32", "max_steps=2"]
        try:
            code = main(["sft", *paths, *settings, *words])
        except SystemExit as end:
            code = end.code
        said = self.capsys.readouterr().err
        assert "Traceback" not in said
        at = said.find("error[")
        return code, said[at:].strip().splitlines() if at >= 0 else []

    def config(self, text):
        (self.folder / "my.yaml").write_text(text)
        return f"--config={self.folder / 'my.yaml'}"

    def write_rows(self, *lines):
        self.rows.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def run(tmp_path, capsys):
    return Run(tmp_path, capsys)


def change_config(run, **keys):
    path = run.model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def change_weights(run, change):
    path = run.model / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def cut_file(run):
    path = run.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def remove_tokenizer(run):
    for path in run.model.glob("tokenizer*"):
        path.unlink()


def chat_without_template(run):
    shutil.rmtree(run.model)
    tiny_checkpoint(run.model, chat_template=None)
    run.rows = tiny_rows(run.folder, 4, form="messages")


def foreign_file(run):
    run.output.mkdir()
    (run.output / "thesis.tex").write_text("years of work")


def row(**keys):
    return json.dumps(keys)


def chat(role):
    return row(messages=[{"role": role, "content": "a"}, {"role": "assistant", "content": "b"}])


WORDS = {
    "unknown key": (["batch_sise=4"], 2, "did you mean 'batch_size'?"),
    "wrong type": (["batch_size=many"], 2, "'batch_size' must be an integer, found 'many'"),
    "out of range": (["batch_size=0"], 2, "'batch_size' must be at least 1, found 0"),
    "missing data": (["dataset=./none.jsonl"], 3, "./none.jsonl"),
    "missing model": (["checkpoint=./none"], 3, "./none"),
    "too many positions": (["max_seq_len=513"], 2, "512 positions"),
    "lora target": (["peft=lora", "peft.targets=[q_prj]"], 2, "q_prj"),
    "shell": (["optimizer=os.system"], 2, "os.system"),
    "shell in disguise": (["optimizer=torch.nn.modules.module.torch.hub.load"], 2, "torch.hub"),
    "no device": (["device=mps"], 3, "no MPS device"),
    "no such component": (["optimizer=adamv"], 2, "did you mean 'adamw'?"),
    "no such argument": (["optimizer.lrr=1"], 2, "did you mean 'lr'?"),
    "no such recipe": (["--config=llama9/1b"], 2, "llama9/1b"),
}


@pytest.mark.parametrize(("words", "code", "said"), WORDS.values(), ids=WORDS)
def test_a_wrong_word_is_one_error(run, words, code, said):
    check(run.start(*words), code, said)


CONFIGS = {
    "duplicate key": ("seed: 1\nseed: 2\n", 2, "my.yaml:2"),
    "not YAML": ("seed: [1\n", 2, "my.yaml"),
    "python tag": ("seed: !!python/object/apply:os.system [ls]\n", 2, "my.yaml:1"),
    "unknown interpolation": ("chat_template: ${oc.env:SECRET}\n", 2, "my.yaml:1"),
    "bomb": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n"
            for a, b in zip("abcdef", "bcdefg", strict=True)
        ),
        2,
        "my.yaml",
    ),
}


@pytest.mark.parametrize(("text", "code", "said"), CONFIGS.values(), ids=CONFIGS)
def test_a_bad_config_file_is_an_error_with_its_line(run, text, code, said):
    got, lines = run.start(run.config(text))
    assert got == code
    assert said in "\n".join(lines)


FILES = {
    "no config.json": (lambda run: (run.model / "config.json").unlink(), 3, "config.json"),
    "no weights": (lambda run: (run.model / "model.safetensors").unlink(), 3, "safetensors"),
    "missing tensor": (
        lambda run: change_weights(run, lambda weights: weights.pop("model.norm.weight")),
        3,
        "model.norm.weight",
    ),
    "truncated weights": (cut_file, 3, "model.safetensors"),
    "unknown architecture": (lambda run: change_config(run, model_type="eliza"), 2, "eliza"),
    "no tokenizer": (remove_tokenizer, 3, "tokenizer"),
    "chat without template": (chat_without_template, 3, "chatml"),
    "foreign folder": (foreign_file, 2, "thesis.tex"),
    "endless template": (
        lambda run: (run.model / "chat_template.jinja").write_text(
            "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}"
        ),
        2,
        "chat template",
    ),
}


@pytest.mark.parametrize(("break_it", "code", "said"), FILES.values(), ids=FILES)
def test_a_bad_file_is_one_error(run, break_it, code, said):
    break_it(run)
    check(run.start(), code, said)
    assert not (run.output / "thesis.tex").exists() or break_it is foreign_file


ROWS = {
    "empty": ([], "no rows"),
    "not JSON": ([row(instruction="a", output="b"), "{'no': 'json'}"], "alpaca.jsonl:2"),
    "columns": ([row(left="a", right="b")], "alpaca.jsonl:1"),
    "unknown role": ([chat("wizard")], "wizard"),
    "nothing to train": ([row(instruction="a", output="b" * 600)] * 2, "token to train on"),
}


@pytest.mark.parametrize(("lines", "said"), ROWS.values(), ids=ROWS)
def test_bad_rows_are_one_error_that_names_them(run, lines, said):
    run.write_rows(*lines)
    words = ["max_seq_len=4"] if "to train on" in said else []
    check(run.start(*words), 4, said)


def test_a_loss_that_is_no_number_names_the_step_and_the_weights_that_broke_it(run):
    change_weights(run, lambda weights: weights["model.norm.weight"].fill_(math.nan))
    code, lines = run.start()
    check((code, lines), 1, "step 1")
    assert "before the step: model.norm.weight" in "\n".join(lines)
    assert not list(run.output.glob("step_*"))


def test_a_run_that_is_right_ends_with_0(run):
    assert run.start() == (0, [])
    assert (run.output / "latest" / "model.safetensors").is_file()
    assert torch.isfinite(
        load_file(run.output / "latest/model.safetensors")["lm_head.weight"]
    ).all()


def check(result, code, said):
    got, lines = result
    assert got == code, lines
    assert said in "\n".join(lines)
    assert 1 <= len(lines) <= 3, lines
