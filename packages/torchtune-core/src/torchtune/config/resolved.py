"""Write params as the config that gives them again."""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from torchtune.config.convert import Converted, convert
from torchtune.config.reader import ConfigDumper, Node
from torchtune.config.registry import locate
from torchtune.config.schema import Key, keys_of
from torchtune.config.signature import COMPONENT, RUNTIME, component_signature

__all__ = ["resolve", "resolved", "resolved_yaml"]

PLAIN = (str, int, float, bool, type(None))


def resolved_yaml(params: object) -> str:
    """Return the text of ``config.yaml``: every key, and every argument of every component.

    Read again it gives the same params, with the arguments that were left to a component's
    signature written out. What the recipe passes to a component by itself is not written, nor a
    default that YAML cannot express. Interpolations are written as what they came to.

    Args:
        params: A Params object, as the parser made it.
    """
    values = _escaped(resolved(params))
    return yaml.dump(values, Dumper=ConfigDumper, sort_keys=False, allow_unicode=True, width=1000)


def resolved(params: object) -> dict[str, Any]:
    """Return what `resolved_yaml` writes, as plain values: null, numbers, text, lists, mappings.

    Args:
        params: A Params object, as the parser made it.
    """
    values = {field.name: getattr(params, field.name) for field in fields(params)}  # type: ignore[arg-type]
    return resolve(values, keys_of(type(params)))


def resolve(values: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """Return the `values` of some of the `keys` as plain ones, components with all arguments."""
    return {
        name: _plain(_component(values[name], key.slot, keys) if key.slot else values[name])
        for name, key in keys.items()
        if name in values
    }


def _component(value: Any, slot: str, offered: Collection[str]) -> Any:
    if isinstance(value, list):
        return [_component(item, slot, offered) for item in value]
    if isinstance(value, str):
        value = {COMPONENT: value}
    if not isinstance(value, dict) or COMPONENT not in value:
        return value
    signature = component_signature(slot, locate(slot, value[COMPONENT]))
    defaults = {
        word: _typed(parameter)
        for word, parameter in signature.parameters.items()
        if parameter.default is not inspect.Parameter.empty
        and _expressible(parameter.default)
        and word not in offered
        and word not in RUNTIME
    }
    given = {word: _inner(word, item, offered) for word, item in value.items()}
    return {COMPONENT: value[COMPONENT], **defaults, **given}


def _typed(parameter: inspect.Parameter) -> Any:
    """Return a default as reading it back would give it: ``momentum: float = 0`` is 0.0."""
    into = Converted()
    value = convert(Node.of(parameter.default), parameter.annotation, parameter.name, into)
    return parameter.default if into.faults else value


def _inner(word: str, value: Any, offered: Collection[str]) -> Any:
    if isinstance(value, list):
        return [_inner(word, item, offered) for item in value]
    nested = isinstance(value, dict) and COMPONENT in value
    return _component(value, word, offered) if nested else value


def _expressible(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_expressible, value))
    return isinstance(value, PLAIN) and not isinstance(value, Enum)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value))
    return str(value) if isinstance(value, Path) else value


def _escaped(value: Any) -> Any:
    """Return a plain value with text that looks like an interpolation escaped."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
