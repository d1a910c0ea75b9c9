"""Which linear layers of a model an adapter may be put on, and by what names."""

import difflib
import re
from collections.abc import Sequence

from torch import nn

from torchtune.errors import ConfigError, Faults, TuneError

__all__ = ["ALL_LINEAR", "HEAD"]

ALL_LINEAR = "all-linear"
"""The target that means every linear layer inside the blocks."""

HEAD = "lm_head"
"""The output layer's name; it is a target only when named."""


def linear_names(model: nn.Module) -> list[str]:
    """Return the full names of all linear layers, in the model's order."""
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]


def last_part(name: str) -> str:
    """Return the last part of a dotted name."""
    return name.rpartition(".")[2]


def block_linear_names(model: nn.Module) -> list[str]:
    """Return the linear layers inside `model.blocks`; without blocks, all that are not the head."""
    blocks = getattr(model, "blocks", None)
    inside = {id(layer) for layer in (model if blocks is None else blocks).modules()}
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and id(layer) in inside and last_part(name) != HEAD
    ]


def find_targets(model: nn.Module, targets: str | Sequence[str], where: str) -> list[str]:
    """Return the full names of the linear layers that these targets mean, in the model's order.

    Args:
        model: The model.
        targets: Names, each the end of a layer's full name at a dot (`q_proj`, or the full name), or
            `all-linear`; as a string also a regular expression that matches whole full names (PEFT's).
        where: The key they were given under, for errors.

    Raises:
        ConfigError: E-LORA-TARGET for each that no layer has; all together.
    """
    listed = [targets] if isinstance(targets, str) else list(targets)
    if not listed:
        raise ConfigError("E-LORA-TARGET", "no target is given", where=where)
    found: set[str] = set()
    faults: list[TuneError] = []
    for index, target in enumerate(listed):
        names = _named(model, target) or _matching(model, target if target is targets else None)
        place = where if target is targets else f"{where}[{index}]"
        found.update(names)
        faults += [] if names else [_no_such_target(target, model, place)]
    raise_all(faults)
    return [name for name in linear_names(model) if name in found]


def raise_all(faults: Sequence[TuneError]) -> None:
    """Raise these errors together, if there are any."""
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)


def _named(model: nn.Module, target: str) -> list[str]:
    if target == ALL_LINEAR:
        return block_linear_names(model)
    return [name for name in linear_names(model) if f".{name}".endswith(f".{target}")]


def _matching(model: nn.Module, pattern: str | None) -> list[str]:
    if pattern is None:
        return []
    try:
        return [name for name in linear_names(model) if re.fullmatch(pattern, name)]
    except re.error:
        return []


def _no_such_target(target: str, model: nn.Module, where: str) -> ConfigError:
    if target == HEAD and getattr(model, "tied", True):
        return ConfigError(
            "E-LORA-TARGET", f"this model has no {HEAD}: its output matrix is the embedding (tied)",
            where=where, do=f"leave {HEAD} out",
        )  # fmt: skip
    known = list(dict.fromkeys(last_part(name) for name in linear_names(model)))
    near = difflib.get_close_matches(target, [*known, ALL_LINEAR], n=1)
    return ConfigError(
        "E-LORA-TARGET",
        f"no linear layer is named {target!r}; this model has {', '.join(known) or 'none'}",
        where=where,
        do=f"did you mean {near[0]!r}?" if near else f"name one of these, or {ALL_LINEAR}",
    )
