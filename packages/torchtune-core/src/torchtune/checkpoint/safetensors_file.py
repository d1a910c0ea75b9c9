"""The header of a safetensors file, read and checked, or laid out for a file to be written.

The format is that of https://huggingface.co/docs/safetensors: eight bytes with the length of a
JSON header, the header, then the tensors' bytes one after the other.
"""

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchtune.errors import MissingError, TuneError

__all__ = [
    "DTYPES",
    "OFFSETS",
    "Entry",
    "Header",
    "file_dtype",
    "lay_out",
    "nbytes",
    "read_header",
]

OFFSETS = "DCP_SHARDING_INFO"
"""Metadata of torch.distributed.checkpoint's files: where each tensor in it lies in the whole one."""

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


class Header(NamedTuple):
    """What a safetensors file holds.

    Attributes:
        entries: By name, in the order of their bytes.
        start: The first byte after the header.
        offsets: Where a tensor lies in the whole one that it is a part of, by name; none for a
            file of whole tensors.
    """

    entries: dict[str, Entry]
    start: int
    offsets: dict[str, tuple[int, ...]]


def read_header(path: Path) -> Header:
    """Return what the safetensors file at `path` holds.

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
    entries, offsets = _parse(path, header)
    promised = 8 + length + max((entry.end for entry in entries.values()), default=0)
    if size < promised:
        raise _truncated(path, size, promised)
    entries = dict(sorted(entries.items(), key=lambda item: item[1].begin))
    return Header(entries, 8 + length, offsets)


def _parse(path: Path, header: bytes) -> tuple[dict[str, Entry], dict[str, tuple[int, ...]]]:
    try:
        fields = json.loads(header)
        parts = json.loads((fields.pop("__metadata__", None) or {}).get(OFFSETS, "{}"))
        entries = {
            name: Entry(value["dtype"], tuple(value["shape"]), *value["data_offsets"])
            for name, value in fields.items()
        }
        return entries, {name: tuple(parts[name]["saved_offsets"]) for name in parts}
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


def lay_out(
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    offsets: Mapping[str, Sequence[int]] | None = None,
) -> tuple[bytes, dict[str, int]]:
    """Return the header of a file with tensors of these dtypes and shapes, and first bytes by name.

    Wide dtypes come first, as in the reference implementation: every tensor is aligned then. The
    first bytes are in the order of the file.

    Args:
        shapes: By name.
        offsets: Where each lies in the whole tensor that it is a part of; None: they are whole.
    """
    metadata = {"format": "pt"}
    if offsets is not None:
        parts = {name: {"saved_offsets": list(place)} for name, place in offsets.items()}
        metadata |= {OFFSETS: json.dumps(parts), "DCP_VERSION": "1.0"}
    fields: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    order = sorted(shapes, key=lambda name: -shapes[name][0].itemsize)
    for name in order:
        dtype, shape = shapes[name]
        end = begin + prod(shape) * dtype.itemsize
        fields[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    places = {name: len(header) + fields[name]["data_offsets"][0] for name in order}
    return header, places
