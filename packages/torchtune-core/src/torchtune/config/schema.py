"""What a recipe's Params dataclass says about its keys: types, defaults, slots."""

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from torchtune.errors import ConfigError

__all__ = ["MISSING", "Component", "Count", "Key", "key_at", "keys_of", "minimum_of", "section_of"]


class _ComponentMark:
    """Tells an annotation `Component` from any other union of str and dict."""


Component: TypeAlias = Annotated[str | dict[str, Any], _ComponentMark]
"""A part named in the config: a short name or dotted path, or a dict with ``_component_``.

After parsing it is always a dict with ``_component_`` (or None where the field allows it). The
field's name is its slot; ``Annotated[Component, "dataset"]`` names another.
"""


@dataclass(frozen=True)
class _AtLeast:
    """The smallest value of a number, noted in its annotation."""

    minimum: int


Count: TypeAlias = Annotated[int, _AtLeast(1)]
"""A whole number of at least one, such as rows or steps; `checks` holds keys to it."""

MISSING: Any = "???"
"""The default of a key that must be given; OmegaConf's mark, so ``key: ???`` means it too."""


@dataclass(frozen=True)
class Key:
    """One field of a Params dataclass.

    Args:
        name: The key's name.
        type: Its annotation.
        default: Its default, `MISSING` where it must be given.
        slot: The slot of a component or list of components; empty for any other value.
    """

    name: str
    type: Any
    default: Any
    slot: str = ""

    @property
    def required(self) -> bool:
        """Whether the key must be given."""
        return is_missing(self.default)

    @property
    def optional(self) -> bool:
        """Whether null is allowed."""
        return type(None) in get_args(strip(self.type))

    @property
    def many(self) -> bool:
        """Whether a list of components is allowed."""
        kind = strip(self.type)
        return any(get_origin(strip(member)) is list for member in [kind, *get_args(kind)])

    @property
    def listed(self) -> bool:
        """Whether the key is a list of plain values and nothing else: its flag adds an item."""
        kind = strip(self.type)
        members = [kind] if get_origin(kind) is list else [strip(k) for k in get_args(kind)]
        kinds = [get_origin(member) for member in members if member is not type(None)]
        return not self.slot and kinds == [list]

    @property
    def section(self) -> type | None:
        """The dataclass of a section, a mapping whose keys are declared; None for other values."""
        return section_of(self.type)

    @property
    def scalar(self) -> bool:
        """Whether the key is also a flag that takes one word: all but lists and mappings."""
        members = [strip(kind) for kind in get_args(strip(self.type)) or [strip(self.type)]]
        if self.section is not None:
            return False
        return bool(self.slot) or any(get_origin(kind) not in (list, dict) for kind in members)


def strip(kind: Any) -> Any:
    """Return an annotation without its outer ``Annotated``."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def minimum_of(kind: Any) -> int | None:
    """Return the smallest number that an annotation allows, alone or with null; None without one."""
    if get_origin(kind) is Annotated:
        return next((n.minimum for n in kind.__metadata__ if isinstance(n, _AtLeast)), None)
    found = (minimum_of(member) for member in get_args(kind))
    return next((minimum for minimum in found if minimum is not None), None)


def section_of(kind: Any) -> type | None:
    """Return the dataclass that an annotation is, alone or with null; None for any other one."""
    kind = strip(kind)
    union = get_origin(kind) in (Union, types.UnionType)
    members = [strip(member) for member in get_args(kind)] if union else [kind]
    found = [m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)]
    return found[0] if len(found) == 1 else None


def is_missing(value: Any) -> bool:
    """Say whether a value is the mark of a key that must be given."""
    return isinstance(value, str) and value == MISSING


def is_component(kind: Any) -> bool:
    """Say whether an annotation is `Component`, with another slot or not."""
    return get_origin(kind) is Annotated and _ComponentMark in kind.__metadata__


def keys_of(params: type) -> dict[str, Key]:
    """Return the keys of a Params dataclass by name, in order.

    Raises:
        ConfigError: `params` is no dataclass, or one of its sections holds a component.
    """
    if not dataclasses.is_dataclass(params):
        raise ConfigError("E-CONFIG-PARAMS", f"{params.__name__} is no dataclass")
    hints = get_type_hints(params, include_extras=True)
    keys = {
        field.name: Key(
            field.name, hints[field.name], _default(field), _slot(field.name, hints[field.name])
        )
        for field in dataclasses.fields(params)
        if field.init
    }
    for key in keys.values():
        if key.section and any(inner.slot for inner in keys_of(key.section).values()):
            what = f"the section '{key.name}' holds a component; only Params can"
            raise ConfigError("E-CONFIG-PARAMS", what)
    return keys


def key_at(keys: Mapping[str, Key], path: str) -> Key | None:
    """Return the key of a dotted path through sections (``parallel.tensor``), None for no such."""
    first, _, rest = path.partition(".")
    key = keys.get(first)
    if key is None or not rest:
        return key
    return key_at(keys_of(key.section), rest) if key.section else None


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING


def _slot(name: str, kind: Any) -> str:
    """Return the slot of an annotation that holds `Component`, else an empty string."""
    if get_origin(kind) is Annotated:
        named = [note for note in kind.__metadata__ if isinstance(note, str)]
        inner = name if is_component(kind) else _slot(name, strip(kind))
        return named[0] if inner and named else inner
    return next((slot for slot in (_slot(name, part) for part in get_args(kind)) if slot), "")
