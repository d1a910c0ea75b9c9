"""Finding the process that the others wait for in vain, and saying where it stands.

Each process of several has a thread that looks at it now and then. Nothing is asked of the code that
trains: a process lives as long as its main thread's stack changes from one look to the next, or it
computes, or reads or writes. So a long save, a compilation, an evaluation or the preparation of data
is no alarm, in whatever program, while the others may wait for a day. But when all of them wait, it is
one.
"""

import atexit
import contextlib
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from torchtune.distributed.parting import store_line
from torchtune.errors import TuneError, tell_launcher

__all__ = ["PATIENCE", "note_step", "stop_watching", "watch_for_hangs"]

PATIENCE = timedelta(days=1)
"""How long a collective waits for a process that works; one that does not is found much earlier."""

LONGEST_PERIOD = 10.0
"""Seconds between looks, at most: a look costs 0.1 ms and sends one message of 200 bytes."""

WORKING_SHARE = 0.05
"""Share of a CPU above which a process computes; one that sleeps or waits for gloo takes 0.001."""

READ_OR_WRITTEN = 65536
"""Bytes between two looks above which a process reads or writes; the look itself reads 100."""

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_COLLECTIVES = (f"{_TORCH}distributed{os.sep}", f"{Path(__file__).parent}{os.sep}")

_step: int | None = None
_watch: "_Watch | None" = None


def note_step(step: int) -> None:
    """Note which optimizer step this process begins, for the message. Costs a memory write."""
    global _step
    _step = step


def watch_for_hangs(rank: int, size: int, seconds: float) -> None:
    """Watch this process, and the next rank's signs of life, from a thread of its own.

    A process that has not moved for `seconds`, and is not waiting for the others in a collective,
    ends with E-HANG and exit code 1. One that cannot say so itself, as it is frozen or its
    machine is gone, is named by the rank before it. Where all of them wait in collectives, for one
    another, rank 0 says where each stands.

    Args:
        rank: This process's number.
        size: How many processes there are. They find each other at ``MASTER_ADDR``.
        seconds: Without a sign of life.
    """
    global _watch
    stop_watching()
    _watch = _Watch(rank, size, seconds)
    _watch.start()
    atexit.register(_say_goodbye)


def stop_watching() -> None:
    """End the watch, before processes leave one after another."""
    global _watch
    if _watch is not None:
        _watch.stopped.set()
        _watch = None


def _say_goodbye() -> None:
    """Let nobody miss a process that ends in good order while others go on."""
    if _watch is not None:
        _watch.leave()


@dataclass
class _Sign:
    """What a process tells the rank before it, at each look; with -1 looks it has left."""

    looks: int
    step: int | None
    host: str
    place: str
    waiting: int = 0  # looks for which it has stood still in a collective


