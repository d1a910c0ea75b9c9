"""`launch` as the command uses it: with a script, real processes and real signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import hashlib, os, sys, time
from pathlib import Path
from torchtune.distributed import join_world
from torchtune.distributed.launcher_watch import launch_names
from torchtune.errors import DataError, Interrupted, report_errors
from torchtune.training import StopSignal

def fail(world, kind):
    if world.rank == 1 and kind == "data":
        raise DataError("E-ROW", "bad row", where="f.jsonl:3")
    if world.rank == 1 and kind == "bug":
        raise RuntimeError("nobody thought of this")
    if world.rank == 1 and (kind == "killed" or kind == "once killed" and attempt == 0):
        os.kill(os.getpid(), 9)
    if world.rank == 1 and kind == "hanging":
        world.note_step(3)
        wait_for_ever()  # here
    if kind == "waiting":
        world.note_step(5)
        world.any(True) if world.rank == 0 else world.broadcast(True)  # one of the two is wrong
    if kind == "leaving":
        if world.rank == 0:
            hash_for(5)
        raise SystemExit  # without closing the world
    if kind == "none":
        if world.rank == 1:
            hash_for(5)  # longer than a process may hang
        world.barrier()

def wait_for_ever():
    time.sleep(10_000)

def hash_for(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        hashlib.sha256(bytes(10_000_000))

def tell_names(world, folder):
    (folder / f"{world.rank}.names.{attempt}").write_text(" ".join(launch_names(world)))

attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
WATCHED = ("hanging", "waiting", "none", "leaving")

def run(kind, folder):
    stop = StopSignal()
    world = join_world("cpu", timeout_minutes=0.05 if kind in WATCHED else None)
    tell_names(world, folder)
    (folder / f"{world.rank}.pid").write_text(str(os.getpid()))
    if kind == "wait":
        while not world.any(stop.requested):
            time.sleep(0.05)
        (folder / f"{world.rank}.saving").touch()
        time.sleep(float(sys.argv[3]) + world.rank)  # saving
        (folder / f"{world.rank}.saved").touch()
        raise Interrupted("E-STOPPED", "saved step 3", do="resume with auto")
    fail(world, kind)
    threads = os.environ["OMP_NUM_THREADS"]
    (folder / f"{world.rank}.sum").write_text(f"{world.sum(world.rank + 1)} {threads}")
    world.close()

with report_errors():
    run(sys.argv[1], Path(sys.argv[2]))
"""
LAUNCH = "import sys; from torchtune.distributed import launch; sys.exit(launch(sys.argv[1:]))"


# The launchers of several runs: copies of one process, as each would load torch anew.
LAUNCH_ALL = """
import json, os, sys
import torch.distributed.run
from torchtune.distributed import launch
running = {}
for kind, words in json.loads(sys.argv[1]).items():
    if not (copy := os.fork()):
        os.dup2(os.open(f"{words[-2]}/stderr", os.O_WRONLY | os.O_CREAT), 2)
        os._exit(launch(words))
    running[kind] = copy
print(json.dumps({k: os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for k, c in running.items()}))
"""
KINDS = {
    **dict.fromkeys(("none", "bug", "killed", "hanging", "waiting"), ()),
    **dict.fromkeys(("data", "once killed"), ("--max-restarts", "2")),
}


