"""First values of parameters that no checkpoint filled."""

import zlib
from collections.abc import Collection

import torch
from torch import Tensor, nn

from torchtune.distributed import fill

__all__ = ["init_weights"]

STD = 0.02
"""Standard deviation of fresh matrices: that of GPT-2 and Llama's config.json (`initializer_range`)."""


@torch.no_grad()
def init_weights(model: nn.Module, *, seed: int, skip: Collection[str] = ()) -> None:
    """Give parameters their first values from the seed and their name alone.

    So they are the same in every world and with or without an adapter. A module that has
    `first_value(name, shape, generator)` is asked; where it gives None, and in other modules,
    matrices are normal and biases zero.

    Args:
        model: Whose parameters to fill, sharded or not.
        seed: The run's seed.
        skip: Names that a checkpoint has filled.
    """
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full_name = f"{path}.{name}" if path else name
            if full_name in skip:
                continue
            generator = torch.Generator().manual_seed(seed ^ zlib.crc32(full_name.encode()))
            fill(parameter, _first_value(module, name, parameter.shape, generator))


def _first_value(
    module: nn.Module, name: str, shape: torch.Size, generator: torch.Generator
) -> Tensor:
    own = getattr(module, "first_value", None)
    value: Tensor | None = own(name, shape, generator) if callable(own) else None
    if value is not None:
        return value
    if name == "bias":
        return torch.zeros(shape)
    return torch.randn(shape, generator=generator) * STD
