"""From YAML and command line to a Params object, or to every fault that they have."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from torchtune.config.arguments import Arguments
from torchtune.config.convert import Converted, convert, describe, place
from torchtune.config.dataset import name_source
from torchtune.config.interpolation import interpolate
from torchtune.config.merge import Draft, bare
from torchtune.config.reader import UNREAD, Node, read_file
from torchtune.config.schema import Key, is_missing, keys_of
from torchtune.config.signature import COMPONENT, check_component
from torchtune.errors import ConfigError, Faults, TuneError

__all__ = ["load", "placed", "raised"]

P = TypeVar("P")


def load(
    params: type[P], arguments: Arguments, config: str | Path | None = None
) -> tuple[P | None, list[TuneError], dict[str, Node]]:
    """Return a Params object and no faults, or None and all faults; and the keys' nodes.

    Args:
        params: The dataclass.
        arguments: The command line; its changes are laid over the file.
        config: The YAML file; by default the one that the command line names.
    """
    keys = keys_of(params)
    draft, faults = Draft(keys), list(arguments.faults)
    path = config if config is not None else arguments.config
    if path is not None:
        layer, found = read_file(path)
        faults += found
        if layer.value is UNREAD:  # nothing can be said of keys that may stand in it
            return None, faults, draft.values
        draft.add(layer)
    for name, value in arguments.changes:
        draft.change(name, value)
    faults += draft.faults + interpolate(draft.values)
    values, wrong, faulty = _typed(draft.values, keys)
    made, faults = _made(params, draft.values, values, faults + wrong, faulty)
    return made, sorted(faults, key=_order), draft.values


def _typed(
    nodes: dict[str, Node], keys: dict[str, Key]
) -> tuple[dict[str, Any], list[TuneError], set[str]]:
    """Return the plain value of each key that is right, the faults of the others, and their names."""
    values, faults, faulty = dict[str, Any](), list[TuneError](), set[str]()
    for name, key in keys.items():
        node, into = nodes[name], Converted()
        value = None
        if is_missing(node.value):
            into.faults.append(_missing(key, node))
        elif node.value is not UNREAD:
            value = _value(node, key, keys, into)
        faults += into.faults
        faulty |= {name} if into.faults else set()
        if not into.faults and node.value is not UNREAD:
            values[name] = value
        elif key.slot and not key.required:  # so that the checks of other keys can still be made
            values[name] = bare(Node.of(key.default)).plain()
    return values, faults, faulty


def _missing(key: Key, node: Node) -> ConfigError:
    do = f"give {key.name}=... or --{key.name.replace('_', '-')} ..., or set it in the YAML"
    what = f"'{key.name}' must be given"
    return ConfigError("E-CONFIG-MISSING", what, where=place(key.name, node.where), do=do)


def _value(node: Node, key: Key, keys: dict[str, Key], into: Converted) -> Any:
    if not key.slot:
        return convert(node, key.type, key.name, into)
    if isinstance(node.value, list) and key.many:
        named = enumerate(node.value)
        return [_component(item, key, f"{key.name}[{i}]", keys, into) for i, item in named]
    if node.value is None and key.optional:
        return None
    return _component(node, key, key.name, keys, into)


def _component(node: Node, key: Key, name: str, keys: dict[str, Key], into: Converted) -> Any:
    if not isinstance(node.value, dict) or COMPONENT not in node.value:
        if node.value is UNREAD:
            return None
        what = f"'{name}' must be {describe(key.type)}, found {node.plain()!r}"
        into.faults.append(ConfigError("E-CONFIG-TYPE", what, where=place(name, node.where)))
        return None
    if node.value[COMPONENT].value is UNREAD:
        return None
    if key.slot == "dataset":
        fault = name_source(node)
        if fault is not None:
            fault.where = place(name, fault.where)
            into.faults.append(fault)
            return None
    if not node.where:  # a default of the recipe, not looked up before it is built
        return node.plain()
    return check_component(node, key.slot, name, keys, into)


def _made(
    params: type[P],
    nodes: dict[str, Node],
    values: dict[str, Any],
    faults: list[TuneError],
    faulty: set[str],
) -> tuple[P | None, list[TuneError]]:
    """Make the object; its own checks run even if there are faults, over the defaults then.

    What they say of a key whose default stands in for a `faulty` value is left out.
    """
    try:
        made = params(**values)
    except TuneError as error:
        found = error.faults if isinstance(error, Faults) else [error]
        found = [fault for fault in found if fault.where.partition(".")[0] not in faulty]
        return None, faults + [placed(fault, nodes) for fault in found]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if not faults:
            what = f"{params.__name__} refuses these values: {error}"
            return None, [ConfigError("E-CONFIG-VALUE", what)]
        return None, faults
    return (None if faults else made), faults


def placed(fault: TuneError, nodes: dict[str, Node]) -> TuneError:
    """Add file and line to a fault whose place is a dotted key."""
    first, *rest = fault.where.replace("[", ".[").split(".")
    node = nodes.get(first)
    for part in rest:
        node = _inside(node, part) or node
    if node is not None and node.where:
        fault.where = f"{fault.where}, {node.where}"
    return fault


def _inside(node: Node | None, part: str) -> Node | None:
    """Return what `part` of a dotted key, ``name`` or ``[0]``, names inside of a node."""
    if node is not None and isinstance(node.value, list):
        return next((item for i, item in enumerate(node.value) if part == f"[{i}]"), None)
    return node.value.get(part) if node and isinstance(node.value, dict) else None


def _order(fault: TuneError) -> tuple[int, int]:
    """Faults of the config before what is missing here; by line, the command line's last."""
    line = re.search(r":(\d+)$", fault.where)
    return fault.exit_code, int(line[1]) if line else sys.maxsize


def raised(faults: Sequence[TuneError]) -> TuneError:
    """Return one error for all faults."""
    return faults[0] if len(faults) == 1 else Faults(faults)
