"""From what a user names (file, folder, hub id) to things that have rows."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torchtune.data.json_file import JsonFile
from torchtune.data.remote_files import is_remote, local_copy
from torchtune.data.tables import HubDataset, Table
from torchtune.data.text_files import CsvFile, JsonLines, Row, TextLines, read_bytes
from torchtune.errors import ConfigError, MissingError

__all__ = ["MemoryRows", "Source", "open_sources"]

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


class Source(Protocol):
    """Rows of one file or dataset, read when asked for."""

    @property
    def name(self) -> str:
        """The file or hub id."""
        ...

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Return row `index`, or raise `DataError` naming its place."""
        ...

    def line(self, index: int) -> int:
        """Return the line or row number of row `index`, counted from 1."""
        ...

    def where(self, index: int) -> str:
        """Return ``name:line`` of row `index`."""
        ...


class MemoryRows:
    """Rows that a program has already: a list of dicts, or a ``datasets.Dataset``."""

    name = "memory"

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        """Return row `index`."""
        return self._rows[index]

    def line(self, index: int) -> int:
        """Return its number, counted from 1."""
        return index + 1

    def where(self, index: int) -> str:
        """Return ``memory:number``."""
        return f"{self.name}:{index + 1}"


class Part:
    """The rows from `first` up to `last` of another source."""

    def __init__(self, source: Source, first: int, last: int) -> None:
        self.name, self._source, self._first, self._last = source.name, source, first, last

    def __len__(self) -> int:
        return max(0, self._last - self._first)

    def row(self, index: int) -> Row:
        """Return row `index` of this part."""
        return self._source.row(self._first + index)

    def line(self, index: int) -> int:
        """Return its line in the whole file."""
        return self._source.line(self._first + index)

    def where(self, index: int) -> str:
        """Return ``name:line`` in the whole file."""
        return self._source.where(self._first + index)


def open_sources(
    source: str | Path | Sequence[str | Path], *, split: str = "train", name: str | None = None
) -> list[Source]:
    """Return every file that `source` names, opened, or a dataset of the hub.

    Args:
        source: A file (JSON, JSONL, CSV, TSV, Parquet, Arrow, text; ``.gz`` too for text forms), a
            folder of them, a pattern with ``*``, any of them as a URL (``s3://...``) of which a
            copy is made, a hub id, or a list of these.
        split: Of a hub dataset, or of a folder whose files or subfolders are called ``train``,
            ``validation`` or ``test``. ``train[:100]`` and ``train[10%:]`` are parts, of a file too.
        name: Configuration of a hub dataset.

    Raises:
        MissingError: There is no such file, folder or dataset.
        ConfigError: A kind of file that is not known, or a split that is not there.
    """
    if isinstance(source, Sequence) and not isinstance(source, str):
        return [one for each in source for one in open_sources(each, split=split, name=name)]
    if is_remote(source):
        copy = local_copy(str(source))
        source = f"{copy}/*" if "*" in str(source) else copy
    path, base = Path(source).expanduser(), split.partition("[")[0]
    if path.is_file():
        found: list[Source] = [_open_file(path, base)]
    elif path.is_dir():
        found = [_open_file(file, base) for file in _files(path, base)]
    elif any(sign in str(source) for sign in "*?"):
        files = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute patterns too
        found = [_open_file(Path(file), base) for file in files] or _missing(str(source))
    elif _may_be_hub(str(source)):
        return [HubDataset(str(source), split=split, name=name)]
    else:
        found = _missing(str(source))
    return _cut(found, split)


def _open_file(path: Path, split: str) -> Source:
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind in (".jsonl", ".ndjson", ".json"):
        return JsonLines(path) if _is_lines(path) else JsonFile(path, split)
    if kind in (".csv", ".tsv"):
        return CsvFile(path)
    if kind in (".parquet", ".arrow"):
        return Table(path)
    if kind == ".txt":
        return TextLines(path)
    raise ConfigError(
        "E-DATA-KIND",
        f"{f'files ending in {kind!r}' if kind else 'files without an ending'} are not known; "
        f"known are {', '.join(SUFFIXES)}",
        where=str(path),
        do="rename or convert the file",
    )


