"""Rows of Parquet and Arrow files and of datasets on the hub; their libraries load when used."""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from torchtune.data.text_files import Row
from torchtune.errors import ConfigError, DataError, MissingError

__all__ = ["HubDataset", "Table"]


class Table:
    """A Parquet file, or an Arrow file or stream; one group of rows is held at a time.

    Args:
        path: A file ending in ``.parquet`` or ``.arrow``.

    Raises:
        DataError: It is damaged, or no such file.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow

        self.name = str(path)
        try:
            self._groups, sizes = _parquet(path) if path.suffix == ".parquet" else _arrow(path)
        except (pyarrow.ArrowException, OSError) as error:
            do = "it may be cut off or of another format: make it again"
            raise DataError(
                "E-DATA-TABLE", str(error).split("\n")[0], where=self.name, do=do
            ) from None
        self._starts = [0, *accumulate(sizes)]
        self._held, self._rows = -1, list[Row]()

    def __len__(self) -> int:
        return self._starts[-1]

    def line(self, index: int) -> int:
        """Return the number of row `index`, counted from 1."""
        return index + 1

    def where(self, index: int) -> str:
        """Return ``file:row`` of row `index`, counted from 1."""
        return f"{self.name}:{index + 1}"

    def row(self, index: int) -> Row:
        """Return row `index`."""
        group = bisect_right(self._starts, index) - 1
        if group != self._held:
            self._rows, self._held = self._groups(group), group
        return self._rows[index - self._starts[group]]


def _parquet(path: Path) -> tuple[Any, list[int]]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return lambda group: file.read_row_group(group).to_pylist(), sizes


def _arrow(path: Path) -> tuple[Any, list[int]]:
    import pyarrow

    mapped = pyarrow.memory_map(str(path))
    try:
        table = pyarrow.ipc.open_file(mapped).read_all()
    except pyarrow.ArrowInvalid:  # datasets writes streams
        table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    batches = table.to_batches(max_chunksize=1000)
    return lambda group: batches[group].to_pylist(), [len(batch) for batch in batches]


class HubDataset:
    """A dataset of the Hugging Face hub, through ``datasets``, in its cache after the first use.

    Args:
        source: Its id, such as ``tatsu-lab/alpaca``.
        split: Which split; ``train[:5%]`` is part of one.
        name: Which configuration, where the dataset has several.

    Raises:
        MissingError: It does not exist, is private, or the network is not there.
        ConfigError: It has no such split or configuration.
    """

    def __init__(self, source: str, *, split: str, name: str | None = None) -> None:
        import datasets
        from datasets.exceptions import DatasetNotFoundError

        self.name = source
        try:
            self._data = datasets.load_dataset(source, name, split=split)
        except DatasetNotFoundError as error:
            raise _no_dataset(source, _first_line(error)) from None
        except ValueError as error:  # the library's error for a wrong split or configuration
            what = f"{source}: {_first_line(error)}"
            raise ConfigError("E-DATA-SPLIT", what, where="dataset.split, dataset.name") from None
        except (OSError, RuntimeError) as error:
            raise _no_dataset(source, _first_line(error)) from None

    def __len__(self) -> int:
        return len(self._data)

    def line(self, index: int) -> int:
        """Return the number of row `index`, counted from 1."""
        return index + 1

    def where(self, index: int) -> str:
        """Return ``id:row`` of row `index`, counted from 1."""
        return f"{self.name}:{index + 1}"

    def row(self, index: int) -> Row:
        """Return row `index`."""
        row: Row = self._data[index]
        return row


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _no_dataset(source: str, what: str) -> MissingError:
    return MissingError(
        "E-DATA-HUB",
        f"the dataset {source!r} could not be had from the hub: {what}",
        where="dataset.source",
        do="check the id and the network, or give a path to local files",
    )
