"""What ends a command without a traceback."""

import signal
import subprocess
import sys

PROGRAM = """
import os, signal
from torchtune.errors import report_errors

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
with report_errors():
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_ends_with_the_exit_code_of_shells():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == "interrupted\n"
