"""A save that goes on beside the run: what it holds, who waits, and what its errors leave."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import fully_shard
from torchtune.checkpoint import (
    RunFolder,
    damaged_files,
    latest_step,
    on_main,
    save_model,
    save_training_state,
)
from torchtune.checkpoint.staged_work import StagedWork
from torchtune.distributed import World, hurried, join_world
from torchtune.errors import TuneError
from torchtune.testing import run_distributed
from torchtune.training import LossScaling, StepAfterBackward, StepInBackward, StopSignal

WORLD = World()
UPDATES = {
    "after backward": StepAfterBackward,
    "in backward": partial(StepInBackward, world=WORLD),
    "scaled": LossScaling,
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def begin(run: RunFolder, step: int, model: nn.Module) -> None:
    with run.writing(step, background=True) as folder:
        save_model(model, folder, world=WORLD, config={}, dtype=torch.float32)
        (folder / "tokenizer.json").write_text("written at once")


@pytest.fixture
def gate(monkeypatch):
    """Hold threads that open a file until it is set; the caller's own thread goes on."""
    gate, opened = threading.Event(), os.open

    def held(*args, **more) -> int:
        if threading.current_thread() is not threading.main_thread():
            gate.wait(120)
        return opened(*args, **more)

    monkeypatch.setattr(os, "open", held)
    yield gate
    gate.set()


@pytest.fixture
def told(monkeypatch, gate) -> list[str]:
    """What the user is warned of; the gate opens when something is."""
    said: list[str] = []

    def warn(text: str) -> None:
        said.append(text)
        gate.set()

    monkeypatch.setattr("torchtune.checkpoint.run_folder.warn", warn)
    return said


def step(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=1.0).step()


@pytest.fixture
def copied(monkeypatch):
    """Let each copy that a thread makes take a while, or fail if the list gets an error."""
    errors, copy = [], torch.Tensor.copy_

    def slow(tensor, *args, **more) -> torch.Tensor:
        if threading.current_thread().name.startswith("saving"):
            time.sleep(0.005)
            if errors:
                raise errors.pop()
        return copy(tensor, *args, **more)

    monkeypatch.setattr(torch.Tensor, "copy_", slow)
    return errors


