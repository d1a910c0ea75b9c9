"""Cutting a model over the processes of a world."""

import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from torchtune.distributed.precision import compute_in
from torchtune.distributed.world import World
from torchtune.modules.kernels import kernels_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["one_sum_a_step", "shard"]

Model = TypeVar("Model", bound=nn.Module)
Item = TypeVar("Item")


def shard(
    model: Model,
    world: World,
    *,
    compute_dtype: torch.dtype | None = None,
    reshard_after_forward: bool = True,
    cpu_offload: bool = False,
) -> Model:
    """Cut each parameter over the processes with FSDP2, first the blocks, then the rest.

    Parameters are cut over `data_shard` and `context`, and whole in each group of `data_replicate`.
    Those that `tensor` has cut are cut once more. Gradients are added up over processes, never
    averaged: divide the loss by the tokens of the whole step. They are added in float32, so that two
    processes agree with one that takes both their micro-batches. In a world of one nothing is cut,
    and the arithmetic is the same.

    Args:
        model: Any module with ``blocks``; its forward gives the loss, or all that needs weights.
            On the meta device, give it memory afterwards. Changed in place and returned.
        world: The processes.
        compute_dtype: What to compute in where the weights' dtype is another: bfloat16 with
            float32 weights trains on master weights.
        reshard_after_forward: Give a block's whole weights back between forward and backward:
            less memory, one more gathering. What lies outside of the blocks is kept, as backward
            begins with it.
        cpu_offload: Keep parameters, gradients and so the optimizer's states in the CPU's memory,
            and bring a block's weights to the device when it computes. Give a model on the meta
            device memory with ``to_empty(device="cpu")``. In a world of one too, whose parameters
            then are distributed over a mesh of one.
    """
    if world.mesh is not None or cpu_offload:
        mesh = _sharding_mesh(world.mesh) if world.mesh else _mesh_of_one(world.device)
        _fully_shard(model, mesh, compute_dtype, reshard_after_forward, cpu_offload)
        if kernels_of(world.device) != "cpu":
            _gather_ahead(model.blocks)
    elif compute_dtype is not None:
        compute_in(model, compute_dtype)
    return model


def one_sum_a_step(model: nn.Module, batches: Sequence[Item], world: World) -> Iterator[Item]:
    """Yield a step's micro-batches, and let gradients cross between replicas in the last one only.

    Run backward on each before the next is taken. Until the last, each process adds up its part
    over the replica's processes in float32, and `.grad` is None. Not so where `shard` keeps the
    weights on the CPU: there the sum would stay on the device, so it crosses for every micro-batch.

    Args:
        model: Sharded with `shard`; with one replica it may be any.
        batches: This process's; all processes have as many.
        world: The processes.
    """
    sharded: Any = model if world.replicas > 1 and _is_near(model, world) else None
    for number, batch in enumerate(batches, 1):
        if sharded is not None:
            sharded.set_requires_all_reduce(number == len(batches))
        yield batch


def _is_near(model: nn.Module, world: World) -> bool:
    return all(parameter.device.type == world.device.type for parameter in model.parameters())


def _sharding_mesh(mesh: "DeviceMesh") -> "DeviceMesh":
    """Return the processes to shard over, in groups that each hold the whole where there are some.

    Processes that cut a row between them (`context`) have gradients to add up as those that cut a
    step's rows have, and so shard the weights together.
    """
    names: tuple[str, ...] = ("data_shard",)
    if mesh["context"].size() > 1:
        mesh["data_shard", "context"]._flatten("shard")
        names = ("shard",)
    if mesh["data_replicate"].size() > 1:
        names = ("data_replicate", *names)
    with warnings.catch_warnings():  # torch has no other way yet to have a flat dimension in two
        warnings.filterwarnings("ignore", "Slicing a flattened dim")
        return mesh[names]


def _mesh_of_one(device: torch.device) -> "DeviceMesh":
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store: Any = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, rank=0, world_size=1, store=store)
    return init_device_mesh(device.type, (1,), mesh_dim_names=("data_shard",))


def _fully_shard(
    model: nn.Module,
    mesh: "DeviceMesh",
    compute_dtype: torch.dtype | None,
    reshard: bool,
    cpu_offload: bool,
) -> None:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    options = _options(mesh, compute_dtype, cpu_offload)
    blocks: Any = model.blocks
    for block in blocks:
        fully_shard(block, reshard_after_forward=reshard, **options)
    fully_shard(model, reshard_after_forward=False, **options)
    for module in model.modules():  # the root's setting does not reach its children
        if isinstance(module, FSDPModule) and mesh.size() > 1:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    model.register_forward_hook(_reshard_without_backward)


def _options(
    mesh: "DeviceMesh", compute_dtype: torch.dtype | None, cpu_offload: bool
) -> dict[str, Any]:
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy

    # Inputs as they come: a table of angles in float32 is no less exact here than on one process.
    precision = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        # alone there is nothing to add up, and converting would only cost
        reduce_dtype=torch.float32 if mesh.size() > 1 else None,
        cast_forward_inputs=False,
    )
    pinned = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
    place = pinned if cpu_offload else OffloadPolicy()
    return {"mesh": mesh, "mp_policy": precision, "offload_policy": place}


def _gather_ahead(blocks: Any) -> None:
    """Let each block ask for the next one's weights before it computes; backward does so anyway.

    The copy or the network then works while the block does, even where Python is slower than the
    device. It costs the memory of one more block.
    """
    for block, following in pairwise(blocks):
        block.set_modules_to_forward_prefetch([following])


def _reshard_without_backward(model: Any, *_: Any) -> None:
    # Without a backward nothing else would give the root's weights back, and they would go stale.
    if not torch.is_grad_enabled():
        model.reshard()
