"""The output folder of a run: one owner, atomic saves, and where to go on from."""

import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torchtune.checkpoint.disk import disk_error, flush, on_main
from torchtune.checkpoint.manifest import (
    damaged_files,
    latest_step,
    read_manifest,
    seal,
    step_name,
    whole_steps,
)
from torchtune.checkpoint.output_file import Recording, recording
from torchtune.errors import ConfigError, MissingError

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from torchtune.distributed import World

__all__ = ["RehearsalFolder", "RunFolder"]

LATEST, LOCK = "latest", ".lock"
# What a run leaves in its folder; .partial and .old are saves and prunings that were cut off.
_OURS = re.compile(
    r"config\.yaml|environment\.json|metrics\.jsonl|samples\.jsonl|loss\.png|step_\d{6,}|latest|\.lock"
    r"|\..+\.(partial|old)|tensorboard|wandb|mlruns|mlflow\.db|profile|logs"
    r"|\.DS_Store|\.nfs.*|lost\+found"
)
_AUTO = "resume_from_checkpoint=auto"


class RunFolder:
    """The output folder that this run owns until `close`, or until its process dies.

    All ranks make one with the same arguments and call its methods together; the main rank alone
    touches the disk, and every rank learns of its errors.

    Args:
        output_dir: Made where absent. Files that no run of ours makes are refused.
        world: The processes that take part.
        resume: None or False for a fresh run, refused where a whole checkpoint is; ``"auto"`` or
            True for the last whole checkpoint if there is one; or the path of a step folder.

    Attributes:
        path: The folder, absolute.
        resume_from: The step folder to go on from, whole and with its contents checked against
            their sha256; None for a fresh run.

    Raises:
        ConfigError: Foreign files, a live run, a checkpoint that would be overwritten, a path that
            is no step folder.
        MissingError: The step folder is absent, or a file in it is not what was saved.
        TuneError: The folder cannot be written.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        world: "World",
        *,
        resume: str | os.PathLike[str] | bool | None = None,
    ) -> None:
        self.path = Path(output_dir).absolute()
        self.world = world
        self._lock: BaseFileLock | None = None
        try:
            self.resume_from = on_main(world, lambda: self._open(resume), self.path)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Give a folder to save into; it becomes ``step_000100`` when the block ends, or vanishes.

        Whatever lies in it then is flushed to disk and listed with its sha256 in manifest.json;
        then it is renamed, and ``latest`` moves last. What the main rank alone writes in the block
        belongs into `on_main`, so that all ranks leave the block the same way.

        Args:
            step: The number of optimizer steps done.

        Raises:
            TuneError: The disk is full, or the folder cannot be written. What was there before is
                untouched, and nothing of this save is left.
        """
        partial = self.path / f".{step_name(step)}.partial"
        on_main(self.world, lambda: _make_empty(partial), partial)
        try:
            with recording() as files:
                yield partial
                on_main(self.world, lambda: self._seal(partial, step, files), partial)
        except BaseException as error:
            if self.world.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise disk_error(error, partial) from error
            raise
        on_main(self.world, lambda: self._publish(partial, step), partial)

    def prune(self, keep_last: int | None, keep: Collection[int] = ()) -> None:
        """Delete old step folders, after a newer one is whole; the newest always stays.

        Args:
            keep_last: How many of the newest stay; None for all.
            keep: Steps that stay besides, such as the best one.
        """
        on_main(self.world, lambda: self._prune(keep_last, keep), self.path)

    def close(self) -> None:
        """Give the folder free for another run. Needs no other rank."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _open(self, resume: str | os.PathLike[str] | bool | None) -> Path | None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError("E-FOLDER", f"{self.path} is a file", where="output_dir")
        self.path.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(self.path)
        self._take_lock()
        _clear_leftovers(self.path)
        found = self._choose(resume)
        if newest := latest_step(self.path):
            _point_latest(self.path, newest.name)
        return found

    def _take_lock(self) -> None:
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                "E-FOLDER-IN-USE",
                f"{self.path} is in use by a live run",
                where="output_dir",
                do="wait for it or stop it, or choose another output_dir",
            ) from None
        self._lock = lock

    def _choose(self, resume: str | os.PathLike[str] | bool | None) -> Path | None:
        if resume == "auto" or resume is True:
            return _last_whole(self.path)
        named = _named_step(Path(resume)) if resume else None
        newest = latest_step(self.path)
        if newest and (named is None or named.parent != self.path.resolve()):
            raise ConfigError(
                "E-FOLDER-HAS-RUN",
                f"{self.path} already holds the checkpoint {newest.name}",
                where="output_dir",
                do=f"{_AUTO} goes on from it; else choose another output_dir",
            )
        return named

    def _seal(self, partial: Path, step: int, files: Recording) -> None:
        last = latest_step(self.path)
        before = read_manifest(last) if last else None
        seal(partial, step=step, order=before.order + 1 if before else 1, known=files.digests())

    def _publish(self, partial: Path, step: int) -> None:
        place = self.path / step_name(step)
        old = self.path / f".{place.name}.old"
        if place.exists():  # a run that went back has come here again
            place.rename(old)  # the next run puts it back if this one ends here
        partial.rename(place)
        flush(self.path)
        _point_latest(self.path, place.name)
        shutil.rmtree(old, ignore_errors=True)

    def _prune(self, keep_last: int | None, keep: Collection[int]) -> None:
        kept = {step_name(step) for step in keep}
        steps = whole_steps(self.path)
        for place in steps[max(keep_last, 1) :] if keep_last is not None else []:
            if place.name not in kept:
                aside = self.path / f".{place.name}.partial"
                place.rename(aside)  # so that no half of it is ever found
                shutil.rmtree(aside)


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


def _refuse_foreign(folder: Path) -> None:
    foreign = sorted(path.name for path in folder.iterdir() if not _OURS.fullmatch(path.name))
    if (folder / LATEST).is_dir() and not (folder / LATEST).is_symlink():
        foreign.append(LATEST)  # a copy that followed the link
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ConfigError(
            "E-FOLDER-FOREIGN",
            f"{folder} holds files that no run made: {', '.join(foreign[:3])}{more}",
            where="output_dir",
            do="choose another output_dir, or move these files away",
        )


def _clear_leftovers(folder: Path) -> None:
    """Remove unfinished saves, and put back a folder that was about to be replaced."""
    for old in folder.glob(".step_*.old"):
        place = folder / old.name[1:].removesuffix(".old")
        if not place.exists():
            old.rename(place)
    for path in [*folder.glob(".*.partial"), *folder.glob(".step_*.old")]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _last_whole(folder: Path) -> Path | None:
    """Return the newest step folder that is as it was saved; say which are passed over."""
    whole = whole_steps(folder)
    for path in sorted(folder.glob("step_*")):
        if path not in whole:
            _say(f"{path.name} is not whole, so it is not resumed from")
    for path in whole:
        damaged = damaged_files(path)
        if not damaged:
            return path
        _say(f"{path.name} is damaged ({', '.join(damaged)}), so it is not resumed from")
    if whole:
        raise MissingError(
            "E-CHECKPOINT-DAMAGED",
            "no checkpoint is as it was saved",
            where=str(folder),
            do="choose another output_dir to start afresh",
        )
    return None


def _say(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _named_step(path: Path) -> Path:
    if not path.is_dir():
        raise MissingError(
            "E-CHECKPOINT-MISSING", f"there is no {path}", where="resume_from_checkpoint"
        )
    path = path.resolve()
    if read_manifest(path) is None and (newest := latest_step(path)):
        raise ConfigError(
            "E-CHECKPOINT",
            f"{path} is the folder of a run",
            where="resume_from_checkpoint",
            do=f"give one of its step folders, such as {newest}",
        )
    damaged = damaged_files(path)
    if damaged:
        raise MissingError(
            "E-CHECKPOINT-DAMAGED",
            f"{path.name} is not as it was saved: {', '.join(damaged)}",
            where=str(path),
            do=f"choose another step folder, or {_AUTO}",
        )
    return path


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _point_latest(folder: Path, name: str) -> None:
    """Make ``latest`` a link to `name`, or a file with that name where links are not allowed."""
    aside = folder / ".latest.partial"
    aside.unlink(missing_ok=True)
    try:
        aside.symlink_to(name, target_is_directory=True)
    except (OSError, NotImplementedError):
        aside.write_text(name + "\n", encoding="utf-8")
    aside.replace(folder / LATEST)
    flush(folder)
