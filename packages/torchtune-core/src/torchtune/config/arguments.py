"""The command line of a recipe: ``key=value``, ``~key``, flags, and the parser's own options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from torchtune.config.names import nearest
from torchtune.config.reader import COMMAND_LINE, Node, read_value
from torchtune.config.schema import Key, key_at, strip
from torchtune.errors import ConfigError, TuneError

__all__ = ["Arguments", "read_arguments"]

BOOLEANS = {"true", "false", "yes", "no", "on", "off", "null", "none"}
OWN = ("config", "override", "trust", "help")


@dataclass
class Arguments:
    """What a command line says.

    Args:
        config: The path after ``--config``.
        trust: The packages after ``--trust``.
        help: Whether help was asked for.
        changes: Dotted keys with their values in order; None deletes.
        faults: Words that are none of this.
    """

    config: str | None = None
    trust: list[str] = field(default_factory=list)
    help: bool = False
    changes: list[tuple[str, Node | None]] = field(default_factory=list)
    faults: list[TuneError] = field(default_factory=list)


def read_arguments(words: Sequence[str], keys: Mapping[str, Key]) -> Arguments:
    """Sort the words of a command line; what they set is checked later."""
    found, queue = Arguments(), list(words)
    while queue:
        word = queue.pop(0)
        if word in ("-h", "--help"):
            found.help = True
        elif word.startswith("--"):
            _flag(word[2:], queue, keys, found)
        elif word.startswith("~") and len(word) > 1:
            found.changes.append((word[1:], None))
        elif "=" in word and not word.startswith(("-", "=")):
            key, _, text = word.partition("=")
            found.changes.append((key, read_value(text)))
        else:
            found.faults.append(_stray(word, keys))
    return found


def _flag(flag: str, queue: list[str], keys: Mapping[str, Key], found: Arguments) -> None:
    name, has_value, text = flag.partition("=")
    name = name.replace("-", "_")
    if name == "override":
        queue[:0] = [text] if has_value else []
        return
    if name.split(".")[0] not in keys and name not in OWN:
        _no_key(name, flag, keys, found)
        return
    value = text if has_value else _next(queue, _is_bool(key_at(keys, name)))
    if value is None:
        found.faults.append(_fault(f"the flag '--{flag}' needs a value"))
    elif name == "config":
        if found.config not in (None, value):
            what = f"a second config: {value} after {found.config}; there can be one"
            found.faults.append(_fault(what))
        found.config = value
    elif name == "trust":
        found.trust.append(value)
    elif name in keys and keys[name].listed:
        _add_item(name, read_value(value), found)
    else:
        found.changes.append((name, read_value(value)))


def _no_key(name: str, flag: str, keys: Mapping[str, Key], found: Arguments) -> None:
    """Take ``--no-shuffle`` as ``shuffle=false``, and anything else as a fault."""
    if name.startswith("no_") and "=" not in flag and _is_bool(key_at(keys, name[3:])):
        found.changes.append((name[3:], read_value("false")))
    else:
        found.faults.append(_stray(f"--{flag}", keys))


def _fault(what: str) -> ConfigError:
    return ConfigError("E-ARGUMENT", what, where=COMMAND_LINE)


def _add_item(name: str, value: Node, found: Arguments) -> None:
    """Let a list's flag stand several times: each adds an item, or all of ``[one, two]``."""
    items = value.value if isinstance(value.value, list) else [value]
    lists = [node for key, node in found.changes if key == name and node is not None]
    if lists and isinstance(lists[-1].value, list):
        lists[-1].value.extend(items)
    else:
        found.changes.append((name, Node(items, COMMAND_LINE)))


def _next(queue: list[str], boolean: bool) -> str | None:
    """Take the flag's value from the queue; a bool flag alone means true."""
    if boolean:
        return queue.pop(0) if queue and queue[0].lower() in BOOLEANS else "true"
    return queue.pop(0) if queue and not queue[0].startswith("--") else None


def _is_bool(key: Key | None) -> bool:
    kind = None if key is None else strip(key.type)
    return kind is bool or {*get_args(kind)} == {bool, type(None)}


def _stray(word: str, keys: Mapping[str, Key]) -> ConfigError:
    name = word.lstrip("-").partition("=")[0]
    do = nearest(name, [*keys, *OWN]) or "settings are key=value, ~key or --key value"
    if word.endswith((".yaml", ".yml")):
        do = f"a config is given as --config {word}"
    what = f"{word!r} is not understood"
    return ConfigError("E-ARGUMENT", what, where=COMMAND_LINE, do=do)