def train(folder: Path, kind: str, *, background: bool) -> dict[str, bytes]:
    """Save after each of four steps, which follow at once; return all files that were saved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Linear(10, 1))
    rate = torch.tensor(0.1)  # which the schedule fills anew, also after a step that is skipped
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, foreach=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    run, update = RunFolder(folder, WORLD), UPDATES[kind](optimizer)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "world": WORLD}
    for number in range(1, 5):
        update.begin(micro_batches=1, max_norm=None)
        loss = model(torch.randn(8, 6)).square().mean()
        update.backward(loss * (math.inf if kind == "scaled" and number == 3 else 1))
        update.finish()
        scheduler.step()
        with run.writing(number, background=background) as place:
            save_model(model, place, world=WORLD, config={}, dtype=torch.bfloat16)
            save_training_state(place, **state, info={}, weights=True)
    run.wait()
    run.close()
    files = [path for path in folder.glob("step_*/**/*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name != "manifest.json"
    }


@pytest.mark.parametrize("kind", UPDATES)
def test_steps_that_follow_at_once_change_nothing_of_what_is_saved(tmp_path, copied, kind):
    wanted = train(tmp_path / "blocking", kind, background=False)
    assert len(wanted) == 16 and train(tmp_path / "beside", kind, background=True) == wanted
    last = wanted["step_000004/training_state/shard-00001-00001.safetensors"]
    assert last != wanted["step_000003/training_state/shard-00001-00001.safetensors"]


def test_a_step_after_copying_broke_off_goes_on_and_the_save_fails_whole(tmp_path, copied):
    run, model = RunFolder(tmp_path, WORLD), nn.Linear(3, 3)
    copied.append(MemoryError("no room"))
    with pytest.raises(TuneError, match=r"E-SAVE.*no room"):
        begin(run, 1, model)
        step(model)
        run.poll()
    assert names(tmp_path) == [".lock"] and run.poll()
    begin(run, 2, model)
    run.wait()
    assert damaged_files(tmp_path / "step_000002") == []


@pytest.mark.parametrize("end", ["close", "wait", "fail"])
def test_no_step_waits_once_nothing_is_being_copied(tmp_path, copied, monkeypatch, end):
    run, model = RunFolder(tmp_path, WORLD), nn.Linear(3, 3)
    if end == "fail":
        copied.append(MemoryError("no room"))
        with pytest.raises(TuneError, match="E-SAVE"):
            begin(run, 1, model)
            run.wait()
    else:
        begin(run, 1, model)
        getattr(run, end)()
    monkeypatch.setattr(StagedWork, "join", pytest.fail)
    step(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_there_when_the_save_began_is_saved(tmp_path, gate, dtype):
    run, model = RunFolder(tmp_path, WORLD), nn.Linear(3, 3).to(dtype)
    wanted = model.weight.float().clone()
    begin(run, 1, model)
    step(model)
    assert not run.poll() and latest_step(tmp_path) is None
    gate.set()
    run.wait()
    assert run.poll() and damaged_files(tmp_path / "step_000001") == []
    assert torch.equal(load_file(tmp_path / "step_000001/model.safetensors")["weight"], wanted)
    assert (tmp_path / "step_000001/tokenizer.json").read_text() == "written at once"


def test_a_second_save_waits_for_the_first_and_says_so_once(tmp_path, gate, told):
    run, model = RunFolder(tmp_path, WORLD), nn.Linear(3, 3)
    begin(run, 1, model)
    begin(run, 2, model)
    gate.clear()
    threading.Timer(0.2, gate.set).start()
    begin(run, 3, model)
    run.wait()
    run.close()
    assert len(told) == 1 and "waits for the one before it" in told[0]
    assert len(list(tmp_path.glob("step_*"))) == 3


def test_old_steps_go_when_the_new_one_is_whole(tmp_path, gate):
    run, model = RunFolder(tmp_path, WORLD), nn.Linear(3, 3)
    for step in (1, 2):
        gate.clear()
        begin(run, step, model)
        run.prune(1)
        assert "step_000002" not in names(tmp_path)
        assert step == 1 or "step_000001" in names(tmp_path)
        gate.set()
        run.wait()
    assert names(tmp_path) == [".lock", "latest", "step_000002"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("learn", ["poll", "wait", "save"])
def test_a_full_disk_is_told_later_and_loses_nothing(tmp_path, learn):
    import resource

    run, model = RunFolder(tmp_path, WORLD), nn.Linear(50, 50)
    begin(run, 1, model)
    run.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(TuneError, match="E-DISK-FULL"):
            begin(run, 2, model)
            while learn == "poll":
                run.poll()
            run.wait() if learn == "wait" else begin(run, 3, model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == [".lock", "latest", "step_000001"]
    begin(run, 3, model)
    run.wait()
    assert damaged_files(tmp_path / "step_000003") == []


def test_a_run_that_leaves_without_waiting_brings_the_save_to_its_end(tmp_path, gate, told):
    run, model = RunFolder(tmp_path, WORLD), nn.Linear(3, 3)
    wanted = model.weight.detach().clone()
    begin(run, 1, model)
    step(model)
    run.prune(1)
    assert not run.poll()
    threading.Timer(0.2, gate.set).start()
    run.close()
    assert "step 1 was being saved, and that is whole now" in told[0]
    assert names(tmp_path) == [".lock", "latest", "step_000001"]
    assert damaged_files(tmp_path / "step_000001") == []
    assert torch.equal(load_file(tmp_path / "step_000001/model.safetensors")["weight"], wanted)


def test_a_run_told_twice_to_stop_gives_the_save_up(tmp_path, gate, monkeypatch):
    run, model = RunFolder(tmp_path, WORLD), nn.Linear(3, 3)
    stop = StopSignal()
    begin(run, 1, model)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    stop.close()
    assert hurried.is_set()
    gate.set()
    run.close()
    hurried.clear()
    assert names(tmp_path) == [".lock"]


def test_a_save_that_fails_while_the_run_leaves_is_given_up_and_says_so(tmp_path, told, copied):
    run, model = RunFolder(tmp_path, WORLD), nn.Linear(3, 3)
    copied.append(MemoryError("no room"))
    begin(run, 1, model)
    run.close()
    assert "step 1 was being saved, and that is given up: a save broke off" in told[0]
    assert names(tmp_path) == [".lock"]


FAILING = """
import sys, time
from pathlib import Path
from torch import nn
from torch.distributed.fsdp import fully_shard
from torchtune.checkpoint import RunFolder, output_file, save_model
from torchtune.distributed import World, hurried, join_world

def slow(self, *given, write=output_file.OutputFile.write, **more):
    time.sleep(0.5)
    return write(self, *given, **more)

output_file.OutputFile.write = slow
run, model = RunFolder(sys.argv[1], World()), nn.Linear(3, 3)
with run.writing(1, background=True) as folder:
    save_model(model, folder, world=World(), config={}, dtype=model.weight.dtype)
raise MemoryError("in a later step")
"""


def test_an_error_in_a_later_step_leaves_the_save_before_it_whole(tmp_path):
    command = [sys.executable, "-c", FAILING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "in a later step" in done.stderr
    assert "step 1 was being saved, and that is whole now" in done.stderr
    assert damaged_files(tmp_path / "step_000001") == []


def leave_one_after_another(folder):
    world = join_world("cpu")
    torch.manual_seed(0)
    run, model = RunFolder(folder, world), fully_shard(nn.Linear(9, 8))
    with run.writing(1, background=True) as place:
        save_model(model, place, world=world, config={}, dtype=torch.float32)
        on_main(world, lambda: (place / "tokenizer.json").write_text("written at once"))
    whole = []
    for rank in range(world.size):
        if rank == world.rank:
            run.close()
        world.barrier()
        whole.append(latest_step(folder) is not None)
    return whole


def test_of_ranks_that_leave_one_after_another_the_last_publishes_the_save(tmp_path):
    found = run_distributed(leave_one_after_another, 3, tmp_path)
    assert found == [[False, False, True]] * 3
    assert damaged_files(tmp_path / "step_000001") == []
    torch.manual_seed(0)
    saved = load_file(tmp_path / "step_000001/model.safetensors")
    assert torch.equal(saved["weight"], nn.Linear(9, 8).weight)
