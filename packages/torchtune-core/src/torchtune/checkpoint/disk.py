"""Disk errors, digests and flushing; and how all ranks learn what became of the main one's."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from torchtune.errors import TuneError

if TYPE_CHECKING:
    from torchtune.distributed import World

__all__ = ["Digest", "disk_error", "file_digest", "flush", "on_main", "write_flushed"]

T = TypeVar("T")
# A quota, or the size that the shell allows a file, is as final as a full disk.
_FULL = {errno.ENOSPC, errno.EFBIG} | {getattr(errno, "EDQUOT", errno.ENOSPC)}
_READ_BYTES = 4 * 2**20


class Digest(NamedTuple):
    """What a manifest says of one file.

    Attributes:
        size: Bytes.
        sha256: 64 hexadecimal digits.
    """

    size: int
    sha256: str


def disk_error(error: OSError, path: Path) -> TuneError:
    """Return what a user can read and act on for an `error` met while writing `path`."""
    what = f"cannot write {path.name}: {(error.strerror or str(error)).lower()}"
    if error.errno in _FULL:
        return TuneError(
            "E-DISK-FULL",
            what,
            where=str(path),
            do="what was saved whole before is intact: free space, then resume_from_checkpoint=auto",
        )
    return TuneError("E-DISK", what, where=str(error.filename or path), do="check path and rights")


def on_main(world: "World", function: Callable[[], T], path: Path | None = None) -> T:
    """Call `function` on the main rank, and return its result, or raise its error, on every rank.

    All ranks must call this. Without it a rank whose disk is full would leave the others waiting.

    Args:
        world: The processes that take part.
        function: What the main rank does; its result travels to the others, so keep it small.
        path: What is being written, for the message of an `OSError`.

    Raises:
        TuneError: What `function` raised; an `OSError` is made one.
    """
    result: Any = None
    error: TuneError | None = None
    if world.is_main:
        try:
            result = function()
        except TuneError as raised:
            error = raised
        except OSError as raised:
            error = disk_error(raised, path or Path(raised.filename or "."))
    result, error = world.broadcast((result, error))
    if error is not None:
        raise error
    return result


def file_digest(path: Path) -> Digest:
    """Return size and sha256 of the file at `path`, read in pieces."""
    sha256, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            sha256.update(buffer[:count])
            size += count
    return Digest(size, sha256.hexdigest())


def flush(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to disk (fsync)."""
    windows = os.name == "nt"  # flushes no folders, and no file that is open for reading only
    if windows and path.is_dir():
        return
    file = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_flushed(path: Path, data: bytes) -> None:
    """Write a small file and wait until it is on disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    file = os.open(path, flags, 0o666)
    try:
        while data:
            data = data[os.write(file, data) :]
        os.fsync(file)
    finally:
        os.close(file)
