"""Answers as text, which may be shown while it is written and ends at words as well as at tokens."""

from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from typing import NamedTuple

from torchtune.data import Tokenizer
from torchtune.errors import ConfigError
from torchtune.generation.generate import GREEDY, Tokens, stream
from torchtune.generation.loading import LoadedCheckpoint
from torchtune.generation.sampling import Sampling
from torchtune.modules import Decoder

__all__ = ["Answer", "TextStream", "generate_text", "stream_text"]

Pieces = Generator[str, None, None]
UNFINISHED = "\ufffd"  # what the first bytes of a character decode to


class Answer(NamedTuple):
    """What a model says to one prompt.

    Args:
        text: Without special tokens, and cut before the stop string.
        tokens: The ids that were made, without the stop token.
    """

    text: str
    tokens: list[int]


class TextStream:
    """The text of one answer, piece by piece as its tokens come.

    A piece never ends inside a character, and never in what may become a stop string. All pieces
    together are the tokenizer's text of all tokens, up to the first stop string; only bytes that are
    no text at all may give another number of U+FFFD.

    Args:
        tokenizer: Whose tokens they are.
        stop: Texts at which the answer ends.

    Attributes:
        ended: Whether a stop string came. What is added afterwards is not looked at.

    Raises:
        ConfigError: E-STOP: a stop string is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Collection[str] = ()) -> None:
        if "" in stop:
            raise ConfigError("E-STOP", "a stop string must not be empty", where="stop")
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens: list[int] = []
        self._context = 0  # the text of tokens from here on shows whether a space comes between
        self._told = 0  # up to here the text is known
        self._held = ""  # known, but it may be the beginning of a stop string
        self.ended = False

    def add(self, token: int) -> str:
        """Return what is new to be shown with this token; it may be empty."""
        if self.ended:
            return ""
        self._tokens.append(token)
        return self._release(self._new_text())

    def finish(self) -> str:
        """Return what was held back, once no token comes any more."""
        if self.ended:
            return ""
        rest, self._held = self._held + self._new_text(whole=True), ""
        self.ended = any(stop in rest for stop in self._stop)
        return _before(rest, self._stop)

    def _new_text(self, *, whole: bool = False) -> str:
        """Decode a few tokens, not all: with the ones before, as some tokenizers' spaces need it."""
        before = self._tokenizer.decode(self._tokens[self._context : self._told])
        text = self._tokenizer.decode(self._tokens[self._context :])
        new = text[len(before) :]
        if not new or (new.endswith(UNFINISHED) and not whole):
            return ""
        self._context, self._told = self._told, len(self._tokens)
        return new

    def _release(self, new: str) -> str:
        text = self._held + new
        shown = _before(text, self._stop)
        if shown != text:
            self.ended, self._held = True, ""
            return shown
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _before(text: str, stop: Collection[str]) -> str:
    """Return `text` up to the first stop string."""
    return text[: min((text.index(s) for s in stop if s in text), default=len(text))]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` begin `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


def stream_text(
    loaded: LoadedCheckpoint,
    prompt: Sequence[int],
    *,
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
    stop: Collection[str] = (),
) -> Pieces:
    """Yield the answer to one prompt in pieces, as soon as each is sure; none is empty.

    Close the iterator to stop early.

    Args:
        loaded: Model and tokenizer; the answer ends at one of its `stop_ids`.
        prompt: Token ids, such as `LoadedCheckpoint.prompt_ids` gives.
        max_new_tokens: At most so many tokens; less where the model's positions end.
        sampling: How each token is chosen; the likeliest, unless told.
        stop: The answer also ends before the first of these texts.

    Raises:
        ConfigError: E-PROMPT, E-SAMPLING, E-STOP: as `generate`, before the first piece is asked for.
    """
    text = TextStream(loaded.tokenizer, stop)
    steps = stream(
        loaded.model, [prompt], max_new_tokens=max_new_tokens, sampling=sampling,
        stop_tokens=loaded.stop_ids,
    )  # fmt: skip
    return _pieces(steps, text)


def _pieces(steps: Tokens, text: TextStream) -> Pieces:
    with closing(steps):
        for (token,) in steps:
            if token is not None and (piece := text.add(token)):
                yield piece
            if text.ended:
                return
    if piece := text.finish():
        yield piece


def generate_text(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
    stop_tokens: Collection[int] = (),
    stop: Collection[str] = (),
) -> list[Answer]:
    """Return the answers to a batch of prompts; each row ends for itself.

    Args:
        model: The model; dropout is off while this runs.
        tokenizer: Its tokenizer.
        prompts: Token ids of each row; lengths may differ.
        max_new_tokens: At most so many tokens a row.
        sampling: How each token is chosen; the likeliest, unless told.
        stop_tokens: A row ends before one of these.
        stop: A row also ends before the first of these texts.

    Raises:
        ConfigError: E-PROMPT, E-SAMPLING, E-STOP: as `generate`.
    """
    watched = [TextStream(tokenizer, stop) for _ in prompts]
    rows: list[list[int]] = [[] for _ in prompts]
    steps = stream(
        model, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop_tokens=stop_tokens
    )
    with closing(steps):
        for tokens in steps:
            for text, row, token in zip(watched, rows, tokens, strict=True):
                if token is not None and not text.ended:
                    row.append(token)
                    if stop:
                        text.add(token)
            if all(text.ended for text in watched):
                break
    return [Answer(_before(tokenizer.decode(row), stop), row) for row in rows]
