"""States in 8 bits are saved as they are, a byte a number, and go on in any world."""

import importlib.util
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchtune import checkpoint, training
from torchtune.distributed import World, fill, gather_full, join_world, local_part, part_of
from torchtune.errors import ConfigError, MissingError, TuneError
from torchtune.testing import run_distributed

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)
LAYOUTS = ("sharded", "replicated", "two meshes", "columns", "plain")
STATES = ("exp_avg", "exp_avg_sq")


def layers() -> nn.Sequential:
    """Matrices whose parts, on four ranks: all in 8 bits; some of them; none of them."""
    sizes = ((256, 128), (65, 256), (40, 160), (66, 63))
    return nn.Sequential(*(nn.Linear(columns, rows) for rows, columns in sizes))


def cut(layout: str, model: nn.Sequential) -> nn.Module:
    """Return `model` cut over four ranks in one of the ways."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    if layout == "plain":
        return model
    if layout == "sharded":
        return fully_shard(model)
    pairs = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    if layout == "replicated":
        return fully_shard(model, mesh=pairs)
    if layout == "two meshes":
        plan = dict.fromkeys(("0", "1", "2", "3"), ColwiseParallel())
        return fully_shard(parallelize_module(model, pairs["tensor"], plan), mesh=pairs["data"])

    def columns(_: str, module: nn.Module, mesh: Any) -> None:
        for name, p in list(module.named_parameters(recurse=False)):
            kind = Shard(1) if p.dim() == 2 else Replicate()
            setattr(module, name, nn.Parameter(distribute_tensor(p.detach(), mesh, [kind])))

    return distribute_module(model, init_device_mesh("cpu", (4,)), columns)


def make(layout: str, world: World) -> dict[str, Any]:
    torch.manual_seed(0)
    model = cut(layout, layers())
    optimizer = training.adamw_8bit(model.parameters(), lr=0.01)
    return {"model": model, "optimizer": optimizer, "scheduler": None, "world": world}


def step(run: dict[str, Any], count: int, *, seed: int = 1) -> None:
    """Step on gradients that follow from the seed, whatever the world."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in run["model"].parameters():
            p.grad = torch.zeros_like(p)
            fill(p.grad, torch.randn(p.shape, generator=draw))
        run["optimizer"].step()


def save(run: dict[str, Any], folder: Path) -> None:
    checkpoint.save_training_state(folder, **run, info={}, weights=True)


def load(layout: str, world: World, folder: Path) -> dict[str, Any]:
    run = make(layout, world)
    checkpoint.load_training_state(folder, **run)
    return run


def in_codes(run: dict[str, Any]) -> list[bool]:
    """Say of each matrix whether this rank keeps its states in codes."""
    states = [run["optimizer"].state[layer.weight] for layer in run["model"]]
    return [hasattr(local_part(state["exp_avg"]), "codes") for state in states]


def local_states(run: dict[str, Any]) -> list[torch.Tensor]:
    """Return what this rank holds: weights, codes, scales, numbers that are in no codes."""
    found = []
    for p in run["model"].parameters():
        kept = run["optimizer"].state[p]
        for it in (p, kept["step"], *(kept[name] for name in STATES)):
            local = local_part(it.detach())
            coded = hasattr(local, "codes")
            found += [local.codes, local.scale] if coded else [local]
    return found


def numbers(run: dict[str, Any], name: str) -> list[torch.Tensor]:
    """Return a state of each parameter in fp32, whole, put together from the ranks' parts."""
    found = []
    for p in run["model"].parameters():
        local = local_part(run["optimizer"].state[p][name])
        full = torch.zeros(p.shape)
        box = tuple(slice(at, at + size) for at, size in zip(*part_of(p), strict=True))
        full[box] = local.dequantize() if hasattr(local, "codes") else local
        ranks = run["world"].gather(full)
        found.append(torch.stack(ranks).abs().argmax(0, keepdim=True))
        found[-1] = torch.stack(ranks).gather(0, found[-1])[0]
    return found


def weights(run: dict[str, Any]) -> list[torch.Tensor]:
    return [gather_full(p).clone() for p in run["model"].parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other)) and len(one) == len(other)


