"""A save that goes on beside the run: what it holds, who waits, and what its errors leave."""

import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchtune.checkpoint import RunFolder, damaged_files, latest_step, save_model
from torchtune.distributed import World
from torchtune.errors import TuneError

WORLD = World()


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
            gate.wait(20)
        return opened(*args, **more)

    monkeypatch.setattr(os, "open", held)
    yield gate
    gate.set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_there_when_the_save_began_is_saved(tmp_path, gate, dtype):
    run, model = RunFolder(tmp_path, WORLD), nn.Linear(3, 3).to(dtype)
    wanted = model.weight.float().clone()
    begin(run, 1, model)
    with torch.no_grad():
        model.weight.zero_()
    assert not run.poll() and latest_step(tmp_path) is None
    gate.set()
    run.wait()
    assert run.poll() and damaged_files(tmp_path / "step_000001") == []
    assert torch.equal(load_file(tmp_path / "step_000001/model.safetensors")["weight"], wanted)
    assert (tmp_path / "step_000001/tokenizer.json").read_text() == "written at once"


def test_a_second_save_waits_for_the_first_and_says_so_once(tmp_path, gate, capsys):
    run, model = RunFolder(tmp_path, WORLD), nn.Linear(3, 3)
    for step in (1, 2, 3):
        gate.clear()
        threading.Timer(0.2, gate.set).start()
        begin(run, step, model)
    run.wait()
    run.close()
    assert capsys.readouterr().err.count("waits for the one before it") == 1
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


def test_a_run_that_ends_without_waiting_gives_the_save_up_and_says_so(tmp_path, gate, capsys):
    run, model = RunFolder(tmp_path, WORLD), nn.Linear(3, 3)
    begin(run, 1, model)
    threading.Timer(0.2, gate.set).start()
    run.close()
    assert "step 1 was being saved" in capsys.readouterr().err
    assert names(tmp_path) == [".lock"]
