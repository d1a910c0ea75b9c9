"""The state of a process's random generators, as JSON can hold it."""

import base64
import json
import random

import torch
from torch import Tensor

__all__ = ["random_state", "restore_random_state"]


def random_state(device: torch.device) -> dict[str, str]:
    """Return the states of torch's generators (CPU and `device`) and of Python's."""
    state = {"torch": _text(torch.get_rng_state()), "python": json.dumps(random.getstate())}
    if device.type != "cpu":
        state["device"] = _text(torch.get_device_module(device).get_rng_state())
    return state


def restore_random_state(state: dict[str, str], device: torch.device) -> None:
    """Set the generators to what `random_state` returned; a device of another kind is left alone."""
    torch.set_rng_state(_tensor(state["torch"]))
    version, numbers, gauss = json.loads(state["python"])
    random.setstate((version, tuple(numbers), gauss))
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(_tensor(state["device"]))


def _text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
