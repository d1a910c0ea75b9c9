"""`tune download`: what it prints, what to type next, and how it stops."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fake_hub.server import TOKEN
from torchtune.checkpoint import download
from torchtune.testing import tiny_checkpoint
from torchtune_recipes.downloads import what_next

SHIPPED = "Llama-3.2-1B-Instruct"


@pytest.fixture
def model(tmp_path):
    """A tiny model that can be trained, in the folder ``models/NAME`` of where we are."""
    return tiny_checkpoint(tmp_path / "models" / SHIPPED)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_is_put_where_the_configs_read_it(tune, fake_hub, model, tmp_path):
    fake_hub.add(f"tester/{SHIPPED}", model)
    done = tune("download", f"tester/{SHIPPED}")
    assert (done.returncode, done.stdout) == (0, f"models/{SHIPPED}\n"), done.stderr
    first, *_, last = done.stderr.splitlines()
    assert first.startswith(f"tester/{SHIPPED}: ")
    assert first.endswith(f" to download, into models/{SHIPPED}")
    assert last == "next: tune run sft --config llama3_2/1b_lora"
    weights = "here/models/Llama-3.2-1B-Instruct/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_model_in_another_place_is_named_to_its_config(model, here):
    model.rename(here / SHIPPED)
    command = f"next: tune run sft --config llama3_2/1b_lora --checkpoint ./{SHIPPED}"
    assert what_next(here / ".." / here.name / SHIPPED).startswith("next: tune run")
    assert what_next((here / SHIPPED).relative_to(here)) == command


def test_another_model_is_trained_without_a_config(model, here):
    model.rename(here / "my model")
    command = "next: tune run sft --checkpoint './my model' --dataset ./my.jsonl peft=lora"
    assert what_next((here / "my model").relative_to(here)) == command


def test_a_model_that_nothing_here_trains_is_told(here):
    (here / "config.json").write_text('{"model_type": "mamba"}')
    said = what_next(here)
    assert said.startswith("nothing here trains this model: architecture 'mamba' is not supported")


@pytest.mark.parametrize(
    ("base", "command"),
    [
        ("them/Base-1B", "next: tune download them/Base-1B  # the model that this adapter is for"),
        (
            "/their/place",
            "this adapter is for the model /their/place: name its folder with --base DIR",
        ),
        (
            f"them/{SHIPPED}",
            'next: tune generate --checkpoint ./adapter --prompt "Name three rivers."',
        ),
    ],
)
def test_an_adapter_needs_its_base(model, here, base, command):
    (here / "adapter").mkdir()
    config = json.dumps({"base_model_name_or_path": base})
    (here / "adapter" / "adapter_config.json").write_text(config)
    assert what_next((here / "adapter").relative_to(here)).startswith(command)


def test_single_files_are_for_looking_at(here):
    (here / "a.gguf").write_text("x")
    assert what_next(here) == f"next: tune inspect {here}"


def test_options_reach_the_hub_and_no_token_is_kept(tune, fake_hub, model, tmp_path):
    fake_hub.add("tester/secret", model, private=True)
    fake_hub.add("tester/secret@v1", model)
    words = ["download", "tester/secret", "--revision", "v1", "--output-dir", "there"]
    words += ["--include-patterns", "*.json", "*.model", "--ignore-patterns", "tok*"]
    done = tune(*words, "--hf-auth-token", TOKEN)
    assert (done.returncode, done.stdout) == (0, "there\n"), done.stderr
    there = tmp_path / "here" / "there"
    names = {path.name for path in there.iterdir()} - {".cache", "hub_source.json"}
    assert "config.json" in names
    assert not any(name.startswith("tok") or name.endswith(".safetensors") for name in names)
    assert TOKEN not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


def test_ctrl_c_stops_at_once_and_the_next_run_goes_on(tune, fake_hub, model, tmp_path):
    fake_hub.add("tester/model", model)
    fake_hub.fail("hang", "GET .*model.safetensors", seconds=100)
    words = [sys.executable, "-m", "torchtune_recipes.cli.main", "download", "tester/model"]
    place = tmp_path / "here"
    place.mkdir()
    with subprocess.Popen(words, cwd=place, stderr=subprocess.PIPE, text=True) as process:
        while not list(place.rglob("*.incomplete")):
            assert process.poll() is None
            time.sleep(0.05)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        said = process.communicate(timeout=300)[1]
    assert time.monotonic() - began < 50  # the answer would have come after 100
    assert process.returncode == 75
    assert said.endswith("stopped; the same command goes on with what is missing\n")
    folder = download("tester/model", place / "models" / "model")
    weights = (folder / "model.safetensors").read_bytes()
    assert weights == (model / "model.safetensors").read_bytes()


def test_help_ends_with_examples(tune):
    shown = tune("download", "--help").stdout
    assert shown.count("  tune download ") == 2
    assert "--hf-auth-token" in shown
