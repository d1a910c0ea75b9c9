"""A file of known layout, of which each process writes its share and hashes it on the way."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from torchtune.checkpoint.boxes import stretches
from torchtune.checkpoint.disk import Digest

if TYPE_CHECKING:
    from torchtune.distributed import Part

__all__ = ["OutputFile", "Share"]

# What is hashed and written at a time: small enough to be still in the cache for the second.
_PIECE_BYTES = 4 * 2**20
_NO_SUCH_CALL = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


class Share(NamedTuple):
    """What this process writes of one tensor.

    Attributes:
        tensor: It, of the shape ``box.sizes``, on any device; or a function that gives it when its
            turn comes.
        dtype: The dtype in the file.
        shape: The whole tensor's, as the file has it.
        begin: The tensor's first byte in the file.
        box: Where in the whole this share lies.
    """

    tensor: Tensor | Callable[[], Tensor]
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    box: "Part"

    def nbytes(self) -> int:
        """Return how many bytes it takes in the file."""
        return prod(self.box.sizes) * self.dtype.itemsize

    def bytes(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the share's bytes in pieces, each with its place in the file."""
        tensor = self.tensor if isinstance(self.tensor, Tensor) else self.tensor()
        blocks = _blocks(tensor.detach(), self.dtype)
        block = memoryview(b"")
        width = self.dtype.itemsize
        for first, count in stretches(self.shape, self.box):
            place, left = self.begin + first * width, count * width
            while left:
                block = block or next(blocks)
                data, block = block[:left], block[left:]
                yield place, data
                place, left = place + len(data), left - len(data)


def _blocks(tensor: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """Yield the bytes of `tensor`, converted and brought to the CPU piece by piece."""
    flat = tensor.reshape(-1)
    for part in flat.split(_PIECE_BYTES // dtype.itemsize):
        yield memoryview(part.to("cpu", dtype).contiguous().view(torch.uint8).numpy().data)


@dataclass(frozen=True)
class OutputFile:
    """A file to be written, its layout known.

    Args:
        path: Where to write; its folder is there.
        size: Bytes of the whole file, set aside at once so that a full disk is found early.
        prefix: The first bytes; given by one process alone, which sets the size aside.
        shares: What this process writes behind them, in the order of the file's bytes.
        shared: Whether other processes write into the file too. Otherwise this one writes all of it.
    """

    path: Path
    size: int
    prefix: bytes = b""
    shares: Sequence[Share] = ()
    shared: bool = False

    def nbytes(self) -> int:
        """Return how many bytes this process writes; with none it leaves the file alone."""
        return len(self.prefix) + sum(share.nbytes() for share in self.shares)

    def write(self, stop: Event, *, durable: bool, hashed: bool) -> Digest | None:
        """Write what this process has of the file; return the digest of one that it writes alone.

        Args:
            stop: Once set, the rest is left unwritten.
            durable: Flush the file to disk, which waits until it is there.
            hashed: Compute the sha256 too.

        Raises:
            OSError: The disk is full, or the file cannot be written.
        """
        sha256 = hashlib.sha256() if hashed and not self.shared else None
        flags = os.O_WRONLY | os.O_CREAT | (0 if self.shared else os.O_TRUNC)
        file = os.open(self.path, flags | getattr(os, "O_BINARY", 0), 0o666)
        place = on_its_way = 0
        try:
            if durable and self.prefix:
                _set_aside(file, self.size)
            for begin, data in self._bytes():
                if stop.is_set():
                    return None
                if begin != place:
                    os.lseek(file, begin, os.SEEK_SET)
                if sha256 is not None:
                    sha256.update(data)
                place = begin + len(data)
                while data:
                    data = data[os.write(file, data) :]
                if durable and place - on_its_way >= _PIECE_BYTES:
                    _begin_flushing(file, on_its_way, place)
                    on_its_way = place
            if durable:
                os.fsync(file)
        finally:
            os.close(file)
        return Digest(self.size, sha256.hexdigest()) if sha256 is not None else None

    def _bytes(self) -> Iterator[tuple[int, memoryview]]:
        yield 0, memoryview(self.prefix)
        for share in self.shares:
            yield from share.bytes()


def _begin_flushing(file: int, begin: int, end: int) -> None:
    """Let the disk begin with these bytes while later ones are hashed, so that fsync waits for less."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # it is advice, and fsync says what went wrong
            os.posix_fadvise(file, begin, end - begin, os.POSIX_FADV_DONTNEED)


def _set_aside(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in _NO_SUCH_CALL:  # some file systems cannot set aside
                raise
