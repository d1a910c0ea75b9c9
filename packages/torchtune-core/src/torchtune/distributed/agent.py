"""torchrun's agent, with the manners that `launch` needs."""

import contextlib
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from torchtune.distributed.failures import FINAL_CODES, Failure, first_failure, left_messages

__all__ = ["Agent"]

ONE_SIGNAL_SECONDS = 1.0
"""Within it a signal counts once: `timeout`, for one, sends it to a process and to its group."""


class Agent(LocalElasticAgent):
    """An agent that restarts only what may go better, gives time to save, and can be cut short.

    torchrun's own restarts workers whatever they ended with, sends each further signal on to them
    and waits again, and gives them 30 seconds when another node joins.

    Attributes:
        failure: The cause of the last attempt's end, for the launcher to tell; None while all
            goes well.
        started: When the present attempt began, in nanoseconds since the epoch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failure: Failure | None = None
        self.started = time.time_ns()
        self.restarts = 0
        self.stopping_since: float | None = None

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.started = time.time_ns()
        numbers: dict[int, Any] = super()._start_workers(worker_group)
        for name in os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"].split(","):
            if hasattr(signal, name.strip()):
                signal.signal(getattr(signal, name.strip()), self._note_signal)
        return numbers

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        """Let the workers save at the first signal, and end them at once at the second."""
        now = time.monotonic()
        if self.stopping_since is None:
            self.stopping_since = now
            raise SignalException("the launcher was told to stop", signal.Signals(number))
        if now - self.stopping_since < ONE_SIGNAL_SECONDS:
            return
        for worker in self._pcontext.pids().values() if self._pcontext else ():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)  # each leads a group, with what it started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.is_failed():
            left = left_messages(self._logs_specs.root_log_dir, self.started)
            self.failure = first_failure(left, result.failures)
            codes = {self.failure.exit_code, *(f.exitcode for f in result.failures.values())}
            if codes & {*FINAL_CODES}:
                raise ChildFailedError(worker_group.spec.role, result.failures)
            self._tell_of_restart(worker_group.spec.max_restarts)
        return result

    def _tell_of_restart(self, most: int) -> None:
        self.restarts += 1
        if self.failure and self.restarts <= most:
            cause = self.failure.text.splitlines()[0 if self.failure.is_ours else -1]
            told = (
                f"warning: {cause}\n  all processes start again, restart {self.restarts} of {most}"
            )
            print(told, file=sys.stderr, flush=True)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        super()._shutdown(death_sig, max(timeout, self._shutdown_timeout))
