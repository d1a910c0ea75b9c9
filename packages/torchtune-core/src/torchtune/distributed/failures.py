"""What a launcher says of workers that failed: one message, the cause's."""

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torchtune.errors import TuneError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing import ProcessFailure

__all__ = ["FINAL_CODES", "Failure", "first_failure", "left_messages"]

FINAL_CODES = (2, 3, 4, 75, 130)
"""Exit codes of a wrong config, a missing thing, bad data, and of a run that was told to stop.

They keep their meaning when a worker leaves no message, and another attempt would end the same way.
"""


ECHOES = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
"""What gloo and NCCL say last when the process at the other end has left."""


@dataclass(frozen=True)
class Failure:
    """Why a run ended.

    Args:
        text: What the user shall read.
        exit_code: What the command shall return.
    """

    text: str
    exit_code: int

    @property
    def is_ours(self) -> bool:
        """Whether the text is one of our errors, and not a traceback."""
        return self.text.startswith("error[")

    @property
    def is_echo(self) -> bool:
        """Whether a process has failed only because another one left."""
        last = self.text.rstrip().rpartition("\n")[2]
        return not self.is_ours and any(echo in last for echo in ECHOES)


def left_messages(folder: str | os.PathLike[str], since: int) -> list[Failure]:
    """Read what workers left in `folder` (`torchtune.errors.tell_launcher`), the earliest first.

    Args:
        folder: The launcher's, or the user's ``--log-dir``.
        since: In nanoseconds since the epoch; what is older is of another attempt or run.
    """
    files = [(path.stat().st_mtime_ns, path) for path in Path(folder).rglob("error.json")]
    recent = sorted(entry for entry in files if entry[0] >= since)
    contents = [json.loads(path.read_text(encoding="utf-8"))["message"] for _, path in recent]
    return [Failure(c["message"], c.get("exit_code", 1)) for c in contents if isinstance(c, dict)]


def first_failure(messages: list[Failure], processes: "Mapping[int, ProcessFailure]") -> Failure:
    """Find the cause among the failures: peers of a process that left fail by its leaving.

    With several machines it may have left on another one, whose launcher says why.

    Args:
        messages: What the workers left, the earliest first.
        processes: How they ended, by rank; at least one.
    """
    ours = [message for message in messages if message.is_ours]
    if ours:
        return ours[0]
    killed = (-signal.SIGKILL, -signal.SIGSEGV) if os.name == "posix" else ()
    for rank, process in processes.items():
        if process.exitcode in killed:
            return _death(rank, process.exitcode)
    if own := [message for message in messages if not message.is_echo]:
        return own[0]
    if len(messages) == len(processes):
        what = "a process has left that those here work with: in good order, or on another machine"
        error = TuneError("E-WORKER", what, do="look at what the launchers of other machines say")
        return Failure(str(error), 1)
    rank, process = min(processes.items(), key=lambda entry: entry[1].timestamp)
    return _death(rank, process.exitcode)


def _death(rank: int, code: int) -> Failure:
    if code >= 0:
        error = TuneError("E-WORKER", f"the process of rank {rank} ended with exit code {code}")
        return Failure(str(error), code if code in FINAL_CODES else 1)
    name = signal.Signals(-code).name
    do = "the system may have run out of memory" if name == "SIGKILL" else ""
    return Failure(str(TuneError("E-WORKER", f"the process of rank {rank} got {name}", do=do)), 1)
