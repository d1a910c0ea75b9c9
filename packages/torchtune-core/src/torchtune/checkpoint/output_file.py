"""A file that is hashed and flushed to disk by threads while the next bytes are written."""

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from torchtune.checkpoint.disk import Digest, on_main

if TYPE_CHECKING:
    from torchtune.distributed import World

__all__ = ["OutputFile", "Recording", "recording"]

# Smaller tensors are joined before they are written and hashed: handing each to a thread would
# cost more than copying it.
_SMALL_BYTES = 2**20
_BATCH_BYTES = 16 * 2**20
# How far hashing may fall behind writing: what is written is kept in memory until it is hashed.
_BACKLOG_BYTES = 256 * 2**20
_NO_SUCH_CALL = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


class Recording:
    """The files closed by `OutputFile` meanwhile, which may still be hashed and flushed."""

    def __init__(self) -> None:
        self._files: list[OutputFile] = []

    def add(self, file: "OutputFile") -> None:
        """Take over a closed `file`."""
        self._files.append(file)

    def digests(self) -> dict[Path, Digest]:
        """Wait until all are on disk; return their digests by absolute path.

        Raises:
            OSError: One could not be flushed.
        """
        return {file.path.absolute(): file.digest() for file in self._files}

    def abandon(self) -> None:
        """Let go of all files, whatever came of them."""
        for file in self._files:
            file.abandon()


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recording() -> Iterator[Recording]:
    """Collect what `OutputFile` writes, so that no file waits for the one before to be on disk."""
    files = Recording()
    token = _recording.set(files)
    try:
        yield files
    finally:
        _recording.reset(token)
        files.abandon()


class OutputFile:
    """A file that the main rank writes and all ranks close.

    An `OSError` on the main rank is kept until `close`, and later writes do nothing, so that it
    stays in step with ranks that gather tensors for it. One thread hashes what was written, another
    flushes it in the end; `close` waits for both unless there is a `recording`, which then does.

    Args:
        path: Where to write; an old file is replaced.
        world: The processes that take part.
        size: Bytes to come, where that is known: the disk sets them aside, so that a full one is
            found at once and flushing takes less time (0.55 s instead of 0.60 for 0.8 GB).
        durable: Hash the bytes and flush them to disk; False leaves both out, to measure the cost.
    """

    def __init__(self, path: Path, world: "World", *, size: int = 0, durable: bool = True) -> None:
        self.path, self.world, self.durable = path, world, durable
        self._size, self._file = 0, -1
        self._error: OSError | None = None
        self._sha256 = hashlib.sha256()
        self._batch = bytearray()
        self._hasher = ThreadPoolExecutor(max_workers=1)  # one, so that the order is kept
        self._flusher = ThreadPoolExecutor(max_workers=1)
        self._backlog: deque[tuple[Future[None], int]] = deque()
        self._flushed: Future[None] | None = None
        if world.is_main:
            self._try(lambda: self._open(size if durable else 0))

    def write(self, data: memoryview) -> None:
        """Append `data`, bytes that must not change until the file is closed and digested.

        Does nothing on other ranks than the main one.
        """
        if self._file < 0 or self._error is not None:
            return
        if len(data) < _SMALL_BYTES:
            self._batch += data
        if len(data) >= _SMALL_BYTES or len(self._batch) >= _BATCH_BYTES:
            self._try(self._write_batch)
        if len(data) >= _SMALL_BYTES and self._error is None:
            self._try(lambda: self._write(data))

    def close(self) -> None:
        """End the file on the main rank; raise on every rank what went wrong there."""
        on_main(self.world, self._close, self.path)

    def digest(self) -> Digest:
        """Wait until the closed file is hashed and on disk, and return its digest.

        Raises:
            OSError: It could not be flushed.
        """
        if self._flushed is not None:
            self._flushed.result()
        self.abandon()  # waits for the hasher
        return Digest(self._size, self._sha256.hexdigest())

    def abandon(self) -> None:
        """Close without a word to other ranks, as when some other error comes first."""
        self._hasher.shutdown()
        self._flusher.shutdown()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self._error = error

    def _open(self, size: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        self._file = os.open(self.path, flags, 0o666)
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._file, 0, size)
            except OSError as error:
                if error.errno not in _NO_SUCH_CALL:  # some file systems cannot set aside
                    raise

    def _write_batch(self) -> None:
        batch, self._batch = self._batch, bytearray()
        self._write(memoryview(batch))

    def _write(self, data: memoryview) -> None:
        if self.durable:
            self._backlog.append((self._hasher.submit(self._sha256.update, data), len(data)))
            while sum(size for _, size in self._backlog) > _BACKLOG_BYTES:
                self._backlog.popleft()[0].result()
        self._size += len(data)
        while data:
            data = data[os.write(self._file, data) :]

    def _close(self) -> None:
        files = _recording.get()
        if self._error is None:
            self._try(self._write_batch)
        if self._error is not None or not self.durable:
            self.abandon()
        if self._error is not None:
            raise self._error
        if self.durable:
            self._flushed = self._flusher.submit(os.fsync, self._file)
            files.add(self) if files is not None else self.digest()
