"""Worker processes that start clean: no fork of a process with threads, no second import of its main.

``multiprocessing`` would run the user's script again in every worker (spawn, forkserver), or copy
torch's thread pools (fork). These workers are plain Python processes that get a function and
pieces of work through pipes.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from torchtune.errors import TuneError

__all__ = ["map_in_workers"]

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def map_in_workers(
    function: Callable[[Piece], Result], pieces: Iterable[Piece], workers: int
) -> Iterator[Result]:
    """Yield the function's result for each piece, in order, computed by several processes.

    Only a few pieces are on their way at any time, so `pieces` may be larger than memory.

    Args:
        function: Must be importable and picklable, as its arguments and results must be.
        pieces: Work; large enough that sending it costs little, such as a hundred rows.
        workers: Number of processes.

    Raises:
        TuneError: A worker was killed. What the function raises is raised here.
    """
    started = [_Worker(function) for _ in range(workers)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in started:
        idle.put(worker)

    def task(piece: Piece) -> Any:
        worker = idle.get()
        try:
            return worker.ask(piece)
        finally:
            idle.put(worker)

    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        try:
            for piece in pieces:
                waiting.append(threads.submit(task, piece))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            for worker in started:
                worker.close()


class _Worker:
    def __init__(self, function: Callable[..., Any]) -> None:
        code = f"from {__name__} import serve; serve()"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._send(function)

    def ask(self, piece: Any) -> Any:
        """Return the function's result for one piece."""
        self._send(piece)
        assert self._process.stdout is not None
        try:
            found, error = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._ended() from None
        if error is not None:
            raise error
        return found

    def close(self) -> None:
        """End the process: it leaves when nothing more can come."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _send(self, what: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(what, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _ended(self) -> TuneError:
        what = f"a worker process ended early, exit code {self._process.wait()}"
        return TuneError("E-DATA-WORKER", what, do="if memory ran out, set fewer workers")


def serve() -> None:
    """Answer pieces of work from stdin until it is closed; the whole life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up among the answers
    function = pickle.load(sys.stdin.buffer)
    while True:
        try:
            piece = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: tuple[Any, Exception | None] = (function(piece), None)
        except Exception as error:  # whatever it is, it is raised again where it was asked for
            answer = (None, error)
        try:
            pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
        except BrokenPipeError:
            return
