"""Adapters: functions from model to model that freeze a base and train a small part beside it."""

from torchtune.peft.adapter_config import adapter_config, lora_from_config
from torchtune.peft.lora import LoRALinear, LoRAOutputLinear, adapter_names, adapters, lora
from torchtune.peft.low_rank import low_rank_linear
from torchtune.peft.merging import merge, unmerge

__all__ = [
    "LoRALinear",
    "LoRAOutputLinear",
    "adapter_config",
    "adapter_names",
    "adapters",
    "lora",
    "lora_from_config",
    "low_rank_linear",
    "merge",
    "unmerge",
]
