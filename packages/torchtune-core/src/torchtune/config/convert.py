"""Turn a node into the type that an annotation asks for, or say what is wrong with it."""

import collections.abc
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from torchtune.config.names import nearest
from torchtune.config.reader import UNREAD, Node
from torchtune.config.schema import is_component, is_missing, keys_of, section_of, strip
from torchtune.errors import ConfigError, Faults, TuneError

__all__ = ["Converted", "convert", "describe"]

NUMBERS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
SEQUENCES = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)
MAPPINGS = (dict, collections.abc.Mapping)


class Converted:
    """Collects the faults of one conversion; `key` and `node` place each."""

    def __init__(self) -> None:
        self.faults: list[TuneError] = []

    def fault(self, key: str, node: Node, kind: Any) -> None:
        """Note that `node` is not of the type `kind`."""
        what = f"'{key}' must be {describe(kind)}, found {_shown(node)}"
        self.faults.append(
            ConfigError("E-CONFIG-TYPE", what, where=place(key, node.where), do=_advice(node, kind))
        )


def place(key: str, where: str) -> str:
    """Return ``key, file:line``, or the key alone where its place is not known."""
    return f"{key}, {where}" if where else key


def convert(node: Node, kind: Any, key: str, into: Converted) -> Any:
    """Return the plain value of `node` as the type `kind`; faults go to `into`.

    An int is taken for a float, a whole float for an int, and for text what was written.
    Types that YAML cannot express (a class of some library) take any plain value.
    """
    kind = Any if is_component(kind) else strip(kind)
    if node.value is UNREAD:
        return None
    if kind is Any or kind is object or isinstance(kind, str):
        return node.plain()
    origin, section = get_origin(kind), section_of(kind)
    if section is not None and (kind is section or isinstance(node.value, dict)):
        return _section(node, section, key, into)
    if origin in (Union, types.UnionType):
        return _union(node, kind, key, into)
    if origin in SEQUENCES or kind in SEQUENCES:
        return _sequence(node, kind, key, into)
    if origin in MAPPINGS or kind in MAPPINGS:
        return _mapping(node, kind, key, into)
    fits, value = _scalar(node, kind)
    if not fits:
        into.fault(key, node, kind)
    return value


def _scalar(node: Node, kind: Any) -> tuple[bool, Any]:
    value = node.value
    if get_origin(kind) is Literal:
        found = [item for item in get_args(kind) if _same(item, value) or item == node.text]
        return bool(found), found[0] if found else None
    if kind in (type(None), None):
        return value is None, None
    if kind is bool:
        return isinstance(value, bool), value
    if kind is int or kind is float:
        return _number(node, kind)
    if kind is str or kind is Path:
        text = value if isinstance(value, str) else node.text
        fits = value is not None and (bool(text) or isinstance(value, str))
        return fits, kind(text) if fits else None
    return _foreign(kind), node.plain()


def _number(node: Node, kind: Any) -> tuple[bool, Any]:
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False, None
    if kind is float:
        fits = abs(value) <= sys.float_info.max or ".inf" in node.text.lower()  # not 1e999
        return fits, float(value) if fits else None
    whole = isinstance(value, int) or value.is_integer()
    return whole, int(value) if whole else None


def _same(item: Any, value: Any) -> bool:
    return type(item) is type(value) and bool(item == value)


def _foreign(kind: Any) -> bool:
    """Whether a plain value may be meant for this class; a tensor is never written in YAML."""
    return getattr(kind, "__name__", "") not in ("Tensor", "Parameter", "Module")


def _union(node: Node, kind: Any, key: str, into: Converted) -> Any:
    members = [strip(member) for member in get_args(kind)]
    if any(is_component(member) for member in get_args(kind)):
        return node.plain()
    for member in sorted(members, key=lambda member: not _exact(node.value, member)):
        trial = Converted()
        value = convert(node, member, key, trial)
        if not trial.faults:
            return value
    into.fault(key, node, kind)
    return None


def _exact(value: Any, kind: Any) -> bool:
    """Whether a value is of this kind as it was read, so that the kind goes before its likes."""
    kind = get_origin(kind) or kind
    kinds = SEQUENCES if isinstance(value, list) else MAPPINGS if isinstance(value, dict) else ()
    return kind is type(value) or kind in kinds


