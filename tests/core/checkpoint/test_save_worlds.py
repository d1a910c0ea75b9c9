"""Four ranks save and load their own parts of a model in every arrangement, to the bit."""

import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchtune.checkpoint import (
    RunFolder,
    damaged_files,
    load_model,
    load_training_state,
    save_model,
    save_training_state,
)
from torchtune.distributed import World, fill, gather_full, join_world, part_of
from torchtune.errors import TuneError
from torchtune.testing import run_distributed

MEASURED = ("sharded", "two meshes", "columns")
LAYOUTS = ("sharded", "offloaded", "replicated", "two meshes", "columns", "plain")


def layers(count: int, width: int, inner: int) -> nn.Sequential:
    pairs = (
        (nn.Linear(width, inner), nn.Linear(inner, width, bias=False)) for _ in range(count // 2)
    )
    return nn.Sequential(*(layer for pair in pairs for layer in pair), nn.RMSNorm(3))


def cut(layout: str, model: nn.Sequential) -> nn.Module:
    """Return `model` cut over four ranks in one of the ways."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    if layout == "plain":
        return model
    pairs = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    if layout == "two meshes":  # placements (_StridedShard(0), Shard(0)), the former uneven
        kinds = (ColwiseParallel(), RowwiseParallel())
        plan = {str(number): kinds[number % 2] for number in range(len(model) - 1)}
        return fully_shard(parallelize_module(model, pairs["tensor"], plan), mesh=pairs["data"])
    if layout == "replicated":
        return fully_shard(model, mesh=pairs)
    if layout == "offloaded":
        return fully_shard(model, offload_policy=CPUOffloadPolicy(pin_memory=False))
    if layout == "sharded":
        return fully_shard(model)
    four = init_device_mesh("cpu", (4,))

    def columns(_: str, module: nn.Module, mesh: Any) -> None:
        for name, p in list(module.named_parameters(recurse=False)):
            kind = Shard(1) if p.dim() == 2 else Replicate()  # of 6 columns the last rank has none
            setattr(module, name, nn.Parameter(distribute_tensor(p.detach(), mesh, [kind])))

    return distribute_module(model, four, columns)


def make(layout: str, world: World, *, seed: int) -> dict[str, Any]:
    """Build layers and their optimizer, after a step on gradients that follow from the seed."""
    torch.manual_seed(seed)
    model = cut(layout, layers(2, 6, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
        fill(p.grad, torch.randn(p.shape))
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "scheduler": None, "world": world}


def whole(run: dict[str, Any]) -> dict[str, torch.Tensor]:
    found = {}
    for name, p in run["model"].named_parameters():
        state = run["optimizer"].state[p].items()
        values = {name: p, **{f"state/{name}/{key}": value for key, value in state}}
        found |= {key: gather_full(value).clone() for key, value in values.items()}
    return found


def save(run: dict[str, Any], folder: Path) -> None:
    save_model(run["model"], folder, world=run["world"], config={}, max_shard_bytes=300)
    save_training_state(folder, **run, info={}, weights=True)


def load(run: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    load_model(run["model"], folder)
    load_training_state(folder, **run)
    return whole(run)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def agrees_with_torch(run: dict[str, Any]) -> bool:
    """Say whether torch's checkpointing takes the parameters to be cut as `part_of` does."""
    from torch.distributed.tensor import DTensor

    for p in run["model"].parameters():
        if isinstance(p, DTensor) and p.to_local().numel():
            (chunk,) = p.__create_chunk_list__()
            if part_of(p) != (tuple(chunk.offsets), tuple(chunk.sizes)):
                return False
    return True


def read_by_torch(run: dict[str, Any], folder: Path) -> bool:
    """Say whether torch's own reader finds the optimizer's state in our files, for these ranks."""
    import torch.distributed.checkpoint as dcp

    wanted = {
        f"state/{name}/exp_avg": run["optimizer"].state[p]["exp_avg"]
        for name, p in run["model"].named_parameters()
    }
    found = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(folder / "training_state")))
    return all(torch.equal(gather_full(found[name]), gather_full(wanted[name])) for name in wanted)


def fail_on_one_rank(world: World, folder: Path, *, background: bool) -> list[str]:
    """Save thrice; the second time the last rank's disk is full."""
    import resource

    run, output = make("sharded", world, seed=3), RunFolder(folder, world)
    limits, said = resource.getrlimit(resource.RLIMIT_FSIZE), []
    for step in (1, 2, 3):
        if world.rank == 3 and step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with output.writing(step, background=background) as place:
                save(run, place)
            output.wait()
        except TuneError as error:
            said.append(error.code)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return said


