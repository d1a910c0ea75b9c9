"""Answers to the same prompts again and again, to see what a run learns."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torchtune.checkpoint import on_main
from torchtune.data import ChatFormat, Message
from torchtune.distributed import World
from torchtune.generation.generate import generate
from torchtune.generation.loading import raw_ids
from torchtune.modules import Decoder

__all__ = ["write_samples"]


def write_samples(
    path: str | Path,
    prompts: Sequence[str],
    *,
    model: Decoder,
    form: ChatFormat,
    step: int,
    world: World,
    say: Callable[[str, object], None],
    max_new_tokens: int = 64,
) -> list[str]:
    """Answer prompts greedily and add one JSON line each to a file: ``step``, ``prompt``, ``answer``.

    All ranks call this, as the model may be sharded over them; the main one writes.

    Args:
        path: The file.
        prompts: The user's texts, put into the chat template that the run saves with its
            checkpoints; continued as they stand where it saves none.
        model: The model in training; it is left in the mode that it was in.
        form: The tokenizer and its template.
        step: Optimizer steps done.
        world: The processes that take part.
        say: Told ``sample`` and the text of each prompt with its answer.
        max_new_tokens: At most so many tokens an answer; 64 show the manner without costing time.

    Returns:
        The answers, in order.

    Raises:
        ConfigError: E-PROMPT for a prompt that is empty or longer than the model's positions.
        TuneError: The file cannot be written.
    """
    if not prompts:
        return []
    tokens = generate(
        model,
        [_ids(form, prompt) for prompt in prompts],
        max_new_tokens=max_new_tokens,
        stop_tokens=form.stop_ids,
    )
    answers = [form.tokenizer.decode(answer) for answer in tokens]
    lines = [
        json.dumps({"step": step, "prompt": prompt, "answer": answer}) + "\n"
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    on_main(world, lambda: _append(Path(path), "".join(lines)), Path(path))
    for prompt, answer in zip(prompts, answers, strict=True):
        say("sample", f"{prompt} -> {answer}")
    return answers


def _ids(form: ChatFormat, prompt: str) -> list[int]:
    tokenizer = form.tokenizer
    if tokenizer.chat_template is not None:
        return form.prompt([Message.task(prompt)])
    return raw_ids(tokenizer, prompt)


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
