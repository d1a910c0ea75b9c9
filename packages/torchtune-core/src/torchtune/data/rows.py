"""Rows of any source, each known by its file and line, and what each one means."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from torchtune.data.conversations import read_tools, read_turns
from torchtune.data.forms import Chat, Example, Form, choose_form, told_forms
from torchtune.data.sources import MemoryRows, Source, open_sources
from torchtune.errors import ConfigError, DataError

__all__ = ["Rows", "alpaca", "alpaca_cleaned", "as_rows", "load_rows"]

TrainOn: TypeAlias = Literal["all", "last"]
Format: TypeAlias = Literal["tokens", "messages", "sharegpt", "alpaca", "qa", "text"]
TransformFunction: TypeAlias = Callable[[dict[str, Any]], Any]


class Rows:
    """The rows of some sources in order, read one by one when asked for.

    Args:
        sources: Files, hub datasets, or `MemoryRows`.
        format: The form of the rows; None to recognise it by the columns, in each source.
        columns: Which column each part of the form is, where the names differ.
        transform: From a row to its messages, instead of a form.
        train_on: ``all`` turns of the assistant, or the ``last``.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        format: Format | None = None,
        columns: Mapping[str, str] | None = None,
        transform: TransformFunction | None = None,
        train_on: TrainOn = "all",
    ) -> None:
        self.sources, self.train_on = list(sources), train_on
        self._told, self._columns = told_forms(format, columns), columns
        self._transform = transform
        self._starts = [0, *accumulate(map(len, self.sources))]
        self._forms: dict[tuple[str, ...], tuple[Form, dict[str, str]]] = {}
        self.has_chats = False
        """Whether any row read so far is a conversation, rather than plain text or ids."""

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Example:
        """Return what row `index` means.

        Raises:
            DataError: The row cannot be read or understood; it names file and line.
        """
        source, at = self.locate(index)
        try:
            row = self.sources[source].row(at)
            example = _transformed(self._transform, row) if self._transform else self._formed(row)
        except DataError as error:
            if error.where:
                raise
            where = self.where(index)
            raise DataError(error.code, error.what, where=where, do=error.do) from None
        self.has_chats = self.has_chats or isinstance(example, Chat)
        return example

    def locate(self, index: int) -> tuple[int, int]:
        """Return the number of the source that holds row `index`, and the row's number in it.

        Raises:
            IndexError: There is no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        source = bisect_right(self._starts, index) - 1
        return source, index - self._starts[source]

    def line(self, index: int) -> tuple[int, int]:
        """Return the number of the source that holds row `index`, and its line there from 1."""
        source, at = self.locate(index)
        return source, self.sources[source].line(at)

    def where(self, index: int) -> str:
        """Return ``file:line`` of row `index`."""
        source, at = self.locate(index)
        return self.sources[source].where(at)

    def _formed(self, row: dict[str, Any]) -> Example:
        if not isinstance(row, Mapping):
            raise _no_dict(row)
        names = tuple(row)  # rows of one file may differ in columns that are optional
        if names not in self._forms:
            self._forms[names] = choose_form(names, self._told, self._columns)
        form, parts = self._forms[names]
        values = {part: _value(row, column) for part, column in parts.items()}
        for part in form.needed:
            if values[part] is None and parts[part] not in row:
                what = f"no column {parts[part]!r}; the row has {', '.join(row) or 'none'}"
                raise DataError("E-DATA-COLUMNS", what)
        return form.read(values)


def _no_dict(row: Any) -> DataError:
    do = "give dicts, such as {'text': ...}"
    if isinstance(row, get_args(Example)):
        do = "tokenize each data set by itself, and join them with join_documents"
    what = f"a row must be an object with named columns, found a {type(row).__name__}"
    return DataError("E-DATA-ROW", what, do=do)


def _transformed(transform: TransformFunction, row: dict[str, Any]) -> Example:
    """Call a user's function; what data may do to it is told with the row's place."""
    name = getattr(transform, "__qualname__", "transform")
    try:
        found = transform(row)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{name} failed on this row: {type(error).__name__}: {error}"
        raise DataError("E-DATA-TRANSFORM", what) from error
    if isinstance(found, Mapping):
        return Chat(read_turns(found.get("messages")), read_tools(found.get("tools")))
    return Chat(read_turns(found))


def _value(row: Mapping[str, Any], path: str) -> Any:
    """Return a column, or what a path such as ``instances.0.output`` leads to, or None."""
    if path in row:
        return row[path]
    value: Any = row
    for step in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def as_rows(rows: Rows | Sequence[dict[str, Any]]) -> Rows:
    """Return rows as they are, or a program's own list of dicts as rows of recognised forms."""
    return rows if isinstance(rows, Rows) else Rows([MemoryRows(rows)])


