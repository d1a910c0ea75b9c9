"""Continue prompts token by token."""

from collections.abc import Collection, Generator, Sequence

import torch
from torch import Tensor

from torchtune.distributed import computing_device
from torchtune.errors import ConfigError, Faults, TuneError
from torchtune.generation.cache import KVCache
from torchtune.generation.compiled import decoding, room_for
from torchtune.generation.sampling import Sampling, sample
from torchtune.modules import Decoder

__all__ = ["check_prompts", "generate", "stream"]

GREEDY = Sampling()
Tokens = Generator[list[int | None], None, None]

SHOWN = 8
"""Faulty prompts that an error names; a file may hold thousands."""

PREFILL = 512
"""Prompt tokens of one forward: its logits are made for every token, and must not fill the memory."""


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
    stop_tokens: Collection[int] = (),
) -> list[list[int]]:
    """Continue each prompt; return the new tokens of each, without prompt and stop token.

    Args:
        model: The model; dropout is off while this runs.
        prompts: Token ids of each row, at least one a row; lengths may differ.
        max_new_tokens: At most so many a row; less where the model's positions end.
        sampling: How each token is chosen; the likeliest, unless told.
        stop_tokens: A row ends when it comes to one of these.

    Raises:
        ConfigError: E-PROMPT for a prompt that is empty, too long or not of this vocabulary;
            E-SAMPLING if there is no prompt, or no new token is wanted. All faults together.
    """
    steps = stream(
        model, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop_tokens=stop_tokens
    )
    rows: list[list[int]] = [[] for _ in prompts]
    for tokens in steps:
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                row.append(token)
    return rows


def stream(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
    stop_tokens: Collection[int] = (),
) -> Tokens:
    """Yield the next token of each row as it comes, None for rows that have ended.

    Arguments and errors are those of `generate`; the errors come before the first token is asked for.
    Close the iterator to stop early.
    """
    _check(model, prompts, max_new_tokens)
    room = model.max_positions - max(map(len, prompts))
    return _steps(model, prompts, min(max_new_tokens, room), sampling, frozenset(stop_tokens))


def _steps(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    limit: int,
    sampling: Sampling,
    stop_tokens: Collection[int],
) -> Tokens:
    tokens, mask = _left_padded(prompts, _device(model))
    room = room_for(model, tokens.shape[1] + limit)
    cache = KVCache.of(model, batch=len(prompts), capacity=room)
    choose = _Choice(model, prompts, sampling)
    ended = [False] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        logits = _prompt_logits(model, tokens, mask, cache)
        next_logits = torch.inference_mode()(decoding(model, cache))
        for step in range(limit):
            chosen = choose(logits)
            ids = chosen.tolist()
            ended = [end or token in stop_tokens for end, token in zip(ended, ids, strict=True)]
            if all(ended):
                return
            yield [None if end else token for end, token in zip(ended, ids, strict=True)]
            if step + 1 < limit:
                logits = next_logits(chosen[:, None])
    finally:
        model.train(was_training)


class _Choice:
    """Choose the next tokens, and remember those seen where the repetition penalty asks for it."""

    def __init__(
        self, model: Decoder, prompts: Sequence[Sequence[int]], sampling: Sampling
    ) -> None:
        device = _device(model)
        self._sampling, self._generator = sampling, torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._seen: Tensor | None = None
        if sampling.repetition_penalty != 1:
            shape = (len(prompts), model.model.embed_tokens.num_embeddings)
            self._seen = torch.zeros(shape, dtype=torch.bool, device=device)
            for row, prompt in zip(self._seen, prompts, strict=True):
                row[torch.tensor(prompt, device=device)] = True

    def __call__(self, logits: Tensor) -> Tensor:
        chosen = sample(logits, self._sampling, seen=self._seen, generator=self._generator)
        if self._seen is not None:
            self._seen.scatter_(1, chosen[:, None], True)
        return chosen


@torch.inference_mode()
def _prompt_logits(model: Decoder, tokens: Tensor, mask: Tensor | None, cache: KVCache) -> Tensor:
    """Return the logits `[batch, vocab]` of the last of the prompts' `tokens [batch, seq]`."""
    masks = [None] * tokens.shape[1] if mask is None else mask.split(PREFILL, 1)
    for part, part_mask in zip(tokens.split(PREFILL, 1), masks, strict=False):
        logits: Tensor = model(part, mask=part_mask, cache=cache)
    if logits[:, -1].isnan().any():  # else the likeliest token is the first, again and again
        what = "the model's logits are nan after the prompt"
        raise TuneError("E-NOT-FINITE", what, do="weights may be nan or infinite; or use fp32")
    return logits[:, -1]


def _left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return ids `[batch, seq]`, and which are real where lengths differ."""
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    padded = [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
    tokens = torch.tensor(padded, device=device)
    if not any(pads):
        return tokens, None
    return tokens, torch.arange(longest, device=device) >= torch.tensor(pads, device=device)[
        :, None
    ]


def _device(model: Decoder) -> torch.device:
    return computing_device(next(model.parameters()))


def check_prompts(
    model: Decoder, prompts: Sequence[Sequence[int]], places: Sequence[str] | None = None
) -> None:
    """Refuse prompts that `generate` refuses, all at once and before the first is answered.

    Args:
        model: The model.
        prompts: Token ids of each.
        places: What the user calls each, such as ``questions.jsonl:3``; None counts them from 0.

    Raises:
        ConfigError: E-PROMPT for a prompt that is empty, too long or not of this vocabulary; of
            several the first eight.
    """
    _refuse(_faults(model, prompts, places))


def _check(model: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    wrong = [
        ConfigError("E-SAMPLING", f"{key} is {value}, but must be at least 1", where=key)
        for key, value in (("prompts", len(prompts)), ("max_new_tokens", max_new_tokens))
        if value < 1
    ]
    _refuse([*_faults(model, prompts, None), *wrong])


def _faults(
    model: Decoder, prompts: Sequence[Sequence[int]], places: Sequence[str] | None
) -> list[TuneError]:
    places = places or [f"prompt {number}" for number in range(len(prompts))]
    named = zip(places, prompts, strict=True)
    faults = [fault for place, prompt in named for fault in _prompt_faults(model, place, prompt)]
    return faults[:SHOWN]


def _refuse(faults: Sequence[TuneError]) -> None:
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)


def _prompt_faults(model: Decoder, where: str, prompt: Sequence[int]) -> list[TuneError]:
    vocabulary = model.model.embed_tokens.num_embeddings
    if not prompt:
        return [ConfigError("E-PROMPT", "it has no tokens", where=where)]
    if len(prompt) >= model.max_positions:
        what = f"it has {len(prompt)} tokens; the model's {model.max_positions} positions are full"
        return [ConfigError("E-PROMPT", what, where=where, do="shorten it")]
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        wrong = next(token for token in prompt if not 0 <= token < vocabulary)
        what = f"token {wrong} is not among the model's {vocabulary}"
        return [ConfigError("E-PROMPT", what, where=where, do="is the tokenizer this model's?")]
    return []
