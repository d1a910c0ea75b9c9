"""The documentation's batch file under a real Slurm: stopped, put back, gone on with, finished."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torchtune.testing import tiny_checkpoint, tiny_rows

BATCH = Path(__file__).resolve().parents[3] / "docs/slurm/sft.sbatch"
SETTINGS = ["device=cpu", "dtype=fp32", "batch_size=2", "max_steps=300", "save_every_n_steps=20"]


def slurm(*words):
    """Run one of Slurm's commands; return what it says."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def place(tmp_path):
    if shutil.which("sbatch") is None or "UP" not in ask_controller():
        pytest.skip("no Slurm is at hand: sbatch is missing or its controller does not answer")
    tiny_checkpoint(tmp_path / "my-model")
    tiny_rows(tmp_path, 24).rename(tmp_path / "my.jsonl")
    return tmp_path


def ask_controller():
    return subprocess.run(["scontrol", "ping"], capture_output=True, text=True).stdout


def submit(place, output):
    """Submit the batch file for one machine without a GPU; return the job's number."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    there = f"PATH={path},OMP_NUM_THREADS=1,PROCESSES_PER_NODE=2"
    options = [
        "--parsable",
        f"--export=ALL,{there}",
        "--nodes=1",
        "--gpus-per-node=0",
        "--time=60",
        f"--chdir={place}",
    ]
    words = ["sft", "--checkpoint", "my-model", "--dataset", "my.jsonl", *SETTINGS]
    words += [f"output_dir={output}", "resume_from_checkpoint=auto"]
    return slurm("sbatch", *options, BATCH, *words)


def state(job):
    fields = slurm("scontrol", "show", "job", job).split()
    return dict(field.partition("=")[::2] for field in fields)


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.5)


def weights(place, output):
    return (place / output / "latest/model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_is_put_back_and_ends_as_if_it_had_not_been(place):
    job = submit(place, "stopped")
    wait_until((place / "stopped/latest").exists)
    slurm("scancel", "--signal=TERM", job)
    wait_until(lambda: state(job)["Restarts"] == "1" and state(job)["JobState"] == "PENDING")
    assert "error[E-INTERRUPTED]" in (place / f"slurm-{job}.out").read_text()
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_until(lambda: state(job)["JobState"] == "COMPLETED")

    undisturbed = submit(place, "undisturbed")
    wait_until(lambda: state(undisturbed)["JobState"] == "COMPLETED")
    assert weights(place, "stopped") == weights(place, "undisturbed")


@pytest.mark.slow
def test_a_users_error_fails_the_job_with_its_code_and_does_not_put_it_back(place):
    (place / "my.jsonl").unlink()
    job = submit(place, "failed")
    wait_until(lambda: state(job)["JobState"] == "FAILED")
    assert (state(job)["ExitCode"], state(job)["Restarts"]) == ("3:0", "0")
