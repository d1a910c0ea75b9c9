"""Processes and devices: the world, sharding, whole tensors, gradient norms, launching."""

from torchtune.distributed.context_parallel import context_parallel
from torchtune.distributed.devices import (
    DTYPES,
    DeviceFacts,
    available_backends,
    check_dtype,
    choose_device,
    device_facts,
)
from torchtune.distributed.fake_world import fake_world
from torchtune.distributed.gradients import GradientNorm, clip_grad_norm
from torchtune.distributed.launch import launch
from torchtune.distributed.launcher_watch import launch_names
from torchtune.distributed.parting import hurried, leave_word
from torchtune.distributed.precision import compute_in, master_weights
from torchtune.distributed.shard import one_sum_a_step, shard
from torchtune.distributed.tensor_parallel import tensor_parallel
from torchtune.distributed.tensors import (
    Part,
    computing_device,
    fill,
    gather_full,
    is_distributed,
    is_first_copy,
    local_part,
    part_of,
)
from torchtune.distributed.turns import in_turns
from torchtune.distributed.world import World, join_world

__all__ = [
    "DTYPES",
    "DeviceFacts",
    "GradientNorm",
    "Part",
    "World",
    "available_backends",
    "check_dtype",
    "choose_device",
    "clip_grad_norm",
    "compute_in",
    "computing_device",
    "context_parallel",
    "device_facts",
    "fake_world",
    "fill",
    "gather_full",
    "hurried",
    "in_turns",
    "is_distributed",
    "is_first_copy",
    "join_world",
    "launch",
    "launch_names",
    "leave_word",
    "local_part",
    "master_weights",
    "one_sum_a_step",
    "part_of",
    "shard",
    "tensor_parallel",
]
