"""Reading a tensor's bytes into memory that is there already, of each process its own part alone."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from torchtune.checkpoint.boxes import common_box, slices, stretches, within
from torchtune.errors import MissingError

if TYPE_CHECKING:
    from torchtune.distributed import Part

__all__ = ["Piece", "check_found", "fill_from", "read_into"]

# What is converted or goes to a GPU passes through a buffer of this size, which stays in the cache.
_BUFFER_BYTES = 16 * 2**20


class Piece(NamedTuple):
    """A box of a tensor that lies in a file.

    Attributes:
        path: The file.
        dtype: The dtype there.
        offsets: Where the box begins in the whole tensor.
        sizes: Its shape.
        begin: Its first byte in the file.
    """

    path: Path
    dtype: torch.dtype
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    begin: int

    @property
    def box(self) -> "Part":
        """Where it lies in the whole tensor."""
        from torchtune.distributed import Part

        return Part(self.offsets, self.sizes)


@torch.no_grad()
def fill_from(pieces: Sequence[Piece], target: Tensor, name: str) -> None:
    """Copy what this process holds of `target` from files, converting its dtype.

    Bytes are read, not mapped, and only those that are needed: memory is what `target` has already,
    and 16 MiB (or a row) where it is on a GPU or of another dtype.

    Args:
        pieces: Boxes that make up the tensor.
        target: Plain or distributed; holds memory.
        name: The tensor's, for the error.

    Raises:
        MissingError: E-TENSOR-MISSING: the pieces do not make up the whole; E-FILE-TRUNCATED.
    """
    from torchtune.distributed import local_part, part_of  # late: brings torch.distributed

    part = part_of(target)
    found = read_into(pieces, part, local_part(target))
    check_found(found, part, name, pieces)


def read_into(pieces: Sequence[Piece], part: "Part", memory: Tensor) -> int:
    """Copy what of the box `part` is in `pieces` into `memory`, its shape; return how many elements."""
    found = 0
    for piece in pieces:
        box = common_box(part, piece.box)
        if prod(box.sizes):
            _read_box(piece, within(box, piece.box), memory[slices(within(box, part))])
        found += prod(box.sizes)
    return found


def check_found(found: int, part: "Part", name: str, pieces: Sequence[Piece]) -> None:
    """Raise where fewer elements of `part` were found in `pieces` than it has.

    Raises:
        MissingError: E-TENSOR-MISSING.
    """
    if found != prod(part.sizes):
        what = f"{name} is there in part only: {found} of {prod(part.sizes)} elements"
        where = str(pieces[0].path.parent) if pieces else ""
        raise MissingError("E-TENSOR-MISSING", what, where=where, do="fetch the folder again")


def _read_box(piece: Piece, box: "Part", view: Tensor) -> None:
    """Read `box` of a piece into `view`, at once where that is memory as it lies in the file."""
    if view.device.type == "cpu" and view.dtype == piece.dtype and view.is_contiguous():
        _read_into(piece, box, view)
        return
    rows = box.sizes[0] if box.sizes else 1
    step = max(1, _BUFFER_BYTES * rows // (prod(box.sizes) * piece.dtype.itemsize))
    for row in range(0, rows, step):
        offsets, sizes = box
        if sizes:
            offsets = (offsets[0] + row, *offsets[1:])
            sizes = (min(step, rows - row), *sizes[1:])
        buffer = torch.empty(sizes, dtype=piece.dtype)
        _read_into(piece, type(box)(offsets, sizes), buffer)
        (view[row : row + step] if sizes else view).copy_(buffer)


def _read_into(piece: Piece, box: "Part", memory: Tensor) -> None:
    data = memory.view(-1).view(torch.uint8).numpy().data
    width = piece.dtype.itemsize
    with piece.path.open("rb", buffering=0) as file:
        for begin, count in stretches(piece.sizes, box):
            file.seek(piece.begin + begin * width)
            wanted, data = data[: count * width], data[count * width :]
            while wanted:
                if not (size := file.readinto(wanted)):
                    raise _ends_early(piece.path)
                wanted = wanted[size:]


def _ends_early(path: Path) -> MissingError:
    do = "fetch or save the file again"
    return MissingError("E-FILE-TRUNCATED", f"{path.name} is cut short", where=str(path), do=do)
