"""Every shipped config: it is right, short, and its header says what is so."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from torchtune.config import TuneArgumentParser, read_params, validate
from torchtune.distributed import World, master_weights
from torchtune.models import llama
from torchtune.peft import lora
from torchtune.testing import check_config
from torchtune.training import plan_memory
from torchtune_recipes import catalog

CONFIGS = catalog.entries("config")
BY_HUB_NAME = {name.split("/")[1]: size for size, name in llama.HUB_NAMES.items()}
TITLE = re.compile(r"about ([\d.]+) GiB on (?:one GPU|each of (\d+) GPUs)$")

each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda entry: entry.name)


def test_each_size_of_the_family_has_a_full_and_a_lora_config():
    wanted = {(size, method) for size in llama.SIZES for method in ("full", "lora")}
    named = {tuple(entry.name.replace("/", "_").rsplit("_", 1)) for entry in CONFIGS}
    assert wanted - {("llama3_1_405b", "full")} == named  # 405B in full takes a cluster of its own


@each_config
def test_a_config_has_no_faults(config):
    recipe = catalog.resolve_recipe(config.recipe)
    faults, _ = validate(recipe, config.path)
    assert [str(fault) for fault in faults] == []


def run_of(config):
    """Return what a config asks for, less the files that `check_config` replaces."""
    keys = yaml.safe_load(config.path.read_text())
    return json.dumps([config.recipe, {**keys, "checkpoint": "", "output_dir": ""}])


@pytest.mark.parametrize(
    "config", {run_of(entry): entry for entry in CONFIGS}.values(), ids=lambda e: e.name
)
def test_its_recipe_runs_each_config_that_differs_in_more_than_files(config):
    lines = check_config(config.path, catalog.resolve_recipe(config.recipe))
    assert [line["step"] for line in lines] == [*range(1, len(lines) + 1)]
    assert 2 <= len(lines) <= 4
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)


@each_config
def test_a_config_reads_the_folder_that_its_header_downloads_to(config):
    text, keys = config.path.read_text(), yaml.safe_load(config.path.read_text())
    size = BY_HUB_NAME[Path(keys["checkpoint"]).name]
    assert config.name.replace("/", "_").startswith(f"{size}_")
    assert f"#   tune download {llama.HUB_NAMES[size]}\n" in text
    assert keys["checkpoint"] == f"./models/{Path(llama.HUB_NAMES[size]).name}"
    assert re.search(rf"#   tune run .*{config.recipe} --config {config.name}\n", text)
    assert keys["output_dir"] == f"./output/{config.name}"


@each_config
def test_a_header_says_the_memory_that_is_computed(config):
    said, processes = TITLE.search(config.about).groups()
    computed = memory(config, int(processes or 1))
    assert float(said) == pytest.approx(computed / 2**30, rel=0.02, abs=0.5)


def memory(config, processes):
    """Return the bytes on one GPU of so many, by the plan that a run prints."""
    recipe = read_params(catalog.resolve_recipe(config.recipe))
    params = TuneArgumentParser(recipe).parse_args(["--config", str(config.path)])
    with torch.device("meta"):
        model = llama.llama(**llama.SIZES[BY_HUB_NAME[Path(params.checkpoint).name]])
        model = model.to(torch.bfloat16)
        if params.peft:
            model = lora(model, rank=params.peft["rank"])
    if params.master_weights:
        model = master_weights(model)
    world = World(size=processes, device=torch.device("cuda"))
    return plan_memory(model, params, row_tokens=params.max_seq_len, world=world).total
