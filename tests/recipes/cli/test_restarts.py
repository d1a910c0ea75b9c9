"""A run whose processes die ends as if nothing had been: restarted by its launcher, or as a node."""

import os
import signal
import subprocess
import sys
import time

import pytest
from killed_runs import free_port
from torchtune.testing import tiny_checkpoint, tiny_rows

TUNE = [sys.executable, "-m", "torchtune_recipes.cli.main", "run"]
# Python imports this file by itself when it starts.
KILLED_AFTER_A_SAVE = """
import os, signal, threading, time
from pathlib import Path

def end_after_a_save():
    while not Path(os.environ["LATEST"]).exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

if (os.environ.get("RANK"), os.environ.get("TORCHELASTIC_RESTART_COUNT")) == ("1", "0"):
    threading.Thread(target=end_after_a_save, daemon=True).start()
"""
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, rows and a config."""
    folder = tmp_path_factory.mktemp("restarts")
    (folder / "sitecustomize").mkdir()
    (folder / "sitecustomize/sitecustomize.py").write_text(KILLED_AFTER_A_SAVE)
    model, rows = tiny_checkpoint(folder / "model"), tiny_rows(folder, 24)
    settings = {
        "checkpoint": model,
        "dataset": rows,
        "device": "cpu",
        "dtype": "fp32",
        "batch_size": 2,
        "max_steps": 30,
        "save_every_n_steps": 5,
    }
    (folder / "my.yaml").write_text("".join(f"{k}: {v}\n" for k, v in settings.items()))
    return folder


def start(place, name, *options, **variables):
    """Start a run that writes into the folder `name`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [*TUNE, *options, "sft", "--config", "my.yaml", f"output_dir={place / name}"]
    return subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)


def finished(process, seconds=300):
    """Wait for a process; return its exit code and what it said."""
    try:
        _, said = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, said


@pytest.fixture(scope="module")
def undisturbed(place):
    """The weights of the run in two processes that nobody disturbs."""
    code, said = finished(start(place, "undisturbed", "--nproc_per_node", "2"))
    assert code == 0, said
    return weights(place, "undisturbed")


def weights(place, name):
    return (place / name / "latest/model.safetensors").read_bytes()


def test_a_run_goes_on_by_itself_after_a_rank_was_killed(place, undisturbed):
    options = ("--nproc_per_node", "2", "--max-restarts", "2")
    killed = {"PYTHONPATH": str(place / "sitecustomize"), "LATEST": str(place / "killed/latest")}
    code, said = finished(start(place, "killed", *options, **killed))
    assert code == 0, said
    assert said.count("warning: error[E-WORKER]: the process of rank 1 got SIGKILL") == 1
    assert "restart 1 of 2" in said
    assert weights(place, "killed") == undisturbed
    steps = (place / "killed/metrics.jsonl").read_text().splitlines()
    assert len(steps) == 30


def wait_for(path, process, seconds=300):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def kill_all_of(process):
    """Kill a launcher and what it started, as a machine that goes down would."""
    listed = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
    children = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    for number in (process.pid, *map(int, children)):
        os.kill(number, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_of_two_nodes_one_is_killed_and_comes_back(place, undisturbed):
    nodes = ("--nnodes", "2", "--rdzv-backend", "c10d", "--max-restarts", "2")
    nodes = (*nodes, "--rdzv-endpoint", f"localhost:{free_port()}")
    first = start(place, "nodes", *nodes)
    time.sleep(5)  # whoever comes first holds the store of both
    second = start(place, "nodes", *nodes)
    wait_for(place / "nodes/latest", first)
    kill_all_of(second)
    assert first.poll() is None
    back = start(place, "nodes", *nodes)
    told = {}
    for process in (first, back):
        code, told[process] = finished(process)
        assert code == 0, told[process]
    assert "all processes start again, restart 1 of 2" in told[first]
    assert weights(place, "nodes") == undisturbed


@pytest.mark.slow
def test_two_pods_of_a_kubernetes_job_train_together(place, undisturbed):
    job = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "localhost"}
    job["PET_MASTER_PORT"] = str(free_port())
    pods = [start(place, "pods", **job, PET_NODE_RANK=rank) for rank in "01"]
    for pod in pods:
        code, said = finished(pod)
        assert code == 0, said
    assert weights(place, "pods") == undisturbed
