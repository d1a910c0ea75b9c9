"""Techniques on a model's blocks: recompute activations, compile."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from torchtune.errors import ConfigError, MissingError

__all__ = ["checkpoint_activations", "compile_blocks", "keep_products"]

Keep = Callable[..., bool]
"""`(operation, *its arguments) -> whether what it returns is kept for backward`."""


class HasBlocks(Protocol):
    """A model that says which of its modules are its layers."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""


Model = TypeVar("Model", bound=HasBlocks)


def checkpoint_activations(model: Model, *, keep: Keep | None = None) -> Model:
    """Make each block run again in backward instead of keeping what it computed (Chen et al., 2016).

    A step costs about a third more time and keeps one hidden state a block; with `keep_products` a
    few per cent more time, and of each block about half. Parameter names stay.

    Args:
        model: Changed in place and returned.
        keep: Of which operations of torch.ops.aten the results are kept all the same, such as
            `keep_products`; None keeps none.

    Raises:
        ConfigError: E-COMPILED: there is `keep`, and `compile_blocks` has hidden the operations.
    """
    # Nothing would be kept in them (https://github.com/pytorch/pytorch/issues/161889), and torch cannot
    # compile the recomputation with the block, as attention stays out of its graphs.
    if keep is not None and any(hasattr(block.forward, COMPILED) for block in model.blocks):
        raise ConfigError(
            "E-COMPILED", "compiled blocks hide the operations whose results are to be kept",
            where="activation_checkpointing_mode", do="set compile=false, or recompute all",
        )  # fmt: skip
    again: dict[str, Any] = {} if keep is None else {"context_fn": partial(_contexts, keep)}
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **again)
    return model


COMPILED = "_torchdynamo_orig_callable"
"""What torch.compile leaves on a function."""

PRODUCTS = {"aten::mm", "aten::addmm"}
ATTENTION = {
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "torch_attn::_varlen_attn",
}


def keep_products(operation: torch._ops.OpOverload, *args: Any, **options: Any) -> bool:
    """Say whether to keep a result: yes for fused attention and for products that are not narrower.

    These take most of the time, and a block's other operations most of the memory. What `down_proj`
    gives is never needed again, and few key heads take little to make again: both give fewer numbers
    than they get.

    Args:
        operation: An overload of torch.ops.
        args: Its arguments; the last of a product is the matrix `[in, out]`.
        options: Its arguments by keyword; none matters.
    """
    name = operation._schema.name
    return name in ATTENTION or (name in PRODUCTS and args[-1].shape[1] >= args[-1].shape[0])


def _contexts(
    keep: Keep,
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return what forward and recomputation run under; made anew for each forward of a block."""
    kept: set[int] = set()

    def policy(
        ctx: SelectiveCheckpointContext, operation: Any, *args: Any, **kwargs: Any
    ) -> CheckpointPolicy:
        wanted = keep(operation, *args, **kwargs)
        if operation._schema.is_mutable:
            # What writes into a result that is kept (LoRA adds its part so) must not be done twice;
            # what writes into anything else, as compiled products do, leaves nothing to keep.
            adds = isinstance(args[0], Tensor) and "out" not in kwargs
            wanted = adds and _storage(args[0]) in kept
        if not wanted:
            return CheckpointPolicy.PREFER_RECOMPUTE
        results = ctx.op_output if isinstance(ctx.op_output, tuple) else (ctx.op_output,)
        kept.update(_storage(result) for result in results if isinstance(result, Tensor))
        return CheckpointPolicy.MUST_SAVE

    contexts: Any = create_selective_checkpoint_contexts(policy, allow_cache_entry_mutation=True)
    forward, again = contexts
    return forward, again


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def compile_blocks(model: Model) -> Model:
    """Compile each block with torch.compile; equal blocks share one graph.

    Call it before `checkpoint_activations`, which then runs compiled code again, and before the model is
    sharded. Flat rows have another length in every step, so sizes are dynamic.

    Args:
        model: Changed in place and returned.

    Raises:
        MissingError: torch needs a C++ compiler on a CPU, and there is none.
    """
    check_compiler(next(model.blocks.parameters()).device)
    for block in model.blocks:
        block.forward = torch.compile(block.forward, dynamic=True)
    return model


def check_compiler(device: torch.device) -> None:
    """Raise where torch.compile would fail for want of a compiler.

    Raises:
        MissingError: E-COMPILER: the model runs on a CPU, and no C++ compiler is there.
    """
    on_cpu = device.type in ("cpu", "meta")
    found = any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
    if on_cpu and not torch.cuda.is_available() and not found:
        raise MissingError(
            "E-COMPILER", "torch.compile needs a C++ compiler and none was found", where="compile",
            do="install g++ or clang, or set compile=false",
        )  # fmt: skip
