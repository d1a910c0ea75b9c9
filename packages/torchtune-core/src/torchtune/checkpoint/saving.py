"""The files of one save: planned by all ranks; copied, where training goes on, and written by threads."""

import json
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchtune.checkpoint.disk import Digest, disk_error, file_digest, flush, on_main
from torchtune.checkpoint.output_file import OutputFile
from torchtune.checkpoint.staged_work import THREADS, StagedWork, Task

if TYPE_CHECKING:
    from torchtune.distributed import World

__all__ = ["Copies", "Saving", "make_folder", "write_files", "write_json"]


class Copies:
    """Copies of tensors on the CPU, whose memory is kept from one save to the next.

    Memory that is asked for anew is slow to fill: 0.62 s a GB on one core, and 0.11 the next time.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._sources: list[tuple[Tensor, torch.dtype]] = []

    def begin(self) -> None:
        """Let the copies made so far be overwritten."""
        self._sources.clear()

    def of(self, tensor: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
        """Return what gives the copy of `tensor` in `dtype` once the `task` is done."""
        self._sources.append((tensor.detach(), dtype))
        return partial(self._kept.__getitem__, len(self._sources) - 1)

    def task(self) -> Task:
        """Return what makes the copies, of the values that the calling thread's work leads to."""
        stream = torch.cuda.Stream() if any(it.is_cuda for it, _ in self._sources) else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())
        return partial(self._make, stream)

    def _make(self, stream: "torch.cuda.Stream | None", stop: Event) -> None:
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            for number, (tensor, dtype) in enumerate(self._sources):
                if stop.is_set():
                    break
                self._memory(number, tensor, dtype).copy_(tensor)  # waits for the stream
        self._sources.clear()

    def _memory(self, number: int, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        kept = self._kept[number] if number < len(self._kept) else None
        if kept is None or (kept.shape, kept.dtype) != (tensor.shape, dtype):
            kept = torch.empty(tensor.shape, dtype=dtype, pin_memory=tensor.is_cuda)
            self._kept[number:] = [kept]
        return kept


class Saving:
    """What this rank writes of one save.

    Args:
        world: The processes that take part.
        copies: Where to copy tensors that may change before they are written; None: they do not.
            They must stay as they are until the tasks of `copying` are done.
        durable: Flush files to disk.
        hashed: Compute the sha256 of every file.
    """

    def __init__(
        self,
        world: "World",
        *,
        copies: Copies | None = None,
        durable: bool = True,
        hashed: bool = False,
    ) -> None:
        self.world, self.durable, self.hashed = world, durable, hashed
        self._copies = copies
        self._files: list[OutputFile] = []
        self._digests: dict[Path, Digest] = {}

    def add(self, file: OutputFile) -> None:
        """Take a file over. Of a shared one every rank adds its share, in the same order of files."""
        if self._copies is not None:
            copies = self._copies
            shares = [
                share._replace(tensor=copies.of(share.tensor, share.dtype))
                if isinstance(share.tensor, Tensor)
                else share
                for share in file.shares
            ]
            file = replace(file, shares=shares)
        self._files.append(file)

    def copying(self) -> list[Task]:
        """Return this rank's tasks that copy tensors, to be done before the `stages`."""
        return [] if self._copies is None else [self._copies.task()]

    def stages(self, found: Collection[Path] = ()) -> Generator[list[Task], None, None]:
        """Yield this rank's tasks: to write; then, if they are hashed, to read what several wrote.

        Args:
            found: Files written already, to be flushed and hashed with the others.
        """
        files = sorted(self._files, key=OutputFile.nbytes, reverse=True)  # the longest first
        writing: list[Task] = [partial(self._write, file) for file in files if file.nbytes()]
        yield writing + [partial(self._seal, path) for path in found]
        if self.hashed:
            shared = self.shared()
            yield [partial(self._hash, path) for path in shared[self.world.rank :: self.world.size]]

    def shared(self) -> list[Path]:
        """Return the files that several ranks write, the same on each."""
        return [file.path for file in self._files if file.shared]

    def own_digests(self) -> dict[Path, Digest]:
        """Return the digests of what this rank has hashed so far."""
        return dict(self._digests)

    def digests(self) -> dict[Path, Digest]:
        """Return the digests of all ranks' files, after the stages. All ranks call this."""
        return {
            path: it for found in self.world.gather(self._digests) for path, it in found.items()
        }

    def _write(self, file: OutputFile, stop: Event) -> None:
        try:
            digest = file.write(stop, durable=self.durable, hashed=self.hashed)
        except OSError as error:
            raise disk_error(error, file.path) from error
        if digest is not None:
            self._digests[file.path] = digest

    def _seal(self, path: Path, stop: Event) -> None:
        try:
            flush(path)
            self._digests[path] = file_digest(path)
        except OSError as error:
            raise disk_error(error, path) from error

    def _hash(self, path: Path, stop: Event) -> None:
        try:
            self._digests[path] = file_digest(path)
        except OSError as error:
            raise disk_error(error, path) from error


_current: ContextVar[Saving | None] = ContextVar("saving", default=None)


@contextmanager
def collect_files(saving: Saving) -> Iterator[None]:
    """Let `saving` take over what `write_files` would write in the block."""
    token = _current.set(saving)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def write_files(
    world: "World", *, durable: bool = True, threads: int = THREADS
) -> Iterator[Saving]:
    """Write what is added in the block when it ends, unless it is part of a larger save.

    All ranks call this; an error in writing is raised on every rank.

    Args:
        world: The processes that take part.
        durable: Flush the files to disk.
        threads: How many files are written at a time.
    """
    if (outer := _current.get()) is not None:
        yield outer
        return
    saving = Saving(world, durable=durable)
    with collect_files(saving):
        yield saving
    StagedWork(world, saving.stages(), threads=threads).advance(wait=True)


def make_folder(folder: Path, world: "World", *, without: Sequence[str]) -> None:
    """Make `folder` on the main rank where it is absent; remove the files of the patterns `without`."""

    def make() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (path for pattern in without for path in folder.glob(pattern)):
            path.unlink()

    on_main(world, make, folder)


def write_json(path: Path, value: Mapping[str, Any], saving: Saving) -> None:
    """Add a file with `value` as JSON, which the main rank writes; all ranks may call this."""
    if saving.world.is_main:
        text = (json.dumps(value, indent=2) + "\n").encode()
        saving.add(OutputFile(path, len(text), prefix=text))
