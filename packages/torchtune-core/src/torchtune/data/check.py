"""What the model will see of each row, and the faults that people meet in their data."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from torchtune.data.batch import IGNORED
from torchtune.data.chat_format import ChatFormat, Encoded
from torchtune.data.forms import Chat, Example, Text, Tokens
from torchtune.data.preparation import encode_example
from torchtune.data.rows import Rows, as_rows
from torchtune.data.tokenizer import Tokenizer
from torchtune.errors import ConfigError, DataError

__all__ = ["FAULTS", "CheckSummary", "CheckedRow", "Fault", "check_rows"]

FAULTS = {
    "unreadable": "the line is not JSON, the record not CSV, the bytes not UTF-8",
    "columns not recognised": "the row has no columns of a known form",
    "not understood": "a column holds something other than it should",
    "unknown role": "a turn's role is none of those known",
    "empty": "a text, question or answer is blank",
    "duplicate": "the same as an earlier row",
    "template mismatch": "the chat template refuses the row, or the text is in another format",
    "no supervised token": "nothing in the row is trained; it would be left out",
    "cut answer": "max_seq_len cuts off tokens that should be trained",
    "missing end of turn": "an answer ends without the token that ends generation",
}
BY_CODE = {
    **dict.fromkeys(("E-DATA-JSON", "E-DATA-CSV", "E-DATA-UTF8", "E-DATA-ROW"), "unreadable"),
    **dict.fromkeys(("E-DATA-ROLE", "E-ROLE"), "unknown role"),
    "E-DATA-COLUMNS": "columns not recognised",
    "E-CHAT-TEMPLATE": "template mismatch",
}
MARKS = (  # of chat formats; as text in a row they mean that it was formatted already
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>", "<|begin_of_text|>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "<|assistant|>"),
)
PROMPTS = ("### Instruction:", "### Response:")  # in chats; plain text may well hold them


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a row.

    Args:
        name: A key of `FAULTS`.
        detail: What it is in this row.
    """

    name: str
    detail: str = ""

    def __str__(self) -> str:
        if self.detail.startswith(self.name):
            return self.detail
        return f"{self.name}: {self.detail}" if self.detail else self.name


@dataclass(frozen=True)
class CheckedRow:
    """A row as the model will see it.

    Args:
        number: Its number in the data, from 1.
        where: Its ``file:line``.
        tokens: Token ids after the cut; empty where the row cannot be encoded.
        labels: At each token its own id where it is trained, else -100; not shifted.
        length: Tokens before the cut.
        faults: What is wrong with it.
    """

    number: int
    where: str
    tokens: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    length: int = 0
    faults: tuple[Fault, ...] = ()

    @property
    def supervised(self) -> int:
        """Return how many tokens are predicted and trained."""
        return sum(label != IGNORED for label in self.labels[1:])


def check_rows(
    rows: Rows | Sequence[dict[str, Any]],
    format: ChatFormat | Tokenizer,
    *,
    max_seq_len: int,
    limit: int | None = None,
) -> Iterator[CheckedRow]:
    """Yield each row in the order of the data, with its faults; a bad row stops nothing.

    Args:
        rows: From `load_rows`, or a list of dicts, or a ``datasets.Dataset``.
        format: The model's chat format, or a tokenizer, whose own template is then used.
        max_seq_len: Where rows are cut.
        limit: Stop after so many rows.

    Raises:
        DataError: There are no rows.
        MissingError: Chat rows, and a model without a chat template.
    """
    rows = as_rows(rows)
    if not len(rows):
        names = ", ".join(source.name for source in rows.sources[:3])
        raise DataError("E-DATA-EMPTY", "the data set has no rows", where=names)
    chat = format if isinstance(format, ChatFormat) else ChatFormat(format)
    first: dict[bytes, int] = {}
    for index in range(min(len(rows), limit or len(rows))):
        yield _check(rows, index, chat, max_seq_len, first)


def _check(
    rows: Rows, index: int, format: ChatFormat, max_seq_len: int, first: dict[bytes, int]
) -> CheckedRow:
    number, where = index + 1, rows.where(index)
    faults: list[Fault] = []
    try:
        example = rows[index]
        faults += [*_empty(example), *_foreign(example), *_repeated(example, number, first)]
        encoded = encode_example(example, format, rows.train_on)
    except (ConfigError, DataError) as error:
        name = BY_CODE.get(error.code, "not understood")
        return CheckedRow(number, where, faults=(*faults, Fault(name, error.what)))
    faults += _trained(example, encoded, format, max_seq_len)
    pairs = zip(encoded.tokens, encoded.trained, strict=True)
    labels = [token if trained else IGNORED for token, trained in pairs]
    return CheckedRow(
        number,
        where,
        tokens=encoded.tokens[:max_seq_len],
        labels=labels[:max_seq_len],
        length=len(encoded.tokens),
        faults=tuple(faults),
    )


