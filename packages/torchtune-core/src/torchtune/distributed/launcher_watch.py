"""What a worker owes its launcher: to end when it dies, and to tell it what went wrong."""

import atexit
import os
import sys
import threading
import time
import traceback
from types import TracebackType

from torchtune.errors import tell_launcher

__all__ = ["end_with_launcher", "leave_at_once_when_done", "report_to_launcher", "work_is_done"]

PERIOD_SECONDS = 0.5


def end_with_launcher() -> None:
    """End this process soon after its launcher has died, if torchrun started it.

    A launcher that is killed cannot stop its workers, and they would train on and hold the
    output folder. A save that is cut off this way leaves the last whole checkpoint untouched.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and os.name == "posix":
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    # An orphan is given to another process, so the parent's number changes.
    while os.getppid() == parent:
        time.sleep(PERIOD_SECONDS)
    os._exit(1)  # not sys.exit, which ends this thread alone


def report_to_launcher() -> None:
    """Send what would be this process's last traceback to the launcher of ``tune run``.

    When one process fails its peers fail too, in the middle of a collective. The launcher shows
    the first failure and none of the echoes.
    """
    if os.environ.get("TUNE_LAUNCHED") == "1":
        sys.excepthook = _tell


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, trace)).rstrip()
    if not tell_launcher(text, 1):
        sys.__excepthook__(kind, error, trace)


_work_is_done = threading.Event()


def leave_at_once_when_done() -> None:
    """Let this process end without a tidy exit, once `work_is_done` was called.

    gloo's threads can abort a tidy exit ("terminate called without an active exception"), which
    the launcher takes for a failure: one run of two processes in twelve. Call it early, so that it
    is the last thing at exit.
    """
    atexit.register(_leave)


def work_is_done() -> None:
    """Say that all is saved and closed, so that the exit code is 0 unless an exception follows."""
    former = sys.excepthook

    def failed(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        _work_is_done.clear()
        former(kind, error, trace)

    sys.excepthook = failed
    _work_is_done.set()


def _leave() -> None:
    if _work_is_done.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
