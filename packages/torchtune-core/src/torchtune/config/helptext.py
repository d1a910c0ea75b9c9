"""The text of a recipe's ``--help``: every key with its doc, type and default."""

import inspect
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchtune.config.convert import describe
from torchtune.config.docs import KeyDoc, docs_of, examples_of
from torchtune.config.registry import allowed_names
from torchtune.config.schema import Key, keys_of, strip
from torchtune.config.signature import COMPONENT

__all__ = ["help_text"]

WIDTH = 100
OPTIONS = (
    ("--config FILE", "a YAML with any of these keys; the command line goes before it"),
    ("--trust PACKAGE", "let the config name this package's own classes and functions"),
    ("--override K=V ...", "the same as K=V"),
    ("--help", "show this"),
)


def help_text(params: type, program: str = "") -> str:
    """Return what ``--help`` prints for a Params dataclass; imports no component."""
    program = program or Path(sys.argv[0]).name
    docs, section = docs_of(params), ""
    lines = [f"usage: {program} [--config FILE] [key=value ...] [~key ...] [--key value ...]", ""]
    about = inspect.cleandoc(params.__doc__ or "").split("\n\n")[0]
    lines += (
        [*textwrap.wrap(about, WIDTH), ""] if not about.startswith(f"{params.__name__}(") else []
    )
    lines += [_line(option, text) for option, text in OPTIONS]
    for key in keys_of(params).values():
        doc = docs.get(key.name, KeyDoc())
        if doc.section != section or key is next(iter(keys_of(params).values())):
            section = doc.section
            lines += ["", f"{section or 'keys'}:"]
        lines += _entry(key, doc)
    examples = [f"  {example}" for example in examples_of(params)]
    lines += ["", "examples:", *examples] if examples else []
    return "\n".join(lines) + "\n"


def _entry(key: Key, doc: KeyDoc) -> list[str]:
    """Return the lines of a key; for a section, also those of its own keys."""
    if key.section is None:
        return [_line(_word(key), _text(key, doc))]
    lines, docs = [_line(key.name, f"{doc.text or 'a section'}:")], docs_of(key.section)
    for inner in keys_of(key.section).values():
        default = getattr(key.default, inner.name, inner.default)
        named = replace(inner, name=f"{key.name}.{inner.name}", default=default)
        lines += _entry(named, docs.get(inner.name, KeyDoc()))
    return lines


def _word(key: Key) -> str:
    flag = "--" + key.name.replace("_", "-") if key.scalar else key.name
    return flag if strip(key.type) is bool else f"{flag} {'...' if not key.scalar else 'VALUE'}"


def _text(key: Key, doc: KeyDoc) -> str:
    names = allowed_names(key.slot) if key.slot else []
    few = [*names[:6], "..."] if len(names) > 6 else names
    kind = ", ".join(few) or "a component" if key.slot else describe(key.type)
    default = "must be given" if key.required else f"default {_shown(key.default)}"
    return f"{doc.text}{' ' if doc.text else ''}[{kind}; {default}]"


def _shown(default: Any) -> str:
    if isinstance(default, dict) and COMPONENT in default:
        arguments = ", ".join(f"{k}={v}" for k, v in default.items() if k != COMPONENT)
        return f"{default[COMPONENT]}({arguments})" if arguments else default[COMPONENT]
    shown = {None: "null", True: "true", False: "false"}
    if default is None or isinstance(default, bool):
        return shown[default]
    return str(default)


def _line(word: str, text: str) -> str:
    wrapped = textwrap.wrap(text, WIDTH - 34)
    first = f"  {word:<31} {wrapped[0]}" if len(word) <= 31 else f"  {word}"
    rest = wrapped[1:] if len(word) <= 31 else wrapped
    return "\n".join([first, *(" " * 34 + line for line in rest)])
