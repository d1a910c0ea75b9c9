"""A run's folder on another machine, where nothing is renamed: the manifest comes last and decides."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from torchtune.checkpoint import RunFolder, find_checkpoint
from torchtune.distributed import World
from torchtune.errors import ConfigError, TuneError

URL = "memory://bucket/run"


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """The far side, empty; `machine` changes the near one."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    monkeypatch.setenv("TUNE_CACHE", str(tmp_path / "first"))
    return fs


@pytest.fixture
def other_machine(tmp_path, monkeypatch):
    return lambda: monkeypatch.setenv("TUNE_CACHE", str(tmp_path / "second"))


def save(run, step, **options):
    with run.writing(step, **options) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "inner").mkdir()
        (folder / "inner/model.bin").write_bytes(bytes([step]) * 1000)
    run.wait()


def files(remote):
    return {path.removeprefix("/bucket/run/") for path in remote.find("/bucket/run")}


def run_of(*steps, resume=None, **options):
    run = RunFolder(URL, World(), resume=resume)
    for step in steps:
        save(run, step, **options)
    (run.path / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in steps))
    run.close()
    return run


@pytest.mark.parametrize("background", [False, True])
def test_every_save_is_there_with_what_was_logged(background, remote):
    run = run_of(1, 2, background=background)
    step = {"config.json", "inner/model.bin", "manifest.json"}
    expected = {f"step_{n:06}/{name}" for n in (1, 2) for name in step}
    assert files(remote) == expected | {"latest", "metrics.jsonl"}
    assert remote.cat_file("/bucket/run/latest") == b"step_000002\n"
    for path in expected:
        assert remote.cat_file(f"/bucket/run/{path}") == (run.path / path).read_bytes()
    assert run.place == URL


def test_another_machine_goes_on_from_the_newest_whole_step(remote, other_machine):
    run_of(1, 2, 3)
    remote.rm_file("/bucket/run/step_000003/manifest.json")
    other_machine()
    run = RunFolder(URL, World(), resume="auto")
    assert run.resume_from == run.path / "step_000002"
    assert (run.resume_from / "inner/model.bin").read_bytes() == b"\x02" * 1000
    assert (run.path / "metrics.jsonl").read_text().count("\n") == 3
    run.close()


def test_a_step_that_came_over_in_part_does_not_count(remote, other_machine):
    run_of(1, 2)
    remote.pipe_file("/bucket/run/step_000002/inner/model.bin", b"short")
    other_machine()
    run = RunFolder(URL, World(), resume="auto")
    assert run.resume_from == run.path / "step_000001"
    run.close()


def test_a_run_that_is_there_is_not_written_over(remote, other_machine):
    run_of(1)
    other_machine()
    with pytest.raises(ConfigError, match="E-FOLDER-HAS-RUN"):
        RunFolder(URL, World())


def test_what_is_pruned_here_goes_there_too(remote):
    run = RunFolder(URL, World())
    for step in (1, 2, 3):
        save(run, step)
        run.prune(1)
    run.close()
    assert {path.partition("/")[0] for path in files(remote)} == {"step_000003", "latest"}


class Broken(Exception):
    """What some file system raises."""


@pytest.mark.parametrize("call", range(4))
def test_whichever_write_fails_the_last_whole_step_stays_and_the_run_goes_on(
    call, remote, other_machine, monkeypatch, capsys
):
    run = RunFolder(URL, World())
    save(run, 1)
    calls, write = iter(range(100)), MemoryFileSystem.put_file

    def fails_once(self, here, there, **options):
        if next(calls) == call:
            raise Broken("the network is gone")
        write(self, here, there, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", fails_once)
        (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
        save(run, 2)
    assert "memory://bucket/run could not be written" in capsys.readouterr().err
    whole = "step_000002" if call == 3 else "step_000001"  # the fourth is of the log
    assert find_checkpoint_step() == whole
    run.close()
    assert find_checkpoint_step() == "step_000002"


def find_checkpoint_step():
    return find_checkpoint(URL).folder.name


def test_a_run_that_never_came_over_says_where_it_is(remote, monkeypatch):
    def fails(*_, **__):
        raise Broken("the network is gone")

    run = RunFolder(URL, World())
    monkeypatch.setattr(MemoryFileSystem, "put_file", fails)
    save(run, 1)
    with pytest.raises(TuneError, match="E-REMOTE-WRITE") as found:
        run.close()
    assert str(run.path) in str(found.value)
    assert (run.path / "step_000001/manifest.json").is_file()
