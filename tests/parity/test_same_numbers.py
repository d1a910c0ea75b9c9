"""A run's numbers do not depend on how it was spread, laid out, recomputed or compiled."""

import json
import random
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchtune.testing import run_distributed

RECIPE = (
    Path(__file__).parents[2] / "packages/torchtune-recipes/src/torchtune_recipes/recipes/sft.py"
)
# 43 rows and 8 a step: in the sixth step some processes of four have no row at all
COMMON = (
    "max_seq_len=128", "max_steps=6", "device=cpu", "dtype=fp32",
    "clip_grad_norm=0.5", "optimizer=adamw", "optimizer.lr=1e-3", "optimizer.weight_decay=0.1",
    "lr_scheduler=cosine", "lr_scheduler.num_warmup_steps=3",
)  # fmt: skip
METHODS = {"full": (), "lora": ("peft=lora", "peft.targets=all-linear")}
ALONE = "batch_size=8"
VARIANTS = {
    1: {
        "accumulated": ("batch_size=2", "gradient_accumulation_steps=4"),
        "chunked": (ALONE, "loss.chunk_tokens=7"),
        "recomputed": (ALONE, "enable_activation_checkpointing=true"),
        "compiled": (ALONE, "compile=true"),
    },
    2: {
        "fsdp": ("batch_size=4",),
        "fsdp_accumulated": ("batch_size=2", "gradient_accumulation_steps=2"),
        "kept_whole": ("batch_size=4", "fsdp_reshard_after_forward=false"),
        "on_the_cpu": ("batch_size=4", "fsdp_cpu_offload=true"),
        "replicated": ("batch_size=4", "parallel.data_replicate=2"),
        "context": (ALONE, "parallel.context=2"),
    },
    4: {
        "fsdp": ("batch_size=2",),
        "hybrid": ("batch_size=2", "parallel.data_replicate=2"),
        "context_fsdp": ("batch_size=4", "parallel.context=2"),
    },
}


def write_rows(path):
    """Write rows of very different lengths, of which very different parts train."""
    chance = random.Random(0)
    with path.open("w") as file:
        for _ in range(43):
            length = chance.choice([4, 9, 30, 77, 128])
            trained = chance.choice([1, 2, length // 2, length - 1])
            ids = [chance.randrange(3, 512) for _ in range(length)]
            labels = [-100] * (length - trained) + ids[length - trained :]
            file.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")


def run_variants(folder, shared, variants):
    """Run the recipe once for each variant in this process, in a world that stays."""
    import torch.distributed as dist
    from torchtune.config import TuneArgumentParser

    dist.destroy_process_group = lambda: None
    recipe = runpy.run_path(str(RECIPE), run_name="recipe")
    for name, words in variants.items():
        given = (
            f"checkpoint={shared}/models/stories260k",
            f"dataset={folder}/rows.jsonl", f"output_dir={folder}/{name}",
        )  # fmt: skip
        params = TuneArgumentParser(recipe["SFTParams"]).parse_args([*given, *COMMON, *words])
        torch.manual_seed(0)
        run = recipe["SFTRecipe"](params)
        run.setup()
        run.train()
        run.cleanup()


def named(processes):
    """Return every variant for so many processes, with each method."""
    return {
        f"{processes}_{name}_{method}": (*words, *METHODS[method])
        for name, words in VARIANTS[processes].items()
        for method in METHODS
    }


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    """Where all variants were run: those of a world one after the other."""
    folder = tmp_path_factory.mktemp("numbers")
    write_rows(folder / "rows.jsonl")
    alone = {f"alone_{method}": (ALONE, *words) for method, words in METHODS.items()}
    for processes in VARIANTS:
        first = alone if processes == 1 else {}
        variants = {**first, **named(processes)}
        run_distributed(run_variants, processes, folder, shared, variants, timeout=400)
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    (file,) = (folder / "latest").glob("*model.safetensors")
    return load_file(file)


@pytest.mark.parametrize("variant", [name for count in VARIANTS for name in named(count)])
def test_every_step_and_the_weights_are_those_of_one_process(variant, folder):
    alone = folder / f"alone_{variant.rpartition('_')[2]}"
    for line, expected in zip(metrics(folder / variant), metrics(alone), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
        for exact in ("tokens", "supervised_tokens", "lr"):
            assert line[exact] == expected[exact]
    ours, theirs = weights(folder / variant), weights(alone)
    assert ours.keys() == theirs.keys()
    for key, weight in theirs.items():
        assert torch.linalg.norm(ours[key] - weight) <= 1e-4 * torch.linalg.norm(weight), key


def test_clipping_and_a_process_without_rows_are_among_the_steps(folder):
    lines = metrics(folder / "alone_full")
    assert all(line["grad_norm"] > 0.5 for line in lines)
    assert lines[-1]["tokens"] < 0.6 * lines[0]["tokens"]