def apart(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Return the largest difference, as a share of the largest number of each tensor."""
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def on_each_rank(folder: Path) -> dict[str, Any]:
    """Do all in one launch, as a launch takes seconds."""
    world, answers = join_world("cpu"), {}
    for layout in LAYOUTS:
        run = make(layout, world)
        step(run, 2)
        save(run, folder / layout)
        world.barrier()
        same = load(layout, world, folder / layout)
        well = equal(local_states(same), local_states(run))
        step(run, 2, seed=2), step(same, 2, seed=2)
        went_on = equal(local_states(same), local_states(run))
        loaded = load(layout, world, folder / "alone")
        answers[layout] = {
            "in codes": in_codes(run),
            "resumed to the bit": well and went_on,
            "weights": weights(run),
            "of one process": {name: numbers(loaded, name) for name in STATES},
        }
        save(loaded, folder / f"again {layout}")
        world.barrier()
    return answers


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder, run = tmp_path_factory.mktemp("8bit"), make("plain", World())
    step(run, 2)
    save(run, folder / "alone")
    return folder, run


@pytest.fixture(scope="module")
def ranks(alone) -> list[dict[str, Any]]:
    return run_distributed(on_each_rank, 4, alone[0], timeout=300)


ROUNDING = {"exp_avg": 0.9 / 64 / 2, "exp_avg_sq": 0.9 / 128 / 2}
"""Half of the widest gap in the table, as a share of a block's largest number: one rounding's error."""


@needs_torchao
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_four_ranks_resume_to_the_bit_where_only_some_have_codes_too(ranks, layout):
    assert all(rank[layout]["resumed to the bit"] for rank in ranks)
    forms = [rank[layout]["in codes"] for rank in ranks]
    assert all(form[0] and not form[3] for form in forms)
    if layout == "sharded":
        assert [form[1] for form in forms] == [True, True, True, False]


@needs_torchao
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_four_ranks_step_as_one_but_for_rounding(ranks, alone, layout):
    start, run = weights(make("plain", World())), load("plain", World(), alone[0] / "alone")
    step(run, 2, seed=2)
    for rank in ranks:
        for found, wanted, before in zip(rank[layout]["weights"], weights(run), start, strict=True):
            assert (found - wanted).norm() < 0.05 * (wanted - before).norm()
    if layout == "plain":
        assert equal(ranks[0][layout]["weights"], weights(run))


@needs_torchao
@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_four_ranks_take_over_one_s_states_and_give_them_back(ranks, alone, layout, name):
    folder, run = alone
    there = apart(ranks[0][layout]["of one process"][name], numbers(run, name))
    back = apart(
        numbers(load("plain", World(), folder / f"again {layout}"), name), numbers(run, name)
    )
    if layout == "columns":  # blocks of the parts hold other numbers than those of the whole
        assert there <= 1.001 * ROUNDING[name] and back <= 2.002 * ROUNDING[name]
    else:  # what has too few numbers for codes on four ranks is rounded on the way back
        assert there == 0 and back <= 1.001 * ROUNDING[name]


@needs_torchao
@pytest.mark.slow
def test_codes_are_kept_where_blocks_fall_the_same(ranks, alone):
    folder, run = alone
    back = load("plain", World(), folder / "again two meshes")
    kept = [it["optimizer"].state[it["model"][0].weight]["exp_avg"] for it in (run, back)]
    assert torch.equal(kept[0].codes, kept[1].codes) and torch.equal(kept[0].scale, kept[1].scale)


@needs_torchao
def test_a_number_in_8_bits_takes_a_byte_of_the_file(alone):
    folder, run = alone
    sizes = dict.fromkeys(("codes", "scales", "table"), 0)
    for path in (folder / "alone/training_state").glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            if name.startswith("state/0.weight/exp_avg/"):
                sizes[name.split("/")[3]] += tensor.nbytes
    count = run["model"][0].weight.numel()
    assert sizes == {"codes": count, "scales": 4 * count // 256, "table": 4 * 256}


@needs_torchao
@pytest.mark.slow
def test_a_lost_file_is_named_by_the_state_that_lacks(ranks, alone, tmp_path):
    place = tmp_path / "lost"
    shutil.copytree(alone[0] / "sharded", place)
    (place / "training_state/shard-00002-00001.safetensors").unlink()
    with pytest.raises(MissingError, match=r"state/0\.weight/exp_avg is there in part only"):
        load("plain", World(), place)


@needs_torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_process_resumes_to_the_bit(tmp_path, dtype):
    run, again = make("plain", World()), make("plain", World())
    for it in (run, again):
        it["model"].to(dtype)
    step(run, 2)
    save(run, tmp_path)
    checkpoint.load_training_state(tmp_path, **again)
    assert equal(local_states(again), local_states(run))
    step(run, 2, seed=2), step(again, 2, seed=2)
    assert equal(local_states(again), local_states(run))


@needs_torchao
def test_a_save_in_the_background_holds_the_states_of_its_step(tmp_path, monkeypatch):
    copy = torch.Tensor.copy_

    def slow(tensor: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        if threading.current_thread().name.startswith("saving"):
            time.sleep(0.01)
        return copy(tensor, *args, **more)

    monkeypatch.setattr(torch.Tensor, "copy_", slow)
    files = []
    for background in (False, True):
        run, output = (
            make("plain", World()),
            checkpoint.RunFolder(tmp_path / str(background), World()),
        )
        step(run, 1)
        with output.writing(1, background=background) as place:
            save(run, place)
        step(run, 1)
        output.wait(), output.close()
        files.append(
            (output.path / "step_000001/training_state/shard-00001-00001.safetensors").read_bytes()
        )
    assert files[0] == files[1]


@needs_torchao
def test_another_optimizer_s_states_are_refused(alone, tmp_path):
    run = make("plain", World())
    other = run | {"optimizer": torch.optim.AdamW(run["model"].parameters())}
    with pytest.raises(ConfigError, match=r"AdamW8bit, not torch\.optim\.adamw\.AdamW"):
        checkpoint.load_training_state(alone[0] / "alone", **other)
    step(other, 1)
    save(other, tmp_path)
    with pytest.raises(ConfigError, match=r"AdamW, not .*AdamW8bit"):
        load("plain", World(), tmp_path)


@needs_torchao
def test_states_of_a_kind_that_is_not_known_are_refused_when_saving(tmp_path):
    from torchao.optim import AdamWFp8

    run = make("plain", World())
    run["optimizer"] = optimizer = AdamWFp8(run["model"].parameters())
    with torch.compiler.set_stance("force_eager"):
        step(run, 1)
    assert len(optimizer.state) == 8
    with pytest.raises(TuneError, match="OptimStateFp8 is no plain tensor") as caught:
        save(run, tmp_path)
    assert caught.value.code == "E-STATE"
