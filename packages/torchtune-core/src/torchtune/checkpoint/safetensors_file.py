"""One safetensors file: its header, checked, and a writer that streams tensor by tensor.

The format is that of https://huggingface.co/docs/safetensors: eight bytes with the length of a
JSON header, the header, then the tensors' bytes one after the other.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from torchtune.checkpoint.output_file import OutputFile
from torchtune.errors import MissingError, TuneError

if TYPE_CHECKING:
    from torchtune.distributed import World

__all__ = ["DTYPES", "Entry", "nbytes", "read_header", "write_tensors"]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_LIMIT = 100 * 2**20  # bytes; the reference implementation refuses more


class Entry(NamedTuple):
    """What a header says of one tensor.

    Attributes:
        dtype: One of the format's names, a key of `DTYPES` (or of a newer format than ours).
        shape: Its sizes.
        begin: Its first byte, counted from the end of the header.
        end: The byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """Return what the safetensors file at `path` holds, in the order of its bytes.

    Raises:
        MissingError: The file is absent, cut short, or no safetensors file.
    """
    if not path.is_file():
        raise MissingError("E-FILE-MISSING", f"there is no file {path.name}", where=str(path))
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size:
            if size >= 8 and length > _HEADER_LIMIT:
                raise _damaged(path, "is not a safetensors file")
            raise _truncated(path, size, max(8 + length, 9))
        header = file.read(length)
    entries = _parse(path, header)
    promised = 8 + length + max((entry.end for entry in entries.values()), default=0)
    if size < promised:
        raise _truncated(path, size, promised)
    return dict(sorted(entries.items(), key=lambda item: item[1].begin))


def _parse(path: Path, header: bytes) -> dict[str, Entry]:
    try:
        fields = json.loads(header)
        fields.pop("__metadata__", None)
        return {
            name: Entry(value["dtype"], tuple(value["shape"]), *value["data_offsets"])
            for name, value in fields.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, "has a header that cannot be read") from error


def _damaged(path: Path, what: str) -> TuneError:
    return MissingError(
        "E-FILE-DAMAGED", f"{path.name} {what}", where=str(path), do="fetch or save the file again"
    )


def _truncated(path: Path, size: int, promised: int) -> TuneError:
    return MissingError(
        "E-FILE-TRUNCATED",
        f"{path.name} is cut short: {size} bytes of at least {promised}",
        where=str(path),
        do="fetch or save the file again",
    )


def nbytes(tensor: Tensor, dtype: torch.dtype | None = None) -> int:
    """Return the bytes that `tensor`, whole, takes in a file of `dtype` (None: its own)."""
    return tensor.numel() * (file_dtype(tensor, dtype)).itemsize


def file_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype of `tensor` in the file: `dtype` replaces floating point ones only."""
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    world: "World",
    dtype: torch.dtype | None = None,
    durable: bool = True,
    value: Callable[[str], Tensor] | None = None,
) -> None:
    """Write `tensors` into the safetensors file `path`, gathering one at a time.

    All ranks call this with the same names; the main one writes. No more than one tensor is held
    whole, and each is hashed while it is written.

    Args:
        path: The file to write.
        tensors: By name; plain or distributed over the ranks.
        world: The processes that take part.
        dtype: What floating point tensors are cast to; None keeps theirs.
        durable: See `OutputFile`.
        value: Gives the tensor of a name when its turn comes, in the shape of the one in `tensors`,
            which then may be of the meta device; None takes the one in `tensors`.

    Raises:
        TuneError: The disk is full, or the file cannot be written; raised on every rank.
    """
    from torchtune.distributed import gather_full  # late: brings torch.distributed

    # Wide dtypes first, as the reference implementation does: every tensor is aligned then.
    order = sorted(tensors, key=lambda name: -file_dtype(tensors[name], dtype).itemsize)
    header = _header({name: tensors[name] for name in order}, dtype)
    size = len(header) + sum(nbytes(tensor, dtype) for tensor in tensors.values())
    file = OutputFile(path, world, size=size, durable=durable)
    try:
        file.write(header)
        for name in order:
            full = gather_full((value(name) if value else tensors[name]).detach())
            if world.is_main:
                file.write(_bytes(full, file_dtype(tensors[name], dtype)))
            del full
    except BaseException:
        file.abandon()
        raise
    file.close()


def _header(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> memoryview:
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + nbytes(tensor, dtype)
        kind = _NAMES[file_dtype(tensor, dtype)]
        fields[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(len(text).to_bytes(8, "little") + text)


def _bytes(tensor: Tensor, dtype: torch.dtype) -> memoryview:
    flat = tensor.to("cpu", dtype).contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data)
