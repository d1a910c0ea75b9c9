"""Two ranks save, fail and go on together, and their files are those of one rank."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchtune.checkpoint import (
    RunFolder,
    load_model,
    load_training_state,
    read_weights,
    save_model,
    save_training_state,
)
from torchtune.distributed import World, gather_full, join_world, shard
from torchtune.errors import ConfigError, TuneError
from torchtune.models.llama import llama
from torchtune.testing import run_distributed

SIZES = {
    "intermediate_dim": 9,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "embed_dim": 6,
    "max_seq_len": 32,
}


def make(world: World) -> dict[str, Any]:
    """Build model, optimizer and schedule; parameters of 2 ranks are cut, some unevenly."""
    torch.manual_seed(0)
    model = llama(vocab_size=31, head_dim=4, tied=True, **SIZES)
    shard(model, world)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "world": world}


def train(run: dict[str, Any], *, count: int) -> None:
    """Take steps on random tokens, other ones on each rank."""
    for _ in range(count):
        run["model"](torch.randint(31, (2, 8))).square().mean().backward()
        run["optimizer"].step()
        run["optimizer"].zero_grad()
        run["scheduler"].step()


def save(run: dict[str, Any], folder: Path, *, limit: int = 2**30) -> None:
    config = {"hidden_size": 6}
    save_model(run["model"], folder, world=run["world"], config=config, max_shard_bytes=limit)
    save_training_state(folder, **run, info={"step": 3})


def load(run: dict[str, Any], folder: Path) -> None:
    load_model(run["model"], folder)
    assert load_training_state(folder, **run) == {"step": 3}


def whole(run: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return weights and optimizer state, each gathered."""
    found = {}
    for name, parameter in run["model"].named_parameters():
        found[name] = gather_full(parameter)
        for key, value in run["optimizer"].state[parameter].items():
            found[f"{name}/{key}"] = gather_full(value)
    return {name: value.clone() for name, value in found.items()}


def stop_and_go_on(world: World, folder: Path) -> dict[str, bool]:
    """Return for each tensor whether going on led to the same bits as never stopping."""
    run = make(world)
    torch.manual_seed(world.rank)
    train(run, count=3)
    save(run, folder, limit=1000)
    train(run, count=2)
    other = make(world)
    train(other, count=1)
    load(other, folder)
    train(other, count=2)
    there, here = whole(run), whole(other)
    assert list(there) == list(here)
    return {name: torch.equal(there[name], here[name]) for name in there}


def fill_from_meta(world: World, folder: Path) -> dict[str, bool]:
    with torch.device("meta"):
        model = make(World())["model"]
    model = shard(model, world).to_empty(device="cpu")
    names = load_model(model, folder)
    weights = read_weights(folder)
    assert names == set(weights)
    return {
        name: torch.equal(gather_full(p), weights[name]) for name, p in model.named_parameters()
    }


def fill_the_disk(world: World, folder: Path, *, room: int) -> list[str]:
    """Save where a file of the main rank may have `room` bytes, then where it has enough."""
    import resource

    run, output = make(world), RunFolder(folder, world)
    train(run, count=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = []
    for step in (1, 2):
        if world.is_main and step == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with output.writing(step) as place:
                save(run, place, limit=1000)
        except TuneError as error:
            said.append(error.code)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return [*said, *sorted(path.name for path in folder.iterdir())]


def meet_a_live_run(world: World, folder: Path) -> str:
    try:
        RunFolder(folder, world)
    except ConfigError as error:
        return error.code
    return ""


def on_each_rank(folder: Path) -> dict[str, Any]:
    """Do all of the above in one launch, as a launch takes seconds."""
    world = join_world("cpu")
    refused = meet_a_live_run(world, folder / "owned")
    loaded = make(world)
    load(loaded, folder / "one")
    return {
        "refused": refused,
        "loaded": whole(loaded),
        "filled": fill_from_meta(world, folder / "one"),
        "went on": stop_and_go_on(world, folder / "two"),
        "no room for weights": fill_the_disk(world, folder / "full", room=500),
        "no room for state": fill_the_disk(world, folder / "fuller", room=5000),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Hold the files that one rank saved."""
    folder = tmp_path_factory.mktemp("worlds")
    run = make(World())
    train(run, count=3)
    save(run, folder / "one")
    torch.save(whole(run), folder / "one.pt")
    return folder


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict[str, Any]]:
    if sys.platform == "win32":
        pytest.skip("needs resource limits")
    owner = RunFolder(folder / "owned", World())
    answers = run_distributed(on_each_rank, 2, folder)
    owner.close()
    return answers


def test_one_rank_goes_on_to_the_same_bits(tmp_path):
    assert set(stop_and_go_on(World(), tmp_path).values()) == {True}
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2


def test_two_ranks_go_on_to_the_same_bits(ranks):
    for rank in ranks:
        assert [name for name, same in rank["went on"].items() if not same] == []


def test_two_ranks_load_what_one_saved(ranks, folder):
    saved = torch.load(folder / "one.pt")
    for rank in ranks:
        assert all(torch.equal(rank["loaded"][name], saved[name]) for name in saved)


def test_one_rank_loads_what_two_saved(ranks, folder):
    run = make(World())
    load(run, folder / "two")
    weights, state = read_weights(folder / "two"), whole(run)
    assert len(state) == 4 * len(weights)
    assert all(torch.equal(weights[name], state[name]) for name in weights)


def test_a_sharded_model_from_meta_is_filled(ranks):
    for rank in ranks:
        assert len(rank["filled"]) == 20 and all(rank["filled"].values())


@pytest.mark.parametrize("what", ["weights", "state"])
def test_all_ranks_learn_that_the_disk_is_full_and_can_save_again(ranks, what):
    for rank in ranks:
        expected = ["E-DISK-FULL", ".lock", "latest", "step_000002"]
        assert rank[f"no room for {what}"] == expected


def test_all_ranks_are_refused_a_folder_in_use(ranks):
    assert [rank["refused"] for rank in ranks] == ["E-FOLDER-IN-USE"] * 2
