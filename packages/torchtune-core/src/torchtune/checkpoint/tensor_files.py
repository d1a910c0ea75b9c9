"""Tensors laid out in safetensors files: whole ones that ranks write together, or each rank's own."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchtune.checkpoint.output_file import OutputFile, Share
from torchtune.checkpoint.safetensors_file import file_dtype, lay_out, nbytes

if TYPE_CHECKING:
    from torchtune.distributed import Part, World

__all__ = ["own_files", "whole_file"]

# Files are hashed one by one, so that a few of moderate size use more cores than one large one.
_OWN_FILES, _SMALL_BYTES, _LARGE_BYTES = 4, 64 * 2**20, 2**30


def whole_file(
    path: Path,
    tensors: Mapping[str, Tensor],
    world: "World",
    *,
    dtype: torch.dtype | None = None,
    value: Callable[[str], Tensor] | None = None,
) -> OutputFile:
    """Plan a file with whole `tensors`, into which each rank writes the parts that it holds.

    Nothing is gathered: the layout follows from shapes, which every rank knows.

    Args:
        path: The file.
        tensors: By name, the same names on every rank; plain or distributed.
        world: The processes that take part.
        dtype: What floating point tensors are cast to; None keeps theirs.
        value: Gives the tensor of a name when its turn comes, in the shape of the one in `tensors`,
            which then may be of the meta device; None takes the one in `tensors`.
    """
    from torchtune.distributed import is_distributed, is_first_copy, local_part, part_of

    shapes = {name: (file_dtype(it, dtype), tuple(it.shape)) for name, it in tensors.items()}
    header, places = lay_out(shapes)
    shares = [
        Share(
            partial(value, name) if value else local_part(tensors[name]),
            *shapes[name],
            begin=begin,
            box=part_of(tensors[name]),
        )
        for name, begin in places.items()
        if is_first_copy(tensors[name], world)
    ]
    return OutputFile(
        path,
        len(header) + sum(nbytes(tensor, dtype) for tensor in tensors.values()),
        prefix=header if world.is_main else b"",
        shares=shares,
        shared=world.size > 1 and any(is_distributed(tensor) for tensor in tensors.values()),
    )


def own_files(
    folder: Path, parts: Mapping[str, tuple[Tensor, "Part"]], world: "World", *, pattern: str
) -> list[OutputFile]:
    """Plan files with the parts of tensors that this rank writes.

    The layout is that of torch.distributed.checkpoint's writer for Hugging Face's format with
    ``save_distributed=True``, which its reader reads; files are named by rank and number.

    Args:
        folder: Where the files go.
        parts: By the name of the whole tensor: what this rank holds of it, and where that lies.
        world: The processes that take part.
        pattern: The files' name, with ``{rank}`` and ``{number}``, both from 1.
    """
    files = []
    for number, names in enumerate(_groups({name: part for name, (part, _) in parts.items()}), 1):
        shapes = {name: (parts[name][0].dtype, parts[name][1].sizes) for name in names}
        header, places = lay_out(shapes, {name: parts[name][1].offsets for name in names})
        shares = [_share(*parts[name], begin) for name, begin in places.items()]
        path = folder / pattern.format(rank=world.rank + 1, number=number)
        size = len(header) + sum(nbytes(parts[name][0]) for name in names)
        files.append(OutputFile(path, size, prefix=header, shares=shares))
    return files


def _share(tensor: Tensor, part: "Part", begin: int) -> Share:
    """Return the share of a file that holds the part alone."""
    box = part._replace(offsets=(0,) * tensor.dim())
    return Share(tensor, tensor.dtype, part.sizes, begin, box)


def _groups(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Spread the names over files of like size, the same whatever machine this is."""
    total = sum(nbytes(tensor) for tensor in tensors.values())
    count = max(-(-total // _LARGE_BYTES), min(_OWN_FILES, -(-total // _SMALL_BYTES)))
    groups: list[list[str]] = [[] for _ in range(count)]
    done = 0
    for name, tensor in tensors.items():
        groups[min(done * count // max(total, 1), count - 1)].append(name)
        done += nbytes(tensor)
    return [group for group in groups if group]
