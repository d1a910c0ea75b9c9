"""Merge an adapter into its base, and take it out again."""

from typing import TypeVar

import torch
from torch import nn

from torchtune.modules import OutputLinear
from torchtune.peft.lora import LoRALinear, adapters, replace

__all__ = ["merge", "unmerge"]

Model = TypeVar("Model", bound=nn.Module)


class _MergedLinear(nn.Linear):
    """A plain linear layer that remembers the LoRA layer it was made from."""

    def __init__(self, layer: LoRALinear) -> None:
        bias = layer.bias is not None
        super().__init__(layer.in_features, layer.out_features, bias=bias, device="meta")
        merged = (layer.weight + layer.delta()).to(layer.weight.dtype)
        self.weight = nn.Parameter(merged, requires_grad=False)
        self.bias = layer.bias
        self.kept = (layer,)  # in a tuple, so that it is no submodule and adds no keys
        self.train(layer.training)


class _MergedOutput(_MergedLinear, OutputLinear):
    """The same for the head."""


@torch.no_grad()
def merge(model: Model) -> Model:
    """Add each low-rank part to its frozen matrix; return `model`, now with its base's keys alone.

    Each merged weight is `W + scale * B A`, the product made in fp32 and rounded to the adapter's
    dtype, the sum to the weight's (as PEFT's `merge_and_unload`). The layers as they were are
    kept, out of sight of the state dict, for `unmerge`: memory for the targeted matrices doubles.
    A model without an adapter is returned as it is.
    """
    for name, layer in adapters(model).items():
        kind = _MergedOutput if isinstance(layer, OutputLinear) else _MergedLinear
        replace(model, name, kind(layer))
    return model


def unmerge(model: Model) -> Model:
    """Return `model` with `merge` undone: the kept LoRA layers are back, each weight to the bit.

    The kept layers do not follow `model.to(...)`: move the model after this, not between.
    """
    merged = [pair for pair in model.named_modules() if isinstance(pair[1], _MergedLinear)]
    for name, layer in merged:
        replace(model, name, layer.kept[0])
    return model
