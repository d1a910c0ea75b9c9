"""Every disk call of a save fails once, or is the last that the process makes: nothing is lost."""

import builtins
import errno
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from torchtune import checkpoint
from torchtune.data import auto_tokenizer
from torchtune.distributed import join_world, shard
from torchtune.errors import TuneError
from torchtune.models import from_pretrained
from torchtune.testing import run_distributed, tiny_checkpoint

CALLS = (
    "open",
    "write",
    "fsync",
    "posix_fallocate",
    "mkdir",
    "rename",
    "replace",
    "symlink",
    "link",
)
CODES = {errno.ENOSPC: "E-DISK-FULL", errno.EIO: "E-DISK"}


class Disk:
    """Stands between Python and the calls that change `folder`; makes one of them fail.

    A call has a name, such as ``write manifest.json 1``: what is done, to which file, and how
    often it was done before. So threads that run in any order still give the same names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.lock = str(folder), threading.Lock()
        self.real = {call: getattr(os, call) for call in CALLS if hasattr(os, call)}
        self.begin(None, None)

    def begin(self, failing: str | None, error: int | None) -> None:
        """Count anew; the call named `failing` raises `error`, or ends the process without one."""
        self.failing, self.error = failing, error
        self.seen: Counter[str] = Counter()
        self.names: list[str] = []

    def __enter__(self) -> "Disk":
        for call, real in self.real.items():
            setattr(os, call, self._watched(call, real))
        self.opens = io.open
        builtins.open = io.open = self._opening
        return self

    def __exit__(self, *_error: object) -> None:
        for call, real in self.real.items():
            setattr(os, call, real)
        builtins.open = io.open = self.opens

    def _watched(self, call: str, real):
        def watched(*given, **options):
            place = given[1] if call in ("symlink", "link") else given[0]
            reads = call == "open" and not given[1] & (os.O_WRONLY | os.O_RDWR)
            needless = call == "mkdir" and Path(place).is_dir()
            if not reads and not needless:
                self._meet(call, place)
            return real(*given, **options)

        return watched

    def _opening(self, file, mode="r", *others, **options):
        if set(mode) & set("wax+"):
            self._meet("open", file)
        return self.opens(file, mode, *others, **options)

    def _meet(self, call: str, first: object) -> None:
        if isinstance(first, int):
            path = os.readlink(f"/proc/self/fd/{first}")  # noqa: PTH115
        else:
            path = os.path.abspath(os.fspath(first))  # noqa: PTH100
        if not path.startswith(self.folder):
            return
        with self.lock:
            done = re.sub(r"\d{6}", "N", f"{call} {os.path.relpath(path, self.folder)}")
            self.seen[done] += 1
            name = f"{done} {self.seen[done]}"
            self.names.append(name)
        if name == self.failing:
            if self.error is None:
                os._exit(9)
            raise OSError(self.error, os.strerror(self.error), path)


class Saver:
    """A model in training and its output folder, on this process of one or several."""

    def __init__(self, folder: Path) -> None:
        self.base, self.out, self.world = folder / "base", folder / "out", join_world("cpu")
        if self.world.is_main:
            tiny_checkpoint(self.base, num_hidden_layers=1, hidden_size=16, intermediate_size=16)
        self.world.barrier()
        self.model = shard(from_pretrained(self.base), self.world)
        trained = list(self.model.parameters())[:1]
        self.optimizer = torch.optim.AdamW(trained)
        trained[0].grad = torch.ones_like(trained[0])
        self.optimizer.step()
        self.tokenizer = auto_tokenizer(self.base)

    def save(self, number: int, step: int, *, background: bool) -> None:
        """Save and prune, the `number`th time, as a run does that goes on from what is there."""
        run = checkpoint.RunFolder(self.out, self.world, resume="auto")
        try:
            with run.writing(step, background=background) as folder:
                checkpoint.save_step(
                    folder, dtype=torch.float32, base=self.base, tokenizer=self.tokenizer,
                    info={"number": number}, **self.state(),
                )  # fmt: skip
            run.prune(1)
            run.wait()
        finally:
            run.close()

    def state(self) -> dict:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": None}
        return {**parts, "world": self.world}

    def latest(self) -> int:
        """Return the number of the save that ``latest`` names, 0 where it is not there."""
        link = self.out / "latest"
        step = link.resolve() if link.is_symlink() else self.out / link.read_text().strip()
        if not step.exists():
            return 0
        assert checkpoint.damaged_files(step) == []
        return checkpoint.read_info(step)["number"]

    def resumed(self) -> int:
        """Return the number of the save that a resume goes on from, after loading all of it."""
        run = checkpoint.RunFolder(self.out, self.world, resume="auto")
        run.close()
        checkpoint.load_step(self.model, base=self.base, step=run.resume_from)
        return checkpoint.load_training_state(run.resume_from, **self.state())["number"]


def saved_or_error(saver: Saver, number: int, step: int, *, background: bool) -> str:
    """Save, and return the code of the error that comes of it."""
    try:
        saver.save(number, step, background=background)
    except TuneError as error:
        return error.code
    return ""


def killed(saver: Saver, number: int, step: int, *, background: bool) -> str:
    """Save in a copy of this process that ends at the failing call."""
    if not (child := os.fork()):
        saver.save(number, step, background=background)
        os._exit(0)
    return "" if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9 else "not killed"


def fail_each(
    folder: str, background: bool, again: bool, error: int | None
) -> tuple[int, list[str]]:
    """Fail every disk call of a save once; return how many there are, and what was not right.

    Args:
        folder: Where to work.
        background: Save in the background.
        again: The save is of a step that is there already.
        error: What the calls raise; None ends the process there instead.
    """
    saver, wrong = Saver(Path(folder)), list[str]()
    saver.save(1, 1, background=background)
    with Disk(saver.out) as disk:
        saver.save(2, 1 if again else 2, background=background)
        names = enumerate(saver.world.gather(disk.names))
        calls = [(rank, name) for rank, called in names for name in called]
        for number, (rank, name) in enumerate(calls):
            whole = 3 + 2 * number
            disk.begin(None, None)
            saver.save(whole, whole, background=background)
            disk.begin(name if rank == saver.world.rank else None, error)
            act = killed if error is None else saved_or_error
            step = whole if again else whole + 1
            code = act(saver, whole + 1, step, background=background)
            disk.begin(None, None)
            wrong += [
                f"{name} on rank {rank}: {w}" for w in judged(saver, code, error, name, whole)
            ]
    return len(calls), wrong


def judged(saver: Saver, code: str, error: int | None, name: str, whole: int) -> list[str]:
    """Return what is not right after a call failed in the save that follows that numbered `whole`."""
    falls_back = name.startswith("symlink")  # where links are not allowed, `latest` is a file
    wanted = "" if error is None or falls_back else CODES[error]
    wrong = [code or "no error"] if code != wanted else []
    latest = saver.latest()
    saver.world.barrier()  # before a resume mends anything
    resumed = saver.resumed()
    if latest not in (whole, whole + 1, *([0] if error is None else [])):
        wrong.append(f"latest names save {latest}")
    if resumed not in (whole, whole + 1) or resumed < latest:
        wrong.append(f"resumed from save {resumed}")
    return wrong


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("background", "again", "error"),
    [
        (False, False, errno.EIO),
        (True, True, errno.ENOSPC),
        pytest.param(False, True, errno.ENOSPC, marks=SLOW),
        pytest.param(True, False, errno.EIO, marks=SLOW),
    ],
)
def test_after_any_call_that_fails_the_last_whole_checkpoint_is_there(
    tmp_path, background, again, error
):
    calls, wrong = fail_each(str(tmp_path), background, again, error)
    assert calls > 50 and wrong == []


@SLOW
def test_two_processes_learn_of_any_call_that_fails_in_one(tmp_path):
    found = run_distributed(fail_each, 2, str(tmp_path), True, False, errno.ENOSPC, timeout=900)
    for calls, wrong in found:
        assert calls > 60 and wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("background", "again"), [(False, True), pytest.param(True, False, marks=SLOW)]
)
def test_a_process_that_ends_at_any_call_leaves_the_last_whole_checkpoint(
    tmp_path, background, again
):
    words = [sys.executable, __file__, str(tmp_path), str(int(background)), str(int(again))]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=900)
    calls, wrong = json.loads(done.stdout)
    assert calls > 50 and wrong == []


if __name__ == "__main__":  # a process that has no other threads, and so can be copied
    print(json.dumps(fail_each(sys.argv[1], sys.argv[2] == "1", sys.argv[3] == "1", None)))
