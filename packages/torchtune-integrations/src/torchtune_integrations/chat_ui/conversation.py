"""What was asked and answered, and how answers grow; knows nothing of the page."""

import copy
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import zip_longest

from torchtune.data import ChatFormat, Message
from torchtune.generation import Conversation, LoadedCheckpoint, Sampling

__all__ = ["Turn", "Turns", "ask", "paced", "with_form_of"]


@dataclass(frozen=True)
class Turn:
    """A question and what each model said to it.

    Args:
        question: The user's text.
        answers: One a model.
        ended: Whether the models came to an end; False while they speak, or if they were stopped.
        forgotten: How many of the oldest messages there was no room for, in the model that has
            least.
    """

    question: str
    answers: tuple[str, ...]
    ended: bool = False
    forgotten: int = 0


Turns = tuple[Turn, ...]


def ask(
    models: Sequence[LoadedCheckpoint],
    before: Turns,
    question: str,
    *,
    system: str,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Collection[str],
) -> Generator[Turn, None, None]:
    """Yield the new turn as it grows; the models speak by turns, a piece each.

    Each is told its own answers of the turns `before`. Close the iterator to stop the models.

    Raises:
        TuneError: As `Conversation.ask`.
    """
    with ExitStack() as stack:
        streams, forgotten = [], 0
        for side, model in enumerate(models):
            conversation = Conversation(
                model, system=system.strip() or None, sampling=sampling,
                max_new_tokens=max_new_tokens, stop=stop,
            )  # fmt: skip
            conversation.turns = _heard(before, side)
            streams.append(stack.enter_context(closing(conversation.ask(question))))
            forgotten = max(forgotten, conversation.forgotten)
        turn = Turn(question, ("",) * len(models), forgotten=forgotten)
        for pieces in zip_longest(*streams, fillvalue=""):
            answers = zip(turn.answers, pieces, strict=True)
            turn = replace(turn, answers=tuple(text + piece for text, piece in answers))
            yield turn
    yield replace(turn, ended=True)


def _heard(before: Turns, side: int) -> list[Message]:
    """Return what one model was asked and said, without the questions that it did not answer."""
    answered = [turn for turn in before if turn.answers[side]]
    pairs = ((Message.task(t.question), Message("assistant", t.answers[side])) for t in answered)
    return [message for pair in pairs for message in pair]


def paced(turns: Iterable[Turn], seconds: float) -> Iterator[Turn]:
    """Leave out turns that come within `seconds` of the one before, but never the last."""
    shown, left_out = -seconds, None
    for turn in turns:
        left_out = turn
        if time.monotonic() - shown >= seconds:
            yield turn
            shown, left_out = time.monotonic(), None
    if left_out is not None:
        yield left_out


def with_form_of(model: LoadedCheckpoint, other: LoadedCheckpoint) -> LoadedCheckpoint:
    """Return a model that is asked in its own chat template, or else in that of `other`.

    Base models often have none; the one that was tuned got its own on the way.

    Raises:
        ConfigError: E-CHAT-TEMPLATE, the template needs tokens that the model's tokenizer lacks.
    """
    if model.form is not None or other.form is None:
        return model
    tokenizer = copy.copy(model.tokenizer)
    tokenizer.chat_template = other.form.template
    return replace(model, form=ChatFormat(tokenizer, date=other.form.date))
