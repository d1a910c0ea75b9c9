"""`tune inspect`: the lines it prints, its JSON and its exit codes."""

import json
import os
from types import SimpleNamespace

import pytest
from torchtune.testing import tiny_checkpoint, tiny_rows
from torchtune_recipes.cli.main import main


@pytest.fixture
def tune(capsys):
    """Run ``tune WORDS`` in this process: loading torch again takes seconds."""

    def call(*words):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return call


MODEL = """\
{path}: a model, whole

architecture   LlamaForCausalLM
parameters     35,232 in 21 tensors
dtype          float32
files          model.safetensors 143 kB
output matrix  its own
layers         2 layers, 4 heads (2 of keys and values)
width          32, 64 inside a layer
positions      512
tokenizer      tokenizer.json, 260 tokens, 4 special
  bos          <s> 0 (put before each text)
  eos          </s> 1
  stop         </s> 1, <|im_end|> 3
chat template  none
"""


def test_a_model_is_shown_in_aligned_lines(tune, tmp_path):
    folder = tiny_checkpoint(tmp_path / "my model", chat_template=None)
    done = tune("inspect", str(folder))
    assert (done.returncode, done.stdout) == (0, MODEL.format(path=folder))
    assert done.stderr == f"next: tune generate --checkpoint '{folder}' --prompt \"...\"\n"


def test_damage_is_a_line_and_exit_code_3_also_in_json(tune, tmp_path):
    folder = tiny_checkpoint(tmp_path / "m")
    os.truncate(folder / "model.safetensors", 1000)
    done = tune("inspect", str(folder), "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 3 and report["kind"] == "model"
    (problem,) = report["problems"]
    assert problem.startswith("model.safetensors is cut short: 1000 bytes")


def test_no_command_is_offered_for_a_model_that_none_can_load(tune, tmp_path):
    config = tiny_checkpoint(tmp_path) / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"mamba"'))
    done = tune("inspect", str(tmp_path))
    assert "which torchtune cannot train" in done.stdout
    said = "next: a model whose config.json has a model_type of these: llama"
    assert done.stderr.startswith(said)


def test_rows_and_a_shipped_config_are_shown(tune, tmp_path):
    shown = tune("inspect", str(tiny_rows(tmp_path, 3))).stdout
    assert "\nrows       3\nform       alpaca\ncolumns    instruction (str)\n" in shown
    assert "\nfirst row  instruction: Repeat: 0\n" in shown
    (tmp_path / "c.yaml").write_text(
        "# Mine\ncheckpoint: m\npeft:\n  _component_: lora\n  rank: 2\n"
    )
    done = tune("inspect", str(tmp_path / "c.yaml"))
    assert done.stdout.splitlines()[2:] == [
        "about       Mine",
        "checkpoint  m",
        "peft        lora rank=2",
    ]
    assert done.stderr == f"next: tune validate {tmp_path / 'c.yaml'}\n"


def test_what_is_not_there_or_not_known_exits_3_or_2(tune, tmp_path):
    assert tune("inspect", str(tmp_path / "nothing")).returncode == 3
    done = tune("inspect", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "") and "looked for" in done.stderr
