"""A model of ours as lm-evaluation-harness asks it."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TextIO

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torchtune.data import ChatFormat, Message, Tokenizer
from torchtune.distributed import World
from torchtune.errors import ConfigError, DataError, MissingError
from torchtune.modules import Decoder

from torchtune_integrations.lm_eval.answers import answer, wanted
from torchtune_integrations.lm_eval.scoring import Request, score

__all__ = ["TorchtuneLM"]

ANSWER_TOKENS = 256
"""Tokens of an answer where a task does not say; so many as with the harness's own backends."""


class TorchtuneLM(TemplateLM):
    """The harness's `LM` over a `Decoder`: the three kinds of request, batched our own way.

    Texts become the same tokens as with the harness's Hugging Face backend: BOS where the tokenizer
    adds one and the text does not begin with it, special tokens parsed. What is too long loses its
    beginning, as there. Not so in bf16: log-softmax is taken in fp32.

    Args:
        model: In evaluation mode.
        tokenizer: The model's.
        form: Its chat template, for tasks that are put as chats.
        batch_tokens: Tokens of a forward at most.
        world: The processes that share the work; all ask the same, and each gets all answers.
        seed: Of answers that are drawn.
        terminal: Where bars are shown, if it is one.

    Attributes:
        cut: How many requests were too long for the model so far.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        form: ChatFormat | None = None,
        *,
        batch_tokens: int,
        world: World | None = None,
        seed: int = 0,
        terminal: TextIO | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.form = model, tokenizer, form
        self.world = world or World(device=model.model.embed_tokens.weight.device)
        self.batch_tokens, self.seed, self.terminal = batch_tokens, seed, terminal
        self.cut = 0
        self._device = self.world.device
        self._begin = tokenizer.decode([self.prefix_token_id], special=True)
        self._encode = lru_cache(maxsize=4096)(self._encode_anew)  # a context comes once a choice

    @property
    def eot_token_id(self) -> int | None:
        """Id of the token that ends a text."""
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Id of the token that stands before a text without context: BOS, else EOS."""
        known = (self.tokenizer.bos_id, self.tokenizer.eos_id)
        found = next((token for token in known if token is not None), None)
        if found is None:
            what = "the tokenizer has neither a BOS nor an EOS token for texts to begin with"
            raise ConfigError("E-TOKENIZER", what, where=self.tokenizer.source)
        return found

    @property
    def max_length(self) -> int:
        """Tokens that the model can read."""
        return self.model.max_positions

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer, as the harness's cache of requests calls it."""
        return self.tokenizer.source.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return the ids of a text, with BOS where its model's texts begin with one."""
        return self._encode(string, add_special_tokens)

    def _encode_anew(self, text: str, special: bool | None) -> list[int]:
        bos = self.tokenizer.bos_id
        begins = self.tokenizer.adds_bos if special is None else special and self.tokenizer.adds_bos
        if bos is None or not begins or (special is None and text.startswith(self._begin)):
            return self.tokenizer.encode(text, special=True)
        return [bos, *self.tokenizer.encode(text, special=True)]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return of each (context, continuation) its log-likelihood, and whether it is greedy."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        asked = [Request(context or [self.prefix_token_id], told) for _, context, told in requests]
        self.cut += sum(len(context) + len(told) > self.max_length + 1 for context, told in asked)
        found = score(
            self.model,
            asked,
            batch_tokens=self.batch_tokens,
            world=self.world,
            terminal=self.terminal,
        )
        return [(one.log_likelihood, one.greedy) for one in found]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Return the log-likelihood of each whole text, in windows of the model's length."""
        texts = [self._windows(request.args[0]) for request in requests]
        found = iter(self._loglikelihood_tokens([window for text in texts for window in text]))
        return [sum(next(found)[0] for _ in text) for text in texts]

    def _windows(self, text: str) -> list[tuple[Any, list[int], list[int]]]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [(None, *make_disjoint_window(window)) for window in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return an answer to each text, written as its task wants it."""
        asked = [request.args for request in requests]
        hows = [wanted(how, limit=ANSWER_TOKENS, seed=self.seed) for _, how in asked]
        answers: dict[int, str] = {}
        for how in dict.fromkeys(hows):
            numbers = [number for number, other in enumerate(hows) if other == how]
            prompts = [self.tok_encode(asked[n][0]) or [self.prefix_token_id] for n in numbers]
            self.cut += sum(len(prompt) + how.limit > self.max_length for prompt in prompts)
            texts = answer(
                self.model,
                self.tokenizer,
                prompts,
                how,
                batch_tokens=self.batch_tokens,
                world=self.world,
                terminal=self.terminal,
            )
            answers.update(zip(numbers, texts, strict=True))
        return [answers[number] for number in range(len(requests))]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the jinja source in use, None where tasks are not put as chats."""
        return self._form().template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as text, up to where the answer begins or goes on.

        A template that wants no system message gets none, as with the harness's own backend.

        Raises:
            MissingError: E-CHAT-TEMPLATE: the checkpoint has none.
        """
        turns = [Message(turn["role"], turn["content"]) for turn in chat_history]  # type: ignore[arg-type]
        try:
            text = self._form().text(turns, prompt=add_generation_prompt)
        except DataError:
            turns = [turn for turn in turns if turn.role != "system"]
            text = self._form().text(turns, prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        begun = (turns[-1].content or "").strip()
        return text[: text.rindex(begun) + len(begun)]

    def _form(self) -> ChatFormat:
        if self.form is None:
            what = "the checkpoint has no chat template to put tasks into"
            raise MissingError("E-CHAT-TEMPLATE", what, do="leave --apply-chat-template out")
        return self.form
