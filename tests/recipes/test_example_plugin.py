"""A package of a third party, installed by pip: each of its parts is reached through `tune`."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torchtune.testing import tiny_checkpoint

PLUGIN = Path(__file__).resolve().parents[1] / "example_plugin"


@pytest.fixture(scope="module")
def tune(tmp_path_factory, warm_python):
    """Run ``tune WORDS`` where the package is installed; `.folder` is where."""
    pytest.importorskip("hatchling")
    folder, site = tmp_path_factory.mktemp("example"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    pip += ["--no-build-isolation", "--target", str(site), str(PLUGIN)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tiny_checkpoint(folder / "my-model")

    def tune(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        main = "torchtune_recipes.cli.main"
        return warm_python.run(main, *words, cwd=folder, env=environment)

    tune.folder = folder
    return tune


@pytest.fixture(scope="module")
def trained(tune) -> Path:
    """The folder of a run of its config, with its model, its dataset and its logger."""
    words = ["--config", "sums/relu2_tiny", "output_dir=run", "save_every_n_steps=2"]
    words += ["tokenizer={_component_: tokenizer_json, path: my-model/tokenizer.json}"]
    words += ["model.vocab_size=320", "dataset_val={_component_: sums, count: 10}"]
    first = tune("run", "sft", *words)
    assert first.returncode == 0, first.stderr
    again = tune("run", "sft", *words, "max_steps=4", "resume_from_checkpoint=run/step_000002")
    assert again.returncode == 0, again.stderr
    return tune.folder / "run"


def test_its_recipe_and_configs_are_listed_with_ours(tune):
    lines = [line.split()[0] for line in tune("ls").stdout.splitlines()]
    after_sft = lines[lines.index("sft") :]
    assert "sums/relu2_tiny" in after_sft[: after_sft.index("loss")]
    assert after_sft[after_sft.index("loss") + 1] == "ten_sums"
    assert "# Mean loss on ten sums" in tune("cat", "ten_sums").stdout


def test_its_command_is_one_of_ours(tune):
    assert "Print sums to learn from" in tune("--help").stdout
    rows = [json.loads(line) for line in tune("sums", "--count", "3").stdout.splitlines()]
    assert len(rows) == 3
    assert all(eval(row["question"]) == int(row["answer"]) for row in rows)


def test_its_model_is_trained_and_named_in_the_checkpoint(trained):
    assert json.loads((trained / "latest/config.json").read_text())["model_type"] == "relu2"


def test_its_logger_has_each_step_once(trained):
    lines = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    with (trained / "logs/metrics.csv").open(newline="") as file:
        head, *rows = list(csv.reader(file))
    assert head == ["step", "loss", "lr"]
    assert [[int(row[0]), float(row[1])] for row in rows] == [
        [line["step"], line["loss"]] for line in lines
    ]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]


def test_its_recipe_finds_its_model_by_the_checkpoint_and_agrees_with_ours(tune, trained):
    done = tune("run", "loss", "--config", "ten_sums", "--checkpoint", str(trained))
    assert done.returncode == 0, done.stderr
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert float(done.stdout) == pytest.approx(last["val_loss"], abs=1e-4)


def test_its_arguments_are_checked_as_ours(tune):
    done = tune("validate", "sft", "sums/relu2_tiny", "dataset.cuont=3", "~metric_logger.columns")
    assert done.returncode == 2
    assert "sums has no argument 'cuont'" in done.stderr
    assert "csv needs the argument 'columns'" in done.stderr


def test_another_architecture_names_its_family_among_the_supported(tune):
    config = tune.folder / "odd" / "config.json"
    config.parent.mkdir()
    config.write_text('{"model_type": "torch.nn.Linear"}')
    done = tune("run", "loss", "--checkpoint", "odd")
    assert done.returncode == 2
    assert "'torch.nn.Linear' is not supported" in done.stderr
    assert "llama, relu2" in done.stderr