def _sequence(node: Node, kind: Any, key: str, into: Converted) -> Any:
    if not isinstance(node.value, list):
        into.fault(key, node, kind)
        return None
    origin, items = get_origin(kind) or kind, get_args(kind)
    if origin is tuple and items and items[-1] is not Ellipsis:
        if len(items) != len(node.value):
            into.fault(key, node, kind)
            return None
    else:
        items = (items[0] if items else Any,) * len(node.value)
    values = [
        convert(item, wanted, f"{key}[{index}]", into)
        for index, (item, wanted) in enumerate(zip(node.value, items, strict=True))
    ]
    return origin(values) if origin in (tuple, set, frozenset) else values


def _mapping(node: Node, kind: Any, key: str, into: Converted) -> Any:
    if not isinstance(node.value, dict):
        into.fault(key, node, kind)
        return None
    wanted = (get_args(kind) or (str, Any))[1]
    return {name: convert(item, wanted, f"{key}.{name}", into) for name, item in node.value.items()}


def _section(node: Node, section: type, key: str, into: Converted) -> Any:
    """Return an object of the dataclass `section`, its own defaults where a key is left out."""
    if not isinstance(node.value, dict):
        into.fault(key, node, section)
        return None
    known, values, count = keys_of(section), dict[str, Any](), len(into.faults)
    for name, item in node.value.items():
        inner = f"{key}.{name}"
        if name not in known:
            where, near = place(inner, node.lines.get(name) or item.where), nearest(name, known)
            what = f"there is no key {name!r} in '{key}'"
            into.faults.append(ConfigError("E-CONFIG-KEY", what, where=where, do=near))
        elif is_missing(item.value):
            what = f"'{inner}' must be given"
            into.faults.append(
                ConfigError("E-CONFIG-MISSING", what, where=place(inner, item.where))
            )
        elif item.value is not UNREAD:
            values[name] = convert(item, known[name].type, inner, into)
    return _made(node, section, values, key, into) if len(into.faults) == count else None


def _made(node: Node, section: type, values: dict[str, Any], key: str, into: Converted) -> Any:
    """Make the object; what its own checks find is placed in the config."""
    try:
        return section(**values)
    except TuneError as error:
        for fault in error.faults if isinstance(error, Faults) else [error]:
            at = node.value.get(fault.where.partition(".")[0], node)
            fault.where = place(f"{key}.{fault.where}" if fault.where else key, at.where)
            into.faults.append(fault)
    except (TypeError, ValueError) as error:
        what = f"'{key}' refuses these values: {error}"
        into.faults.append(ConfigError("E-CONFIG-VALUE", what, where=place(key, node.where)))
    return None


def describe(kind: Any) -> str:
    """Say in words what an annotation allows: ``an integer or null``."""
    if is_component(kind):
        return "the name of a component"
    kind, origin = strip(kind), get_origin(strip(kind))
    if kind is type(None) or kind is None:
        return "null"
    if kind in NUMBERS:
        return NUMBERS[kind]
    section = section_of(kind)
    if section is not None and section is kind:
        return f"a mapping of {', '.join(keys_of(section))}"
    if origin is Literal:
        return _either([str(item) for item in get_args(kind)])
    if origin in (Union, types.UnionType):
        return _either([describe(member) for member in get_args(kind)])
    if origin in SEQUENCES:
        inner = [arg for arg in get_args(kind) if arg is not Ellipsis]
        if any(map(is_component, inner)):
            return "a list of components"
        return "a list of " + _either(list(dict.fromkeys(describe(arg) for arg in inner)))
    if kind in SEQUENCES:
        return "a list"
    if kind in MAPPINGS or origin in MAPPINGS:
        return "a mapping"
    return "a path" if kind is Path else str(getattr(kind, "__name__", kind))


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[:-1] else words)


def _shown(node: Node) -> str:
    shown = "null" if node.value is None else repr(node.plain())
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _advice(node: Node, kind: Any) -> str:
    members = [kind, *get_args(strip(kind))]
    literals = [m for m in map(strip, members) if get_origin(m) is Literal]
    return nearest(node.text, [str(item) for kind in literals for item in get_args(kind)])
