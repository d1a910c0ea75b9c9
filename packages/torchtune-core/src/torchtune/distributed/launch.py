"""Starting the processes of a run, through torchrun's own agent."""

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torchtune.distributed.failures import Failure, left_messages
from torchtune.errors import ConfigError, TuneError

__all__ = ["launch"]

SAVE_SECONDS = 3600
"""How long interrupted workers may take to save; torchrun's 30 seconds are short for a big model."""


def launch(words: Sequence[str]) -> int:
    """Run a script in several processes and wait for it; what ``torchrun WORDS`` does, quietly.

    SIGTERM and SIGINT are passed on, and the workers may save before they leave; a second one ends
    them at once. Of several failures the first one's message alone is printed, on stderr. With
    ``--max-restarts`` all workers start again after one has died, but not after an error of the
    user's or an interruption. On one machine workers share the cores, where ``OMP_NUM_THREADS``
    does not say otherwise, and no port is fixed.

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
    elif args.rdzv_backend != "static":
        # Nodes that come and go have no common count of attempts: each attempt has its own store.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    args.master_port = args.master_port or 29500  # torchrun's own default
    threads_are_given = "OMP_NUM_THREADS" in os.environ
    try:
        config, command, arguments = config_from_args(args)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError("E-LAUNCH", str(error), do="see torchrun's options") from error
    if config.nproc_per_node < 1:
        what = f"--nproc-per-node is {config.nproc_per_node}; at least one process is needed"
        raise ConfigError("E-LAUNCH", what)
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
    os.environ["TUNE_LAUNCHED"] = uuid.uuid4().hex  # a name, the same for all its attempts
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

    with _own_agent() as agents:
        try:
            elastic_launch(config, command)(*arguments)
        except ChildFailedError:
            return _tell(agents[0].failure)
        except SignalException as interruption:
            messages = left_messages(config.logs_specs.root_log_dir, agents[0].started)
            return _tell(messages[0]) if messages else 128 + int(interruption.sigval)
        except (RendezvousError, OSError) as error:
            if agents and agents[0].failure:  # it was to start again, and the others have left
                return _tell(agents[0].failure)
            do = "look at --nnodes, --rdzv-endpoint and --master-addr"
            what = f"the processes did not meet: {str(error) or _reason(error)}"
            raise TuneError("E-LAUNCH", what, do=do) from error
    return 0


def _reason(error: Exception) -> str:
    """Say what torchrun's error means, where it has no text."""
    meanings = {
        "RendezvousTimeoutError": "not all nodes came in time",
        "RendezvousClosedError": "the others have ended the run",
    }
    return meanings.get(type(error).__name__, type(error).__name__)


@contextmanager
def _own_agent() -> Iterator[list[Any]]:
    """Make torchrun take our agent, for which it has no option; give the one that it makes."""
    import torch.distributed.launcher.api as launcher

    from torchtune.distributed.agent import Agent

    made: list[Any] = []
    module: Any = launcher

    def make(*args: Any, **kwargs: Any) -> Agent:
        made.append(Agent(*args, **kwargs))
        return made[0]

    theirs, module.LocalElasticAgent = module.LocalElasticAgent, make
    try:
        yield made
    finally:
        module.LocalElasticAgent = theirs


def _tell(failure: Failure) -> int:
    print(failure.text, file=sys.stderr, flush=True)
    return failure.exit_code
