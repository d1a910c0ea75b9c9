"""Params read from a recipe file, and a config checked against it."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchtune.config import (
    TuneArgumentParser,
    build,
    choose_recipe,
    read_params,
    resolved_yaml,
    validate,
)
from torchtune.config.registry import COMPONENTS, locate
from torchtune.config.static_signature import UNWRITTEN, read_signature
from torchtune.errors import ConfigError, MissingError

RECIPE = '''
import dataclasses
import sys
import torch
from typing import Literal
from torchtune import data, config
from torchtune.config import Component, TuneArgumentParser, checks

LOW = 1


@dataclasses.dataclass
class TrainParams:
    """Train."""

    data: Component | None = None
    checkpoint: str = "./model"  # the folder
    device: Literal["auto", "cuda"] = "auto"
    tokenizer: Component = "auto"
    optimizer: Component = "adamw"
    batch_size: int = 2

    def __post_init__(self):
        with checks(self) as check:
            check.at_least("batch_size", LOW)
'''


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "train.py"
    file.write_text(RECIPE + "\n\nprint(torch.ones(1))\nTuneArgumentParser(TrainParams)\n")
    return file


def write(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text)
    return file


SCRIPT = """
import sys
from torchtune.config import TuneArgumentParser, read_params, validate
faults, notes = validate(sys.argv[1], sys.argv[2], ["batch_size=0", "optimizer=sgd", "peft=lora"])
print(len(faults), "torch" in sys.modules)
TuneArgumentParser(read_params(sys.argv[1])).parse_args(["--help"])
"""


def test_params_and_signatures_are_read_without_torch(recipe, tmp_path):
    config = write(tmp_path, "optimizer: {_component_: adamw, lr: fast, eps: 1}\n")
    command = [sys.executable, "-c", SCRIPT + "\nprint('torch' in sys.modules)", recipe, config]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "2 False" and "the folder" in done.stdout


def test_a_recipe_that_needs_more_is_imported_whole(tmp_path, recipe):
    recipe.write_text(RECIPE.replace("LOW = 1", "LOW = torch.tensor(3)"))
    params = read_params(recipe)
    with pytest.raises(ConfigError, match="batch_size"):
        params(batch_size=2)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("x = 1\n", ConfigError, "no Params"),
        ("def (:\n", ConfigError, r"at .*train\.py:1"),
        ("from nowhere_at_all import X\nclass AParams(X): pass\n", MissingError, "nowhere_at_all"),
        ("class AParams: pass\n", ConfigError, "no dataclass"),
    ],
)
def test_a_recipe_that_cannot_be_read_says_why(recipe, text, error, says):
    recipe.write_text(text)
    with pytest.raises(error, match=says):
        read_params(recipe)
    with pytest.raises(MissingError, match="cannot be read"):
        read_params(recipe.with_name("none.py"))


def test_validate_tells_faults_of_the_file_from_what_the_machine_lacks(recipe, tmp_path):
    config = write(tmp_path, "checkpoint: ./nowhere\nbatch_size: 1\n")
    device = MissingError("E-DEVICE", "no gpu", where="device")
    faults, notes = validate(recipe, config, ["device=cuda"], machine=lambda params: [device])
    assert faults == [] and [note.exit_code for note in notes] == [3, 3]
    assert notes[0].where == f"checkpoint, {config}:1"
    assert notes[1].where == "device, command line"
    faults, notes = validate(recipe, config, here=True)
    assert [fault.code for fault in faults] == ["E-FILE"] and notes == []
    faults, notes = validate(recipe, config, [f"checkpoint={tmp_path}/*.yaml"], here=True)
    assert faults == notes == []
    faults, notes = validate(recipe, config, ["batch_size=0"], here=True)
    assert [fault.exit_code for fault in faults] == [2]


def test_a_hub_id_is_no_missing_file_and_a_missing_package_no_fault(
    params_class, tmp_path, monkeypatch
):
    assert validate(params_class, None, ["dataset=tatsu-lab/alpaca"]) == ([], [])
    (tmp_path / "half_there.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["dataset=torch.nn.Identity", "loss=half_there.Loss", "--trust", "half_there"]
    faults, notes = validate(params_class, None, words)
    assert faults == [] and [note.exit_code for note in notes] == [3]
    assert "nowhere_at_all" in notes[0].what and notes[0].where == "loss, command line"


def test_the_recipe_is_chosen_by_key_then_by_what_fits(recipe, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(RECIPE.replace("batch_size", "temperature"))
    recipes = {"train": recipe, "other": other}
    for text, wanted in {
        "recipe: other\nbatch_size: 1\n": "other",
        "batch_size: 1\n": "train",
        "temperature: 1\noptimizr: x\n": "other",
    }.items():
        assert choose_recipe(write(tmp_path, text), recipes) == wanted
    for text, says in {
        "optimizer: sgd\n": "fits train and other",
        "x: 1\n": "fits no recipe",
        "recipe: trian\n": "did you mean 'train'",
        f"recipe: {recipe}\n": "there is no recipe",
        "a: [\n": "not YAML",
    }.items():
        with pytest.raises(ConfigError, match=says):
            choose_recipe(write(tmp_path, text), recipes)


def test_the_resolved_config_gives_the_same_params_again(parse, tmp_path, params_class):
    text = "noise: 1e-5\ntargets: '1e-5'\nextra: ['None', 'a: b', ~, {x: 2024-01-01, y: 'yes'}]\n"
    words = [r"output_dir=\${HOME}", "optimizer=sgd", "loss=torch.nn.CrossEntropyLoss"]
    params = parse(text, *words, "optimizer.lr=0.1")
    config = write(tmp_path, resolved_yaml(params))
    again = TuneArgumentParser(params_class).parse_args(["--config", str(config)])
    assert resolved_yaml(again) == config.read_text()
    for key in ("noise", "targets", "extra", "output_dir", "max_steps", "model", "lr_scheduler"):
        assert getattr(again, key) == getattr(params, key)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(torch.optim.SGD).parameters.items()
        if name != "params"
    }
    assert again.optimizer == {"_component_": "sgd", **defaults, "lr": 0.1}


@pytest.mark.parametrize("name", sorted(COMPONENTS))
def test_a_signature_read_from_source_is_that_of_the_import(name):
    slot, _, short = name.partition(".")
    read, real = read_signature(COMPONENTS[name]), inspect.signature(locate(slot, short))
    assert read is not None and list(read.parameters) == list(real.parameters)
    for found, wanted in zip(read.parameters.values(), real.parameters.values(), strict=True):
        assert found.default in (wanted.default, UNWRITTEN)


def test_what_the_recipe_has_as_a_key_is_neither_asked_for_nor_written(recipe, tmp_path):
    config = write(tmp_path, "tokenizer: auto\n")  # its `checkpoint` is a key of the recipe
    assert validate(recipe, config, [f"checkpoint={tmp_path}"]) == ([], [])
    (fault,), _ = validate(recipe, config, ["tokenizer=tokenizer_json"])
    assert "needs the argument 'path'" in fault.what
    recipe.write_text(RECIPE.replace("batch_size", "weight_decay"))
    made = TuneArgumentParser(read_params(recipe)).parse_args(["optimizer=sgd"])
    assert resolved_yaml(made).count("weight_decay") == 1


def test_what_a_recipe_passes_is_not_asked_of_the_config(parse, faults):
    parse("lr_scheduler: cosine\n")  # num_training_steps comes from the recipe
    (fault,) = faults("lr_scheduler: {_component_: cosine, optimizer: 1}\n")
    assert "the recipe gives" in fault.what
    with pytest.raises(ConfigError, match="cannot be called"):
        build("optimizer", "sgd")
