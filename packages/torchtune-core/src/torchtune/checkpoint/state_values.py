"""Nested Python values with tensors inside, as JSON beside a safetensors file; no pickle."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from torchtune.errors import TuneError

__all__ = ["pack", "unpack"]

# What JSON cannot say: which tensor, that a list was a tuple, that keys are no strings.
_TENSOR, _CPU, _TUPLE, _ITEMS = "$tensor", "$cpu", "$tuple", "$items"


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON can hold it exactly, its tensors put into `tensors`.

    Args:
        value: Numbers, strings, None and tensors, nested in lists, tuples and dicts.
        name: What the value is called; its tensors are named after it.
        tensors: Gets one entry for each tensor inside.

    Raises:
        TuneError: There is something else inside, such as a function.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name, _CPU: value.device.type == "cpu"}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = [pack(item, f"{name}/{number}", tensors) for number, item in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if isinstance(value, dict):
        packed = {key: pack(item, f"{name}/{key}", tensors) for key, item in value.items()}
        plain = all(isinstance(key, str) and not key.startswith("$") for key in packed)
        return packed if plain else {_ITEMS: [[key, item] for key, item in packed.items()]}
    raise TuneError(
        "E-STATE",
        f"cannot save {name}: a {type(value).__name__} is no number, string, list or tensor",
        where=name,
    )


def unpack(packed: Any, tensor: Callable[[str, bool], Tensor]) -> Any:
    """Return the value that `pack` was given.

    Args:
        packed: What it returned, through JSON or not.
        tensor: From the name of a tensor, and whether it lay on the CPU, to the tensor.
    """
    if isinstance(packed, list):
        return [unpack(item, tensor) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if _TENSOR in packed:
        return tensor(packed[_TENSOR], packed[_CPU])
    if _TUPLE in packed:
        return tuple(unpack(item, tensor) for item in packed[_TUPLE])
    if _ITEMS in packed:
        return {key: unpack(item, tensor) for key, item in packed[_ITEMS]}
    return {key: unpack(item, tensor) for key, item in packed.items()}
