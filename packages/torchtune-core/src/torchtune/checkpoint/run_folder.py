"""The output folder of a run: one owner, atomic saves, and where to go on from."""

import atexit
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torchtune.checkpoint.disk import disk_error, on_main
from torchtune.checkpoint.manifest import latest_step, step_name
from torchtune.checkpoint.publishing import SaveUnderWay, point_latest, prune_steps
from torchtune.checkpoint.remote_folder import RemoteFolder
from torchtune.checkpoint.run_start import (
    LOCK,
    check_is_shared,
    choose_step,
    clear_leftovers,
    refuse_foreign,
    take_lock,
    warn,
)
from torchtune.checkpoint.saving import Copies, Saving, collect_files
from torchtune.data import is_remote
from torchtune.distributed import hurried, launch_names
from torchtune.errors import ConfigError, TuneError

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from torchtune.distributed import World

__all__ = ["RehearsalFolder", "RunFolder"]


class RunFolder:
    """The output folder that this run owns until `close`, or until its process dies.

    All ranks make one with the same arguments and call its methods together. The main rank owns the
    folder, every rank writes its part of a save, and all learn of an error on one.

    Args:
        output_dir: Made where absent. Files that no run of ours makes are refused. A URL
            (``s3://...``) is taken through fsspec: the run works in a folder of this machine
            (`RemoteFolder.working_folder`), and what is whole there is pushed after each save and
            at the end. The other way round the newest whole step is pulled at the start.
        world: The processes that take part.
        resume: None or False for a fresh run, refused where a whole checkpoint is; ``"auto"`` or
            True for the last whole checkpoint if there is one; or the path of a step folder. Where
            ``tune run --max-restarts`` has started the processes again it is ``"auto"`` once they
            have saved, whatever is given.

    Attributes:
        path: The folder, absolute; of a URL the one that the run works in.
        place: What the user calls it: the same, or the URL.
        resume_from: The step folder to go on from, whole and with its contents checked against
            their sha256; None for a fresh run.

    Raises:
        ConfigError: Foreign files, a live run, a checkpoint that would be overwritten, a path that
            is no step folder.
        MissingError: The step folder is absent, or a file in it is not what was saved.
        TuneError: The folder cannot be written, or the URL not be read.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        world: "World",
        *,
        resume: str | os.PathLike[str] | bool | None = None,
    ) -> None:
        self._remote = RemoteFolder(str(output_dir)) if is_remote(output_dir) else None
        local = Path(output_dir).expanduser().absolute()
        self.path = self._remote.working_folder() if self._remote else local
        self.place = self._remote.url if self._remote else str(self.path)
        self.world = world
        self._launchers = launch_names(world)
        self._lock: BaseFileLock | None = None
        self._save: SaveUnderWay | None = None
        self._copies = Copies()
        self._has_waited = False
        try:
            self.resume_from = on_main(world, lambda: self._open(resume), self.path)
            check_is_shared(self.path, world)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def writing(self, step: int, *, background: bool = False) -> Iterator[Path]:
        """Give a folder to save into; it becomes ``step_000100`` when all is written, or vanishes.

        Whatever lies in it then is flushed to disk and listed with its sha256 in manifest.json;
        then it is renamed, and ``latest`` moves last. What the main rank alone writes in the block
        belongs into `on_main`, so that all ranks leave the block the same way. Every rank must see
        the folder: with several machines it lies on a shared file system.

        Args:
            step: The number of optimizer steps done.
            background: Copy what is saved to this process's memory, and write, while the caller
                goes on; it must call `poll` now and then, and `wait` in the end. A save that is
                still being written is waited for first. Parameters and an optimizer's state are
                copied after the block, and the next step of any `torch.optim.Optimizer` waits until
                they are. So what changes them in another way (`load_state_dict`, ``p.data.add_``)
                comes after such a step, or after `wait`. All else is copied in the block.

        Raises:
            TuneError: The disk is full, or the folder cannot be written, now or in the background
                before. What was whole before is untouched, and nothing of this save is left.
        """
        self._wait_for_last(background)
        folder = self.path / f".{step_name(step)}.partial"
        on_main(self.world, lambda: _make_empty(folder), folder)
        self._copies.begin()
        saving = Saving(self.world, copies=self._copies if background else None, hashed=True)
        try:
            with collect_files(saving):
                yield folder
            self._save = SaveUnderWay(self.world, folder, step, saving, self._launchers, self._push)
            atexit.unregister(self._finish)
            atexit.register(self._finish)
        except BaseException as error:
            self._abandon(folder)
            if isinstance(error, OSError):
                raise disk_error(error, folder) from error
            raise
        self._advance(wait=not background)

    def poll(self) -> bool:
        """Go on with a save in the background as far as all ranks have come.

        All ranks call this together, such as after each step. Without such a save it costs nothing.

        Returns:
            Whether no save is left under way.

        Raises:
            TuneError: The save failed on some rank; raised on every rank.
        """
        return self._advance(wait=False)

    def wait(self) -> None:
        """Wait until what is being saved is whole on disk. All ranks call this together.

        Raises:
            TuneError: The save failed on some rank; raised on every rank.
        """
        self._advance(wait=True)

    def prune(self, keep_last: int | None, keep: Collection[int] = ()) -> None:
        """Delete old step folders, after a newer one is whole; the newest always stays.

        With a save in the background they are deleted when that one is whole.

        Args:
            keep_last: How many of the newest stay; None for all.
            keep: Steps that stay besides, such as the best one.
        """
        prune = partial(prune_steps, self.path, keep_last, {step_name(step) for step in keep})
        if self._save is not None:
            self._save.afterwards = prune
        else:
            on_main(self.world, prune, self.path)

    def close(self) -> None:
        """Give the folder free for another run. Needs no other rank.

        A save that is still being written is brought to its end first: each rank that comes here
        writes its share, and the last one publishes. So it is, too, where Python ends without this,
        as after an error in a later step; only one that is killed leaves nothing of it.

        Raises:
            TuneError: E-REMOTE-WRITE: what the run made could not be brought to its URL. It is whole
                in the folder of this machine that the error names.
        """
        atexit.unregister(self._finish)
        self._finish()
        if self._lock is not None:
            pushed = self._push()
            self._lock.release()
            self._lock = None
            if not pushed:
                what = f"the run could not be brought to {self.place}; it is whole in {self.path}"
                do = "mend the access and run again with resume_from_checkpoint=auto"
                raise TuneError("E-REMOTE-WRITE", what, where="output_dir", do=do)

    def _finish(self) -> None:
        """Bring to its end what is being saved, where this rank leaves before it is whole."""
        if (save := self._save) is None:
            return
        if hurried.is_set():
            self._abandon(save.folder)
            return
        try:
            whole = save.finish_apart()
        except (TuneError, KeyboardInterrupt) as error:
            warn(f"step {save.step} was being saved, and that is given up: {_shortly(error)}")
            self._abandon(save.folder)
            return
        self._save = None
        if whole:
            warn(f"the run left while step {save.step} was being saved, and that is whole now")

    def _push(self) -> bool:
        """Bring what is new to the URL, if there is one; say whether it is there."""
        try:
            if self._remote is not None:
                self._remote.push(self.path)
        except Exception as error:  # each file system has its own; the run must outlive them all
            warn(f"{self.place} could not be written, which is tried again later: {error}")
            return False
        return True

    def _advance(self, *, wait: bool) -> bool:
        if self._save is None:
            return True
        try:
            done = self._save.work.advance(wait=wait)
        except TuneError:  # of the save itself; after any other it may still be finished
            self._abandon(self._save.folder)
            raise
        if done:
            self._save = None
        return done

    def _wait_for_last(self, background: bool) -> None:
        if not self._advance(wait=False):
            if background and self.world.is_main and not self._has_waited:
                self._has_waited = True
                warn("a save waits for the one before it, and the run with it: save less often")
            self._advance(wait=True)

    def _abandon(self, folder: Path) -> None:
        """Leave nothing of a save that broke off."""
        save, self._save = self._save, None
        if save is not None:
            save.work.stop()
        if self.world.is_main:
            shutil.rmtree(folder, ignore_errors=True)

    def _open(self, resume: str | os.PathLike[str] | bool | None) -> Path | None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError("E-FOLDER", f"{self.path} is a file", where="output_dir")
        self.path.mkdir(parents=True, exist_ok=True)
        refuse_foreign(self.path)
        self._lock = take_lock(self.path)
        clear_leftovers(self.path)
        if self._remote is not None:
            self._remote.pull(self.path)
        found = choose_step(self.path, resume, self._launchers)
        if newest := latest_step(self.path):
            point_latest(self.path, newest.name)
        return found


class RehearsalFolder(RunFolder):
    """A run folder inside of another one, which it vanishes from when it is closed.

    Args:
        run: The folder of the run that is rehearsed; it stays this run's own until `close`.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        super().__init__(run.path / ".rehearsal.partial", run.world)

    def close(self) -> None:
        """Delete the folder, and the run's own if nothing else was in it; give that one free."""
        super().close()
        if self.world.is_main:
            shutil.rmtree(self.path, ignore_errors=True)
        self._run.close()
        if self.world.is_main and [path.name for path in self._run.path.iterdir()] == [LOCK]:
            shutil.rmtree(self._run.path)


def _shortly(error: BaseException) -> str:
    return error.what if isinstance(error, TuneError) else "stopped"


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
