"""Tokenized documents, held as a few flat tensors so that millions of them fit in memory."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from torchtune.data.order import permutation
from torchtune.errors import DataError

__all__ = ["Documents", "Preparation", "join_documents", "split_documents"]


@dataclass(frozen=True)
class Preparation:
    """What became of the rows of a data set when they were tokenized.

    Args:
        rows: Rows that were read.
        documents: Those that train something.
        tokens: Tokens of the documents.
        supervised: Of these, the tokens that are predicted and trained.
        longest: Tokens of the longest row, before any cut.
        max_seq_len: Where longer rows were cut.
        cut: How many were.
        left_out: How many rows train nothing and were left out.
        cut_rows: The first few that were cut, as ``file:line``.
        left_out_rows: The first few that were left out.
        seconds: How long it took.
        templated: Whether any row went through the chat format, rather than being plain text or ids.
    """

    rows: int
    documents: int
    tokens: int
    supervised: int
    longest: int
    max_seq_len: int
    cut: int = 0
    left_out: int = 0
    cut_rows: tuple[str, ...] = ()
    left_out_rows: tuple[str, ...] = ()
    seconds: float = 0.0
    templated: bool = False

    def __str__(self) -> str:
        share = 100 * self.supervised / self.tokens
        lines = [f"{_rows(self.documents)}, {self.tokens:,} tokens, {share:.0f} % of them trained"]
        if self.cut:
            lines.append(
                f"{_rows(self.cut)} cut at max_seq_len {self.max_seq_len} (the longest has "
                f"{self.longest}): {_named(self.cut, self.cut_rows)}"
            )
        if self.left_out:
            named = _named(self.left_out, self.left_out_rows)
            lines.append(f"{_rows(self.left_out)} left out, with nothing to train on: {named}")
        return "\n".join(lines)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _named(count: int, rows: tuple[str, ...]) -> str:
    """Name rows; a file is written once for the lines that follow one another in it."""
    places = [row.rpartition(":") for row in rows]
    before = [None, *(file for file, _, _ in places)]
    names = [
        line if file == last else f"{file}:{line}"
        for (file, _, line), last in zip(places, before, strict=False)
    ]
    return ", ".join(names) + (f" and {count - len(rows):,} more" if count > len(rows) else "")


@dataclass(frozen=True)
class Documents:
    """Documents of any length, one after the other in flat tensors.

    Args:
        tokens: Token ids of all documents, int32 ``[total]``.
        trained: Which tokens are trained on, bool ``[total]``, at the token's own place.
        offsets: Where each document begins, and the total, int64 ``[documents + 1]``.
        file: Which of `files` each document comes from, int32 ``[documents]``.
        line: Its line or row there, counted from 1, int64 ``[documents]``.
        files: The files or hub ids that the rows were read from.
        report: What was cut and left out on the way, where they come from rows.
    """

    tokens: Tensor
    trained: Tensor
    offsets: Tensor
    file: Tensor
    line: Tensor
    files: tuple[str, ...] = ("memory",)
    report: Preparation | None = None

    @classmethod
    def of(cls, documents: Iterable[tuple[Sequence[int], Sequence[bool]]]) -> "Documents":
        """Return `documents` made by a program of your own: pairs of token ids and what is trained.

        They are called ``memory:1``, ``memory:2`` ... in messages.

        Raises:
            DataError: A document has no tokens, or not as many truth values as tokens.
        """
        pairs = list(documents)
        for number, (tokens, trained) in enumerate(pairs, 1):
            if not len(tokens) or len(tokens) != len(trained):
                what = f"{len(tokens)} tokens with {len(trained)} values of what is trained"
                raise DataError("E-DATA-LABELS", what, where=f"memory:{number}")
        lengths = torch.tensor([len(tokens) for tokens, _ in pairs], dtype=torch.int64)
        return cls(
            tokens=torch.tensor([t for tokens, _ in pairs for t in tokens], dtype=torch.int32),
            trained=torch.tensor([bool(t) for _, mask in pairs for t in mask], dtype=torch.bool),
            offsets=_offsets(lengths),
            file=torch.zeros(len(pairs), dtype=torch.int32),
            line=torch.arange(1, len(pairs) + 1),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Return the tokens of each document, int64 ``[documents]``."""
        return self.offsets[1:] - self.offsets[:-1]

    def length(self, index: int) -> int:
        """Return how many tokens document `index` has."""
        return int(self.offsets[index + 1] - self.offsets[index])

    @property
    def supervised(self) -> int:
        """Return how many tokens are predicted and trained; a document's first never is."""
        starts = self.offsets[:-1][self.lengths > 0]
        return int(self.trained.sum()) - int(self.trained[starts].sum())

    def digest(self) -> str:
        """Return a sha256 over tokens, what is trained, and where documents begin."""
        total = hashlib.sha256()
        for tensor in (self.tokens, self.trained, self.offsets):
            total.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()

    def where(self, index: int) -> str:
        """Return the ``file:line`` that document `index` was made from."""
        return f"{self.files[int(self.file[index])]}:{int(self.line[index])}"

    def with_report(self, report: Preparation) -> "Documents":
        """Return these documents with a report of how they were made."""
        return replace(self, report=report)

    def select(self, indices: Tensor) -> "Documents":
        """Return the documents `indices` (int64 ``[n]``), in that order."""
        lengths = self.lengths[indices]
        offsets = _offsets(lengths)
        shift = torch.repeat_interleave(self.offsets[indices] - offsets[:-1], lengths)
        places = torch.arange(int(offsets[-1])) + shift
        return Documents(
            tokens=self.tokens[places],
            trained=self.trained[places],
            offsets=offsets,
            file=self.file[indices],
            line=self.line[indices],
            files=self.files,
        )


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def join_documents(parts: Sequence[Documents]) -> Documents:
    """Return the documents of several data sets as one, part after part; each keeps its file and line.

    Args:
        parts: Tokenized for one model. `Documents.select` takes so many of one, or some twice.
    """
    before = accumulate((len(part.files) for part in parts), initial=0)
    return Documents(
        tokens=torch.cat([part.tokens for part in parts]),
        trained=torch.cat([part.trained for part in parts]),
        offsets=_offsets(torch.cat([part.lengths for part in parts])),
        file=torch.cat([part.file + count for part, count in zip(parts, before, strict=False)]),
        line=torch.cat([part.line for part in parts]),
        files=tuple(file for part in parts for file in part.files),
    )


def split_documents(
    documents: Documents, share: float, seed: int = 0
) -> tuple[Documents, Documents]:
    """Hold out a share of the documents, the same ones for the same seed.

    Args:
        documents: All of them.
        share: Share to hold out, above 0 and below 1; at least one document on either side.
        seed: Which documents are drawn.

    Returns:
        What is left for training, and what is held out, each in the order of the data.

    Raises:
        DataError: Fewer than two documents.
    """
    total = len(documents)
    if total < 2:
        raise DataError(
            "E-DATA-SPLIT",
            f"{total} row cannot be split into a part for training and a part for validation",
            where="validation_split",
            do="give more rows, or leave validation_split out",
        )
    held = min(total - 1, max(1, round(total * share)))
    order = permutation(total, seed=seed, epoch=-1)
    return documents.select(order[held:].sort().values), documents.select(
        order[:held].sort().values
    )
