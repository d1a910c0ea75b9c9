"""A conversation with a model, turn by turn."""

from collections.abc import Collection
from contextlib import closing
from dataclasses import replace

from torchtune.data import Message
from torchtune.errors import MissingError
from torchtune.generation.generate import GREEDY
from torchtune.generation.loading import LoadedCheckpoint
from torchtune.generation.sampling import Sampling
from torchtune.generation.text import Pieces, stream_text

__all__ = ["Conversation"]


class Conversation:
    """What was said so far, put to the model again with each question.

    Args:
        loaded: The model; it must have a chat template.
        system: A system message before all turns.
        sampling: How tokens are chosen; a seed is counted on from answer to answer.
        max_new_tokens: The most tokens of an answer.
        stop: Texts before which an answer ends.

    Attributes:
        turns: What was said, the system message not among it.
        forgotten: How many of the oldest turns the last question had to leave out, because the
            model's positions are full. They are gone from `turns` too.

    Raises:
        MissingError: E-CHAT-TEMPLATE: the checkpoint has none.
    """

    def __init__(
        self,
        loaded: LoadedCheckpoint,
        *,
        system: str | None = None,
        sampling: Sampling = GREEDY,
        max_new_tokens: int = 512,
        stop: Collection[str] = (),
    ) -> None:
        if loaded.form is None:
            what = "a chat needs a chat template, and this checkpoint has none"
            do = "continue text: `tune generate --raw`; or add a chat_template.jinja to the folder"
            raise MissingError("E-CHAT-TEMPLATE", what, where=str(loaded.folder), do=do)
        self._loaded = loaded
        self.system, self.sampling = system, sampling
        self.max_new_tokens, self.stop = max_new_tokens, stop
        self.turns: list[Message] = []
        self.forgotten = 0

    def ask(self, question: str) -> Pieces:
        """Yield the answer to `question` in pieces.

        Close the iterator to stop it: what was said till then counts.
        A question without any answer is as if it had not been asked.

        Raises:
            DataError: E-CHAT-TEMPLATE: the template does not take this conversation, for want of a
                place for a system message, say.
            ConfigError: E-PROMPT: the question alone is longer than the model's positions.
        """
        turns, ids = self._fitting([*self.turns, Message.task(question)])
        self.forgotten = len(self.turns) + 1 - len(turns)
        sampling = self.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + len(self.turns))
        pieces = stream_text(
            self._loaded, ids, max_new_tokens=self.max_new_tokens, sampling=sampling, stop=self.stop
        )
        return self._answered(turns, pieces)

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns, self.forgotten = [], 0

    def _fitting(self, turns: list[Message]) -> tuple[list[Message], list[int]]:
        """Leave out the oldest questions with their answers until there is room for an answer."""
        positions = self._loaded.model.max_positions
        room = min(self.max_new_tokens, positions // 4)
        ids = self._loaded.prompt_ids(turns, system=self.system)
        while len(ids) + room > positions and len(turns) > 2:
            turns = turns[2:]
            ids = self._loaded.prompt_ids(turns, system=self.system)
        return turns, ids

    def _answered(self, turns: list[Message], pieces: Pieces) -> Pieces:
        said = ""
        try:
            with closing(pieces):
                for piece in pieces:
                    said += piece
                    yield piece
        finally:
            if said:
                self.turns = [*turns, Message("assistant", said)]
