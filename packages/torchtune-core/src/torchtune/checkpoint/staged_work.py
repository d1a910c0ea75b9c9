"""Work that threads of all ranks do stage by stage, while the ranks themselves go on."""

from collections import deque
from collections.abc import Callable, Generator
from threading import Event, Thread
from typing import TYPE_CHECKING, NoReturn

from torchtune.errors import TuneError

if TYPE_CHECKING:
    from torchtune.distributed import World

__all__ = ["THREADS", "StagedWork", "Task"]

Task = Callable[[Event], None]
"""Does one thing in a thread, without communication; ends early once the event is set."""

THREADS = 4
"""How many files a process writes at a time: each is hashed on one core."""

_DONE, _RUNNING, _FAILED = 0, 1, 2


class StagedWork:
    """Tasks of every rank in stages; each stage begins when all ranks are done with the one before.

    Threads never communicate: the ranks tell each other how far they are in `advance`. They end
    with the process, so that one which fails does not wait for them.

    Args:
        world: The processes that take part.
        stages: Gives this rank's tasks of the next stage; runs in the caller's thread, on all ranks
            at the same time, so that it may communicate. It is closed where the work breaks off.
        threads: How many tasks run at a time.
    """

    def __init__(
        self,
        world: "World",
        stages: Generator[list[Task], None, None],
        *,
        threads: int = THREADS,
    ) -> None:
        self._world, self._stages, self._count = world, stages, threads
        self._tasks: deque[Task] = deque()
        self._threads: list[Thread] = []
        self._stop = Event()
        self._errors: list[BaseException] = []

    def advance(self, *, wait: bool) -> bool:
        """Go on as far as all ranks have come, and return whether everything is done.

        All ranks call this together; without `wait` it costs one number sent around.

        Args:
            wait: Go on until everything is done.

        Raises:
            TuneError: A task failed on some rank; raised on every rank, after all have stopped.
        """
        while True:
            worst = self._world.max(self._state(wait))
            if worst == _FAILED:
                self._fail()
            if worst == _RUNNING:
                return False
            tasks = next(self._stages, None)
            if tasks is None:
                return True
            self._start(tasks)

    def join(self) -> None:
        """Wait for this rank's threads of the present stage. Needs no other rank."""
        for thread in self._threads:
            thread.join()

    def finish_stage(self) -> None:
        """Wait for this rank's tasks of the present stage. Needs no other rank.

        Raises:
            TuneError: One of them failed.
        """
        self.join()
        if self._errors:
            raise _told(self._errors[0])

    def next_stage(self) -> None:
        """Do this rank's tasks of the next stage here and now. Needs no other rank.

        For a stage that need not wait for the others. It starts no thread, so that it can be called
        while Python ends.
        """
        for task in next(self._stages, []):
            task(self._stop)

    def stop(self) -> None:
        """End this rank's threads, whatever they have done so far. Needs no other rank."""
        self._stop.set()
        self.join()
        self._stages.close()

    def _state(self, wait: bool) -> int:
        if wait:
            self.join()
        running = any(thread.is_alive() for thread in self._threads)
        if self._errors:  # asked after: a thread that fails says so before it ends
            return _FAILED
        return _RUNNING if running else _DONE

    def _start(self, tasks: list[Task]) -> None:
        self._tasks = deque(tasks)
        self._threads = [
            Thread(target=self._work, name=f"saving-{number}", daemon=True)
            for number in range(min(self._count, len(tasks)))
        ]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        try:
            while not self._stop.is_set() and (task := self._next()) is not None:
                task(self._stop)
        except BaseException as error:  # handed on to whoever waits for the work
            self._errors.append(error)
            self._stop.set()

    def _next(self) -> Task | None:
        try:
            return self._tasks.popleft()
        except IndexError:
            return None

    def _fail(self) -> NoReturn:
        """Raise the error of the first rank that has one, on all."""
        self.stop()
        mine = next(iter(self._errors), None)
        told = None if mine is None else _told(mine)
        first = next(error for error in self._world.gather(told) if error is not None)
        raise first from (mine if mine is not told else None)


def _told(error: BaseException) -> TuneError:
    if isinstance(error, TuneError):
        return error
    what = f"a save broke off: {type(error).__name__}: {error}"
    return TuneError("E-SAVE", what, do="what was saved whole before is intact")
