"""Products of a model's blocks in 8-bit floating point, by torchao."""

from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune.distributed import World
from torchtune.errors import ConfigError, MissingError
from torchtune.training.activations import HasBlocks
from torchtune.training.torchao_import import import_torchao

__all__ = ["fp8_note", "train_in_fp8"]

Model = TypeVar("Model", bound=HasBlocks)

MULTIPLE = 16
"""What torch's fp8 products on a GPU want the sizes of their matrices to be multiples of."""

CAPABILITIES = {"tensorwise": (8, 9), "rowwise": (9, 0), "rowwise_with_gw_hp": (9, 0)}
"""From which compute capability torch has the products of each recipe of torchao. On 8.9 it hangs on
how torch was built whether it has those with a scale for each row."""


def train_in_fp8(model: Model, recipe: str, world: World) -> Model:
    """Let the linear layers inside the blocks multiply in fp8 in training, forward and backward.

    A layer scales both matrices of each product to fp8's range as it computes (Micikevicius et al.,
    2022, FP8 formats for deep learning). Weights, gradients and what is kept for backward stay in
    their dtype, and names stay. In evaluation mode a layer multiplies in the weights' dtype, as the
    saved model does. A row may have any number of tokens: torchao fills up with zeros.

    The output matrix stays as it is, and so do layers with an adapter, those whose sizes a GPU cannot
    take, and frozen ones, of which torchao would keep the inputs to make gradients for nothing.

    Args:
        model: Changed in place and returned. Call this before `torchtune.distributed.tensor_parallel`,
            `compile_blocks` and all that wraps a layer or a block.
        recipe: ``tensorwise``, one scale for each matrix, is the fastest; ``rowwise``, a scale for each
            row, loses less where some numbers are far larger than the rest; ``rowwise_with_gw_hp``
            loses least, and makes the weights' gradients in their dtype.
        world: The processes; each scales its own tokens, and its own part of a matrix.

    Raises:
        ConfigError: E-FP8-RECIPE: there is no such recipe. E-FP8-LAYERS: no layer of the blocks can
            be in fp8.
        MissingError: E-FP8-DEVICE: the device has no fp8 products. E-TORCHAO: torchao is not
            installed.
    """
    _check_device(world.device, recipe)
    fitting = {id(linear.weight) for linear in _linears(model) if _fits(linear, world.tensor_size)}
    if not fitting:
        raise ConfigError(
            "E-FP8-LAYERS", "no linear layer inside the blocks can multiply in fp8: both sizes of a "
            f"process's part of one must be multiples of {MULTIPLE}, and it must be trained itself",
            where="fp8", do="set fp8=null",
        )  # fmt: skip
    _convert(model.blocks, fitting, recipe)
    for linear in _linears(model):
        if id(linear.weight) in fitting:
            kind: Any = type(linear)
            linear.__class__ = _plain_in_evaluation(kind)
    return model


def _convert(blocks: nn.Module, weights: set[int], recipe: str) -> None:
    """Let torchao take over the layers with these weights, by `id`."""
    float8 = import_torchao("torchao.float8", what="training in fp8", where="fp8")
    config = float8.Float8LinearConfig.from_recipe_name(recipe)
    float8.convert_to_float8_training(
        blocks,
        module_filter_fn=lambda linear, _name: id(linear.weight) in weights,
        config=replace(config, pad_inner_dim=True),  # so that a weight's gradient is of any tokens
    )


def fp8_note(model: HasBlocks) -> str:
    """Return a note of how many linear layers `train_in_fp8` has changed, or "" where none.

    Args:
        model: It may have been compiled, checkpointed and sharded since.
    """
    linears = _linears(model)
    changed = sum(map(_is_fp8, linears))
    return f"fp8 in {changed} of {len(linears)} linear layers of the blocks" if changed else ""


def _linears(model: HasBlocks) -> list[nn.Linear]:
    return [module for module in model.blocks.modules() if isinstance(module, nn.Linear)]


def _is_fp8(linear: nn.Linear) -> bool:
    return type(linear).__name__ == "Fp8Linear"


@cache
def _plain_in_evaluation(kind: Any) -> type[nn.Linear]:
    """Return a layer that is torchao's in training and multiplies as a plain one otherwise."""

    def forward(linear: Any, x: Tensor) -> Tensor:
        out: Tensor
        if linear.training:
            out = kind.forward(linear, x)
        else:
            out = F.linear(x, linear.weight, linear.bias)
        return out

    return type("Fp8Linear", (kind,), {"forward": forward})


def _fits(linear: nn.Linear, parts: int) -> bool:
    sizes = (linear.in_features, linear.out_features)
    plain = type(linear) is nn.Linear and linear.weight.requires_grad
    return plain and all(size % (MULTIPLE * parts) == 0 for size in sizes)


def _check_device(device: torch.device, recipe: str) -> None:
    if recipe not in CAPABILITIES:
        what, do = f"torchao has no recipe {recipe!r} for fp8", f"use {', '.join(CAPABILITIES)}"
        raise ConfigError("E-FP8-RECIPE", what, where="fp8", do=do)
    if device.type == "cpu":
        return
    name, found = f"this {device.type} device", (0, 0)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        found = (0, 0) if torch.version.hip else torch.cuda.get_device_capability(device)
    needed = CAPABILITIES[recipe]
    if found < needed:
        least = "{}.{}".format(*needed)
        raise MissingError(
            "E-FP8-DEVICE",
            f"fp8 products ({recipe}) need an NVIDIA GPU of compute capability {least} or more; "
            f"{name} is none",
            where="fp8", do="set fp8=null",
        )  # fmt: skip
