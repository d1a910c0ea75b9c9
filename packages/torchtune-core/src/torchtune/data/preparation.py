"""From rows to documents: encoded once, before training, into a few flat tensors."""

import re
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from torchtune.data.chat_format import ChatFormat, Encoded
from torchtune.data.documents import Documents, Preparation
from torchtune.data.forms import Chat, Example, Text, Tokens
from torchtune.data.rows import Rows, TrainOn, as_rows
from torchtune.data.tokenizer import Tokenizer
from torchtune.data.workers import map_in_workers
from torchtune.errors import DataError, TuneError

__all__ = ["encode_example", "tokenize_rows"]

PIECE = 128  # rows sent to a worker at a time
NAMED = 5  # rows of a kind that a report names
Compact: TypeAlias = tuple["array[int]", bytes]  # tokens as int32, trained as 0 or 1
T = TypeVar("T")


class Processes(Protocol):
    """Processes that share the rows, such as a `torchtune.distributed.World`."""

    @property
    def rank(self) -> int:
        """Return the number of this one, from 0."""

    @property
    def size(self) -> int:
        """Return how many there are."""

    def broadcast(self, value: T, *, source: int = 0) -> T:
        """Return the `value` of the process `source`; the others' are ignored."""


def tokenize_rows(
    rows: Rows | Sequence[dict[str, Any]],
    format: ChatFormat | Tokenizer,
    *,
    max_seq_len: int,
    workers: int = 0,
    progress: bool = True,
    world: Processes | None = None,
) -> Documents:
    """Return all rows as tokens, those too long cut, and those that train nothing left out.

    Longer rows are cut from the right and get no end token that they did not have. What was cut
    and left out stands in the ``report`` of the result.

    Args:
        rows: From `load_rows`, or a list of dicts, or a ``datasets.Dataset``.
        format: The model's chat format, or a tokenizer, whose own template is then used.
        max_seq_len: The most tokens of a document.
        workers: Processes that encode; 0 does it here. They pay from some ten thousand rows on.
        progress: Show a bar on a terminal when it takes more than two seconds.
        world: The processes of a run, which all call this: each encodes its share of the rows and
            gets all documents, the same as alone. None encodes every row here.

    Raises:
        DataError: A row cannot be read or encoded (file and line are named), there are no rows,
            or none of them has a supervised token.
        MissingError: Chat rows, and a model without a chat template.
    """
    rows, started = as_rows(rows), time.monotonic()
    form = format if isinstance(format, ChatFormat) else ChatFormat(format)
    rank, size = (world.rank, world.size) if world else (0, 1)
    share = range(len(rows) * rank // size, len(rows) * (rank + 1) // size)
    encode = _Encode(form, rows.train_on)
    examples = (rows[index] for index in share)
    found = _in_workers(examples, len(share), encode, workers) if workers else map(encode, examples)
    shown = _shown(found, len(share), progress and rank == 0)
    taken = _of_all(lambda: _take(rows, share, shown, max_seq_len), world)
    if not len(taken.lines):
        raise _nothing(rows, taken)
    return taken.documents(rows, time.monotonic() - started)


def encode_example(example: Example, format: ChatFormat, train_on: TrainOn = "all") -> Encoded:
    """Return the tokens of what a row means, and which of them are trained; nothing is cut.

    Args:
        example: What `Rows` made of the row.
        format: The model's chat format, for chats and tasks.
        train_on: Which turns of the assistant train.

    Plain text begins with BOS where the model's texts do and ends with its end token, all trained.
    Ready tokens are taken as they are.

    Raises:
        DataError: The template does not take the row, its text is no valid Unicode, or an id is
            not in the vocabulary.
    """
    if isinstance(example, Tokens):
        _check_ids(example.tokens, format.tokenizer.vocab_size)
        encoded = Encoded(example.tokens, example.trained)
    else:
        encoded = _encode(example, format, train_on)
    if model_vocab := getattr(format.tokenizer, "model_vocab", None):
        _check_embedded(encoded.tokens, model_vocab)
    return encoded


def _encode(example: Chat | Text, format: ChatFormat, train_on: TrainOn) -> Encoded:
    try:
        if isinstance(example, Chat):
            return format.encode(example.messages, train_on=train_on, tools=example.tools)
        return _encode_text(example.text, format.tokenizer)
    except (TypeError, UnicodeEncodeError):  # what the backends say to half a surrogate pair
        if not _torn(example):
            raise
        what = "the text holds half of a character, a lone surrogate such as \\ud83d"
        raise DataError("E-DATA-UTF8", what, do="take it out, or write the text anew") from None


def _encode_text(text: str, tokenizer: Tokenizer) -> Encoded:
    begin = [tokenizer.bos_id] if tokenizer.adds_bos else []
    ids = [*begin, *tokenizer.encode(text), tokenizer.eos_id]
    tokens = [token for token in ids if token is not None]
    return Encoded(tokens, [True] * len(tokens))


def _check_ids(tokens: list[int], size: int) -> None:
    wrong = next((token for token in tokens if not 0 <= token < size), None)
    if wrong is not None:
        what = f"token {wrong} is not in the vocabulary, which has {size}"
        do = "tokenize the rows with this model's tokenizer"
        raise DataError("E-DATA-TOKENS", what, do=do)


def _check_embedded(tokens: list[int], size: int) -> None:
    if tokens and max(tokens) >= size:
        what = f"the tokenizer gives token {max(tokens)}, and the model has {size}, counted from 0"
        do = "take the tokenizer that belongs to the model, or a model whose embedding was enlarged"
        raise DataError("E-DATA-TOKENS", what, do=do)


def _torn(example: Example) -> bool:
    return re.search(r"\\ud[89a-f]", repr(example)) is not None


@dataclass(frozen=True)
class _Encode:
    """Encodes one row; goes to the workers."""

    format: ChatFormat
    train_on: TrainOn

    def __call__(self, example: Example) -> Compact:
        encoded = encode_example(example, self.format, self.train_on)
        return array("i", encoded.tokens), bytes(encoded.trained)

    def many(self, examples: list[Example]) -> list[Compact | TuneError]:
        """Encode rows; an error stands in its row's place."""
        return [self._safely(example) for example in examples]

    def _safely(self, example: Example) -> Compact | TuneError:
        try:
            return self(example)
        except TuneError as error:
            return error


def _in_workers(
    examples: Iterator[Example], count: int, encode: _Encode, workers: int
) -> Iterator[Compact]:
    pieces = iter(lambda: list(islice(examples, PIECE)), [])
    needed = min(workers, -(-count // PIECE))
    for piece in map_in_workers(encode.many, pieces, max(1, needed)):
        for found in piece:
            if isinstance(found, TuneError):
                raise found
            yield found


def _take(rows: Rows, share: range, found: Iterable[Compact], max_seq_len: int) -> "_Taken":
    """Collect what the rows `share` became; an error that knows no place gets that of its row."""
    taken, index = _Taken(max_seq_len), share.start
    try:
        for tokens, trained in found:
            taken.add(rows, index, tokens, trained)
            index += 1
    except DataError as error:
        if error.where:
            raise
        where = rows.where(index)
        raise DataError(error.code, error.what, where=where, do=error.do) from None
    taken.templated = rows.has_chats
    return taken


def _of_all(take: Callable[[], "_Taken"], world: Processes | None) -> "_Taken":
    """Return what all processes have taken, in the order of rows; the first error is everyone's."""
    if world is None:
        return take()
    mine: _Taken | TuneError
    try:
        mine = take()
    except TuneError as error:
        mine = error
    whole: _Taken | None = None
    for rank in range(world.size):  # one after the other: no more than one share is held twice
        part = world.broadcast(mine, source=rank)
        if isinstance(part, TuneError):
            raise part
        whole = whole.joined(part) if whole else part
    assert whole is not None
    return whole


def _shown(found: Iterable[Compact], total: int, progress: bool) -> Iterable[Compact]:
    if not progress:
        return found
    from tqdm import tqdm

    bar: Iterable[Compact] = tqdm(
        found, desc="tokenizing", total=total, unit=" rows", delay=2, leave=False, disable=None
    )
    return bar


@dataclass
class _Taken:
    """Documents so far, in arrays that grow."""

    max_seq_len: int
    tokens: "array[int]" = field(default_factory=lambda: array("i"))
    trained: bytearray = field(default_factory=bytearray)
    offsets: "array[int]" = field(default_factory=lambda: array("q", [0]))
    files: "array[int]" = field(default_factory=lambda: array("i"))
    lines: "array[int]" = field(default_factory=lambda: array("q"))
    cut: list[int] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    longest: int = 0
    templated: bool = False

    def joined(self, later: "_Taken") -> "_Taken":
        """Take over what became of later rows."""
        self.offsets.extend(len(self.tokens) + end for end in later.offsets[1:])
        self.tokens.extend(later.tokens)
        self.trained.extend(later.trained)
        self.files.extend(later.files)
        self.lines.extend(later.lines)
        self.cut += later.cut
        self.left_out += later.left_out
        self.longest = max(self.longest, later.longest)
        self.templated |= later.templated
        return self

    def add(self, rows: Rows, index: int, tokens: "array[int]", trained: bytes) -> None:
        self.longest = max(self.longest, len(tokens))
        if len(tokens) > self.max_seq_len:
            self.cut.append(index)
            tokens, trained = tokens[: self.max_seq_len], trained[: self.max_seq_len]
        if not any(trained[1:]):  # nothing predicts a first token
            self.left_out.append(index)
            return
        self.tokens.extend(tokens)
        self.trained.extend(trained)
        self.offsets.append(len(self.tokens))
        file, line = rows.line(index)
        self.files.append(file)
        self.lines.append(line)

    def documents(self, rows: Rows, seconds: float) -> Documents:
        found = Documents(
            tokens=torch.frombuffer(self.tokens, dtype=torch.int32),
            trained=torch.frombuffer(self.trained, dtype=torch.bool),
            offsets=_int64(self.offsets),
            file=torch.frombuffer(self.files, dtype=torch.int32),
            line=_int64(self.lines),
            files=tuple(source.name for source in rows.sources),
        )
        report = Preparation(
            rows=len(rows),
            documents=len(found),
            tokens=len(found.tokens),
            supervised=found.supervised,
            longest=self.longest,
            max_seq_len=self.max_seq_len,
            cut=len(self.cut),
            left_out=len(self.left_out),
            cut_rows=tuple(rows.where(index) for index in self.cut[:NAMED]),
            left_out_rows=tuple(rows.where(index) for index in self.left_out[:NAMED]),
            seconds=seconds,
            templated=self.templated,
        )
        return found.with_report(report)


def _int64(values: "array[int]") -> Tensor:
    return torch.frombuffer(values, dtype=torch.int64)


def _nothing(rows: Rows, taken: _Taken) -> DataError:
    names = ", ".join(source.name for source in rows.sources[:3]) or "dataset"
    if not len(rows):
        return DataError("E-DATA-EMPTY", "the data set has no rows", where=names)
    cut = len(set(taken.cut) & set(taken.left_out))
    what = f"none of the {len(rows)} rows has a token to train on"
    if cut:
        what += f"; {cut} were cut at {taken.max_seq_len} tokens, the longest has {taken.longest}"
    do = f"raise max_seq_len, or see what is trained: tune data check {rows.sources[0].name} ..."
    return DataError("E-DATA-UNSUPERVISED", what, where=rows.where(taken.left_out[0]), do=do)
