"""Make the object that a component of the config names."""

import inspect
from typing import Any

from torchtune.config.convert import Converted
from torchtune.config.reader import Node
from torchtune.config.registry import locate
from torchtune.config.signature import (
    COMPONENT,
    check_component,
    component_signature,
    takes_function,
)
from torchtune.errors import ConfigError, Faults

__all__ = ["build"]


def build(slot: str, component: Any, *args: Any, **offered: Any) -> Any:
    """Import the target of a component, call it, and return what it makes.

    Args:
        slot: The kind of component, such as ``"optimizer"``; its registered names are known by it.
        component: A name, or a dict with ``_component_`` and arguments. Components among the
            arguments are built first.
        *args: What the recipe passes by position: the model, the parameters, the optimizer.
        **offered: What the recipe has to give by name; only what the signature takes is passed,
            and the config's own value goes before it.

    Raises:
        ConfigError: A name, an argument or a value is not allowed; all of them are listed.
        MissingError: A package that the component needs is not installed.
    """
    if isinstance(component, str):
        component = {COMPONENT: component}
    if not isinstance(component, dict) or COMPONENT not in component:
        what = f"'{slot}' must name a component, found {component!r}"
        raise ConfigError("E-COMPONENT-NAME", what, where=slot)
    checked = Converted()
    arguments = check_component(Node.of(component), slot, slot, {*offered}, checked)
    if checked.faults:
        raise checked.faults[0] if len(checked.faults) == 1 else Faults(checked.faults)
    return _call(slot, arguments.pop(COMPONENT), args, arguments, offered)


def _call(
    slot: str, name: str, args: tuple[Any, ...], given: dict[str, Any], offered: dict[str, Any]
) -> Any:
    target = locate(slot, name)
    takes = component_signature(slot, target).parameters
    given = {word: _built(word, value, takes.get(word), offered) for word, value in given.items()}
    positional = list(inspect.signature(target).parameters)[: len(args)]
    extra = {
        word: value
        for word, value in offered.items()
        if word in takes and word not in given and word not in positional
    }
    try:
        inspect.signature(target).bind(*args, **given, **extra)
    except TypeError as error:
        what = f"{name} cannot be called: {error}"
        raise ConfigError("E-COMPONENT-ARGUMENT", what, where=slot) from error
    try:
        return target(*args, **given, **extra)
    except ValueError as error:
        raise ConfigError("E-COMPONENT-VALUE", f"{name}: {error}", where=slot) from error


def _built(
    word: str, value: Any, parameter: inspect.Parameter | None, offered: dict[str, Any]
) -> Any:
    """Build a component among the arguments, and find a function given by its dotted path."""
    if isinstance(value, str) and parameter and takes_function(parameter.annotation):
        return locate(word, value)
    if isinstance(value, dict) and COMPONENT in value:
        return build(word, value, **offered)
    if isinstance(value, list):
        return [_built(word, item, None, offered) for item in value]
    return value
