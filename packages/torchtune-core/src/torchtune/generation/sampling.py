"""From logits to the next token."""

import torch
from torch import Tensor

__all__ = ["sample"]


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token id for each row: temperature, then top-k, then top-p, as in transformers.

    Args:
        logits: `[batch, vocab]`.
        temperature: Divides the logits; 0 takes the likeliest token and draws nothing.
        top_k: Keep this many likeliest tokens (ties with the last are kept too).
        top_p: Of these keep the fewest whose probabilities sum to at least this (nucleus sampling:
            Holtzman et al., 2020).
        generator: Source of the draw, on the logits' device; torch's own without one.

    Returns:
        Ids `[batch]`.
    """
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        scores = _nucleus(scores, top_p)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(-1)


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    ascending, order = scores.sort(-1)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped[:, -1] = False
    return scores.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
