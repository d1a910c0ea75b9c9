"""A Python that has loaded torch, of which programs start as copies: that saves them three seconds.

A program gets a folder, an environment and streams of its own. What it loads of ours it loads itself.
One that is to be sent a signal, or to find another torch, needs a process of its own.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

PARTS = (
    "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.run", "torch.distributed.tensor",
    "tokenizers", "jinja2", "matplotlib.figure", "matplotlib.backends.backend_agg",
)  # fmt: skip
"""What a run imports of others' code."""

LONGEST_SECONDS = 600
STREAMS = ("stdin", "stdout", "stderr")
Completed = subprocess.CompletedProcess[str]


class WarmPython:
    """Runs modules in copies of a process; one after the other."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(
        self, module: str, *words: str, cwd: Path, env: Mapping[str, str], input: str = ""
    ) -> Completed:
        """Do what ``python -m MODULE WORDS`` does in a folder; return what it says and its code."""
        if sys.platform != "linux":  # elsewhere a process that has loaded torch cannot be copied
            command = [sys.executable, "-m", module, *words]
            return subprocess.run(
                command, cwd=cwd, env=env, input=input, capture_output=True, text=True
            )
        with tempfile.TemporaryDirectory() as name:
            streams = [Path(name, stream) for stream in STREAMS]
            streams[0].write_text(input, encoding="utf-8")
            order = {"module": module, "words": words, "cwd": str(cwd), "env": {**env}}
            code = self._asked({**order, "streams": [*map(str, streams)]})
            said = (path.read_text(encoding="utf-8", errors="replace") for path in streams[1:])
            return subprocess.CompletedProcess([module, *words], code, *said)

    def _asked(self, order: dict[str, Any]) -> int:
        if self._process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._process = subprocess.Popen([sys.executable, __file__], text=True, **pipes)
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()


def main() -> None:
    """Start a copy for each line of stdin, and write the code it ends with to stdout."""
    for part in PARTS:
        importlib.import_module(part)
    gc.freeze()  # so that no copy has to write where this process's objects lie
    while line := sys.stdin.readline():
        if not (copy := os.fork()):
            become(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]), flush=True)


def become(
    module: str, words: list[str], cwd: str, env: dict[str, str], streams: list[str]
) -> NoReturn:
    """Go on as the program that was asked for, to its end."""
    signal.alarm(LONGEST_SECONDS)
    for number, path in enumerate(streams):
        flags = os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY
        os.dup2(os.open(path, flags), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    more = env.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1], sys.argv[1:] = [cwd, *filter(None, more)], words
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)  # to free all that torch holds takes a second


if __name__ == "__main__":
    main()
