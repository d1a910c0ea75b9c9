"""Starting the processes of a run, through torchrun's own agent."""

import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtune.errors import ConfigError, TuneError

__all__ = ["launch"]

SAVE_SECONDS = 3600
"""How long interrupted workers may take to save; torchrun's 30 seconds are short for a big model."""

KNOWN_CODES = (2, 3, 4, 75)
"""Exit codes of ours that keep their meaning when a worker leaves no message."""


def launch(words: Sequence[str]) -> int:
    """Run a script in several processes and wait for it; what ``torchrun WORDS`` does, quietly.

    SIGTERM and SIGINT are passed on, and the workers may save before they leave. Of several
    failures the first one's message alone is printed, on stderr. On one machine workers share
    the cores, where ``OMP_NUM_THREADS`` does not say otherwise, and no port is fixed.

    Args:
        words: torchrun's options, the script, and the script's arguments.

    Returns:
        0, the first failing worker's exit code, 75 if the run was interrupted and saved, or 128
        and the signal's number if it was interrupted before it could save.

    Raises:
        ConfigError: An option's value is wrong.
        TuneError: The machines did not find each other.
    """
    with tempfile.TemporaryDirectory(prefix="tune_") as folder, _worker_environment(), _quiet():
        config, command, arguments = _configure(words, folder)
        return _run(config, command, arguments)


def _configure(words: Sequence[str], folder: str) -> tuple[Any, Any, list[str]]:
    from torch.distributed.run import config_from_args, parse_args

    args = parse_args(list(words))
    args.log_dir = args.log_dir or folder
    if args.shutdown_timeout is None and "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in os.environ:
        args.shutdown_timeout = SAVE_SECONDS
    if args.standalone or _is_local(args):
        args.rdzv_backend, args.rdzv_endpoint = "c10d", "localhost:0"
        args.rdzv_id = f"{os.getpid()}"
        args.local_addr = args.local_addr or "localhost"
    args.master_port = args.master_port or 29500  # torchrun's own default
    threads_are_given = "OMP_NUM_THREADS" in os.environ
    try:
        config, command, arguments = config_from_args(args)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError("E-LAUNCH", str(error), do="see torchrun's options") from error
    if not threads_are_given:
        os.environ["OMP_NUM_THREADS"] = str(max(1, _cores() // config.nproc_per_node))
    return config, command, arguments


def _is_local(args: Any) -> bool:
    given = args.rdzv_backend != "static" or args.rdzv_endpoint or args.master_port
    return not given and args.nnodes in ("1", "1:1")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # what this process may use, as in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _worker_environment() -> Iterator[None]:
    kept = dict(os.environ)
    os.environ["TUNE_LAUNCHED"] = "1"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torchrun's agent, which logs a page for each failure; TUNE_TRACEBACK=1 does not."""
    before = logging.root.manager.disable
    if os.environ.get("TUNE_TRACEBACK") != "1":
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _run(config: Any, command: Any, arguments: list[str]) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    started = time.time_ns()
    try:
        elastic_launch(config, command)(*arguments)
    except ChildFailedError as error:
        messages = _messages(config.logs_specs.root_log_dir, started)
        return _tell(_first_failure(messages, error))
    except SignalException as interruption:
        messages = _messages(config.logs_specs.root_log_dir, started)
        code = 128 + int(interruption.sigval)
        return _tell(messages[0]) if messages else code
    except (RendezvousError, OSError) as error:
        do = "look at --nnodes, --rdzv-endpoint and --master-addr"
        raise TuneError("E-LAUNCH", f"the processes did not meet: {error}", do=do) from error
    return 0


@dataclass(frozen=True)
class _Message:
    text: str
    exit_code: int

    @property
    def is_ours(self) -> bool:
        return self.text.startswith("error[")


def _tell(message: _Message) -> int:
    print(message.text, file=sys.stderr, flush=True)
    return message.exit_code


def _messages(folder: str, started: int) -> list[_Message]:
    """Read what workers left (`torchtune.errors.tell_launcher`), the earliest first."""
    files = [(path.stat().st_mtime_ns, path) for path in Path(folder).rglob("error.json")]
    recent = sorted(entry for entry in files if entry[0] >= started)
    contents = [json.loads(path.read_text(encoding="utf-8"))["message"] for _, path in recent]
    return [_Message(c["message"], c.get("exit_code", 1)) for c in contents if isinstance(c, dict)]


def _first_failure(messages: list[_Message], error: Any) -> _Message:
    """Find the cause among the failures: peers of a process that left fail by its leaving."""
    ours = [message for message in messages if message.is_ours]
    if ours:
        return ours[0]
    killed = (-signal.SIGKILL, -signal.SIGSEGV) if os.name == "posix" else ()
    for rank, failure in error.failures.items():
        if failure.exitcode in killed:
            return _death(rank, failure.exitcode)
    if messages:
        return messages[0]
    rank, failure = error.get_first_failure()
    return _death(rank, failure.exitcode)


def _death(rank: int, code: int) -> _Message:
    if code >= 0:
        error = TuneError("E-WORKER", f"the process of rank {rank} ended with exit code {code}")
        return _Message(str(error), code if code in KNOWN_CODES else 1)
    name = signal.Signals(-code).name
    do = "the system may have run out of memory" if name == "SIGKILL" else ""
    return _Message(str(TuneError("E-WORKER", f"the process of rank {rank} got {name}", do=do)), 1)
