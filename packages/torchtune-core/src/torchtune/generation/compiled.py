"""The forward of one token as one compiled graph."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from torchtune.generation.cache import FixedCache, KVCache
from torchtune.training.activations import check_compiler

__all__ = ["compile_decoding"]

Model = TypeVar("Model", bound=nn.Module)
Step = Callable[[Tensor], Tensor]
SMALLEST = 256
"""Tokens of room at least: each size that is met is compiled anew, so they are powers of two."""


def compile_decoding(model: Model) -> Model:
    """Let `generate` and `stream` make their tokens by torch.compile; prompts go in as before.

    The first token takes as long as compiling does, and so does the first at another number of rows
    or where the text has outgrown the room, which is a power of two. The model must have its plain
    layers (`load_checkpoint` with ``pack=False``).

    Args:
        model: Changed in place and returned.

    Raises:
        MissingError: E-COMPILER: torch needs a C++ compiler on a CPU, and there is none.
    """
    check_compiler(next(model.parameters()).device)

    def step(tokens: Tensor, cache: FixedCache) -> Tensor:
        logits: Tensor = model(tokens, cache=cache)
        return logits[:, -1]

    model.compiled_step = torch.compile(step, dynamic=False)  # type: ignore[assignment]
    return model


def compiled_step(model: nn.Module) -> Callable[[Tensor, FixedCache], Tensor] | None:
    """Return what `compile_decoding` made of `model`, None where it was not asked."""
    found: Callable[[Tensor, FixedCache], Tensor] | None = vars(model).get("compiled_step")
    return found


def room_for(model: nn.Module, tokens: int) -> int:
    """Return the capacity of a cache for so many tokens a row."""
    if compiled_step(model) is None:
        return tokens
    return max(SMALLEST, 1 << (tokens - 1).bit_length())


def decoding(model: nn.Module, cache: KVCache) -> Step:
    """Return the function from ids `[batch, 1]` to logits `[batch, vocab]` that follows a prompt.

    Args:
        model: A `Decoder`.
        cache: What the prompt has left.
    """
    compiled = compiled_step(model)
    if compiled is None:
        return lambda tokens: model(tokens, cache=cache)[:, -1]
    fixed = cache.fixed()

    def step(tokens: Tensor) -> Tensor:
        logits = compiled(tokens, fixed)
        fixed.advance()
        return logits

    return step
