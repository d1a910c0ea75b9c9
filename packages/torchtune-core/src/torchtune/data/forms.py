"""What a row means: which columns make it a task, a chat, plain text, or ready tokens."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, TypeAlias

from torchtune.config.names import nearest
from torchtune.data.conversations import holds_turns, read_json, read_tools, read_turns
from torchtune.data.messages import Message
from torchtune.errors import ConfigError, DataError

__all__ = [
    "FORMATS",
    "Chat",
    "Example",
    "Form",
    "Text",
    "Tokens",
    "choose_form",
    "to_messages",
    "told_forms",
]


@dataclass(frozen=True)
class Chat:
    """A conversation or a task, to be put into the model's chat template.

    Args:
        messages: The turns in order.
        tools: Descriptions of the tools that the assistant may call.
    """

    messages: tuple[Message, ...]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Text:
    """Plain text, trained on from its beginning to its end token."""

    text: str


@dataclass(frozen=True)
class Tokens:
    """Token ids that are used as they are.

    Args:
        tokens: Ids.
        trained: As many truth values: which of them are trained on.
    """

    tokens: list[int]
    trained: list[bool]


Example: TypeAlias = Chat | Text | Tokens
Values: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """One way to write rows.

    Args:
        name: What ``format:`` calls it.
        parts: Its parts, each with the column names it goes by; the first part, or the first two
            where `both` is set, must be there.
        read: From the parts of a row to what it means.
        both: Whether the second part is needed too.
    """

    name: str
    parts: Mapping[str, tuple[str, ...]]
    read: Callable[[Values], Example]
    both: bool = False

    @property
    def needed(self) -> list[str]:
        """Return the parts that every row must have."""
        return list(self.parts)[: 2 if self.both else 1]

    def find(self, columns: Iterable[str]) -> dict[str, str]:
        """Return the column of each part that has one."""
        there = set(columns)
        return {
            part: next(name for name in names if name in there)
            for part, names in self.parts.items()
            if there.intersection(names)
        }


def _text(values: Values, part: str) -> str:
    value = values.get(part)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    kind = type(value).__name__
    raise DataError("E-DATA-VALUE", f"{part} must be text, found {kind}: {repr(value)[:60]}")


def _system(values: Values) -> tuple[Message, ...]:
    text = _text(values, "system")
    return (Message("system", text),) if text else ()


def _read_alpaca(values: Values) -> Chat:
    task = Message.task(_text(values, "instruction"), _text(values, "input"))
    return Chat((*_system(values), task, Message("assistant", _text(values, "output"))))


def _read_pair(values: Values) -> Chat:
    """Read a question and its answer: two texts, or two lists of turns (as TRL has them)."""
    if holds_turns(values["question"]):
        asked = tuple(_untrained(turn) for turn in read_turns(values["question"]))
    else:
        asked = (Message.task(_text(values, "question")),)
    if holds_turns(values["answer"]):
        said = read_turns(values["answer"])
    else:
        said = (Message("assistant", _text(values, "answer")),)
    return Chat((*_system(values), *asked, *said), read_tools(values.get("tools")))


def _untrained(turn: Message) -> Message:
    """Return a turn of a prompt: an assistant's earlier answers are not trained on."""
    if turn.role != "assistant":
        return turn
    return Message(turn.role, turn.content, turn.tool_calls, trained=False, extra=turn.extra)


def _read_chat(values: Values) -> Chat:
    turns = read_turns(values.get("messages", values.get("conversations")))
    return Chat((*_system(values), *turns), read_tools(values.get("tools")))


def _read_text(values: Values) -> Text:
    return Text(_text(values, "text"))


def _read_tokens(values: Values) -> Tokens:
    tokens = _integers(values, "tokens")
    if values.get("labels") is not None:
        labels = _integers(values, "labels")
        trained = [label != -100 for label in labels]
        if any(t and a != b for t, a, b in zip(trained, labels, tokens, strict=False)):
            do = "write labels at their tokens' own places, -100 where untrained; we shift them"
            raise DataError("E-DATA-LABELS", "labels are not those of the tokens", do=do)
    elif values.get("mask") is not None:
        trained = [bool(value) for value in _integers(values, "mask")]
    else:
        trained = [True] * len(tokens)
    if len(trained) != len(tokens):
        what = f"{len(tokens)} tokens, but {len(trained)} labels or mask values"
        raise DataError("E-DATA-LABELS", what)
    return _without_padding(Tokens(tokens, trained), values)


def _without_padding(row: Tokens, values: Values) -> Tokens:
    """Leave out what ``attention_mask`` calls padding: nothing is padded here."""
    if values.get("attention_mask") is None:
        return row
    real = _integers(values, "attention_mask")
    if len(real) != len(row.tokens):
        what = f"{len(row.tokens)} tokens, but {len(real)} values of attention_mask"
        raise DataError("E-DATA-LABELS", what)
    return Tokens(list(compress(row.tokens, real)), list(compress(row.trained, real)))


