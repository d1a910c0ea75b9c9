"""`launch` as the command uses it: with a script, real processes and real signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import os, sys, time
from pathlib import Path
from torchtune.distributed import join_world
from torchtune.errors import DataError, Interrupted, report_errors
from torchtune.training import StopSignal

def fail(world, kind):
    if world.rank == 1 and kind == "data":
        raise DataError("E-ROW", "bad row", where="f.jsonl:3")
    if world.rank == 1 and kind == "bug":
        raise RuntimeError("nobody thought of this")
    if world.rank == 1 and kind == "killed":
        os.kill(os.getpid(), 9)

def run(kind, folder):
    stop = StopSignal()
    world = join_world("cpu")
    (folder / f"{world.rank}.pid").write_text(str(os.getpid()))
    if kind == "wait":
        while not world.any(stop.requested):
            time.sleep(0.05)
        time.sleep(0.3 + world.rank)  # saving
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


def start(folder, kind):
    """Launch two processes of the script."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [
        sys.executable,
        "-c",
        LAUNCH,
        "--nproc-per-node",
        "2",
        str(script),
        kind,
        str(folder),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Start all that need no signal at the same time; return exit code, stderr and folder."""
    folder = tmp_path_factory.mktemp("launch")
    running = {kind: start(folder / kind, kind) for kind in ("none", "data", "bug", "killed")}
    errors = {kind: process.communicate(timeout=120)[1] for kind, process in running.items()}
    return {kind: (running[kind].returncode, errors[kind], folder / kind) for kind in running}


def test_the_processes_meet_share_the_cores_and_are_quiet(launched):
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


def wait_for(condition):
    """Wait until `condition` holds; fail after a minute."""
    deadline = time.monotonic() + 60
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_is_saved_by_all_and_ends_with_75(tmp_path, number):
    launcher = start(tmp_path / "run", "wait")
    workers(tmp_path / "run")
    launcher.send_signal(number)
    error = launcher.communicate(timeout=60)[1]
    assert launcher.returncode == 75
    assert error == "error[E-STOPPED]: saved step 3\n  resume with auto\n"
    assert len(list((tmp_path / "run").glob("*.saved"))) == 2


def test_workers_end_when_their_launcher_is_killed(tmp_path):
    launcher = start(tmp_path / "run", "wait")
    numbers = workers(tmp_path / "run")
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not any(map(is_alive, numbers)))
    assert not list((tmp_path / "run").glob("*.saved"))


def test_a_wrong_option_value_is_our_error(tmp_path):
    words = ["--nproc-per-node", "many", "script.py"]
    code = "from torchtune.errors import report_errors\nwith report_errors():\n  " + LAUNCH
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert result.returncode == 2
    assert "error[E-LAUNCH]" in result.stderr
    assert "many" in result.stderr
