"""Computing in one dtype with weights kept in another, as FSDP2's mixed precision does."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["compute_in", "master_weights"]

Model = TypeVar("Model", bound=nn.Module)


def compute_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Let `model` compute with its weights cast to `dtype` while they keep theirs.

    This is the arithmetic of FSDP2's ``MixedPrecisionPolicy(param_dtype=dtype)`` for a single
    process: gradients are made in `dtype`, converted, and added up in the weights' own dtype.
    A module sees the cast weights while its forward runs, in a recomputation too, and parameters
    keep their names. Each block casts as it computes; what lies outside of the blocks is cast
    once for the model's whole forward, so that a matrix used at both ends is one tensor.

    Args:
        model: Has ``blocks``; changed in place and returned. Modules in a block must not read the
            weights of another one, which may be cast only while that one runs.
        dtype: Of the computation.
    """
    blocks: Any = model.blocks
    inside = {id(module): module for block in blocks for module in block.modules()}
    for module in inside.values():
        if module._parameters:
            _cast_during_forward(module, [module], dtype)
    outside = [m for m in model.modules() if id(m) not in inside and m._parameters]
    _cast_during_forward(model, outside, dtype)
    return model


def master_weights(model: Model) -> Model:
    """Keep the weights that are trained in fp32, for `shard` or `compute_in` to compute with in bf16.

    Small updates round away in bf16; in fp32 they add up. Costs two more bytes a trained weight,
    and four for its gradient and each of the optimizer's two means instead of two.

    Args:
        model: Changed in place and returned; call it before the optimizer is made.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _cast_during_forward(module: nn.Module, owners: list[nn.Module], dtype: torch.dtype) -> None:
    module.register_forward_pre_hook(partial(_cast, owners, dtype), prepend=True)
    module.register_forward_hook(partial(_uncast, owners), always_call=True)


def _cast(owners: Iterable[nn.Module], dtype: torch.dtype, *_: Any) -> None:
    # An attribute of the instance hides the parameter of the same name, which stays registered.
    for owner, name, parameter in _parameters(owners):
        if parameter.is_floating_point() and parameter.dtype != dtype:
            owner.__dict__[name] = parameter.to(dtype)


def _uncast(owners: Iterable[nn.Module], *_: Any) -> None:
    for owner, name, _parameter in _parameters(owners):
        owner.__dict__.pop(name, None)


def _parameters(owners: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for owner in owners:
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield owner, name, parameter