def words_for(folder, kind, *options, saving=0.3):
    """Return what launches two processes of the script, which lies in a new folder."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return ["--nproc-per-node", "2", *options, str(script), kind, str(folder), str(saving)]


def environment():
    return {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}


def start(*given, **more):
    """Launch two processes of the script."""
    command = [sys.executable, "-c", LAUNCH, *words_for(*given, **more)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Start all that need no signal at the same time; return exit code, stderr and folder."""
    folder = tmp_path_factory.mktemp("launch")
    words = {kind: words_for(folder / kind, kind, *options) for kind, options in KINDS.items()}
    command = [sys.executable, "-c", LAUNCH_ALL, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 0, done.stderr
    return {
        kind: (code, (folder / kind / "stderr").read_text(), folder / kind)
        for kind, code in json.loads(done.stdout).items()
    }


def test_the_processes_meet_share_the_cores_are_quiet_and_may_work_long(launched):
    code, error, folder = launched["none"]
    threads = max(1, len(os.sched_getaffinity(0)) // 2) if sys.platform == "linux" else 1
    assert (code, error) == (0, "")
    assert (folder / "0.sum").read_text() == f"3 {threads}"


def test_of_our_errors_the_first_is_shown_alone_with_its_code(launched):
    code, error, _ = launched["data"]
    assert (code, error) == (4, "error[E-ROW]: bad row\n  at f.jsonl:3\n")


def test_of_other_errors_the_first_traceback_is_shown_alone(launched):
    code, error, _ = launched["bug"]
    assert code == 1
    assert error.rstrip().endswith("RuntimeError: nobody thought of this")
    assert error.count("Traceback") == 1


def test_a_killed_process_is_named_and_its_peers_errors_are_not_shown(launched):
    code, error, _ = launched["killed"]
    assert code == 1
    assert error.startswith("error[E-WORKER]: the process of rank 1 got SIGKILL\n")
    assert "Traceback" not in error


def attempts(folder, rank=0):
    return sorted(path.suffix for path in folder.glob(f"{rank}.names.*"))


def test_after_a_death_all_start_again_and_know_that_it_is_the_same_launch(launched):
    code, error, folder = launched["once killed"]
    assert code == 0
    assert error == (
        "warning: error[E-WORKER]: the process of rank 1 got SIGKILL\n"
        "  all processes start again, restart 1 of 2\n"
    )
    assert attempts(folder) == [".0", ".1"]
    names = {path.read_text() for path in folder.glob("*.names.*")}
    assert len(names) == 1
    assert names != {path.read_text() for path in launched["none"][2].glob("*.names.*")}


def test_a_users_error_starts_nothing_again(launched):
    assert attempts(launched["data"][2]) == [".0"]


def test_a_rank_that_hangs_is_named_with_its_step_and_its_line(launched):
    code, error, folder = launched["hanging"]
    lines = (folder / "script.py").read_text().splitlines()
    sleeping = lines.index("    time.sleep(10_000)") + 1
    called = next(number for number, line in enumerate(lines, 1) if line.endswith("# here"))
    first, second, _ = error.splitlines()
    assert code == 1
    assert first.startswith("error[E-HANG]: rank 1 (")
    assert first.endswith("has not moved for 3 seconds, in step 3")
    place = f"  at {folder}/script.py:{sleeping} in wait_for_ever (from script.py:{called}, "
    assert second.startswith(place)


def test_ranks_that_wait_for_one_another_are_all_named_with_where_they_stand(launched):
    code, error, _ = launched["waiting"]
    assert code == 1
    assert error.startswith("error[E-HANG]: all 2 ranks wait for one another, for 3 seconds\n")
    for rank, call in enumerate(("all_reduce", "broadcast")):
        assert re.search(rf"rank {rank}: \S+ in {call} \([^)]*\), in step 5", error)


LAST_LINES = """
import atexit, os, sys
from torchtune.distributed.launcher_watch import leave_at_once_when_done, work_is_done
from torchtune.errors import DataError, report_errors

def main(kind):
    if kind == "before": raise DataError("E-ROW", "too early")
    work_is_done()
    if kind == "exit": sys.exit(3)
    if kind == "bug": raise RuntimeError("too late")
    if kind == "data": raise DataError("E-ROW", "too late")

atexit.register(print, "a tidy exit", file=sys.stderr)
leave_at_once_when_done()
for kind in sys.argv[1:]:
    if (child := os.fork()) == 0:
        break
    print(kind, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)
with report_errors():
    main(kind)
try:
    sys.exit(9)
except SystemExit:
    pass
if kind == "late": raise SystemExit(5)
"""


def test_an_exit_code_given_after_all_is_done_is_the_processs():
    expected = {"before": 4, "done": 0, "exit": 3, "bug": 1, "data": 4, "late": 5}
    command = [sys.executable, "-c", LAST_LINES, *expected]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == [str(word) for pair in expected.items() for word in pair]
    assert done.stderr.count("too late") == 2
    assert "tidy" not in done.stderr  # in which gloo may abort


def wait_for(condition):
    """Wait until `condition` holds; fail after five minutes."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers(folder):
    """Return the process numbers of both workers once they train."""
    files = [folder / "0.pid", folder / "1.pid"]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def is_alive(number):
    """Say whether a process runs; one that nobody has collected yet does not."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    status = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True
    )
    return status.stdout.strip()[:1] not in ("Z", "")


@pytest.mark.parametrize(
    "number",  # SIGTERM of two processes is also sent to `tune run`
    [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT],
)
def test_an_interrupted_run_is_saved_by_all_and_ends_with_75(tmp_path, number):
    launcher = start(tmp_path / "run", "wait")
    workers(tmp_path / "run")
    launcher.send_signal(number)
    error = launcher.communicate(timeout=300)[1]
    assert launcher.returncode == 75
    assert error == "error[E-STOPPED]: saved step 3\n  resume with auto\n"
    assert len(list((tmp_path / "run").glob("*.saved"))) == 2


def test_a_second_signal_ends_all_at_once(tmp_path):
    launcher = start(tmp_path / "run", "wait", saving=1000)
    numbers = workers(tmp_path / "run")
    launcher.send_signal(signal.SIGTERM)
    wait_for(lambda: len(list((tmp_path / "run").glob("*.saving"))) == 2)
    time.sleep(1.1)  # signals closer together are one
    assert all(map(is_alive, numbers))
    launcher.send_signal(signal.SIGINT)
    assert (launcher.communicate(timeout=300)[1], launcher.returncode) == ("", 128 + signal.SIGTERM)
    assert not any(map(is_alive, numbers))


@pytest.mark.slow  # torchrun leaves a frozen process 30 seconds
def test_a_frozen_rank_is_named_by_another(tmp_path):
    launcher = start(tmp_path / "run", "hanging")
    frozen = workers(tmp_path / "run")[1]
    os.kill(frozen, signal.SIGSTOP)
    error = launcher.communicate(timeout=300)[1]
    assert launcher.returncode == 1
    assert error.startswith("error[E-HANG]: rank 1")
    assert "has given no sign of life for 3 seconds" in error


@pytest.mark.slow
def test_a_rank_that_leaves_in_good_order_is_not_missed(tmp_path):
    launcher = start(tmp_path / "run", "leaving")
    assert (launcher.communicate(timeout=300)[1], launcher.returncode) == ("", 0)


def test_workers_end_when_their_launcher_is_killed(tmp_path):
    launcher = start(tmp_path / "run", "wait")
    numbers = workers(tmp_path / "run")
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not any(map(is_alive, numbers)))
    assert not list((tmp_path / "run").glob("*.saved"))


CALL_ALL = """
import json, sys
from torchtune.distributed import launch
from torchtune.errors import TuneError
for words in json.loads(sys.argv[1]):
    try:
        launch(words)
    except TuneError as error:
        print(error.exit_code, error.code, error.what, error.do, sep="|")
"""


def test_options_that_start_nothing_are_our_errors():
    alone = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    words = [
        ["--nproc-per-node", "many", "script.py"],
        ["--nproc-per-node", "0", "script.py"],
        [*alone, "--rdzv-conf", "join_timeout=1", "script.py"],
    ]
    command = [sys.executable, "-c", CALL_ALL, json.dumps(words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    many, none, late = result.stdout.splitlines()
    assert many.startswith("2|E-LAUNCH|") and "many" in many
    assert none.startswith("2|E-LAUNCH|--nproc-per-node is 0; at least one process is needed")
    assert late.startswith("1|E-LAUNCH|the processes did not meet: not all nodes came in time|look")
