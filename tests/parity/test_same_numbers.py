"""A run's numbers do not depend on how it was spread, laid out, recomputed or compiled."""

import itertools
import json
import os
import random
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchtune import config, data, models, training
from torchtune.distributed import World
from torchtune.losses import LinearCrossEntropy
from torchtune.testing import run_distributed

RECIPE = (
    Path(__file__).parents[2] / "packages/torchtune-recipes/src/torchtune_recipes/recipes/sft.py"
)
BASE = "models/stories260k"
# 43 rows and 8 a step: in the sixth step some processes of four have no row at all
COMMON = (
    "max_seq_len=128", "max_steps=6", "device=cpu", "dtype=fp32",
    "clip_grad_norm=0.5", "optimizer=adamw", "optimizer.lr=1e-3", "optimizer.weight_decay=0.1",
    "lr_scheduler=cosine", "lr_scheduler.num_warmup_steps=3",
)  # fmt: skip
METHODS = {
    "full": (),
    "lora": ("peft=lora", "peft.targets=all-linear"),
    "unclipped": ("clip_grad_norm=null",),
}
BOTH = ("full", "lora")
ALONE, RECOMPUTED = "batch_size=8", "enable_activation_checkpointing=true"
TWICE = "gradient_accumulation_steps=2"
SELECTIVE = "activation_checkpointing_mode=selective"
IN_BACKWARD = "optimizer_in_bwd=true"
LORA = ("lora",)
RUNS = (
    (1, "alone", (ALONE,), tuple(METHODS)),
    (1, "accumulated", ("batch_size=2", "gradient_accumulation_steps=4"), BOTH),
    (1, "chunked", (ALONE, "loss.chunk_tokens=7"), ("full",)),
    (1, "compiled", (ALONE, "compile=true"), ("full",)),
    (1, "recomputed", (ALONE, RECOMPUTED), ("full",)),
    (1, "selective", (ALONE, RECOMPUTED, SELECTIVE), BOTH),
    (1, "offloaded", (ALONE, RECOMPUTED, "enable_activation_offloading=true"), ("full",)),
    (1, "in_backward", (ALONE, IN_BACKWARD), ("unclipped",)),
    (2, "fsdp", ("batch_size=4",), BOTH),
    (2, "replicated", ("batch_size=4", "parallel.data_replicate=2"), ("full",)),
    (2, "context", (ALONE, "parallel.context=2"), BOTH),
    (2, "tensor", (ALONE, "parallel.tensor=2"), BOTH),
    (2, "in_backward", ("batch_size=4", IN_BACKWARD), ("unclipped",)),
    (4, "fsdp", ("batch_size=2",), ("full",)),
    (4, "hybrid", ("batch_size=1", TWICE, "parallel.data_replicate=2"), BOTH),
    (4, "tensor_fsdp", ("batch_size=4", "parallel.tensor=2"), BOTH),
)
"""Processes, what is done, how, and with which methods."""

MORE_RUNS = (
    (1, "alone", (ALONE,), tuple(METHODS)),
    (1, "compiled", (ALONE, "compile=true"), LORA),
    (1, "recomputed", (ALONE, RECOMPUTED), LORA),
    (1, "chunked", (ALONE, "loss.chunk_tokens=7"), LORA),
    (1, "offloaded", (ALONE, RECOMPUTED, "enable_activation_offloading=true"), LORA),
    (2, "accumulated", ("batch_size=2", TWICE), BOTH),
    (2, "kept_whole", ("batch_size=4", "fsdp_reshard_after_forward=false"), BOTH),
    (2, "on_the_cpu", ("batch_size=4", "fsdp_cpu_offload=true"), BOTH),
    (2, "replicated", ("batch_size=2", TWICE, "parallel.data_replicate=2"), LORA),
    (2, "compiled", ("batch_size=4", "compile=true"), ("full",)),
    (2, "tensor_recomputed", (ALONE, "parallel.tensor=2", RECOMPUTED), BOTH),
    (4, "fsdp", ("batch_size=2",), LORA),
    (4, "context_fsdp", ("batch_size=4", "parallel.context=2"), BOTH),
    (4, "tensor_context", (ALONE, "parallel.tensor=2", "parallel.context=2"), BOTH),
)
"""Those that are left to the slow tests."""


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

    if "RANK" in os.environ:
        dist.destroy_process_group = lambda: None  # the next run takes the same processes
    recipe = runpy.run_path(str(RECIPE), run_name="recipe")
    for name, words in variants.items():
        given = (
            f"checkpoint={shared / BASE}",
            f"dataset={folder}/rows.jsonl", f"output_dir={folder}/{name}",
        )  # fmt: skip
        params = TuneArgumentParser(recipe["SFTParams"]).parse_args([*given, *COMMON, *words])
        torch.manual_seed(0)
        run = recipe["SFTRecipe"](params)
        run.setup()
        run.train()
        run.cleanup()


