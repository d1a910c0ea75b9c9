"""What a run finds in its output folder when it starts: whose it is, and where to go on from."""

import os
import re
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torchtune.checkpoint.manifest import (
    LATEST,
    damage,
    latest_step,
    read_manifest,
    whole_before,
    whole_steps,
)
from torchtune.errors import ConfigError, MissingError

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from torchtune.distributed import World

__all__ = [
    "LOCK",
    "check_is_shared",
    "choose_step",
    "clear_leftovers",
    "refuse_foreign",
    "take_lock",
    "warn",
]

LOCK = ".lock"
# What a run leaves in its folder; .partial and .old are saves and prunings that were cut off.
_OURS = re.compile(
    r"config\.yaml|environment\.json|metrics\.jsonl|samples\.jsonl|loss\.png|step_\d{6,}|latest|\.lock"
    r"|\..+\.(partial|old)|tensorboard|wandb|mlruns|mlflow\.db|profile|logs"
    r"|\.DS_Store|\.nfs.*|lost\+found"
)
_AUTO = "resume_from_checkpoint=auto"


def refuse_foreign(folder: Path) -> None:
    """Raise ConfigError where `folder` holds what no run of ours made."""
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


def take_lock(folder: Path) -> "BaseFileLock":
    """Return the lock of the run that owns `folder`; the kernel frees it when the process dies.

    Raises:
        ConfigError: A live run holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            "E-FOLDER-IN-USE",
            f"{folder} is in use by a live run",
            where="output_dir",
            do="wait for it or stop it, or choose another output_dir",
        ) from None
    return lock


def check_is_shared(folder: Path, world: "World") -> None:
    """Raise ConfigError on every rank if one does not see `folder` with its lock."""
    if world.any(not (folder / LOCK).exists()):
        what = f"not every process sees {folder}"
        do = "several machines need a folder on a file system that they share"
        raise ConfigError("E-FOLDER", what, where="output_dir", do=do)


def clear_leftovers(folder: Path) -> None:
    """Remove unfinished saves, and put back a folder that was about to be replaced."""
    for old in folder.glob(".step_*.old"):
        place = folder / old.name[1:].removesuffix(".old")
        if not place.exists():
            old.rename(place)
    for path in [*folder.glob(".*.partial"), *folder.glob(".step_*.old")]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def choose_step(
    folder: Path, resume: str | os.PathLike[str] | bool | None, launchers: Collection[str] = ()
) -> Path | None:
    """Return the step folder that a run in `folder` goes on from; errors as `RunFolder`.

    Args:
        folder: The run's output folder.
        resume: As `RunFolder` takes it.
        launchers: Who started this run's processes. Where the newest checkpoint is by one of them,
            this is a later attempt of the run that saved it.
    """
    newest = latest_step(folder)
    saved = read_manifest(newest) if newest else None
    if resume == "auto" or resume is True or (saved and saved.launchers & {*launchers}):
        return _last_whole(folder)
    named = _named_step(Path(resume)) if resume else None
    if newest and (named is None or named.parent != folder.resolve()):
        raise ConfigError(
            "E-FOLDER-HAS-RUN",
            f"{folder} already holds the checkpoint {newest.name}",
            where="output_dir",
            do=f"{_AUTO} goes on from it; else choose another output_dir",
        )
    return named


def _last_whole(folder: Path) -> Path | None:
    """Return the newest step folder that is as it was saved; say which are passed over."""
    whole, found = whole_steps(folder), sorted(folder.glob("step_*"))
    for path in found:
        if path not in whole:
            warn(f"{path.name} is not whole ({_list(damage(path))}), so it is not resumed from")
    for path in whole:
        damaged = damage(path)
        if not damaged:
            return path
        warn(f"{path.name} is damaged ({_list(damaged)}), so it is not resumed from")
    if found:  # a step folder has its name once it is whole
        raise MissingError(
            "E-CHECKPOINT-DAMAGED",
            "no checkpoint is as it was saved",
            where=str(folder),
            do="put back what is missing, or choose another output_dir to start afresh",
        )
    return None


def warn(text: str) -> None:
    """Print a warning on stderr, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"warning: {text}", file=sys.stderr)
    sys.stderr.flush()


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
    if damaged := damage(path):
        before = whole_before(path)
        way_out = f"resume_from_checkpoint={before}, the newest whole one before it"
        raise MissingError(
            "E-CHECKPOINT-DAMAGED",
            f"{path.name} is not as it was saved: {_list(damaged)}",
            where=str(path),
            do=way_out if before else "there is no whole one before it; begin a new run",
        )
    return path


def _list(damaged: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {what}" for name, what in damaged.items())
