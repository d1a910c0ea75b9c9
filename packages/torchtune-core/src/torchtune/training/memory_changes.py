"""Settings of a recipe that need less memory, each with its price."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torchtune.config.signature import COMPONENT

__all__ = ["MemoryChange", "memory_changes"]


@dataclass(frozen=True)
class MemoryChange:
    """Keys of a recipe with other values, which need less memory.

    Args:
        values: The keys and their new values; a component with arguments is a dict.
        costs: What is paid for it, in a few words.
        same_result: Whether the trained weights are the same, up to rounding.
    """

    values: dict[str, Any]
    costs: str
    same_result: bool

    @property
    def overrides(self) -> str:
        """The change as words to paste behind a command."""
        return " ".join(word for key, value in self.values.items() for word in _words(key, value))


def memory_changes(params: Any, *, on_gpu: bool, row_tokens: int) -> list[MemoryChange]:
    """Return the changes that `params`, a dataclass, has keys for and has not made yet.

    Args:
        params: Whose keys are asked.
        on_gpu: Whether the host's memory is another one, that things can be moved to.
        row_tokens: Tokens of the longest row.
    """
    known = {field.name for field in fields(params)}
    found = [*_same_results(params), *(_to_host(params) if on_gpu else ()), *_others(params)]
    if row_tokens > 256:
        shorter = {"max_seq_len": row_tokens // 2}
        found.append(MemoryChange(shorter, "longer rows are cut", same_result=False))
    return [change for change in found if known.issuperset(change.values)]


def _same_results(params: Any) -> Iterator[MemoryChange]:
    rows, micro_batches = (
        _value(params, "batch_size"),
        _value(params, "gradient_accumulation_steps"),
    )
    if not _value(params, "enable_activation_checkpointing"):
        costs = "a third more time"
        yield MemoryChange({"enable_activation_checkpointing": True}, costs, True)
    elif _value(params, "activation_checkpointing_mode") == "selective":
        yield MemoryChange({"activation_checkpointing_mode": "full"}, "a third more time", True)
    if (rows or 1) > 1:
        fewer = {"batch_size": 1, "gradient_accumulation_steps": rows * (micro_batches or 1)}
        yield MemoryChange(fewer, "slower on a GPU", True)
    if not _value(params, "optimizer_in_bwd"):
        yield MemoryChange({"optimizer_in_bwd": True}, "no clipping, no accumulation", True)


def _to_host(params: Any) -> Iterator[MemoryChange]:
    if not _value(params, "enable_activation_offloading"):
        both = {"enable_activation_checkpointing": True, "enable_activation_offloading": True}
        yield MemoryChange(both, "copies to the host and back", True)
    if not _value(params, "fsdp_cpu_offload"):
        costs = "several times slower"
        yield MemoryChange({"fsdp_cpu_offload": True}, costs, True)


def _others(params: Any) -> Iterator[MemoryChange]:
    if _value(params, "dtype") == "fp32":
        yield MemoryChange({"dtype": "bf16"}, "rounded weights", False)
    if _value(params, "master_weights"):
        costs = "small rates are rounded away"
        yield MemoryChange({"master_weights": False}, costs, False)
    if smaller := _in_8_bits(_value(params, "optimizer")):
        yield MemoryChange({"optimizer": smaller}, "rounded states; needs torchao", False)
    if _value(params, "peft") is None:
        unneeded = {"master_weights": False} if _value(params, "master_weights") else {}
        yield MemoryChange({"peft": "lora", **unneeded}, "another training", False)


def _value(params: Any, key: str) -> Any:
    return getattr(params, key, None)


def _in_8_bits(optimizer: Any) -> Any:
    """Return AdamW with its arguments as the component with small states; None for another one."""
    given = optimizer if isinstance(optimizer, dict) else {COMPONENT: optimizer}
    if given.get(COMPONENT) != "adamw":
        return None
    kept = {key: value for key, value in given.items() if key not in (COMPONENT, "fused")}
    return {COMPONENT: "adamw_8bit", **kept}


def _words(key: str, value: Any) -> Iterator[str]:
    """Yield the words of a command that set `key`: for a component its name, then its arguments."""
    arguments = value if isinstance(value, dict) else {COMPONENT: value}
    for name, argument in arguments.items():
        place = key if name == COMPONENT else f"{key}.{name}"
        said = json.dumps(argument, separators=(",", ":"))  # no space, for a shell
        yield f"{place}={argument if isinstance(argument, str) else said}"
