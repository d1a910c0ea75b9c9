"""Techniques on a model's blocks: recompute activations, compile."""

import shutil
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from torchtune.errors import MissingError

__all__ = ["checkpoint_activations", "compile_blocks"]


class HasBlocks(Protocol):
    """A model that says which of its modules are its layers."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""


Model = TypeVar("Model", bound=HasBlocks)


def checkpoint_activations(model: Model) -> Model:
    """Make each block run again in backward instead of keeping what it computed (Chen et al., 2016).

    A step costs about a third more time and keeps one hidden state a block. Parameter names stay.

    Args:
        model: Changed in place and returned.
    """
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model


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
