"""How a finished save gets its name, and what goes when it has one."""

import json
import shutil
from collections.abc import Callable, Collection, Generator, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING
from uuid import uuid4

from torch.optim.optimizer import register_optimizer_step_pre_hook

from torchtune.checkpoint.disk import Digest, disk_error, file_digest, flush, write_flushed
from torchtune.checkpoint.manifest import (
    LATEST,
    latest_step,
    read_manifest,
    seal,
    step_name,
    whole_steps,
)
from torchtune.checkpoint.saving import Saving
from torchtune.checkpoint.staged_work import StagedWork, Task
from torchtune.distributed import leave_word

if TYPE_CHECKING:
    from torchtune.distributed import World

__all__ = ["SaveUnderWay", "point_latest", "prune_steps"]


_Stage = Enum("_Stage", ["COPYING", "WRITING", "ENDING"])


class SaveUnderWay:
    """A save whose files are planned; threads copy what they hold where need be, write and publish it.

    Weights and an optimizer's state change in its step alone, so threads copy them beside the next
    forward and backward, and the next step of any optimizer waits for this rank's.

    Args:
        world: The processes that take part.
        folder: Where the files go; it is renamed when all are there.
        step: The number of optimizer steps done.
        saving: The files.
        launchers: Who started the processes.
        push: What the main rank does last of all: brings the run to another machine.

    Attributes:
        work: What the threads do.
        afterwards: What the main rank does before that, such as pruning.
    """

    def __init__(
        self,
        world: "World",
        folder: Path,
        step: int,
        saving: Saving,
        launchers: Collection[str] = (),
        push: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder, self.step, self.launchers, self._push = folder, step, launchers, push
        self.afterwards: Callable[[], None] | None = None
        self._world, self._saving, self._stage = world, saving, _Stage.COPYING
        self._name = world.broadcast(uuid4().hex)
        written = [path for path in folder.rglob("*") if path.is_file()] if world.is_main else []
        self.work = StagedWork(world, self._stages(written))

    def finish_apart(self) -> bool:
        """Bring the save to its end without the other ranks' help; say whether it is whole by this.

        For a rank that leaves while the save is under way, as the others may be gone or hang. Each
        rank that comes here writes its share, and the last one of all publishes. Starts no thread.

        Raises:
            TuneError: The save failed on this rank, or could not be published.
        """
        self.work.finish_stage()
        if self._stage == _Stage.ENDING:
            return self._world.is_main  # whose thread has published it
        while self._stage == _Stage.COPYING:
            self.work.next_stage()
        own = {str(path): digest for path, digest in self._saving.own_digests().items()}
        words = leave_word(self._name, json.dumps(own), self._world)
        if words is None:
            return False
        found = {path: Digest(*it) for word in words for path, it in json.loads(word).items()}
        digests = {Path(path): digest for path, digest in found.items()}
        for path in self._saving.shared():
            digests[path] = digests.get(path) or file_digest(path)
        self._end(digests, Event())
        return True

    def _stages(self, written: Collection[Path]) -> Generator[list[Task], None, None]:
        if copying := self._saving.copying():
            hook = register_optimizer_step_pre_hook(lambda *_: self.work.join())
            try:
                yield copying
            finally:
                hook.remove()
        self._stage = _Stage.WRITING
        yield from self._saving.stages(written)
        digests = self._saving.digests()
        self._stage = _Stage.ENDING
        yield [partial(self._end, digests)] if self._world.is_main else []

    def _end(self, digests: Mapping[Path, Digest], stop: Event) -> None:
        try:
            _publish(self.folder, self.step, digests, self.launchers)
            if self.afterwards is not None:
                self.afterwards()
            self._push()
        except OSError as error:
            raise disk_error(error, self.folder) from error


def _publish(
    folder: Path, step: int, digests: Mapping[Path, Digest], launchers: Collection[str]
) -> None:
    """Give a save its manifest and its name, and let ``latest`` name it."""
    place, run = folder.with_name(step_name(step)), folder.parent
    last = latest_step(run)
    before = read_manifest(last) if last else None
    order = before.order + 1 if before else 1
    seal(folder, step=step, order=order, digests=digests, launchers=launchers)
    _replace(place, folder)
    point_latest(run, place.name)


def _replace(place: Path, folder: Path) -> None:
    old = place.with_name(f".{place.name}.old")
    if place.exists():  # a run that went back has come here again
        place.rename(old)  # the next run puts it back if this one ends here
    try:
        folder.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    flush(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def prune_steps(run: Path, keep_last: int | None, kept: Collection[str]) -> None:
    """Delete step folders of `run` but for the `keep_last` newest (None: all) and those named `kept`."""
    steps = whole_steps(run)
    for place in steps[max(keep_last, 1) :] if keep_last is not None else []:
        if place.name not in kept:
            aside = run / f".{place.name}.partial"
            place.rename(aside)  # so that no half of it is ever found
            shutil.rmtree(aside)


def point_latest(folder: Path, name: str) -> None:
    """Make ``latest`` a link to `name`, or a file with that name where links are not allowed."""
    aside = folder / ".latest.partial"
    aside.unlink(missing_ok=True)
    try:
        aside.symlink_to(name, target_is_directory=True)
    except (OSError, NotImplementedError):
        write_flushed(aside, f"{name}\n".encode())
    aside.replace(folder / LATEST)
    flush(folder)
