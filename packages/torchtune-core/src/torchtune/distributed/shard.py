"""Cutting a model over the processes of a world."""

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from torchtune.distributed.precision import compute_in
from torchtune.distributed.world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["shard"]

Model = TypeVar("Model", bound=nn.Module)


def shard(
    model: Model,
    world: World,
    *,
    compute_dtype: torch.dtype | None = None,
    reshard_after_forward: bool = True,
) -> Model:
    """Cut each parameter over the processes with FSDP2, first the blocks, then the rest.

    Gradients are added up over processes, never averaged: divide the loss by the tokens of the
    whole step. They are added in float32, so that two processes agree with one that takes both
    their micro-batches. In a world of one nothing is cut, and the arithmetic is the same.

    Args:
        model: Any module with ``blocks``; its forward gives the loss, or all that needs weights.
            On the meta device, give it memory afterwards. Changed in place and returned.
        world: The processes.
        compute_dtype: What to compute in where the weights' dtype is another: bfloat16 with
            float32 weights trains on master weights.
        reshard_after_forward: Give a block's whole weights back between forward and backward.
            What lies outside of the blocks is kept, as backward begins with it.
    """
    if world.mesh is not None:
        _fully_shard(model, _sharding_mesh(world.mesh), compute_dtype, reshard_after_forward)
    elif compute_dtype is not None:
        compute_in(model, compute_dtype)
    return model


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
    return mesh[names]


def _fully_shard(
    model: nn.Module, mesh: "DeviceMesh", compute_dtype: torch.dtype | None, reshard: bool
) -> None:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    # Inputs as they come: a table of angles in float32 is no less exact here than on one process.
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    blocks: Any = model.blocks
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():  # the root's setting does not reach its children
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    model.register_forward_hook(_reshard_without_backward)


def _reshard_without_backward(model: Any, *_: Any) -> None:
    # Without a backward nothing else would give the root's weights back, and they would go stale.
    if not torch.is_grad_enabled():
        model.reshard()
