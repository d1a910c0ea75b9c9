"""The weights of a Hugging Face folder, read tensor by tensor from one file or many."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from torchtune.checkpoint.disk import file_digest
from torchtune.checkpoint.safetensors_file import DTYPES, Entry, read_header
from torchtune.checkpoint.tensor_reading import Piece, fill_from
from torchtune.errors import ConfigError, MissingError

__all__ = [
    "INDEX_FILE",
    "WEIGHTS_FILE",
    "Weights",
    "pieces_of",
    "read_weights",
    "weights_digest",
]

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_COMPARED_BYTES = 2**20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class Weights(Mapping[str, Tensor]):
    """The tensors of some safetensors files by name; each is read when it is asked for.

    Iterating goes through the files in the order of their bytes, so that disks read ahead. A tensor
    is a view of the file in memory (mapped): it costs nothing until it is read. `fill` reads what a
    process needs, and nothing else.

    Args:
        files: The safetensors files; no name may be in two of them, unless the files hold parts of
            tensors and say where in these they belong.

    Raises:
        MissingError: A file is absent, cut short, or no safetensors file.
    """

    def __init__(self, files: list[Path]) -> None:
        self._headers = {path: read_header(path) for path in files}
        self._paths: dict[str, list[Path]] = {}
        for path, header in self._headers.items():
            for name in header.entries:
                self._paths.setdefault(name, []).append(path)
        self._open: tuple[Path, Any] | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self._handle(self._paths[name][0]).get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._paths  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def entry(self, name: str) -> Entry:
        """Return dtype and shape of the tensor `name`, or of its first part, without reading it."""
        return self._headers[self._paths[name][0]].entries[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole tensor `name` without reading it."""
        ends = (
            (at + size for at, size in zip(piece.offsets, piece.sizes, strict=True))
            for piece in self._pieces(name)
        )
        return tuple(max(bounds) for bounds in zip(*ends, strict=True))

    def same(self, one: str, other: str) -> bool:
        """Say whether two tensors are equal to the bit, holding 1 MiB of each in memory.

        Args:
            one: The name of a tensor that lies whole in a file.
            other: That of another.
        """
        (a,), (b,) = self._pieces(one), self._pieces(other)
        if (a.dtype, a.sizes) != (b.dtype, b.sizes):
            return False
        left = prod(a.sizes) * a.dtype.itemsize
        with a.path.open("rb") as first, b.path.open("rb") as second:
            first.seek(a.begin), second.seek(b.begin)
            while left and (data := first.read(min(left, _COMPARED_BYTES))):
                if data != second.read(len(data)):
                    return False
                left -= len(data)
        return True

    def fill(self, name: str, target: Tensor) -> None:
        """Read the part of the tensor `name` that this process holds of `target` into it.

        Args:
            name: Any that is in the files.
            target: Of the whole shape that the files have; plain or distributed, of any dtype;
                holds memory.

        Raises:
            MissingError: A file is cut short, or the files hold only parts of the tensor.
            ConfigError: `target` is of floating point and the files hold quantised numbers.
        """
        pieces = self._pieces(name)
        stored = pieces[0].dtype
        if target.is_floating_point() and not (stored.is_floating_point and stored.itemsize > 1):
            raise ConfigError(
                "E-WEIGHTS-QUANTISED",
                f"{name} is stored as {str(stored).removeprefix('torch.')}: quantised weights are "
                "not supported",
                where=str(pieces[0].path),
                do="take the checkpoint that it was quantised from",
            )
        fill_from(pieces, target, name)

    def _pieces(self, name: str) -> list[Piece]:
        if name not in self._paths:
            where = str(next(iter(self._headers)).parent) if self._headers else ""
            raise MissingError("E-TENSOR-MISSING", f"no file holds {name}", where=where)
        return [self._piece(path, name) for path in self._paths[name]]

    def _piece(self, path: Path, name: str) -> Piece:
        header = self._headers[path]
        entry = header.entries[name]
        if entry.dtype not in DTYPES:
            what = f"{name} is of dtype {entry.dtype}, which is not known"
            raise MissingError("E-FILE-DAMAGED", what, where=str(path))
        offsets = header.offsets.get(name, (0,) * len(entry.shape))
        begin = header.start + entry.begin
        return Piece(path, DTYPES[entry.dtype], offsets, entry.shape, begin)

    def _handle(self, path: Path) -> Any:
        """Return the open file; one at a time, as each is mapped into memory."""
        if self._open is None or self._open[0] != path:
            from safetensors import SafetensorError, safe_open

            try:
                self._open = path, safe_open(str(path), framework="pt")
            except SafetensorError as error:
                raise MissingError(
                    "E-FILE-DAMAGED", f"{path.name}: {error}", where=str(path)
                ) from None
        return self._open[1]


