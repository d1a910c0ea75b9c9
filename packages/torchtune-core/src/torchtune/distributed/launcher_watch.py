"""What a worker owes its launcher: to end when it dies, and to tell it what went wrong."""

import atexit
import os
import sys
import threading
import time
import traceback
from opcode import opname
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from torchtune.errors import reported_exit_code, tell_launcher

if TYPE_CHECKING:
    from torchtune.distributed.world import World

__all__ = [
    "end_with_launcher",
    "launch_names",
    "leave_at_once_when_done",
    "report_to_launcher",
    "work_is_done",
]

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
    if "TUNE_LAUNCHED" in os.environ:
        sys.excepthook = _tell


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, trace)).rstrip()
    if not tell_launcher(text, 1):
        sys.__excepthook__(kind, error, trace)


def launch_names(world: "World") -> set[str]:
    """Return the names of the launchers of ``tune run`` that started the processes of `world`.

    There is one a machine, the same for every attempt with ``--max-restarts``, and none without
    ``tune run``. So a run knows what an earlier attempt of its own has left. Every process must
    call this.
    """
    return {name for name in world.gather(os.environ.get("TUNE_LAUNCHED")) if name}


class _LastWords:
    """Follow how the outermost frame ends, to know the exit code before the interpreter leaves."""

    def __init__(self, frame: FrameType) -> None:
        self.raised: BaseException | None = None
        self.exit_code = 0
        frame.f_trace = self.note
        sys.settrace(lambda *_: None)  # functions that are yet to be called are not followed

    def note(self, frame: FrameType, event: str, found: Any) -> Any:
        if event == "exception":
            self.raised = found[1]
        elif event == "return":  # an exception that leaves the frame ends with this event, too
            returned = opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN")
            self.exit_code = 0 if returned else _exit_code(self.raised)
        return self.note


def _exit_code(raised: BaseException | None) -> int:
    if not isinstance(raised, SystemExit):
        return 1
    if raised.code is None or isinstance(raised.code, int):
        return raised.code or 0
    return 1  # a text, which is printed


_last_words: _LastWords | None = None


def leave_at_once_when_done() -> None:
    """Let this process end without a tidy exit, once `work_is_done` was called or an error reported.

    gloo's threads can abort a tidy exit ("terminate called without an active exception"), which
    the launcher takes for a failure: one run of two processes in twelve. Call it early, so that it
    is the last thing at exit.
    """
    atexit.register(_leave)


def work_is_done() -> None:
    """Say that all is saved and closed, so that nothing is lost when this process leaves at once.

    Its exit code is what it would have been: of a `SystemExit` or another exception that follows.
    With a debugger it leaves tidily.
    """
    global _last_words
    if sys.gettrace() is None:
        _last_words = _LastWords(_outermost_frame())


def _outermost_frame() -> FrameType:
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


def _leave() -> None:
    code = reported_exit_code() if _last_words is None else _last_words.exit_code
    if code is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