def _is_lines(path: Path) -> bool:
    """Tell JSON lines from one JSON value by what is inside: both names are used for both."""
    data = read_bytes(path)
    if re.match(rb"(\xef\xbb\xbf)?\s*\[", data[:4096]):
        return False
    if path.suffix != ".json" and ".json" not in path.suffixes:
        return True
    return re.search(rb"\}[ \t\r]*\n\s*\{", data) is not None


def _files(folder: Path, split: str) -> list[Path]:
    """Return the data files of `folder` that belong to `split`, or all where none says so."""
    files = [file for file in sorted(folder.rglob("*")) if _is_data(file.relative_to(folder))]
    files = [file for file in files if file.is_file()]
    if not files:
        raise MissingError(
            "E-DATA-FOLDER",
            "the folder holds no data files",
            where=str(folder),
            do=f"known are {', '.join(SUFFIXES)}",
        )
    marks = {file: _split_of(file.relative_to(folder)) for file in files}
    said = sorted({mark for mark in marks.values() if mark})
    wanted = next((key for key, words in SPLITS.items() if split in words), split)
    if not said or (wanted == "train" and wanted not in said and None in marks.values()):
        return [file for file in files if marks[file] is None]
    if wanted == "train" and None in marks.values():
        raise _mixed_folder(folder, [file for file in files if marks[file] is None])
    if wanted not in said:
        raise ConfigError(
            "E-DATA-SPLIT",
            f"the folder has no split {split!r}; it has {', '.join(said)}",
            where=str(folder),
            do=f"choose with split: {said[0]}",
        )
    return [file for file in files if marks[file] == wanted]


def _mixed_folder(folder: Path, others: list[Path]) -> ConfigError:
    names = ", ".join(str(file.relative_to(folder)) for file in others[:3])
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return ConfigError(
        "E-DATA-SPLIT",
        f"some files here are called train, others are of no split: {names}{more}",
        where=str(folder),
        do="give the files that are meant as a list or a pattern, or move the others away",
    )


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    stem = path.with_suffix("") if path.suffix == ".gz" else path
    return stem.suffix in SUFFIXES and path.name not in NOT_DATA and not hidden


def _split_of(path: Path) -> str | None:
    """Return the split that a file's name or folder speaks of."""
    words = re.split(r"[-_./\\]", str(path).lower())
    return next((key for key, known in SPLITS.items() if set(known) & set(words)), None)


def _may_be_hub(source: str) -> bool:
    plain = re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    return bool(plain) and not source.endswith(SUFFIXES) and source[0] != "."


def _missing(source: str) -> list[Source]:
    raise MissingError(
        "E-DATA-MISSING",
        f"there is no file or folder {source!r}",
        where="dataset.source",
        do="give a path that exists, or the id of a dataset on the hub (owner/name)",
    )


def _cut(sources: list[Source], split: str) -> list[Source]:
    """Apply ``[first:last]`` of a split, numbers or percent, to all rows together."""
    if "[" not in split:
        return sources
    found = re.fullmatch(r"[^\[]*\[(-?\d+%?)?:(-?\d+%?)?\]", split)
    if not found:
        do = "write train[:100], train[10%:20%] or train"
        raise ConfigError("E-DATA-SPLIT", f"split {split!r} cannot be read", where="split", do=do)
    total = sum(map(len, sources))
    first, last = _place(found[1], total, 0), _place(found[2], total, total)
    parts: list[Source] = []
    for source in sources:
        parts.append(Part(source, max(0, first), min(len(source), last)))
        first, last = first - len(source), last - len(source)
    return [part for part in parts if len(part)]


def _place(text: str | None, total: int, default: int) -> int:
    if text is None:
        return default
    value = round(total * int(text[:-1]) / 100) if text.endswith("%") else int(text)
    return min(total, max(0, total + value if value < 0 else value))