def slow_copies(error: Exception | None = None) -> Any:
    """Let each copy that a thread of a save makes take a while, and raise `error` then."""
    copy = torch.Tensor.copy_

    def slow(tensor: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        if threading.current_thread().name.startswith("saving"):
            time.sleep(0.01)
            if error is not None:
                raise error
        return copy(tensor, *args, **more)

    return mock.patch.object(torch.Tensor, "copy_", slow)


def save_and_step(world: World, folder: Path, *, background: bool) -> None:
    """Save twice, each time with an optimizer step right behind."""
    run, output = make("sharded", world, seed=4), RunFolder(folder, world)
    for step in (1, 2):
        with output.writing(step, background=background) as place:
            save(run, place)
        run["optimizer"].step()
    output.wait()


def fail_to_copy_on_one_rank(world: World, folder: Path) -> str:
    run, output = make("sharded", world, seed=3), RunFolder(folder, world)
    error = MemoryError("no room") if world.rank == 3 else None
    try:
        with slow_copies(error), output.writing(1, background=True) as place:
            save(run, place)
        output.wait()
    except TuneError as raised:
        return str(raised)
    return ""


def memory(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{key}:")[1].split()[0])


def measure_loading(layout: str, folder: Path) -> dict[str, float]:
    """Return what loading 67 MB takes at its peak, and what it should: a share and a tensor."""
    with torch.device("meta"):
        model = cut(layout, layers(8, 1025, 2050))
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    model.to_empty(device="cpu")
    load_model(model, folder)
    peak = memory("VmHWM") - before
    share = sum(p.to_local().nbytes for p in model.parameters())
    return {"peak": peak, "needed": share + max(p.numel() * 4 for p in model.parameters())}


def on_each_rank(folder: Path) -> dict[str, Any]:
    """Do all in one launch, as a launch takes seconds."""
    world = join_world("cpu")
    answers: dict[str, Any] = {}
    for layout in LAYOUTS:
        run = make(layout, world, seed=1)
        save(run, folder / layout)
        world.barrier()
        answers[layout] = {
            "cut as torch says": agrees_with_torch(run),
            "read by torch": layout == "plain" or read_by_torch(run, folder / layout),
            "alone saved": same(load(make(layout, world, seed=2), folder / "alone"), whole(run)),
            "others saved": same(
                load(make(layout, world, seed=2), folder / LAYOUTS[0]), whole(run)
            ),
        }
    if sys.platform == "linux":
        answers["memory"] = {kind: measure_loading(kind, folder / "large") for kind in MEASURED}
    for background in (False, True):
        place = folder / f"full {background}"
        answers[place.name] = fail_on_one_rank(world, place, background=background)
        with slow_copies():
            save_and_step(world, folder / f"steps {background}", background=background)
    answers["copying"] = fail_to_copy_on_one_rank(world, folder / "copying")
    return answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    save(make("plain", World(), seed=1), folder / "alone")
    save_model(layers(8, 1025, 2050), folder / "large", world=World(), config={}, durable=False)
    return folder


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict[str, Any]]:
    if sys.platform == "win32":
        pytest.skip("needs resource limits")
    return run_distributed(on_each_rank, 4, folder, timeout=300)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_four_ranks_load_what_one_and_what_four_saved_and_so_does_torch(ranks, layout):
    for rank in ranks:
        assert [what for what, well in rank[layout].items() if not well] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_rank_loads_what_four_saved(ranks, folder, layout):
    alone = make("plain", World(), seed=1)
    assert same(load(make("plain", World(), seed=2), folder / layout), whole(alone))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_four_ranks_are_the_bytes_that_one_writes(ranks, folder, layout):
    for path in (folder / "alone").glob("*.safetensors"):
        assert (folder / layout / path.name).read_bytes() == path.read_bytes()
        assert load_file(folder / layout / path.name)


def test_every_rank_writes_state_unless_another_writes_the_same(ranks, folder):
    def writers(layout: str) -> list[int]:
        files = (folder / layout / "training_state").glob("shard-*-00001.safetensors")
        return sorted(int(path.name.split("-")[1]) for path in files)

    assert writers("sharded") == [1, 2, 3, 4] == writers("two meshes")
    assert writers("replicated") == [1, 2]
    assert writers("plain") == [1]


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_on_one_rank_is_told_to_all_and_loses_nothing(ranks, folder, background):
    place = folder / f"full {background}"
    assert [rank[place.name] for rank in ranks] == [["E-DISK-FULL"]] * 4
    names = sorted(path.name for path in place.iterdir())
    assert names == [".lock", "latest", "step_000001", "step_000003"]
    assert not damaged_files(place / "step_000001") + damaged_files(place / "step_000003")


def test_a_save_in_the_background_has_the_bytes_of_one_that_holds_the_steps(ranks, folder):
    kinds = (folder / f"steps {background}" for background in (False, True))
    blocking, beside = (
        {
            path.relative_to(kind): path.read_bytes()
            for path in kind.glob("step_*/**/*")
            if path.is_file() and path.name != "manifest.json"
        }
        for kind in kinds
    )
    assert len(blocking) == 18 and beside == blocking


def test_a_failure_in_copying_on_one_rank_is_told_to_all_and_leaves_nothing(ranks, folder):
    assert all("E-SAVE" in rank["copying"] and "no room" in rank["copying"] for rank in ranks)
    assert [path.name for path in (folder / "copying").iterdir()] == [".lock"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("layout", MEASURED)
def test_loading_takes_the_memory_of_a_share_and_a_tensor_at_most(ranks, layout):
    for rank in ranks:
        measured = rank["memory"][layout]
        assert measured["peak"] < 1.3 * measured["needed"]
