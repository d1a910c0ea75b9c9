"""Runs killed with SIGKILL end in the bits of runs left alone: the program `ci/kill_test.py`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "ci/kill_test.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")


def kill(*arguments: str, timeout: float) -> None:
    """Run the program; what it says, its seed first, is shown where it fails."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r": 0 lost, 0 differing", done.stdout), done.stdout + done.stderr


def test_four_kills_of_one_process_and_of_two_lose_nothing():
    kill(
        "--kills",
        "4",
        "--form",
        "full-1",
        "--form",
        "lora-2-background",
        "--jobs",
        "1",
        timeout=600,
    )


@pytest.mark.slow
def test_twenty_kills_of_every_form_started_by_tune_run_lose_nothing():
    kill("--kills", "20", "--cold", timeout=1800)
