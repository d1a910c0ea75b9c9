"""What a tokenizer or a data set is, in a few facts."""

from pathlib import Path
from typing import Any

from torchtune.data.chat_template import builtin_templates, find_template
from torchtune.data.forms import choose_form
from torchtune.data.sources import open_sources
from torchtune.data.tokenizer_loading import auto_tokenizer
from torchtune.errors import DataError

__all__ = ["describe_rows", "describe_tokenizer"]

TEMPLATE_LINES = 3


def describe_tokenizer(folder: Path) -> dict[str, Any]:
    """Return a checkpoint folder's tokenizer: file, size of the vocabulary, special tokens, template.

    Raises:
        TuneError: There is none, or a file of it is damaged.
    """
    tokenizer = auto_tokenizer(folder)
    texts = {number: text for text, number in tokenizer.special_tokens.items()}
    named = {name.removesuffix("_token"): text for name, text in tokenizer.names.items()}
    for name, number in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id)):
        if number is not None and number in texts:
            named[name] = texts[number]
    known = tokenizer.special_tokens
    files = ("tokenizer.json", "tokenizer.model")
    return {
        "file": next(name for name in files if (folder / name).is_file()),
        "vocabulary": tokenizer.vocab_size,
        "adds_bos": tokenizer.adds_bos,
        "special_tokens": {name: {"text": t, "id": known.get(t)} for name, t in named.items()},
        "stop": [{"text": texts.get(number), "id": number} for number in tokenizer.stop_ids],
        "special_count": len(known),
        "chat_template": _template(tokenizer.chat_template),
    }


def _template(source: str | None) -> dict[str, Any] | None:
    """Return the name of the built-in template that `source` is, or how it begins."""
    if source is None:
        return None
    plain = source.replace("\r\n", "\n").strip()
    same = (name for name in builtin_templates() if find_template(name).strip() == plain)
    lines = [line for line in plain.splitlines() if line.strip()]
    return {"builtin": next(same, None), "lines": len(lines), "begins": lines[:TEMPLATE_LINES]}


def describe_rows(source: Path) -> dict[str, Any]:
    """Return the rows of a file or folder: how many, their columns and form, and the first one.

    Raises:
        TuneError: A file is damaged, or there is no row.
    """
    sources = open_sources(source)
    if not (filled := [part for part in sources if len(part)]):
        raise DataError("E-DATA-EMPTY", "the data set has no rows", where=str(source))
    first = filled[0].row(0)
    report: dict[str, Any] = {
        "rows": sum(map(len, sources)),
        "files": {Path(part.name).name: len(part) for part in sources},
        "columns": {name: type(value).__name__ for name, value in first.items()},
    }
    try:
        form, parts = choose_form(first)
        report |= {"form": form.name, "parts": parts}
    except DataError as error:
        report |= {"form": None, "problems": [f"{error.what}; {error.do}"]}
    return report | {"first_row": first}
