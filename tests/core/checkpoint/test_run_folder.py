"""The output folder: who may have it, what a save leaves, and where a run goes on from."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from torchtune.checkpoint import RunFolder, cut_lines, damaged_files, latest_step, on_main
from torchtune.distributed import World
from torchtune.errors import ConfigError, MissingError, TuneError

WORLD = World()


def save(run: RunFolder, step: int, text: str = "weights") -> Path:
    with run.writing(step) as folder:
        (folder / "inner").mkdir()
        (folder / "inner/file.txt").write_text(f"{text} {step}")
    return run.path / f"step_{step:06d}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def saved(path: Path, *steps: int) -> None:
    run = RunFolder(path, WORLD)
    for step in steps:
        save(run, step)
    run.close()


def reopened(path: Path, resume="auto") -> Path | None:
    run = RunFolder(path, WORLD, resume=resume)
    run.close()
    return run.resume_from


def test_a_save_becomes_a_step_folder_that_latest_names(tmp_path):
    saved(tmp_path / "out", 5, 100)
    step = tmp_path / "out/step_000100"
    assert names(tmp_path / "out") == [".lock", "latest", "step_000005", step.name]
    assert (tmp_path / "out/latest").resolve() == step
    assert latest_step(tmp_path / "out") == step
    fields = json.loads((step / "manifest.json").read_text())
    digest = hashlib.sha256(b"weights 100").hexdigest()
    assert fields["files"] == {"inner/file.txt": {"size": 11, "sha256": digest}}


def test_the_home_folder_is_not_a_folder_called_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = RunFolder("~/run", WORLD)
    run.close()
    assert run.path == tmp_path / "run"
    assert names(tmp_path) == ["run"]


def test_latest_is_a_file_with_the_name_where_links_are_not_allowed(tmp_path, monkeypatch):
    def refuse(*_args, **_more):
        raise OSError("links are not allowed")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    saved(tmp_path, 3)
    assert (tmp_path / "latest").read_text() == "step_000003\n"
    assert reopened(tmp_path) == tmp_path / "step_000003"


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    first = RunFolder(tmp_path, WORLD)
    with pytest.raises(ConfigError, match="in use by a live run"):
        RunFolder(tmp_path, WORLD, resume="auto")
    first.close()
    assert reopened(tmp_path) is None


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_the_lock_goes_with_its_process_though_a_forked_worker_lives(tmp_path):
    code = """
import os, sys, time
from torchtune.checkpoint import RunFolder
from torchtune.distributed import World
run = RunFolder(sys.argv[1], World())
if not (child := os.fork()):
    time.sleep(600)
