"""From logits to the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchtune.errors import ConfigError, Faults, TuneError

__all__ = ["Sampling", "sample"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; as it stands, the likeliest each time.

    The steps are taken in the order of the fields below `temperature`'s, the penalty before all: each
    works on what the one before it left, as in transformers, to the same probabilities.

    Args:
        temperature: Divides the logits; 0 takes the likeliest token and draws nothing.
        top_k: Keep this many likeliest tokens (ties with the last are kept too).
        top_p: Of these keep the fewest whose probabilities sum to at least this (nucleus sampling:
            Holtzman et al., 2020).
        min_p: Of these keep those at least this share as likely as the likeliest (Nguyen et al., 2024).
        repetition_penalty: Divides the logits above 0, and multiplies those below, of each token that
            stands in the prompt or the answer (Keskar et al., 2019); also at temperature 0.
        seed: Of the draws; None draws otherwise each time.

    Raises:
        ConfigError: E-SAMPLING for a number out of range; all of them together.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        top_k, top_p, min_p = self.top_k, self.top_p, self.min_p
        rules = [
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", top_k is None or top_k >= 1, "at least 1"),
            ("top_p", top_p is None or 0 < top_p <= 1, "above 0 and at most 1"),
            ("min_p", min_p is None or 0 <= min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ]
        faults: list[TuneError] = [
            ConfigError(
                "E-SAMPLING", f"{key} is {getattr(self, key)}, but must be {rule}", where=key
            )
            for key, right, rule in rules
            if not right
        ]
        if faults:
            raise faults[0] if len(faults) == 1 else Faults(faults)


def sample(
    logits: Tensor,
    sampling: Sampling,
    *,
    seen: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose one token id for each row.

    Args:
        logits: `[batch, vocab]`.
        sampling: How; its seed is not looked at, `generator` has it.
        seen: bool `[batch, vocab]`, the tokens that the repetition penalty is for; none without it.
        generator: Source of the draw, on the logits' device; torch's own without one.

    Returns:
        Ids `[batch]`.
    """
    if seen is not None:
        logits = _penalised(logits.float(), seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        scores = _nucleus(scores, sampling.top_p)
    if sampling.min_p is not None:
        shares = scores.softmax(-1)
        least = sampling.min_p * shares.amax(-1, keepdim=True)
        scores = scores.masked_fill(shares < least, -torch.inf)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(-1)


def _penalised(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    ascending, order = scores.sort(-1)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped[:, -1] = False
    return scores.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