def _integers(values: Values, part: str) -> list[int]:
    value = read_json(values.get(part))
    if isinstance(value, Sequence) and all(isinstance(item, int) for item in value):
        return [int(item) for item in value]
    raise DataError("E-DATA-VALUE", f"{part} must be a list of integers: {repr(value)[:60]}")


_EXTRA = {"system": ("system", "system_prompt"), "tools": ("tools", "functions")}
_QUESTIONS = ("prompt", "question", "query", "problem", "instruction", "input")
_ANSWERS = ("completion", "response", "answer", "solution", "output")
_MASKS = ("mask", "loss_mask", "completion_mask", "assistant_masks")
_ALPACA = {
    "instruction": ("instruction",),
    "output": ("output", "response"),
    "input": ("input", "context"),
    "system": _EXTRA["system"],
}
_PAIR = {"question": _QUESTIONS, "answer": _ANSWERS, **_EXTRA}
_TOKENS = {
    "tokens": ("input_ids", "tokens"),
    "labels": ("labels",),
    "mask": _MASKS,
    "attention_mask": ("attention_mask",),
}
FORMATS = {
    form.name: form
    for form in (  # the first that fits is taken
        Form("tokens", _TOKENS, _read_tokens),
        Form("messages", {"messages": ("messages", "conversation"), **_EXTRA}, _read_chat),
        Form("sharegpt", {"conversations": ("conversations",), **_EXTRA}, _read_chat),
        Form("alpaca", _ALPACA, _read_alpaca, both=True),
        Form("qa", _PAIR, _read_pair, both=True),
        Form("text", {"text": ("text",)}, _read_text),
    )
}
KNOWN = (
    "messages; conversations; instruction, output (input); prompt or question, completion or "
    "response or answer; text; input_ids or tokens (labels or mask)"
)


def told_forms(format: str | None, columns: Mapping[str, str] | None) -> list[Form]:
    """Return the forms that rows may have, by what the user told of them.

    Raises:
        ConfigError: `format`, or a part in `columns`, is not known.
    """
    if format is not None and format not in FORMATS:
        what = f"there is no format {format!r}; known are {', '.join(FORMATS)}"
        where, do = "dataset.format", nearest(format, FORMATS)
        raise ConfigError("E-DATA-FORMAT", what, where=where, do=do)
    forms = [FORMATS[format]] if format else [*FORMATS.values()]
    parts = list(dict.fromkeys(part for form in forms for part in form.parts))
    for part in columns or ():
        forms = [form for form in forms if part in form.parts]
        if not forms:
            what = f"{part!r} is no part of a row here; the parts are {', '.join(parts)}"
            where, do = "dataset.columns", nearest(part, parts)
            raise ConfigError("E-DATA-FORMAT", what, where=where, do=do)
    return forms


def choose_form(
    found: Iterable[str], forms: Iterable[Form] = (), columns: Mapping[str, str] | None = None
) -> tuple[Form, dict[str, str]]:
    """Return the form of rows with the columns `found`, and which column each part is.

    Args:
        found: The columns of a row.
        forms: Those that it may have; all where empty.
        columns: From parts to columns, or paths into them (``instances.0.output``), where told.

    Raises:
        DataError: The columns are not those of a known form.
    """
    names = list(found)
    if columns or not _preference(names):
        for form in forms or FORMATS.values():
            parts = {**form.find(names), **(columns or {})}
            if all(part in parts for part in form.needed):
                return form, parts
    raise _unrecognised(names)


def _preference(names: Iterable[str]) -> bool:
    return {"chosen", "rejected"} <= {name.removesuffix("_messages") for name in names}


def _unrecognised(names: list[str]) -> DataError:
    do = f"known are: {KNOWN}. Else tell it by format and columns, or give a transform"
    if _preference(names):
        do = "rows of preferences: give a transform that returns the turns to train on"
    what = f"columns not recognised: {', '.join(names) or 'the row has none'}"
    if separator := next((sign for sign in ";\t|" if len(names) == 1 and sign in names[0]), None):
        what += f"; {separator!r} stands in a name where a comma parts columns"
    elif any(name != name.strip() for name in names):
        what += "; there are spaces around a name"
    return DataError("E-DATA-COLUMNS", what, do=do)


def to_messages(row: Mapping[str, Any]) -> list[Message]:
    """Return the messages of one row of any known form with turns: alpaca, chat, question/answer.

    Raises:
        DataError: The columns are not known, hold something else, or hold no turns.
    """
    form, parts = choose_form(row)
    example = form.read({part: row.get(column) for part, column in parts.items()})
    if not isinstance(example, Chat):
        raise DataError("E-DATA-TURNS", f"rows of the form {form.name!r} have no turns")
    return list(example.messages)
