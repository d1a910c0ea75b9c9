"""Conversations to token ids, with the tokens to train on marked in the same pass."""

import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torchtune.data import jinja_rendering as rendering
from torchtune.data.chat_template import builtin_templates, find_template, missing_tokens
from torchtune.data.loss_mask import token_mask
from torchtune.data.messages import Message
from torchtune.data.tokenizer import Tokenizer, special_pattern
from torchtune.errors import ConfigError, DataError, MissingError

__all__ = ["ChatFormat", "Encoded"]

GUARDS = [chr(code) for code in range(0xFDD2, 0xFDF0)]  # noncharacters, which no text has
PROBE = [{"role": "user", "content": "Say when."}, {"role": "assistant", "content": "Presently."}]
Turns = list[dict[str, Any]]
Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens.

    Args:
        tokens: Ids ``[T]``.
        trained: Of each token whether it is a target of the loss, ``[T]``, not shifted.
    """

    tokens: list[int]
    trained: list[bool]


class ChatFormat:
    """The form in which a model reads conversations: its chat template and its tokenizer.

    Token ids are those of transformers' ``apply_chat_template(tokenize=True)``, save that what
    looks like a special token in a message stays text. Trained are the tokens of the assistant's
    turns and the token that ends them: by ``{% generation %}`` where the template has it, else by
    rendering turn by turn. A format can be pickled and sent to other processes.

    A model without a template gets the Stanford Alpaca prompt, for tasks alone (`Message.task`).

    Args:
        tokenizer: The model's tokenizer.
        template: A built-in template or the path of one; None takes the tokenizer's.
        date: The day that templates are told, today if None.

    Attributes:
        template: The jinja source in use.
        date: The day in ISO form; give it again to get the same tokens another day.
        stop_ids: The tokenizer's, and the token that ends an assistant's turn.

    Raises:
        ConfigError: The template is no template, loops or prints without end, or needs special
            tokens that the tokenizer does not have; or `date` is no date.
        MissingError: There is no template of that name.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str | None = None,
        *,
        date: str | datetime.date | None = None,
    ) -> None:
        source = find_template(template) if template else tokenizer.chat_template
        self.tokenizer = tokenizer
        self.tasks_only = source is None
        self.template = alpaca_prompt(bos=tokenizer.adds_bos) if source is None else source
        self.date = _iso(date)
        self._where = "chat_template" if template else f"the chat template of {tokenizer.source}"
        self._special_ids = frozenset(tokenizer.special_tokens.values())
        self._check()
        self._open()
        self._learn()

    def encode(
        self,
        messages: Sequence[Message],
        *,
        train_on: Literal["all", "last"] = "all",
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Encoded:
        """Return the tokens of a whole conversation, and which of them are trained.

        Args:
            messages: The turns.
            train_on: Which of the assistant's turns; a message's own `Message.trained` wins.
            tools: Functions that the model may call, as JSON schemas, for templates that show them.

        Raises:
            DataError: The template does not want these messages.
            ConfigError: The template does not tell the assistant's turns apart.
            MissingError: A chat, and the model has no chat template.
        """
        turns, tools, guard = self._guarded(messages, tools)
        text, marked = self._text(turns, tools)
        wanted = _wanted(messages, train_on)
        if self._marks:
            spans = self._pick(marked, messages, wanted)
        else:
            spans = self._spans(turns, tools, text, wanted)
        ids, offsets = self.tokenizer.tokenize(text, guard=guard)
        trained = token_mask(
            ids, offsets, text, spans, special_ids=self._special_ids, stop_ids=self._ends
        )
        return Encoded(ids, trained)

    def prompt(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Return the tokens of a conversation up to where the assistant's answer begins.

        Args:
            messages: The turns so far, the last of them not the assistant's.
            tools: Descriptions of the functions that the model may call, as templates take them.

        Raises:
            DataError: The template does not want these messages.
            MissingError: A chat, and the model has no chat template.
        """
        turns, tools, guard = self._guarded(messages, tools)
        text, _ = self._text(turns, tools, prompt=True)
        return self.tokenizer.tokenize(text, guard=guard)[0]

    def text(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """Return a conversation as the template writes it, for programs that tokenize themselves.

        `encode` and `prompt` are safer: here a look-alike of a special token in a message is one.

        Args:
            messages: The turns.
            prompt: Go on to where the assistant's answer begins.

        Raises:
            DataError: The template does not want these messages.
        """
        return self._text([message.as_dict() for message in messages], None, prompt=prompt)[0]

    def _check(self) -> None:
        """Try the template where it can do no harm, unless it is one of ours."""
        missing = missing_tokens(self.template, set(self.tokenizer.special_tokens))
        if missing:
            what = f"needs tokens that this tokenizer does not have: {', '.join(missing)}"
            raise ConfigError("E-CHAT-TEMPLATE", what, where=self._where, do=_choices())
        ours = [alpaca_prompt(bos=False), *map(find_template, builtin_templates())]
        if self.template in ours:
            return
        cases = [self._variables(PROBE[:n], None, n == 1) for n in (1, 2)]
        fault = rendering.trial(self.template, cases, date=self.date)
        if fault:
            raise ConfigError("E-CHAT-TEMPLATE", fault, where=self._where, do=_choices())

    def _open(self) -> None:
        self._jinja = rendering.compiled(self.template, self.date)
        self._marks = re.search(r"\{%[-+]?\s*generation\b", self.template) is not None
        self._tasks = "instruction" in self.template
        self._lookalike = special_pattern(self.tokenizer.special_tokens)

    def _learn(self) -> None:
        """Find out by an example how a turn begins and how it ends."""
        self._header: str | None = None
        self._ends = frozenset(self.tokenizer.stop_ids) - {self.tokenizer.bos_id}
        self.stop_ids = self.tokenizer.stop_ids
        try:
            self._header = self._find_header()
            probe = [Message.task(PROBE[0]["content"]), Message("assistant", PROBE[1]["content"])]
            found = self.encode(probe)
        except (DataError, ConfigError, ValueError):
            return  # it does not want the example; real rows may be others
        last = [t for t, trained in zip(found.tokens, found.trained, strict=True) if trained][-1:]
        if last and last[0] in self._special_ids:
            self.stop_ids = tuple(dict.fromkeys([*self.tokenizer.stop_ids, *last]))

    def _find_header(self) -> str | None:
        """What the template writes before an answer, where its generation prompt does not.

        None if the generation prompt is the header, as it should be.
        """
        before, prompt = self._text(PROBE[:1], None)[0], self._text(PROBE[:1], None, prompt=True)[0]
        whole = self._text(PROBE, None)[0]
        if prompt != before and whole.startswith(prompt):
            return None
        header = whole[len(before) : whole.index(PROBE[1]["content"])]
        return "" if header.isspace() else header

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_jinja"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def _variables(self, turns: Turns, tools: Any, prompt: bool) -> dict[str, Any]:
        given = {"messages": turns, "tools": tools, "documents": None}
        return {**self.tokenizer.names, **given, "add_generation_prompt": prompt}

    def _text(self, turns: Turns, tools: Any, *, prompt: bool = False) -> tuple[str, list[Span]]:
        """Render; the spans are those of the template's marks."""
        try:
            text = rendering.render(self._jinja, self._variables(turns, tools, prompt))
        except rendering.Unruly as error:
            raise ConfigError("E-CHAT-TEMPLATE", str(error), where=self._where) from None
        except rendering.FAULTS as error:
            what = f"the chat template does not take this conversation: {error}"
            raise DataError("E-CHAT-TEMPLATE", what) from None
        return rendering.marked_spans(text) if self._marks else (text, [])

    def _guarded(self, messages: Sequence[Message], tools: Any) -> tuple[Turns, Any, str]:
        """Messages as templates read them, look-alikes of special tokens broken by the guard."""
        if self.tasks_only and any(m.role == "user" and m.instruct is None for m in messages):
            what = "a chat needs a chat template, and this model has none"
            raise MissingError("E-CHAT-TEMPLATE", what, where="chat_template", do=_choices())
        turns = [message.as_dict() for message in messages]
        if self._tasks:
            for turn, message in zip(turns, messages, strict=True):
                turn.update(zip(("instruction", "input"), message.instruct or (), strict=False))
        texts = list(_strings([turns, tools]))
        if self._marks and any(mark in text for text in texts for mark in rendering.MARKS):
            what = "the text holds U+FDD0 or U+FDD1, which Unicode keeps from interchange"
            raise DataError("E-TEXT", what, do="take it out of the row")
        if not any(self._lookalike.search(text) for text in texts):
            return turns, tools, ""
        guard = next((g for g in GUARDS if not any(g in text for text in texts)), "")
        if not guard:
            raise DataError("E-TEXT", "the text holds every noncharacter from U+FDD2 on")

        def broken(text: str) -> str:
            return self._lookalike.sub(lambda found: f"{found[0][0]}{guard}{found[0][1:]}", text)

        return _mapped(turns, broken), _mapped(tools, broken), guard

    def _pick(
        self, marked: list[Span], messages: Sequence[Message], wanted: list[int]
    ) -> list[Span]:
        """Of the spans that the template marked those of the wanted turns."""
        speaking = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if wanted == speaking:
            return marked
        if len(marked) != len(speaking):
            what = f"marks {len(marked)} texts for {len(speaking)} turns of the assistant"
            raise ConfigError(
                "E-CHAT-TEMPLATE", what, where=self._where, do="set train_on: all, or mend it"
            )
        return [span for i, span in zip(speaking, marked, strict=True) if i in wanted]

    def _spans(self, turns: Turns, tools: Any, text: str, wanted: list[int]) -> list[Span]:
        """Find turns by rendering up to each: what comes in addition is the turn."""
        spans = []
        for i in wanted:
            whole = text if i + 1 == len(turns) else self._text(turns[: i + 1], tools)[0]
            start = self._start(turns[:i], tools, whole) if text.startswith(whole) else None
            if start is None:
                what = f"not prefix-stable: turn {i + 1} of {len(turns)} is written otherwise alone"
                do = "set train_on: last, or chat_template to one with {% generation %}"
                raise ConfigError("E-CHAT-TEMPLATE", what, where=self._where, do=do)
            spans.append((start, len(whole)))
        return spans

    def _start(self, turns: Turns, tools: Any, whole: str) -> int | None:
        """Where the answer to `turns` begins in `whole`; None if `whole` does not begin with them."""
        if self._header is None:
            before = self._text(turns, tools, prompt=True)[0]
        else:
            before = self._text(turns, tools)[0] + self._header
        return len(before) if whole.startswith(before) else None


def alpaca_prompt(*, bos: bool) -> str:
    """Return the template of the Stanford Alpaca prompt, with or without BOS before it."""
    source = find_template("alpaca")
    return source if bos else source.replace("{{- bos_token -}}\n", "")


def _iso(date: str | datetime.date | None) -> str:
    text = date if isinstance(date, str) else (date or datetime.date.today()).isoformat()
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        what = f"{text!r} is no date; one is written 2026-01-31"
        raise ConfigError("E-DATE", what, where="date") from None
    return text


def _wanted(messages: Sequence[Message], train_on: str) -> list[int]:
    """Places of the turns to train on."""
    speaking = [i for i, message in enumerate(messages) if message.role == "assistant"]
    chosen = speaking if train_on == "all" else speaking[-1:]
    said = {i: messages[i].trained for i in speaking}
    return [i for i in speaking if said[i] or (said[i] is None and i in chosen)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list | tuple) else value


def _choices() -> str:
    return f"set chat_template to a file or a built-in one: {', '.join(builtin_templates())}"