def _empty(example: Example) -> Iterator[Fault]:
    if isinstance(example, Tokens) and not example.tokens:
        yield Fault("empty", "the row has no tokens")
    elif isinstance(example, Text) and not example.text.strip():
        yield Fault("empty", "the text is blank")
    elif isinstance(example, Chat):
        if not example.messages:
            yield Fault("empty", "there are no turns")
        for number, turn in enumerate(example.messages, 1):
            if not (turn.content or "").strip() and not turn.tool_calls:
                yield Fault("empty", f"turn {number} ({turn.role}) is blank")


def _foreign(example: Example) -> Iterator[Fault]:
    """Find marks of a chat format inside the texts, where they would be read as plain text."""
    texts: list[str | None] = []
    if isinstance(example, Chat):
        texts = [turn.content for turn in example.messages]
    elif isinstance(example, Text):
        texts = [example.text]
    marks = (*MARKS, *PROMPTS) if isinstance(example, Chat) else MARKS
    found = next((mark for mark in marks for text in texts if text and mark in text), None)
    if found:
        yield Fault("template mismatch", f"the text holds {found!r}, which stays plain text")


def _repeated(example: Example, number: int, first: dict[bytes, int]) -> Iterator[Fault]:
    digest = blake2b(repr(example).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    earlier = first.setdefault(digest, number)
    if earlier != number:
        yield Fault("duplicate", f"the same as row {earlier}")


def _trained(
    example: Example, encoded: Encoded, format: ChatFormat, max_seq_len: int
) -> Iterator[Fault]:
    kept, lost = sum(encoded.trained[:max_seq_len]), sum(encoded.trained[max_seq_len:])
    if not any(encoded.trained[1:max_seq_len]):
        yield Fault("no supervised token")
    if lost:
        total, length = kept + lost, len(encoded.tokens)
        cut = f"the row has {length} tokens and is cut at {max_seq_len}"
        yield Fault("cut answer", f"{lost} of {total} trained tokens are lost: {cut}")
    ends = _ends(example, encoded)
    wrong = [end for end in ends if encoded.tokens[end] not in format.stop_ids]
    if wrong:
        said = format.tokenizer.decode(encoded.tokens[: wrong[0] + 1][-8:], special=True)
        yield Fault("missing end of turn", f"an answer ends with {said!r} and no end token")


def _ends(example: Example, encoded: Encoded) -> list[int]:
    """Return where the trained parts of a row end, as far as an end token is wanted there."""
    trained = [*encoded.trained, False]
    ends = [at for at in range(len(encoded.tokens)) if trained[at] and not trained[at + 1]]
    if isinstance(example, Tokens):  # a part of a longer text needs none
        return [] if all(encoded.trained) else ends[-1:]
    return ends


@dataclass
class CheckSummary:
    """Figures over all rows that were checked, in a few lines of text.

    Args:
        rows: How many there were.
        tokens: Tokens of all rows.
        supervised: Those of them that train.
        cut: Rows that ``max_seq_len`` cut.
        lengths: Tokens of each row before it was cut.
        faulty: Rows with at least one fault.
        faults: How often each fault was found, by its name.
    """

    rows: int = 0
    tokens: int = 0
    supervised: int = 0
    cut: int = 0
    lengths: list[int] = field(default_factory=list)
    faulty: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def add(self, row: CheckedRow) -> None:
        """Count one more row."""
        self.rows += 1
        self.tokens += len(row.tokens)
        self.supervised += row.supervised
        self.cut += row.length > len(row.tokens)
        self.lengths.append(row.length)
        self.faulty += bool(row.faults)
        self.faults.update({fault.name for fault in row.faults})

    def __str__(self) -> str:
        ordered = sorted(self.lengths) or [0]
        middle, most = ordered[(len(ordered) - 1) // 2], ordered[-(len(ordered) // 20) - 1]
        share = 100 * self.supervised / max(1, self.tokens)
        lines = [
            f"{_rows(self.rows)}, {self.tokens:,} tokens, {share:.0f} % of them trained, "
            f"{_rows(self.cut)} cut",
            f"tokens a row: median {middle:,}, 95 % have at most {most:,}, longest {ordered[-1]:,}",
        ]
        lines += [f"{_rows(self.faulty)} with faults"] if self.faulty else ["no faults found"]
        lines += [
            f"  {self.faults[name]:>6,} {name}: {meaning}"
            for name, meaning in FAULTS.items()
            if name in self.faults
        ]
        return "\n".join(lines)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
