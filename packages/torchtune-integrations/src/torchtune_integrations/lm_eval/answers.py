"""Texts that a model writes until it comes to one of some words."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from typing import Any, TextIO

from torchtune.data import Tokenizer
from torchtune.distributed import World, in_turns
from torchtune.errors import ConfigError
from torchtune.generation import Sampling, stream
from torchtune.modules import Decoder

from torchtune_integrations.lm_eval.scoring import progress_bar

__all__ = ["Wanted", "answer", "wanted"]

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names under which tasks give the most tokens of an answer; the first one given counts."""


@dataclass(frozen=True)
class Wanted:
    """How a task wants its answers.

    Args:
        until: Texts before which an answer ends.
        limit: Tokens of an answer at most.
        sampling: How tokens are chosen.
    """

    until: tuple[str, ...]
    limit: int
    sampling: Sampling


def wanted(asked: Mapping[str, Any], *, limit: int, seed: int) -> Wanted:
    """Read a task's ``generation_kwargs``, in which tasks name things as transformers does.

    Args:
        asked: The task's.
        limit: Tokens of an answer where the task does not say.
        seed: Of the draws, where it wants some.

    Raises:
        ConfigError: E-EVAL-GENERATION: the task asks for what we do not have.
    """
    until = asked.get("until") or ()
    given = [int(asked[name]) for name in LIMITS if asked.get(name) is not None]
    temperature = float(asked.get("temperature") or 0.0)
    draws = asked.get("do_sample", temperature > 0)
    known = {field.name for field in fields(Sampling)} - {"temperature", "seed"}
    others = set(asked) - known - {*LIMITS, "until", "temperature", "do_sample"}
    if others:
        what = (
            f"a task asks for {', '.join(sorted(others))} when generating, which is not to be had"
        )
        raise ConfigError("E-EVAL-GENERATION", what, do="evaluate it with another backend")
    chosen = {name: asked[name] for name in known if asked.get(name) is not None}
    if not draws:
        chosen = {name: value for name, value in chosen.items() if name == "repetition_penalty"}
    elif temperature == 0 and "temperature" not in asked:
        temperature = 1.0
    return Wanted(
        (until,) if isinstance(until, str) else tuple(until),
        given[0] if given else limit,
        Sampling(temperature=temperature if draws else 0.0, seed=seed, **chosen),
    )


def answer(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    how: Wanted,
    *,
    batch_tokens: int,
    world: World,
    terminal: TextIO | None = None,
) -> list[str]:
    """Return the model's answers, cut before the first of the texts that end them.

    Prompts of like length are answered together. A prompt that leaves no room for an answer loses its
    beginning.

    Args:
        model: In evaluation mode.
        tokenizer: The model's.
        prompts: Token ids, at least one each.
        how: What ends an answer, and how it is written.
        batch_tokens: Tokens of a batch at most, prompts and answers, where no prompt alone has more.
        world: The processes. Those that have the whole model take turns; those that have it together
            write each answer together. All must call this, and each gets all answers.
        terminal: Where a bar is shown, if it is one.

    Raises:
        ConfigError: E-EVAL-LENGTH: the answers alone fill the model's positions.
    """
    room = model.max_positions - how.limit
    if room < 1:
        what = f"a task wants answers of {how.limit} tokens; the model has {model.max_positions}"
        raise ConfigError("E-EVAL-LENGTH", f"{what} positions", do="take another task")
    cut = [list(prompt)[-room:] for prompt in prompts]
    texts = [""] * len(cut)
    with progress_bar(len(cut), "answered", terminal) as bar:
        batches = _batches(cut, how.limit, batch_tokens)
        prompted = [[cut[number] for number in batch] for batch in batches]
        made = in_turns(prompted, lambda some: _write(model, tokenizer, some, how), world)
        for batch, written in zip(batches, made, strict=True):
            for number, tokens in zip(batch, written, strict=True):
                texts[number] = _until(tokenizer, tokens, how.until)
            bar.update(len(batch))
    return texts


def _batches(prompts: Sequence[Sequence[int]], limit: int, budget: int) -> list[list[int]]:
    """Put prompts of like length together, by number, the longest first."""
    batches: list[list[int]] = []
    places = 0
    for number in sorted(range(len(prompts)), key=lambda number: -len(prompts[number])):
        if not places:
            batches.append([])
            places = max(1, budget // (len(prompts[number]) + limit))
        batches[-1].append(number)
        places -= 1
    return batches


def _write(
    model: Decoder, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], how: Wanted
) -> list[list[int]]:
    """Return each prompt's new tokens, at least until they hold a text that ends the answer."""
    rows: list[list[int]] = [[] for _ in prompts]
    over = [False] * len(rows)
    longest = max((len(text.encode()) for text in how.until), default=0)
    steps = stream(
        model, prompts, max_new_tokens=how.limit, sampling=how.sampling,
        stop_tokens=tokenizer.stop_ids,
    )  # fmt: skip
    with closing(steps):
        for tokens in steps:
            for number, token in enumerate(tokens):
                if token is None:
                    over[number] = True
                elif not over[number]:
                    rows[number].append(token)
                    end = tokenizer.decode(rows[number][-longest - 1 :]) if longest else ""
                    over[number] = any(text in end for text in how.until)
            if all(over):
                break
    return rows


def _until(tokenizer: Tokenizer, tokens: Sequence[int], until: Sequence[str]) -> str:
    text = tokenizer.decode(tokens)
    ends = [text.index(end) for end in until if end and end in text]
    return text[: min(ends, default=len(text))]