print(child, flush=True)
time.sleep(600)
"""
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    child = int(run.stdout.readline())
    try:
        with pytest.raises(ConfigError, match="in use"):
            RunFolder(tmp_path, WORLD)
        run.kill()
        run.wait()
        assert reopened(tmp_path) is None
    finally:
        os.kill(child, signal.SIGKILL)


def test_foreign_files_are_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for resume in (None, "auto"):
        with pytest.raises(ConfigError, match=r"thesis\.tex") as caught:
            RunFolder(tmp_path, WORLD, resume=resume)
    assert caught.value.exit_code == 2
    assert names(tmp_path) == ["thesis.tex"]


def test_auto_starts_fresh_over_what_a_run_left_before_its_first_whole_save(tmp_path):
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "loss.png"):
        (tmp_path / name).write_text("{}")
    (tmp_path / ".step_000010.partial").mkdir()
    (tmp_path / ".step_000010.partial/model.safetensors").write_text("half")
    (tmp_path / "tensorboard").mkdir()
    assert reopened(tmp_path, "auto") is None
    assert reopened(tmp_path, None) is None
    assert not (tmp_path / ".step_000010.partial").exists()


@pytest.mark.parametrize("resume", [None, False])
def test_a_fresh_run_does_not_begin_where_a_whole_checkpoint_is(tmp_path, resume):
    saved(tmp_path, 7)
    with pytest.raises(ConfigError, match="resume_from_checkpoint=auto") as caught:
        RunFolder(tmp_path, WORLD, resume=resume)
    assert "step_000007" in str(caught.value)


def test_auto_goes_on_from_the_save_made_last_not_from_the_largest_step(tmp_path):
    saved(tmp_path, 10, 20)
    run = RunFolder(tmp_path, WORLD, resume=tmp_path / "step_000010")
    assert run.resume_from == tmp_path / "step_000010"
    save(run, 15)
    run.close()
    assert reopened(tmp_path) == tmp_path / "step_000015"


def test_a_step_can_be_saved_again(tmp_path):
    saved(tmp_path, 10)
    run = RunFolder(tmp_path, WORLD, resume="auto")
    save(run, 10, "other")
    run.close()
    assert (tmp_path / "step_000010/inner/file.txt").read_text() == "other 10"
    assert reopened(tmp_path) == tmp_path / "step_000010"


def test_a_kill_while_a_step_is_replaced_leaves_the_old_one(tmp_path):
    saved(tmp_path, 10)
    (tmp_path / "step_000010").rename(tmp_path / ".step_000010.old")
    assert reopened(tmp_path) == tmp_path / "step_000010"


@pytest.mark.parametrize("damage", ["manifest", "size", "content"])
def test_auto_passes_over_a_damaged_checkpoint_and_says_so(tmp_path, damage, capsys):
    saved(tmp_path, 10, 20)
    file = tmp_path / "step_000020/inner/file.txt"
    if damage == "manifest":
        (tmp_path / "step_000020/manifest.json").unlink()
    else:
        file.write_text("weights" if damage == "size" else "weightz 20")
    assert reopened(tmp_path) == tmp_path / "step_000010"
    assert "step_000020" in capsys.readouterr().err
    with pytest.raises(MissingError, match="not as it was saved"):
        RunFolder(tmp_path, WORLD, resume=tmp_path / "step_000020")


@pytest.mark.parametrize("gone", ["inner/file.txt", "manifest.json"])
def test_auto_does_not_start_afresh_over_checkpoints_of_which_a_file_is_gone(tmp_path, gone):
    saved(tmp_path, 10)
    (tmp_path / "step_000010" / gone).unlink()
    with pytest.raises(MissingError, match="no checkpoint is as it was saved"):
        reopened(tmp_path)


def test_auto_does_not_start_afresh_over_damaged_checkpoints(tmp_path):
    saved(tmp_path, 10)
    (tmp_path / "step_000010/inner/file.txt").write_text("weightz 10")
    assert damaged_files(tmp_path / "step_000010") == ["inner/file.txt"]
    with pytest.raises(MissingError, match="no checkpoint is as it was saved"):
        RunFolder(tmp_path, WORLD, resume="auto")


def test_a_path_that_is_no_step_folder_is_refused_with_the_way_out(tmp_path):
    saved(tmp_path / "old", 10)
    with pytest.raises(MissingError, match="there is no"):
        RunFolder(tmp_path / "new", WORLD, resume=tmp_path / "absent")
    with pytest.raises(ConfigError, match="step_000010"):
        RunFolder(tmp_path / "new", WORLD, resume=tmp_path / "old")
    assert reopened(tmp_path / "new", tmp_path / "old/latest") == tmp_path / "old/step_000010"


def test_pruning_keeps_the_newest_and_those_named(tmp_path):
    run = RunFolder(tmp_path, WORLD)
    for step in (1, 2, 3, 4, 5):
        save(run, step)
    run.prune(None)
    assert len(list(tmp_path.glob("step_*"))) == 5
    run.prune(2, keep={1})
    assert [path.name[-1] for path in sorted(tmp_path.glob("step_*"))] == ["1", "4", "5"]
    run.prune(0)
    assert latest_step(tmp_path) == tmp_path / "step_000005"
    run.close()


def test_an_error_while_saving_leaves_nothing_of_the_save(tmp_path):
    run = RunFolder(tmp_path, WORLD)
    save(run, 1)
    with pytest.raises(ZeroDivisionError), run.writing(2) as folder:
        (folder / "file.txt").write_text(str(1 / 0))
    run.close()
    assert names(tmp_path) == [".lock", "latest", "step_000001"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("where", ["file", "main"])
def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path, where):
    import resource

    run = RunFolder(tmp_path, WORLD)
    step = save(run, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        full = pytest.raises(TuneError, match=r"E-DISK-FULL(.|\n)*resume_from")
        with full as caught, run.writing(2) as folder:
            write = partial((folder / "big.bin").write_bytes, bytes(9000))
            on_main(WORLD, write, folder) if where == "main" else write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run.close()
    assert caught.value.exit_code == 1
    assert names(tmp_path) == [".lock", "latest", step.name]
    assert damaged_files(step) == []


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder(tmp_path / "file", WORLD)
    with pytest.raises(TuneError, match="E-DISK"):
        RunFolder(tmp_path / "file/below", WORLD)


LINES = [f'{{"step": {n}, "loss": 0.{n}00}}\n' for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("tail", ["", '{"step": 5, "lo', '{"step": 0}', "\0\0\0"])
def test_metrics_stay_byte_for_byte_up_to_the_step(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    for step in range(6):
        path.write_text("".join(LINES) + tail)
        cut_lines(path, step)
        assert path.read_text() == "".join(LINES[:step])


def test_absent_metrics_stay_absent(tmp_path):
    cut_lines(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())


KILLING = """
import itertools, json, os, pathlib, random, signal, sys, time
from torchtune.checkpoint import RunFolder, damaged_files
from torchtune.distributed import World

out, told_file = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
random.seed(int(sys.argv[3]))

def opened():
    return RunFolder(out, World(), resume="auto")

def number_in(step):
    return int((step / "number").read_text()) if step else 0

def save_forever():
    run = opened()
    for number in itertools.count(number_in(run.resume_from) + 1):
        # every step twice: the second, saved in the background, replaces the first
        with run.writing(number // 2, background=bool(number % 2)) as folder:
            (folder / "number").write_text(str(number))
            (folder / "bytes").write_bytes(bytes([number % 251]) * 99_000)
        run.wait()
        told_file.write_text(str(number))
        run.prune(2)

told_file.write_text("0")
for kill in range(25):
    child, before = os.fork(), told_file.read_text()
    if not child:
        save_forever()
    while kill % 2 and told_file.read_text() in ("", before):
        time.sleep(0.001)  # every other one has saved, however slow the machine is
    time.sleep(random.uniform(0.01, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    run = opened()
    run.close()
    step = run.resume_from
    print(json.dumps({
        "told": int(told_file.read_text() or 0),
        "found": number_in(step),
        "damaged": damaged_files(step) if step else [],
        "latest": step is None or (out / "latest").resolve() == step,
    }), flush=True)
    told_file.write_text(str(number_in(step)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_kill_at_any_moment_leaves_the_last_whole_checkpoint(tmp_path):
    command = [sys.executable, "-c", KILLING, str(tmp_path / "out"), str(tmp_path / "told"), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) == 25 and kills[-1]["found"] >= 10
    for kill in kills:
        assert kill["damaged"] == [] and kill["latest"]
        assert kill["told"] == 0 or kill["found"] - kill["told"] in (0, 1)
