"""Writing to disk so that nothing is lost: one rank writes, all of them learn how it went."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from torchtune.errors import TuneError

if TYPE_CHECKING:
    from torchtune.distributed import World

__all__ = ["Digest", "OutputFile", "disk_error", "file_digest", "flush", "on_main", "recording"]

T = TypeVar("T")
# A quota, or the size that the shell allows a file, is as final as a full disk.
_FULL = {errno.ENOSPC, errno.EFBIG} | {getattr(errno, "EDQUOT", errno.ENOSPC)}
_READ_BYTES = 4 * 2**20
_SMALL_BYTES = 2**16


class Digest(NamedTuple):
    """What a manifest says of one file.

    Attributes:
        size: Bytes.
        sha256: 64 hexadecimal digits.
    """

    size: int
    sha256: str


_digests: ContextVar[dict[Path, Digest] | None] = ContextVar("digests", default=None)


@contextmanager
def recording() -> Iterator[dict[Path, Digest]]:
    """Collect the digests of the files that `OutputFile` writes meanwhile, by absolute path."""
    digests: dict[Path, Digest] = {}
    token = _digests.set(digests)
    try:
        yield digests
    finally:
        _digests.reset(token)


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


class OutputFile:
    """A file that the main rank writes and all ranks close: hashed on its way, flushed at the end.

    An `OSError` on the main rank is kept until `close`, and later writes do nothing, so that it
    stays in step with ranks that gather tensors for it. Hashing runs beside writing in a thread.

    Args:
        path: Where to write; an old file is replaced.
        world: The processes that take part.
        durable: Hash the bytes and flush them to disk; False leaves both out, to measure the cost.
    """

    def __init__(self, path: Path, world: "World", *, durable: bool = True) -> None:
        self.path, self.world, self.durable = path, world, durable
        self.size = 0
        self._error: OSError | None = None
        self._sha256 = hashlib.sha256()
        self._threads = ThreadPoolExecutor(max_workers=1)
        self._file = -1
        if world.is_main:
            self._try(self._open)

    def write(self, data: memoryview) -> None:
        """Append `data`, bytes; does nothing on other ranks than the main one."""
        if self._file >= 0 and self._error is None:
            self._try(lambda: self._write(data))

    def close(self) -> None:
        """Flush and close on the main rank; raise on every rank what went wrong there."""
        on_main(self.world, self._close, self.path)

    def abandon(self) -> None:
        """Close without flushing and without a word to other ranks: some other error comes first."""
        self._threads.shutdown()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self._error = error

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        self._file = os.open(self.path, flags, 0o666)

    def _write(self, data: memoryview) -> None:
        if not self.durable:
            _write_all(self._file, data)
        elif len(data) < _SMALL_BYTES:
            self._sha256.update(data)
            _write_all(self._file, data)
        else:
            hashed = self._threads.submit(self._sha256.update, data)
            try:
                _write_all(self._file, data)
            finally:
                hashed.result()
        self.size += len(data)

    def _close(self) -> None:
        try:
            if self._error is not None:
                raise self._error
            if self.durable:
                os.fsync(self._file)
                digests = _digests.get()
                if digests is not None:
                    digests[self.path.absolute()] = Digest(self.size, self._sha256.hexdigest())
        finally:
            self.abandon()


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


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
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call for folders
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)
