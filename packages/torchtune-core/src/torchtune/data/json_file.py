"""Rows of a JSON file that is one value, with the line of each row."""

import json
from array import array
from pathlib import Path
from typing import Any

from torchtune.data.text_files import Row, no_object, not_json, not_utf8, read_bytes
from torchtune.errors import DataError

__all__ = ["JsonFile"]


class JsonFile:
    """One JSON value (``.json``): an array of objects, or an object with such a list inside.

    Args:
        path: The file; may end in ``.gz``.
        split: Which list of an object is taken, where it holds several.

    Raises:
        DataError: It is not JSON, or has no list of rows; the line is named.
    """

    def __init__(self, path: Path, split: str = "train") -> None:
        self.name, self._split = str(path), split
        raw = read_bytes(path)
        try:
            self._source = bytes(raw).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise not_utf8(f"{self.name}:{line}", error) from None
        self._rows: list[Any] = []
        self._lines = array("q")
        self._seen, self._seen_lines = 0, 1  # how far lines are counted
        try:
            self._read()
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", self._seen_lines)
            raise not_json(f"{self.name}:{line}", error) from None
        self._source = ""

    def __len__(self) -> int:
        return len(self._rows)

    def line(self, index: int) -> int:
        """Return the line, counted from 1, on which row `index` begins."""
        return self._lines[index]

    def where(self, index: int) -> str:
        """Return ``file:line`` of row `index`."""
        return f"{self.name}:{self._lines[index]}"

    def row(self, index: int) -> Row:
        """Return row `index`."""
        value = self._rows[index]
        if not isinstance(value, dict):
            raise no_object(value, self.where(index))
        return value

    def _read(self) -> None:
        at = self._skip(0)
        if self._source[at : at + 1] == "[":
            stop = self._array(at, keep=True)
        else:
            value, stop = self._decoder.raw_decode(self._source, at)
            if isinstance(value, dict) and not self._object(value, at):
                self._rows, self._lines = [value], array("q", [self._line(at)])
        if self._skip(stop) < len(self._source):
            raise json.JSONDecodeError("Extra data", self._source, self._skip(stop))

    _decoder = json.JSONDecoder()

    def _object(self, value: dict[str, Any], at: int) -> bool:
        """Read the list of rows inside an object; return whether there is one."""
        lists = [key for key, item in value.items() if _is_table(item)]
        key = self._split if self._split in lists else next(iter(lists), None)
        if key is None or {"messages", "conversations"} & set(lists):
            return False
        if len(lists) > 1 and key != self._split and key not in ("data", "rows"):
            raise DataError(
                "E-DATA-SPLIT",
                f"the object has {len(lists)} lists of rows and none is called {self._split!r}",
                where=f"{self.name}:{self._line(at)}",
                do=f"choose with split: {' | '.join(lists)}",
            )
        self._array(self._find(key, at), keep=True)
        return True

    def _find(self, wanted: str, at: int) -> int:
        """Return where the value of the key `wanted` begins in the object at `at`."""
        at = self._skip(at + 1)
        while True:
            key, at = self._decoder.raw_decode(self._source, at)
            at = self._skip(self._skip(at) + 1)  # over the colon
            if key == wanted:
                return at
            at = self._decoder.raw_decode(self._source, at)[1]
            at = self._skip(self._skip(at) + 1)  # over the comma

    def _array(self, at: int, *, keep: bool) -> int:
        """Read the elements of the array at `at` with their lines; return where it ends."""
        at = self._skip(at + 1)
        while self._source[at : at + 1] != "]":
            line = self._line(at)
            value, at = self._decoder.raw_decode(self._source, at)
            self._rows.append(value)
            self._lines.append(line)
            at = self._skip(at)
            if self._source[at : at + 1] == ",":
                at = self._skip(at + 1)
            elif self._source[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' delimiter", self._source, at)
        return at + 1

    def _skip(self, at: int) -> int:
        while self._source[at : at + 1] in (" ", "\t", "\n", "\r"):
            at += 1
        return at

    def _line(self, at: int) -> int:
        self._seen_lines += self._source.count("\n", self._seen, at)
        self._seen = max(at, self._seen)
        return self._seen_lines


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)
