"""A recipe's Params as a JSON Schema, by which editors complete and check its configs."""

import json
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from torchtune.config.convert import MAPPINGS, SEQUENCES
from torchtune.config.docs import KeyDoc, arguments_doc, docs_of
from torchtune.config.merge import RECIPE, USUAL
from torchtune.config.registry import allowed_names, target_of
from torchtune.config.schema import Key, is_component, keys_of, minimum_of, section_of, strip
from torchtune.config.signature import COMPONENT, written_signature
from torchtune.config.static_signature import read_docstring

__all__ = ["json_schema"]

Schema = dict[str, Any]
TEXT = ["string", "number", "boolean"]  # a number where text is wanted is taken as it was written
TYPES: dict[Any, Any] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: TEXT,
    Path: TEXT,
    type(None): "null",
}
REFERENCE = {"$ref": "#/definitions/reference"}
DEFINITIONS = {
    "reference": {
        "description": "the value of another key: ${optimizer.lr}, or of the environment",
        "type": "string",
        "pattern": r"\$\{.+\}",
    },
    "path": {
        "description": "a dotted path to a class, such as torch.optim.SGD",
        "type": "string",
        "pattern": r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$",
    },
}


def json_schema(params: type, *, recipe: str = "") -> Schema:
    """Return the JSON Schema (draft 7) of a recipe's configs, as plain dicts; imports no component.

    Every key has its type, default and the comment beside it. A component is a registered name, a
    dotted path, or a mapping with ``_component_`` and the arguments that its signature has where
    its source says so. No key is required, as the command line may give it, and ranges are not
    told: `validate` checks those, and what keys mean together. Editors read YAML 1.2: there
    ``yes`` is text, and true is written ``true``.

    Args:
        params: The recipe's Params.
        recipe: Its name, the only one that ``recipe:`` in a config may then have.

    Raises:
        ConfigError: `params` is no dataclass.
    """
    named: Schema = {"description": "the recipe that this config is for"}
    named |= {"enum": [recipe]} if recipe else {"type": "string"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": f"config of the recipe {recipe}" if recipe else params.__name__,
        "type": "object",
        "properties": {RECIPE: named, **_keys(params)},
        "additionalProperties": False,
        "definitions": DEFINITIONS,
    }


def _keys(params: type) -> Schema:
    docs = docs_of(params)
    return {name: _key(key, docs.get(name, KeyDoc())) for name, key in keys_of(params).items()}


def _key(key: Key, doc: KeyDoc) -> Schema:
    about = {"description": doc.text} if doc.text else {}
    default = {} if key.required else _default(key.default)
    return {**about, **default, **_shape(key.type, key.slot, key.default)}


def _default(value: Any) -> Schema:
    """Return the default for an editor to show; nothing for one that JSON cannot say."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    try:
        return {"default": json.loads(json.dumps(value))}
    except TypeError:
        return {}


def _shape(kind: Any, slot: str = "", default: Any = None) -> Schema:
    """Return what an annotation allows, or a reference to another key in its place."""
    if is_component(kind):
        return _any_of([*_component(slot, default), REFERENCE])
    minimum, kind = minimum_of(kind), strip(kind)
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _any_of([_shape(member, slot, default) for member in inside])
    section = section_of(kind)
    if section is not None and section is kind:
        return _any_of([_section(section), REFERENCE])
    if origin is Literal:
        return _any_of([{"enum": list(inside)}, REFERENCE])
    if origin is Callable:
        return {"type": "string"}
    if kind in SEQUENCES or origin in SEQUENCES:
        return _any_of([_sequence(origin or kind, inside, slot, default), REFERENCE])
    if kind in MAPPINGS or origin in MAPPINGS:
        values = _shape(inside[1]) if inside else {}
        return _any_of([{"type": "object", "additionalProperties": values}, REFERENCE])
    known = kind in TYPES if isinstance(kind, type) else False
    least = {} if minimum is None else {"minimum": minimum}
    return _any_of([{"type": TYPES[kind], **least}, REFERENCE]) if known else {}


def _sequence(origin: Any, inside: tuple[Any, ...], slot: str, default: Any) -> Schema:
    if origin is tuple and inside and inside[-1] is not Ellipsis:
        items, count = [_shape(kind) for kind in inside], len(inside)
        return {"type": "array", "items": items, "minItems": count, "maxItems": count}
    return {"type": "array", "items": _shape(inside[0], slot, default) if inside else {}}


def _section(section: type) -> Schema:
    return {"type": "object", "properties": _keys(section), "additionalProperties": False}


def _any_of(shapes: Sequence[Schema]) -> Schema:
    """Join alternatives; plain types become one list, and a reference is text anyway."""
    flat = [part for shape in shapes for part in shape.get("anyOf", [shape])]
    if {} in flat:
        return {}
    plain: list[str] = []
    for part in flat:
        if part.keys() == {"type"}:
            plain += part["type"] if isinstance(part["type"], list) else [part["type"]]
    joined = [{"type": plain[0] if len(plain) == 1 else [*dict.fromkeys(plain)]}] if plain else []
    for part in flat:
        stands = part in joined or (part == REFERENCE and "string" in plain)
        if part.keys() != {"type"} and not stands:
            joined.append(part)
    return joined[0] if len(joined) == 1 else {"anyOf": joined}


def _component(slot: str, default: Any) -> list[Schema]:
    """Return the forms of a component: a name, a mapping with one, arguments of the default."""
    names = allowed_names(slot)
    shapes: list[Schema] = [{"enum": names}] if names else []
    shapes += [_mapping({"enum": group}, arguments) for group, arguments in _grouped(slot, names)]
    path = {"$ref": "#/definitions/path"}
    bare = {"type": "string"} if slot == "dataset" else path  # a path or hub id is one too
    shapes += [bare, _mapping(path, {"additionalProperties": True})]
    default = default.get(COMPONENT) if isinstance(default, dict) else default
    usual = default or USUAL.get(slot)
    return [*shapes, _arguments(slot, usual)] if usual in names else shapes


def _mapping(name: Schema, arguments: Schema) -> Schema:
    properties = {COMPONENT: name, **arguments.get("properties", {})}
    return {**arguments, "type": "object", "properties": properties, "required": [COMPONENT]}


def _grouped(slot: str, names: Sequence[str]) -> list[tuple[list[str], Schema]]:
    """Return names with their arguments; those with the same ones, such as sizes, together."""
    groups: list[tuple[list[str], Schema]] = []
    for name in names:
        arguments = _arguments(slot, name)
        same = next((group for group, theirs in groups if theirs == arguments), None)
        if same is None:
            groups.append(([name], arguments))
        else:
            same.append(name)
    return groups


def _arguments(slot: str, name: str) -> Schema:
    signature = written_signature(slot, name)
    if signature is None:
        return {"type": "object", "additionalProperties": True}
    docs = arguments_doc(read_docstring(target_of(slot, name) or ""))
    properties = {
        word: _argument(parameter, docs.get(word, ""))
        for word, parameter in signature.parameters.items()
    }
    return {"type": "object", "properties": properties, "additionalProperties": signature.open}


def _argument(parameter: Parameter, doc: str) -> Schema:
    about = {"description": doc} if doc else {}
    default = {} if parameter.default is Parameter.empty else _default(parameter.default)
    return {**about, **default, **_shape(parameter.annotation)}
