"""The public test parts do what they say, seen by transformers."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torchtune.testing import run_distributed, tiny_checkpoint, tiny_rows


@pytest.mark.parametrize("tied", [False, True])
def test_the_tiny_checkpoint_loads_in_transformers(tmp_path, tied):
    transformers = pytest.importorskip("transformers")
    folder = tiny_checkpoint(tmp_path, tie_word_embeddings=tied, num_hidden_layers=1)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert sum(p.numel() for p in model.parameters()) < 40_000
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("héllo</s>")["input_ids"]
    assert (ids[0], ids[-1], len(ids)) == (0, 1, 8)  # <s>, one id a byte, </s>
    assert tokenizer.decode(ids[1:-1]) == "héllo"
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_equal_arguments_give_equal_files_and_another_seed_other_weights(tmp_path):
    first, again = (tiny_checkpoint(tmp_path / name) for name in ("first", "again"))
    other = tiny_checkpoint(tmp_path / "other", seed=1, chat_template=None, dtype="bfloat16")
    for file in first.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()
    weights = "model.safetensors"
    assert (first / weights).read_bytes() != (other / weights).read_bytes()
    assert not (other / "chat_template.jinja").exists()


@pytest.mark.parametrize("form", ["alpaca", "messages", "sharegpt", "qa", "text"])
def test_tiny_rows_are_one_json_object_a_line(tmp_path, form):
    path = tiny_rows(tmp_path, 7, form=form)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 7
    assert all("Repeat: 7" in json.dumps(row) for row in rows[1:2])


def sleep_forever():
    """Never return."""
    torch.futures.Future().wait()


def test_processes_that_hang_are_ended():
    with pytest.raises(TimeoutError, match="still running"):
        run_distributed(sleep_forever, 2, timeout=3.0)


LEFT_ALONE = """
import os, pathlib, sys, time
from torchtune.testing import run_distributed

def wait(folder):
    pathlib.Path(folder, os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(10_000)

if __name__ == "__main__":
    run_distributed(wait, 2, sys.argv[1], timeout=10_000)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_end_with_the_one_that_started_them(tmp_path):
    script, ranks = tmp_path / "script.py", tmp_path / "ranks"
    script.write_text(LEFT_ALONE)
    ranks.mkdir()
    caller, numbers = subprocess.Popen([sys.executable, script, ranks]), []
    while len(numbers) < 2:
        numbers = [text for path in ranks.iterdir() if (text := path.read_text())]
        assert caller.poll() is None
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    end = time.monotonic() + 120
    while any(Path("/proc", number).exists() for number in numbers):
        assert time.monotonic() < end
        time.sleep(0.05)
