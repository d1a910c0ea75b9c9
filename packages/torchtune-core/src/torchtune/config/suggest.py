"""What can stand next on a recipe's command line, for a shell to offer."""

from collections.abc import Sequence
from inspect import Parameter
from typing import Any, Literal, get_args, get_origin

from torchtune.config.arguments import OWN
from torchtune.config.merge import USUAL
from torchtune.config.registry import allowed_names
from torchtune.config.schema import Key, key_at, keys_of, strip
from torchtune.config.signature import COMPONENT, written_signature

__all__ = ["suggest"]


def suggest(params: type, words: Sequence[str]) -> list[str]:
    """Return what the last of `words` can become: keys, flags, values; imports no component.

    Nothing is returned where any text may stand, such as a path or a number.

    Args:
        params: The recipe's Params.
        words: Its command line up to the cursor; the last word, maybe empty, is begun.

    Example:
        >>> suggest(SFTParams, ["optimizer=sgd", "optimizer.mom"])
        ['optimizer.momentum=']
    """
    *before, begun = words or [""]
    keys, flag = keys_of(params), before[-1] if before else ""
    awaited = key_at(keys, _name(flag)) if flag.startswith("--") and "=" not in flag else None
    if awaited is not None and not _is_switch(awaited):
        found = _values(awaited.type, awaited.slot)
    elif "=" in begun:
        word = begun.partition("=")[0]
        found = [f"{word}={value}" for value in _values_at(_name(word), keys, before)]
    elif begun.startswith("-"):
        found = ["--" + name.replace("_", "-") for name in [*_flags(keys), *OWN]]
    elif begun.startswith("~"):
        found = [f"~{name}" for name in keys]
    elif "." in begun:
        key, path = key_at(keys, begun.rpartition(".")[0]), begun.rpartition(".")[0]
        inner = list(keys_of(key.section)) if key and key.section else _arguments(key, before)
        found = [f"{path}.{word}=" for word in inner]
    else:
        found = [f"{name}=" for name in keys]
    return [word for word in found if word.startswith(begun)]


def _flags(keys: dict[str, Key]) -> list[str]:
    """Return the keys that take one word, those of sections with their path."""
    inner = {key.name: _flags(keys_of(key.section)) for key in keys.values() if key.section}
    dotted = [f"{name}.{word}" for name, words in inner.items() for word in words]
    return [key.name for key in keys.values() if key.scalar] + dotted


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _is_switch(key: Key) -> bool:
    return strip(key.type) is bool


def _values_at(path: str, keys: dict[str, Key], before: Sequence[str]) -> list[str]:
    """Return the values of a key or of a component's argument."""
    key = key_at(keys, path)
    if key is not None:
        return _values(key.type, key.slot)
    first, _, word = path.partition(".")
    parameter = _arguments(keys.get(first), before).get(word)
    return _values(parameter.annotation, "") if parameter else []


def _values(kind: Any, slot: str) -> list[str]:
    """Return the words that an annotation lists: choices, true and false, null, components."""
    if slot:
        null = ["null"] if type(None) in get_args(strip(kind)) else []
        return [*allowed_names(slot), *null]
    kind = strip(kind)
    if kind is bool:
        return ["true", "false"]
    if kind is type(None):
        return ["null"]
    if get_origin(kind) is Literal:
        return [str(item) for item in get_args(kind)]
    members = get_args(kind) if type(None) in get_args(kind) else ()
    return [word for member in members for word in _values(member, "")]


def _arguments(key: Key | None, before: Sequence[str]) -> dict[str, Parameter]:
    """Return the arguments of the component that `before` gives to a key, else of its default."""
    if key is None or not key.slot:
        return {}
    default = key.default.get(COMPONENT) if isinstance(key.default, dict) else key.default
    given = [word.partition("=")[2] for word in before if _name(word).startswith(f"{key.name}=")]
    name = str([default or USUAL.get(key.slot), *given][-1])
    signature = written_signature(key.slot, name)
    return signature.parameters if signature else {}
