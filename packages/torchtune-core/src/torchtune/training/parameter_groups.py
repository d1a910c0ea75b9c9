"""Which parameters are trained, and with which learning rate: regexes over their names."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from torchtune.config import nearest
from torchtune.errors import ConfigError, Faults, TuneError
from torchtune.training.optimizers import check_shards

__all__ = ["grouped_optimizer", "parameter_groups", "train_only"]

Model = TypeVar("Model", bound=nn.Module)


def train_only(model: Model, patterns: Sequence[str]) -> Model:
    """Freeze every parameter whose name none of `patterns` is found in.

    It only narrows: what is frozen already, as the base under an adapter, stays so.

    Args:
        model: Changed in place and returned; call it before the optimizer is made.
        patterns: Regexes, searched for anywhere in a name: ``layers\\.1[2-5]\\.``, ``lm_head``.

    Raises:
        ConfigError: E-TRAINABLE: a pattern is no regex, or is found in no trainable parameter's
            name; `Faults` where there are several.
    """
    trained = _trained(model)
    found, faults = _search(patterns, list(trained), "trainable[{}]", "E-TRAINABLE")
    _raise(faults)
    wanted = set().union(*found)
    for name, parameter in trained.items():
        parameter.requires_grad_(name in wanted)
    return model


def parameter_groups(
    model: nn.Module, groups: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups for an optimizer.

    Args:
        model: Whose parameters.
        groups: Each a regex as ``params``, searched for in the names, and options of the optimizer for
            those parameters, such as ``lr`` and ``weight_decay``.

    Returns:
        First the group of all that no regex is found in, without options, unless it is empty; then
        one of each regex, in order. Every trainable parameter is in exactly one.

    Raises:
        ConfigError: E-PARAM-GROUPS: a group has no regex, none of the trainable parameters, or one
            that another group has too; `Faults` where there are several.
    """
    trained = _trained(model)
    patterns = [str(group.get("params", "")) for group in groups]
    found, faults = _search(patterns, list(trained), "param_groups[{}].params", "E-PARAM-GROUPS")
    faults += _shared(found)
    _raise(faults)
    rest = [p for name, p in trained.items() if not any(name in names for names in found)]
    sorted_in = [
        {**group, "params": [p for name, p in trained.items() if name in names]}
        for group, names in zip(groups, found, strict=True)
    ]
    return [{"params": rest}, *sorted_in] if rest else sorted_in


def grouped_optimizer(
    model: nn.Module,
    make: Callable[[list[Any]], Optimizer],
    groups: Sequence[Mapping[str, Any]] = (),
) -> Optimizer:
    """Build an optimizer of any class over the trainable parameters, in groups of their own rates.

    A schedule scales the rate of each group; what a group does not set is as for the others.

    Args:
        model: Whose parameters.
        make: Called with the parameters, or with groups of them as torch's optimizers take.
        groups: See `parameter_groups`.

    Raises:
        ConfigError: E-PARAM-GROUPS: as `parameter_groups`, or a group sets what this optimizer
            does not have, or not to a number where it has one; E-OPTIMIZER-SHARDED: it cannot step
            parameters that are cut over processes.
    """
    sorted_in: list[Any] = list(_trained(model).values())
    if groups:
        sorted_in = [dict(group) for group in parameter_groups(model, groups)]
    optimizer = make(sorted_in)
    check_shards(optimizer)
    faults: list[TuneError] = []
    for number, group in enumerate(groups):
        for option, value in group.items():
            if option != "params":
                where = f"param_groups[{number}].{option}"
                faults += _check_option(option, value, optimizer, where)
    _raise(faults)
    return optimizer


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _search(
    patterns: Sequence[str], names: Sequence[str], where: str, code: str
) -> tuple[list[set[str]], list[TuneError]]:
    """Return the names that each pattern is found in, and a fault for each without any."""
    found: list[set[str]] = []
    faults: list[TuneError] = []
    for number, pattern in enumerate(patterns):
        place = where.format(number)
        try:
            found.append({name for name in names if pattern and re.search(pattern, name)})
        except re.error as error:
            faults.append(ConfigError(code, f"{pattern!r} is no regex: {error}", where=place))
            found.append(set())
            continue
        if not found[-1]:
            what = f"{pattern!r} is found in no trainable parameter's name"
            faults.append(ConfigError(code, what, where=place, do=_near(pattern, names)))
    return found, faults


def _near(pattern: str, names: Sequence[str]) -> str:
    """Name what is most like a pattern: a part of a name, else show what names look like."""
    words = [word for word in re.split(r"[^A-Za-z0-9_]+", pattern) if len(word) > 1]
    parts = {part for name in names for part in name.split(".")}
    guesses = (nearest(word, parts) for word in words if word not in parts)
    shown = ", ".join(dict.fromkeys([*names[:1], *names[len(names) // 2 :][:1], *names[-1:]]))
    return next(filter(None, guesses), f"names are such as {shown}")


def _shared(found: Sequence[set[str]]) -> list[TuneError]:
    faults: list[TuneError] = []
    for later in range(len(found)):
        for earlier in range(later):
            if both := sorted(found[earlier] & found[later]):
                more = f" and {len(both) - 1} more" if len(both) > 1 else ""
                what = f"{both[0]}{more} would be in two groups, this and param_groups[{earlier}]"
                where = f"param_groups[{later}].params"
                faults.append(ConfigError("E-PARAM-GROUPS", what, where=where))
    return faults


def _check_option(option: str, value: Any, optimizer: Optimizer, where: str) -> list[TuneError]:
    kind, known = type(optimizer).__name__, optimizer.defaults
    if option not in known:
        what = f"{kind} has no option {option!r} for a group; it has {', '.join(sorted(known))}"
        do = nearest(option, known)
        return [ConfigError("E-PARAM-GROUPS", what, where=where, do=do)]
    numbers = (int, float)
    default = known[option]
    wants = isinstance(default, numbers) and not isinstance(default, bool)
    if wants and (isinstance(value, bool) or not isinstance(value, numbers) or value < 0):
        what = f"must be a number of at least 0, found {value!r}"
        return [ConfigError("E-PARAM-GROUPS", what, where=where)]
    return []


def _raise(faults: Sequence[TuneError]) -> None:
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)
