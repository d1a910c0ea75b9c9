"""`tune merge`: a run's adapter and its base become one folder."""

import os

import pytest
import torch
from torchtune.testing import tiny_checkpoint, tiny_rows
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def run(tmp_path_factory, warm_python):
    """A base, and the output folder of a LoRA run of two steps on it."""
    folder = tmp_path_factory.mktemp("run")
    base, rows = tiny_checkpoint(folder / "base"), tiny_rows(folder, 4)
    words = [f"checkpoint={base}", f"dataset={rows}", f"output_dir={folder / 'output'}"]
    words += [
        "peft=lora",
        "optimizer=adamw",
        "optimizer.lr=0.1",
        "batch_size=2",
        "max_steps=2",
        "device=cpu",
        "dtype=fp32",
    ]
    main = "torchtune_recipes.cli.main"
    done = warm_python.run(main, "run", "sft", *words, cwd=folder, env=os.environ)
    assert done.returncode == 0, done.stderr
    return base, folder / "output"


def test_a_run_folder_is_merged_and_answers_as_its_adapter(tune, run, tmp_path):
    base, output = run
    done = tune("merge", str(base), str(output), str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}\n")
    assert done.stderr.startswith(f"next: tune generate --checkpoint {tmp_path / 'out'}")
    ids = torch.arange(4, 40)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    adapted = AutoModelForCausalLM.from_pretrained(base)
    before = adapted(ids).logits
    adapted.load_adapter(str(output / "latest"))
    assert (before - adapted(ids).logits).abs().max() > 0.1
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=0, atol=1e-3)


def test_another_base_than_the_adapter_was_trained_on_is_refused(tune, run, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    done = tune("merge", str(other), str(run[1]), str(tmp_path / "out"))
    assert done.returncode == 2
    assert "holds other weights than the adapter was trained on" in done.stderr
    assert not (tmp_path / "out").exists()


def test_wrong_words_are_clear_errors(tune, run, tmp_path):
    base, output = run
    out = str(tmp_path / "out")
    for words, code, said in [
        ((str(base), str(base), out), 3, "the order is BASE ADAPTER OUT"),
        ((str(base), str(output), out, "--dtype", "fp8"), 2, "--dtype"),
    ]:
        done = tune("merge", *words)
        assert (done.returncode, done.stdout) == (code, "")
        assert said in done.stderr and len(done.stderr.splitlines()) <= 3
