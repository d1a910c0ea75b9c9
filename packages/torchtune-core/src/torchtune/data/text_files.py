"""Rows of text files, read by us so that every fault has its file and line."""

import csv
import gzip
import io
import json
import mmap
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torchtune.errors import DataError

__all__ = ["CsvFile", "JsonLines", "Row", "TextLines"]

Row: TypeAlias = dict[str, Any]
Buffer: TypeAlias = "bytes | mmap.mmap"

csv.field_size_limit(2**31 - 1)  # texts are longer than the 128 KiB of the default


def read_bytes(path: Path) -> Buffer:
    """Return a file's bytes: mapped, not read, unless it is empty or compressed (``.gz``)."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    with path.open("rb") as file:
        if not path.stat().st_size:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class _Span(NamedTuple):
    start: int
    stop: int
    line: int


class _Spans:
    """Where each row of a file lies; only this is kept, rows are read when asked for.

    Args:
        path: The file; may end in ``.gz``.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._data = read_bytes(path)
        self._begin = 3 if self._data[:3] == b"\xef\xbb\xbf" else 0  # a byte order mark
        self._starts, self._stops, self._lines = array("q"), array("q"), array("q")
        for span in self._find():
            self._starts.append(span.start)
            self._stops.append(span.stop)
            self._lines.append(span.line)

    def __len__(self) -> int:
        return len(self._starts)

    def line(self, index: int) -> int:
        """Return the line, counted from 1, on which row `index` begins."""
        return self._lines[index]

    def where(self, index: int) -> str:
        """Return ``file:line`` of row `index`."""
        return f"{self.name}:{self._lines[index]}"

    def _find(self) -> Iterator[_Span]:
        raise NotImplementedError

    def _text(self, index: int) -> str:
        raw = self._data[self._starts[index] : self._stops[index]]
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = self._lines[index] + raw[: error.start].count(b"\n")
            raise not_utf8(f"{self.name}:{line}", error) from None

    def _each_line(self) -> Iterator[_Span]:
        """Yield every line, its end of line included."""
        start, line, size = self._begin, 0, len(self._data)
        while start < size:
            stop = self._data.find(b"\n", start) + 1 or size
            line += 1
            yield _Span(start, stop, line)
            start = stop


def not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    """Return the error for bytes that are no UTF-8 text."""
    return DataError(
        "E-DATA-UTF8",
        f"byte 0x{error.object[error.start]:02x} is not UTF-8 text",
        where=where,
        do="convert the file: iconv -f latin1 -t utf-8 OLD > NEW (or from its real encoding)",
    )


def not_json(where: str, error: Exception) -> DataError:
    """Return the error for text that is no JSON."""
    what = f"not JSON: {str(getattr(error, 'msg', error)).removesuffix(' at')}"
    if isinstance(error, json.JSONDecodeError):
        what += f" at column {error.colno}"
    return DataError("E-DATA-JSON", what, where=where)


def no_object(value: Any, where: str) -> DataError:
    """Return the error for a row that is JSON, but no object."""
    shown = json.dumps(value)[:60]
    return DataError(
        "E-DATA-ROW",
        f"a row must be an object with named columns, found {shown}",
        where=where,
        do='write rows as {"column": value, ...}',
    )


class JsonLines(_Spans):
    """A JSON object a line (``.jsonl``); blank lines are skipped."""

    def _find(self) -> Iterator[_Span]:
        return (span for span in self._each_line() if self._data[span.start : span.stop].strip())

    def row(self, index: int) -> Row:
        """Return row `index`.

        Raises:
            DataError: The line is not a JSON object; its number is named.
        """
        try:
            value = json.loads(self._text(index))
        except (ValueError, RecursionError) as error:
            raise not_json(self.where(index), error) from None
        if not isinstance(value, dict):
            raise no_object(value, self.where(index))
        return value


class TextLines(_Spans):
    """Plain text (``.txt``): each line that is not blank is a row with the column ``text``."""

    def _find(self) -> Iterator[_Span]:
        return (span for span in self._each_line() if self._data[span.start : span.stop].strip())

    def row(self, index: int) -> Row:
        """Return line `index` of those that are not blank, without its end of line."""
        return {"text": self._text(index).rstrip("\r\n")}


class _Feed:
    """Hands lines to the CSV reader and remembers which ones made up the current record."""

    def __init__(self, data: Buffer, spans: Iterator[_Span]) -> None:
        self._data, self._spans = data, spans
        self.first: int | None = None
        self.start = self.stop = self.line = 0

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        span = next(self._spans)
        if self.first is None:
            self.first, self.start, self.line = span.line, span.start, span.line
        self.stop = span.stop
        # only quotes, separators and line ends matter here: UTF-8 uses their bytes for nothing else
        return self._data[span.start : span.stop].decode("latin-1")


class CsvFile(_Spans):
    """Comma separated values with a header line (tabs in ``.tsv``); fields may hold line breaks."""

    def __init__(self, path: Path) -> None:
        self._tab = ".tsv" in path.suffixes
        super().__init__(path)

    def _find(self) -> Iterator[_Span]:
        """Yield whole records; the header is the first and is left out."""
        feed = _Feed(self._data, self._each_line())
        reader = self._reader(feed)
        while True:
            feed.first = None
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self._fault(str(error), f"{self.name}:{feed.line}") from None
            span = _Span(feed.start, feed.stop, feed.line)
            if record and hasattr(self, "_header"):
                yield span
            elif record:
                self._header = span

    def _reader(self, lines: Iterable[str]) -> Any:
        return csv.reader(lines, delimiter="\t" if self._tab else ",", strict=True)

    @cached_property
    def columns(self) -> list[str]:
        """Return the names of the header line."""
        span = self._header
        try:
            text = self._data[span.start : span.stop].decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(f"{self.name}:{span.line}", error) from None
        names: list[str] = next(self._reader(_lines(text)))
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise self._fault(f"two columns are named {twice[0]!r}", f"{self.name}:{span.line}")
        return names

    def row(self, index: int) -> Row:
        """Return record `index`, all values as text.

        Raises:
            DataError: It has more or fewer fields than the header has names.
        """
        fields = next(self._reader(_lines(self._text(index))))
        if len(fields) != len(self.columns):
            count = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
            what = f"{count}, but the header names {len(self.columns)}"
            raise self._fault(what, self.where(index))
        return dict(zip(self.columns, fields, strict=True))

    def _fault(self, what: str, where: str) -> DataError:
        do = 'put "..." around text that holds commas or line breaks, and write " inside as ""'
        return DataError("E-DATA-CSV", what, where=where, do=do)


def _lines(text: str) -> Iterable[str]:
    return io.StringIO(text, newline="\n")