def load_rows(
    source: str | Path | Sequence[str | Path],
    *,
    split: str = "train",
    name: str | None = None,
    format: Format | None = None,
    columns: dict[str, str] | None = None,
    transform: str | TransformFunction | None = None,
    train_on: TrainOn = "all",
) -> Rows:
    """Return the rows of a file, a folder or a dataset of the hub.

    The form of the rows is recognised by their columns: ``messages`` (OpenAI), ``conversations``
    (ShareGPT), ``instruction, output`` and ``input`` (alpaca), ``prompt`` or ``question`` with
    ``completion``, ``response`` or ``answer``, ``text``, or ``input_ids`` with ``labels`` (at their
    tokens' own places) or ``mask`` (1 where trained).

    Args:
        source: A JSON, JSONL, CSV, TSV, Parquet, Arrow or text file, a folder of them, a pattern
            with ``*``, a hub id such as ``tatsu-lab/alpaca``, or a list of these.
        split: Of a hub dataset or a folder; ``train[:1000]`` or ``train[5%:]`` is a part, of any
            source.
        name: Configuration of a hub dataset.
        format: ``alpaca``, ``sharegpt``, ``messages``, ``qa``, ``text`` or ``tokens``, where the
            columns do not tell it.
        columns: From the parts of a format to your columns, ``{question: q, answer: a}``; a path
            such as ``instances.0.output`` reaches inside.
        transform: A function of yours from a row (a dict) to its messages, each a `Message` or
            ``{"role", "content"}``; in a config its dotted path, allowed by ``--trust``.
        train_on: ``all`` turns of the assistant, or the ``last``.

    Raises:
        MissingError: The source does not exist or cannot be reached.
        ConfigError: An argument has no meaning here.
        DataError: A file is damaged, or the columns are not recognised; file and line are named.
    """
    if train_on not in get_args(TrainOn):
        what = f"train_on is {train_on!r}; it can be {' or '.join(get_args(TrainOn))}"
        raise ConfigError("E-DATA-TRAIN-ON", what, where="dataset.train_on")
    return Rows(
        open_sources(source, split=split, name=name),
        format=format,
        columns=columns,
        transform=_function(transform) if isinstance(transform, str) else transform,
        train_on=train_on,
    )


def _function(path: str) -> TransformFunction:
    from torchtune.config.registry import locate

    found: TransformFunction = locate("transform", path)
    return found


def alpaca(
    *, source: str = "tatsu-lab/alpaca", split: str = "train", train_on: TrainOn = "all"
) -> Rows:
    """Return Stanford Alpaca, 52,002 instructions, from the hub.

    Args and errors are those of `load_rows`.
    """
    return load_rows(source, split=split, format="alpaca", train_on=train_on)


def alpaca_cleaned(
    *, source: str = "yahma/alpaca-cleaned", split: str = "train", train_on: TrainOn = "all"
) -> Rows:
    """Return Alpaca with its wrong and empty answers mended, 51,760 instructions, from the hub.

    Args and errors are those of `load_rows`.
    """
    return load_rows(source, split=split, format="alpaca", train_on=train_on)