class _Watch(threading.Thread):
    def __init__(self, rank: int, size: int, seconds: float) -> None:
        super().__init__(name="hang_watch", daemon=True)
        self.rank, self.size, self.seconds = rank, size, seconds
        self.neighbour = (rank + 1) % size
        self.period = min(LONGEST_PERIOD, seconds / 10)
        # Counted in looks, not by the clock: all processes may be stopped together, and go on.
        self.allowed = math.ceil(seconds / self.period)
        self.stopped = threading.Event()
        self.looks = self.still = self.silent = 0
        self.heard = _Sign(0, None, "", "")
        self.store: Any = None

    def leave(self) -> None:
        self.stopped.set()
        self.join(timeout=5.0)  # its last sign must not come after this one
        if self.store is not None:
            with contextlib.suppress(RuntimeError):
                self.store.set(str(self.rank), json.dumps(asdict(_Sign(-1, _step, "", ""))))

    def run(self) -> None:
        self.store, before = self._connect(), _activity()
        while not self.stopped.wait(self.period):
            self.looks += 1
            now = _activity()
            self.still = 0 if now.differs(before, self.period) else self.still + 1
            before, frame = now, _main_frame()
            if frame is None:
                continue
            waits = _waits_for_others(frame)
            if self.still >= self.allowed and not waits:
                self._end(self._about_itself(frame))
            if self.store is not None:
                place, waiting = _place(frame), self.still if waits else 0
                self._listen(_Sign(self.looks, _step, socket.gethostname(), place, waiting))

    def _connect(self) -> Any:
        """Open a line of its own to the store, so that no collective holds it up."""
        if self.neighbour == self.rank:
            return None
        return store_line("torchtune/signs", timedelta(seconds=max(self.period, 5.0)))

    def _listen(self, mine: _Sign) -> None:
        """Give the rank before a sign, and take one of the next rank."""
        sign = self.heard  # what a rank said last, if it does not speak
        try:
            self.store.set(str(self.rank), json.dumps(asdict(mine)))
            if self.store.check([str(self.neighbour)]):
                sign = _Sign(**json.loads(self.store.get(str(self.neighbour))))
            if self.rank == 0 and mine.waiting >= self.allowed:
                self._look_at_all()
        except RuntimeError:  # whoever holds the store is gone, and this run with it
            return
        self.silent = self.silent + 1 if sign == self.heard and sign.looks >= 0 else 0
        self.heard = sign
        if self.silent >= self.allowed:
            self._end(self._about_neighbour(sign))

    def _look_at_all(self) -> None:
        """End where every rank waits for the others, so that none will ever come."""
        ranks = [str(rank) for rank in range(self.size)]
        if not self.store.check(ranks):
            return
        signs = [_Sign(**json.loads(sign)) for sign in self.store.multi_get(ranks)]
        if all(sign.waiting >= self.allowed or sign.looks < 0 for sign in signs):
            self._end(self._about_all(signs))

    def _about_itself(self, frame: FrameType) -> TuneError:
        host, time_passed = socket.gethostname(), _duration(self.seconds)
        return TuneError(
            "E-HANG",
            f"rank {self.rank} ({host}) has not moved for {time_passed}, {_when(_step)}",
            where=_place(frame),
            do="what it waits for did not come; timeout_minutes says how long to wait",
        )

    def _about_neighbour(self, sign: _Sign) -> TuneError:
        rank, host = self.neighbour, f" ({sign.host})" if sign.host else ""
        what = f"has given no sign of life for {_duration(self.seconds)}, {_when(sign.step)}"
        return TuneError(
            "E-HANG",
            f"rank {rank}{host} {what}",
            where=f"{sign.place}, when it was last seen" if sign.place else "",
            do="the process is frozen or its machine is gone; timeout_minutes says how long to wait",
        )

    def _about_all(self, signs: Sequence[_Sign]) -> TuneError:
        places: dict[str, list[int]] = {}
        for rank, sign in enumerate(signs):
            place = f"{sign.place}, {_when(sign.step)}" if sign.looks >= 0 else "its end"
            places.setdefault(place, []).append(rank)
        what = f"all {self.size} ranks wait for one another, for {_duration(self.seconds)}"
        where = "; ".join(f"{_ranks(ranks)}: {place}" for place, ranks in places.items())
        do = "they must call the same collectives in the same order; an `if` on the rank may be why"
        return TuneError("E-HANG", what, where=where, do=do)

    def _end(self, error: TuneError) -> None:
        if self.stopped.is_set():
            return
        if not tell_launcher(str(error), error.exit_code):
            print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)  # not sys.exit, which ends this thread alone


@dataclass
class _Activity:
    """What tells one look from the next: where the main thread stands, and what was done."""

    stack: tuple[tuple[int, int], ...]
    step: int | None
    cpu_seconds: float
    bytes_moved: int

    def differs(self, before: "_Activity", period: float) -> bool:
        return (
            (self.stack, self.step) != (before.stack, before.step)
            or self.cpu_seconds - before.cpu_seconds > WORKING_SHARE * period
            or self.bytes_moved - before.bytes_moved > READ_OR_WRITTEN
        )


def _activity() -> _Activity:
    stack, frame = [], _main_frame()
    while frame is not None:
        stack.append((id(frame), frame.f_lasti))
        frame = frame.f_back
    return _Activity(tuple(stack), _step, time.process_time(), _bytes_moved())


def _bytes_moved() -> int:
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:  # not on Linux
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar")))


def _main_frame() -> FrameType | None:
    return sys._current_frames().get(threading.main_thread().ident or 0)


def _waits_for_others(frame: FrameType | None) -> bool:
    """Say whether the innermost code that is not torch's own arithmetic is a collective's."""
    while frame is not None and (file := frame.f_code.co_filename).startswith(_TORCH):
        if file.startswith(_COLLECTIVES):
            return True
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_COLLECTIVES)


def _place(frame: FrameType) -> str:
    """Return the innermost place in full, and in short the two calls that led there."""
    calls: list[str] = []
    caller = frame.f_back
    while caller is not None and len(calls) < 2:
        if not caller.f_code.co_filename.startswith(_TORCH):
            calls.append(f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno}")
        caller = caller.f_back
    code = frame.f_code
    led = f" (from {', '.join(calls)})" if calls else ""
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}{led}"


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if ranks[4:] else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _when(step: int | None) -> str:
    return "before its first step" if step is None else f"in step {step}"


def _duration(seconds: float) -> str:
    return f"{seconds:g} seconds" if seconds < 60 else f"{seconds / 60:g} minutes"
