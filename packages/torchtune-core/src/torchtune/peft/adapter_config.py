"""PEFT's adapter_config.json: written for a model with an adapter, and followed to build one."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from torchtune.errors import ConfigError
from torchtune.modules import OutputLinear
from torchtune.peft.lora import adapt, adapters
from torchtune.peft.targets import find_targets, last_part, linear_names

__all__ = ["adapter_config", "lora_from_config"]

Model = TypeVar("Model", bound=nn.Module)

READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules"}
"""What `lora_from_config` follows."""

WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "layers_pattern", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
"""What changes nothing of a saved adapter's arithmetic, whatever its value."""

NUMBERS: dict[str, Callable[[Any], bool]] = {
    "r": lambda value: type(value) is int and value > 0,
    "lora_alpha": lambda value: type(value) in (int, float) and value == value,
    "lora_dropout": lambda value: type(value) in (int, float) and 0 <= value < 1,
}
"""What numbers may be, where they are given."""

STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base's weights as they were."""


def adapter_config(model: nn.Module, *, base: str) -> dict[str, Any]:
    """Return the adapter_config.json of a model that `lora` made, for PEFT and for us.

    Args:
        model: The model with its adapter.
        base: Where the base is: an absolute path or a hub id.

    Raises:
        ConfigError: E-ADAPTER if the model has no adapter.
    """
    layers = adapters(model)
    if not layers:
        raise ConfigError("E-ADAPTER", "this model has no adapter", do="give it one with lora()")
    layer = next(iter(layers.values()))
    alpha = int(layer.alpha) if layer.alpha == int(layer.alpha) else layer.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": layer.rank,
        "lora_alpha": alpha,  # PEFT calls it an int; ours may be a fraction
        "lora_dropout": layer.dropout,
        "use_rslora": layer.rslora,
        "target_modules": _target_modules(model, set(layers)),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
    }


def lora_from_config(model: Model, config: Mapping[str, Any]) -> Model:
    """Freeze `model` and return it with the LoRA layers that PEFT's adapter_config.json describes.

    `config` is that file's content; its `target_modules` may be a list of names, `all-linear`, or a
    regular expression over full names, as in PEFT. The adapter's values are loaded after this
    (`checkpoint.load_adapter`).

    Raises:
        ConfigError: E-ADAPTER-CONFIG names everything in it that is not supported, at once;
            E-LORA-TARGET for a target that no linear layer has.
    """
    refused = [f"{key}={value!r}" for key, value in config.items() if not _supported(key, value)]
    refused += [f"no {key!r}" for key in ("r", "target_modules") if not config.get(key)]
    refused += [f"{key}={config[key]!r}" for key in NUMBERS if not _is_right(key, config.get(key))]
    if refused:
        raise ConfigError(
            "E-ADAPTER-CONFIG", f"this adapter cannot be loaded: {', '.join(refused)}",
            where="adapter_config.json",
            do="plain and rank-stabilised LoRA on linear layers is supported; merge it with PEFT",
        )  # fmt: skip
    names = find_targets(model, config["target_modules"], "adapter_config.json: target_modules")
    head = any(isinstance(model.get_submodule(name), OutputLinear) for name in names)
    adapt(
        model,
        names,
        rank=config["r"],
        alpha=config.get("lora_alpha", 8),  # PEFT's default
        dropout=0.0 if head else config.get("lora_dropout", 0.0),
        rslora=config.get("use_rslora", False),
    )
    return model


def _supported(key: str, value: Any) -> bool:
    if key == "peft_type":
        return value == "LORA"
    if key == "bias":
        return value == "none"
    if key == "init_lora_weights":
        return value in STARTS
    return key in READ or key in WITHOUT_EFFECT or not value


def _is_right(key: str, number: Any) -> bool:
    return not number or NUMBERS[key](number)


def _target_modules(model: nn.Module, adapted: set[str]) -> list[str]:
    """Return last parts of names where they mean these layers and no others, else full names."""
    parts = {last_part(name) for name in adapted}
    meant = {name for name in linear_names(model) if last_part(name) in parts}
    return sorted(parts if meant == adapted else adapted)