def pieces_of(name: str, weights: Weights) -> list[Piece]:
    """Return where the parts of a tensor lie; none where no file holds it.

    Raises:
        MissingError: It is of a dtype that is not known.
    """
    return weights._pieces(name) if name in weights else []


def read_weights(folder: str | os.PathLike[str]) -> Weights:
    """Return the weights of a folder in Hugging Face's layout, opened: one file or shards.

    Args:
        folder: The folder, or one safetensors file.

    Raises:
        MissingError: The folder, a shard or a tensor that the index names is absent, a file is cut
            short, or there are only pickled weights, which are never read.
    """
    folder = Path(folder).expanduser()
    return Weights([folder]) if folder.is_file() else _read_folder(folder)


def _read_folder(folder: Path) -> Weights:
    files = weight_files(folder)
    weights = Weights(files)
    if (folder / WEIGHTS_FILE).is_file():
        return weights
    named = _read_index(folder / INDEX_FILE)
    absent = [name for name in named if name not in weights]
    if absent:
        raise MissingError(
            "E-TENSOR-MISSING",
            f"no file holds {', '.join(absent)}, which the index names",
            where=str(folder / INDEX_FILE),
            do="fetch the folder again",
        )
    return weights


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that make up the model in `folder`, sorted by name.

    Raises:
        MissingError: There are none, or the index names absent ones.
    """
    if not folder.is_dir():
        raise MissingError("E-CHECKPOINT-MISSING", "there is no such folder", where=str(folder))
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        raise _no_weights(folder)
    files = [folder / name for name in sorted(set(_read_index(folder / INDEX_FILE).values()))]
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise MissingError(
            "E-SHARD-MISSING",
            f"the index names {', '.join(absent)}, which the folder does not hold",
            where=str(folder / INDEX_FILE),
            do="fetch the missing files",
        )
    return files


def _read_index(path: Path) -> dict[str, str]:
    try:
        names: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        # A shard lies in the folder itself: a name with a path in it could reach anywhere.
        return {name: Path(file).name for name, file in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MissingError(
            "E-FILE-DAMAGED", f"{path.name} is no index of weights", where=str(path)
        ) from error


def _no_weights(folder: Path) -> MissingError:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    if shards:
        what, do = f"{shards[0]} is there but {INDEX_FILE} is not", "fetch the index"
    elif pickles:
        what = f"only pickled weights ({pickles[0]}) are there, and those can run code when read"
        do = "save the model with transformers' save_pretrained, which writes safetensors"
    else:
        what, do = f"the folder holds no {WEIGHTS_FILE}", "give a folder in Hugging Face's layout"
    return MissingError("E-WEIGHTS-MISSING", what, where=str(folder), do=do)


def weights_digest(folder: str | os.PathLike[str]) -> str:
    """Return one sha256 over names and contents of the weight files in `folder`, as hexadecimal.

    Reads every byte, in a few threads: about 2 GB/s and thread where the processor has SHA
    instructions.

    Raises:
        MissingError: There are no weights, or some are absent.
    """
    files = weight_files(Path(folder).expanduser())
    with ThreadPoolExecutor(max_workers=4) as threads:
        digests = threads.map(file_digest, files)
        lines = [
            f"{digest.sha256}  {path.name}\n" for path, digest in zip(files, digests, strict=True)
        ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
