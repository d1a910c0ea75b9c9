"""Processes and devices: the world, sharding, whole tensors, gradient norms, launching."""

from torchtune.distributed.context_parallel import context_parallel
from torchtune.distributed.devices import (
    DeviceFacts,
    available_backends,
    check_dtype,
    choose_device,
    device_facts,
)
from torchtune.distributed.gradients import GradientNorm, clip_grad_norm
from torchtune.distributed.launch import launch
from torchtune.distributed.precision import compute_in, master_weights
from torchtune.distributed.shard import shard
from torchtune.distributed.tensors import fill, gather_full, is_distributed, local_part
from torchtune.distributed.world import World, join_world

__all__ = [
    "DeviceFacts",
    "GradientNorm",
    "World",
    "available_backends",
    "check_dtype",
    "choose_device",
    "clip_grad_norm",
    "compute_in",
    "context_parallel",
    "device_facts",
    "fill",
    "gather_full",
    "is_distributed",
    "join_world",
    "launch",
    "local_part",
    "master_weights",
    "shard",
]
