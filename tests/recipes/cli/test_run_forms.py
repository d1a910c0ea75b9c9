"""The spellings of one run: tune, python and torchrun, the shipped recipe and a copy of it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close
from torchtune.testing import tiny_checkpoint, tiny_rows

TUNE = [sys.executable, "-m", "torchtune_recipes.cli.main"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
FORMS = {
    "tune sft": [*TUNE, "sft"],
    "python sft.py": [sys.executable, "sft.py"],
    "torchrun sft.py": [*TORCHRUN, "--standalone", "--nproc_per_node=2", "sft.py"],
    "tune sft.py, two processes": [*TUNE, "--nnodes", "1", "--nproc_per_node", "2", "sft.py"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, rows, a config and a copy of the recipe."""
    folder = tmp_path_factory.mktemp("forms")
    model, rows = tiny_checkpoint(folder / "model"), tiny_rows(folder, 24)
    settings = {"checkpoint": model, "dataset": rows, "device": "cpu", "dtype": "fp32"}
    lines = [f"{key}: {value}" for key, value in settings.items()]
    (folder / "my.yaml").write_text("\n".join([*lines, "batch_size: 2", "max_steps: 3"]) + "\n")
    done = subprocess.run([*TUNE, "cp", "sft"], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0
    return folder


def start(place, form, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*FORMS[form], "--config", "my.yaml", *words]
    return subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)


def finished(process):
    """Wait for a process; return its exit code and what it said."""
    try:
        _, said = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, said


def weights(place, form, *words):
    output = place / form.replace(" ", "_")
    code, said = finished(start(place, form, f"output_dir={output}", *words))
    assert code == 0, said
    return load_file(output / "latest/model.safetensors")


def test_all_forms_of_a_run_give_the_same_weights(place):
    alone = weights(place, "tune sft", "gradient_accumulation_steps=2")
    copied = weights(place, "python sft.py", "gradient_accumulation_steps=2")
    pair = weights(place, "tune sft.py, two processes")
    assert_close(copied, alone, rtol=0, atol=0)
    assert_close(weights(place, "torchrun sft.py"), pair, rtol=0, atol=0)
    for name, value in alone.items():
        assert (pair[name] - value).norm() <= 1e-4 * value.norm()


def test_the_first_failing_ranks_message_and_code_are_passed_on_alone(place):
    code, said = finished(start(place, "tune sft.py, two processes", "max_seq_len=100000"))
    assert code == 2
    assert said.count("error[") == 1
    assert said[said.index("error[") :].startswith("error[E-MAX-SEQ-LEN]: 100000 tokens are more")
    assert "Traceback" not in said


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("form", ["tune sft", "tune sft.py, two processes"])
def test_a_run_that_is_told_to_stop_saves_and_exits_75(place, form):
    output = place / f"stopped_{len(form)}"
    process = start(place, form, f"output_dir={output}", "max_steps=100000")
    wait_for(output / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    code, said = finished(process)
    assert code == 75, said
    assert said.count("error[E-INTERRUPTED]") == 1
    assert (output / "latest/model.safetensors").is_file()


@pytest.mark.slow  # what `launch` does of this is in the tests of the default suite
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_killed_worker_is_one_line_and_exit_code_1(place):
    output = place / "killed"
    process = start(place, "tune sft.py, two processes", f"output_dir={output}", "max_steps=100000")
    wait_for(output / "metrics.jsonl", process)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    code, said = finished(process)
    error = said[said.index("error[") :].strip().splitlines()
    assert (code, len(error)) == (1, 2)
    assert "got SIGKILL" in error[0]


def wait_for(path, process, seconds=300):
    end = time.monotonic() + seconds
    while not (path.is_file() and path.stat().st_size):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


def workers_of(process):
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in listed.stdout.split()][:2]
