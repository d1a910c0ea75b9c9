"""What a component's signature allows: names, types and defaults of its arguments."""

import inspect
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from torchtune.config.convert import Converted, convert, place
from torchtune.config.names import nearest
from torchtune.config.reader import Node
from torchtune.config.registry import locate, target_of
from torchtune.config.static_signature import read_signature
from torchtune.errors import ConfigError, TuneError

__all__ = [
    "COMPONENT",
    "Signature",
    "check_component",
    "component_signature",
    "named_signature",
    "takes_function",
    "written_signature",
]

COMPONENT = "_component_"
TAKES_FIRST = {
    "peft": "the model",
    "optimizer": "the parameters",
    "lr_scheduler": "the optimizer",
}  # slots whose first parameter every recipe passes itself
KNOWN = {*TAKES_FIRST, "model", "tokenizer", "dataset", "loss", "profiler", "metric_logger"}
RUNTIME = frozenset({"model", "tokenizer", "world", "optimizer", "progress", "num_training_steps"})


@dataclass(frozen=True)
class Signature:
    """The parameters that a config may fill, and the names of those that a recipe passes.

    Args:
        parameters: By name, in order; without the first one where the recipe passes it.
        first: The name of the parameter that the recipe passes; empty if there is none.
        maybe_first: The first one in a slot that is a recipe's own, which it may pass or not.
        open: Whether any other name is taken too (``**kwargs``).
    """

    parameters: dict[str, inspect.Parameter]
    first: str
    maybe_first: str
    open: bool


def named_signature(slot: str, name: str) -> Signature:
    """Return the signature of a component by its name in a config.

    A registered one that is not imported yet is read from its source, so that torch is not
    imported for it. Raises what `locate` raises.
    """
    target = target_of(slot, name)
    if target is not None and target.partition(":")[0] not in sys.modules:
        found = written_signature(slot, name)
        if found is not None:
            return found
    return component_signature(slot, locate(slot, name))


def written_signature(slot: str, name: str) -> Signature | None:
    """Return the signature of a registered component as its source has it; nothing is imported.

    None where there is no such name, or its source does not tell.
    """
    target = target_of(slot, name)
    found = read_signature(target) if target is not None else None
    return None if found is None else _signature(slot, found)


def component_signature(slot: str, target: Callable[..., Any]) -> Signature:
    """Read the signature of an imported `target` as a component of `slot`."""
    try:
        found = inspect.signature(target, eval_str=True)
    except (NameError, AttributeError, TypeError, SyntaxError):  # names known to type checkers only
        found = inspect.signature(target)
    return _signature(slot, found)


def _signature(slot: str, found: inspect.Signature) -> Signature:
    kinds = inspect.Parameter
    ordered = list(found.parameters.values())
    positional = [p for p in ordered if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    first = positional[0].name if positional and slot in TAKES_FIRST else ""
    named = {
        p.name: p
        for p in ordered
        if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY) and p.name != first
    }
    maybe_first = positional[0].name if positional and slot not in KNOWN else ""
    return Signature(named, first, maybe_first, any(p.kind is p.VAR_KEYWORD for p in ordered))


def check_component(
    node: Node, slot: str, key: str, offered: Collection[str], into: Converted
) -> dict[str, Any]:
    """Return a component as a plain dict, its arguments of the types that its signature asks for.

    Args:
        node: A mapping with ``_component_``.
        slot: The kind of component.
        key: Its key in the config, for messages.
        offered: Names that the recipe passes if the signature has them.
        into: Takes unknown, missing and wrong arguments, and a name that may not be reached.
    """
    name = node.value[COMPONENT]
    try:
        if not isinstance(name.value, str):
            raise ConfigError("E-COMPONENT-NAME", f"'{COMPONENT}' must be a name")
        signature = named_signature(slot, name.value)
    except TuneError as error:
        error.where = place(key, name.where)
        into.faults.append(error)
        return dict(node.plain())
    given = {word: value for word, value in node.value.items() if word != COMPONENT}
    result = {COMPONENT: name.value}
    for word, value in given.items():
        inner = f"{key}.{word}"
        if word not in signature.parameters and not signature.open:
            into.faults.append(_unknown(word, slot, name.value, signature, inner, node))
            continue
        kind = signature.parameters[word].annotation if word in signature.parameters else Any
        result[word] = _argument(value, kind, word, inner, offered, into)
    into.faults += _missing(given, signature, offered, name, key)
    return result


def _argument(
    value: Node, kind: Any, word: str, key: str, offered: Collection[str], into: Converted
) -> Any:
    """Convert one argument; components may stand inside arguments too."""
    if isinstance(value.value, dict) and COMPONENT in value.value:
        return check_component(value, word, key, offered, into)
    if isinstance(value.value, list) and any(_holds_component(item) for item in value.value):
        return [
            _argument(item, Any, word, f"{key}[{index}]", offered, into)
            for index, item in enumerate(value.value)
        ]
    if isinstance(value.value, str) and takes_function(kind):
        return _function(value, word, key, into)
    return convert(value, Any if kind is inspect.Parameter.empty else kind, key, into)


def takes_function(kind: Any) -> bool:
    """Say whether an annotation is a Callable, or a union with one."""
    return any(get_origin(member) is Callable for member in (kind, *get_args(kind)))


def _function(value: Node, word: str, key: str, into: Converted) -> str:
    """Check that a dotted path names a function that the config may reach."""
    try:
        locate(word, value.value)
    except TuneError as error:
        error.where = place(key, value.where)
        into.faults.append(error)
    return str(value.value)


def _holds_component(node: Node) -> bool:
    return isinstance(node.value, dict) and COMPONENT in node.value


def _unknown(
    word: str, slot: str, name: str, signature: Signature, key: str, node: Node
) -> ConfigError:
    where = place(key, node.lines.get(word) or node.value[word].where)
    if word == signature.first:
        what = f"'{word}' is {TAKES_FIRST[slot]}, which the recipe gives to {name}"
        return ConfigError("E-COMPONENT-ARGUMENT", what, where=where)
    names = ", ".join(signature.parameters) or "none"
    what = f"{name} has no argument '{word}'; it has {names}"
    return ConfigError(
        "E-COMPONENT-ARGUMENT", what, where=where, do=nearest(word, signature.parameters)
    )


def _missing(
    given: Iterable[str], signature: Signature, offered: Collection[str], name: Node, key: str
) -> list[TuneError]:
    return [
        ConfigError(
            "E-COMPONENT-ARGUMENT",
            f"{name.value} needs the argument '{word}'",
            where=place(key, name.where),
            do=f"give {key}.{word}=...",
        )
        for word, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and word not in given
        and word not in offered
        and word not in RUNTIME
        and word != signature.maybe_first
    ]