def variants(processes, runs=RUNS):
    """Return every run of so many processes, with each of its methods, and what is given to it."""
    return {
        f"{count}_{name}_{method}": (*METHODS[method], *words)
        for count, name, words, methods in runs
        if count == processes
        for method in methods
    }


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    """Where all variants were run: those of a world one after the other."""
    return ran(tmp_path_factory.mktemp("numbers"), shared, RUNS)


@pytest.fixture(scope="module")
def more(shared, tmp_path_factory):
    """The same for those that are left to the slow tests."""
    return ran(tmp_path_factory.mktemp("more_numbers"), shared, MORE_RUNS)


def ran(folder, shared, runs):
    write_rows(folder / "rows.jsonl")
    for count in (1, 2, 4):
        run_distributed(run_variants, count, folder, shared, variants(count, runs), timeout=400)
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    (file,) = (folder / "latest").glob("*model.safetensors")
    return load_file(file)


@pytest.mark.parametrize("variant", [name for count in (1, 2, 4) for name in variants(count)])
def test_every_step_and_the_weights_are_those_of_one_process(variant, folder):
    assert_same_numbers(folder, variant)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [n for count in (1, 2, 4) for n in variants(count, MORE_RUNS)])
def test_more_runs_give_the_numbers_of_one_process(variant, more):
    assert_same_numbers(more, variant)


def assert_same_numbers(folder, variant):
    alone = folder / f"1_alone_{variant.rpartition('_')[2]}"
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
    lines = metrics(folder / "1_alone_full")
    assert all(line["grad_norm"] > 0.5 for line in lines)
    assert lines[-1]["tokens"] < 0.6 * lines[0]["tokens"]


def test_rows_laid_out_best_fit_are_the_same_rows_one_by_one(folder, shared):
    form = data.ChatFormat(config.build("tokenizer", "auto", checkpoint=shared / BASE))
    rows = data.tokenize_rows(data.load_rows(folder / "rows.jsonl"), form, max_seq_len=128)
    steps = data.Steps(rows, batch_size=2, max_seq_len=128, packed=True)
    packed, single = (start(shared) for _ in range(2))
    for batches in itertools.islice(steps.after(), 6):
        alone = [document for batch in batches for document in one_by_one(batch)]
        assert len(alone) > len(batches)
        ours, theirs = packed(batches), single(alone)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)


def start(shared):
    """Return what takes a step on a model of its own."""
    model = models.from_pretrained(shared / BASE, dtype=torch.float32)
    optimizer = training.adamw(model.parameters(), lr=1e-3)
    step = partial(training.train_step, model, optimizer, loss=LinearCrossEntropy(), max_norm=0.5)
    return lambda batches: step(batches=batches, world=World())


def one_by_one(batch):
    """Return the documents of a flat row, each as a row of its own."""
    parts = (batch.tokens, batch.labels, batch.positions)
    for *tensors, name in zip(*(x.split(batch.lengths) for x in parts), batch.rows, strict=True):
        supervised = int((tensors[1] != data.IGNORED).sum())
        yield data.Batch(*tensors, (len(tensors[0]),), supervised, (name,))
