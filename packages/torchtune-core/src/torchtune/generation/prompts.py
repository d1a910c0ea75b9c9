"""Prompts from a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torchtune.data import Message, open_sources, to_messages
from torchtune.errors import DataError, MissingError

__all__ = ["Prompt", "placed_prompts", "read_prompts"]

Prompt: TypeAlias = str | tuple[Message, ...]
"""The user's text, or the turns of a conversation that the model is to go on with."""


def read_prompts(path: str | Path) -> list[Prompt]:
    """Return the prompts of a file, in order, as `placed_prompts` does with their places.

    Args:
        path: The file.

    Raises:
        MissingError: E-FILE: there is no such file.
        ConfigError: E-DATA-KIND: its ending is not known.
        DataError: The file holds no prompt, or a row none; file and line are named.
    """
    return [prompt for _, prompt in placed_prompts(path)]


def placed_prompts(path: str | Path) -> list[tuple[str, Prompt]]:
    """Return where each prompt of a file stands, ``questions.jsonl:3``, and the prompt, in order.

    Text (``.txt``) has one a line; blank lines are skipped. Rows of any other form that data sets
    have (``.jsonl``, ``.json``, ``.csv`` ...) have it in the column ``prompt``, or are rows to train
    on, such as ``messages``: the answer at their end, which the model is to give, is left out.

    Args:
        path: The file.

    Raises:
        MissingError: E-FILE: there is no such file.
        ConfigError: E-DATA-KIND: its ending is not known.
        DataError: The file holds no prompt, or a row none; file and line are named.
    """
    if not Path(path).expanduser().is_file():
        raise MissingError("E-FILE", f"there is no file {str(path)!r}", where="prompts")
    (source,) = open_sources(path)
    found: list[tuple[str, Prompt]] = []
    for index in range(len(source)):
        place = source.where(index)
        try:
            found.append((place, _prompt(source.row(index))))
        except DataError as error:
            raise DataError(
                error.code, error.what, where=error.where or place, do=error.do
            ) from None
    if not found:
        raise DataError("E-PROMPT", "the file holds no prompt", where=str(path))
    return found


def _prompt(row: Mapping[str, Any]) -> Prompt:
    plain = row.get("prompt", row.get("text") if len(row) == 1 else None)
    if isinstance(plain, str) and not {"system", "system_prompt"} & row.keys():
        return plain
    try:  # rows to train on have an answer, prompts need none
        turns = to_messages({"output": "", **row})
    except DataError:
        turns = to_messages(row)  # whose error names the row's own columns
    if turns and turns[-1].role == "assistant":
        turns.pop()
    if not turns:
        raise DataError("E-PROMPT", "the row holds nothing to answer")
    return tuple(turns)
