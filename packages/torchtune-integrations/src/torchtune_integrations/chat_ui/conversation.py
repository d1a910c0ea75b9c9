"""What was asked and answered, and how answers grow; knows nothing of the page."""

import copy
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import zip_longest

from torchtune.data import ChatFormat, Message
from torchtune.errors import MissingError
from torchtune.generation import LoadedCheckpoint, Sampling, stream_text

__all__ = ["Turn", "Turns", "ask", "chat_form", "paced", "with_form_of"]


@dataclass(frozen=True)
class Turn:
    """A question and what each model said to it.

    Args:
        question: The user's text.
        answers: One a model.
        ended: Whether the models came to an end; False while they speak, or if they were stopped.
    """

    question: str
    answers: tuple[str, ...]
    ended: bool = False


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
        TuneError: A template does not take this conversation, or it is longer than a model's
            positions.
    """
    texts = ("",) * len(models)
    with ExitStack() as stack:
        streams = []
        for side, model in enumerate(models):
            prompt = chat_form(model).prompt(_messages(before, side, question, system))
            stream = stream_text(
                model, prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop
            )
            streams.append(stack.enter_context(closing(stream)))
        for pieces in zip_longest(*streams, fillvalue=""):
            texts = tuple(text + piece for text, piece in zip(texts, pieces, strict=True))
            yield Turn(question, texts)
    yield Turn(question, texts, ended=True)


def _messages(before: Turns, side: int, question: str, system: str) -> list[Message]:
    """Return what one model has heard and said; questions that it did not answer are left out."""
    said = [Message("system", system)] if system.strip() else []
    for turn in before:
        if turn.answers[side]:
            said += [Message.task(turn.question), Message("assistant", turn.answers[side])]
    return [*said, Message.task(question)]


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


def chat_form(model: LoadedCheckpoint) -> ChatFormat:
    """Return how conversations are put to a model.

    Raises:
        MissingError: E-CHAT-TEMPLATE, it has no chat template.
    """
    if model.form is None:
        what = "a chat needs a chat template, and this checkpoint has none"
        do = "put one into the folder as chat_template.jinja, or continue text: tune generate --raw"
        raise MissingError("E-CHAT-TEMPLATE", what, where=str(model.folder), do=do)
    return model.form


def with_form_of(model: LoadedCheckpoint, other: LoadedCheckpoint) -> LoadedCheckpoint:
    """Return a model that is asked in its own chat template, or else in that of `other`.

    Base models often have none; the one that was tuned got its own on the way.

    Raises:
        ConfigError: E-CHAT-TEMPLATE, the template needs tokens that the model's tokenizer lacks.
        MissingError: E-CHAT-TEMPLATE, `other` has none either.
    """
    if model.form is not None:
        return model
    form = chat_form(other)
    tokenizer = copy.copy(model.tokenizer)
    tokenizer.chat_template = form.template
    return replace(model, form=ChatFormat(tokenizer, date=form.date))
