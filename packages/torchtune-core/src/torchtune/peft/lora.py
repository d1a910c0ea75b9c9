"""LoRA (Hu et al., 2021): linear layers stay frozen, each with a trained matrix of low rank beside."""

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune.errors import ConfigError, TuneError
from torchtune.modules import OutputLinear
from torchtune.peft.low_rank import low_rank_linear
from torchtune.peft.targets import ALL_LINEAR, HEAD, find_targets, raise_all

__all__ = ["LoRALinear", "LoRAOutputLinear", "adapter_names", "adapters", "lora"]

Model = TypeVar("Model", bound=nn.Module)


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank part: `x W^T + bias + scale * dropout(x) A^T B^T`.

    It takes over the base's own parameters under their own names, so that checkpoints of the base
    load with or without it; `lora_a [rank, in]` and `lora_b [out, rank]`, in the base's dtype, are
    new. `lora_b` is zero: a fresh layer computes what its base does. `lora_a` has no value until it
    is given one (`first_value`, which `lora` and `init_weights` ask).

    Args:
        base: The layer to take over.
        rank: Rank of the new part.
        alpha: Its strength: `scale` is alpha / rank.
        dropout: Share of the new part's inputs that are dropped in training.
        rslora: Take alpha / sqrt(rank) instead (rank-stabilised: Kalajdzievski, 2023).
    """

    def __init__(
        self,
        base: nn.Linear,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
    ) -> None:
        bias = base.bias is not None
        super().__init__(base.in_features, base.out_features, bias=bias, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.alpha, self.dropout, self.rslora = rank, alpha, dropout, rslora
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.train(base.training)

    @property
    def scale(self) -> float:
        """The factor of the low-rank part."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def first_value(
        self, name: str, shape: Sequence[int], generator: torch.Generator
    ) -> Tensor | None:
        """Return the value of `shape`, fp32, that the adapter's parameter `name` begins with.

        `lora_a` is uniform within 1 / sqrt(in) (Kaiming's with a = sqrt(5), as in PEFT), drawn from
        `generator`; `lora_b` is 0. None for the base's own, which begins as without an adapter.
        """
        if name.endswith("lora_b"):
            return torch.zeros(*shape)
        return _first_a(shape, generator) if name.endswith("lora_a") else None

    def delta(self) -> Tensor:
        """Return `scale * B A [out, in]` in the adapter's dtype, multiplied in fp32."""
        product = self.lora_b.float() @ self.lora_a.float() * self.scale
        return product.to(self.lora_b.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [*, in]` to `[*, out]`."""
        if not (self.training and self.dropout):
            return low_rank_linear(x, self.weight, self.bias, self.lora_a, self.lora_b, self.scale)
        low = F.linear(self.drop(x), self.lora_a)
        return F.linear(x, self.weight, self.bias) + F.linear(low, self.lora_b * self.scale)

    def drop(self, x: Tensor) -> Tensor:
        """Return the new part's inputs `x [*, in]` with their share of zeros, the rest made larger."""
        return F.dropout(x, self.dropout)

    def extra_repr(self) -> str:
        """Return the layer's sizes, for printing a model."""
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale:g}"


class LoRAOutputLinear(LoRALinear, OutputLinear):
    """An output layer with a low-rank part, which reaches the loss as one matrix."""

    def matrix(self) -> Tensor:
        """Return `W + scale * B A [vocab, dim]`; gradients go to `A` and `B`."""
        return torch.addmm(self.weight, self.lora_b * self.scale, self.lora_a)


def lora(
    model: Model,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: str | Sequence[str] = ALL_LINEAR,
    rslora: bool = False,
    seed: int = 0,
) -> Model:
    """Freeze `model` and give its targeted linear layers a trained low-rank part; return `model`.

    Its state dict gains `<layer>.lora_a` and `<layer>.lora_b`; no key changes. Works on the meta
    device too; elsewhere the new parameters get their first values here, from `seed` and their name.

    Args:
        model: A `Decoder`, or any module that holds `nn.Linear` layers.
        rank: Rank of the low-rank part.
        alpha: Its strength: it is scaled by alpha / rank.
        dropout: Share of its inputs dropped in training.
        targets: Last parts of the layers' names (`q_proj`); `all-linear` is every linear layer
            inside the blocks. The head is meant only by its own name, `lm_head`.
        rslora: Scale by alpha / sqrt(rank) instead.
        seed: Of the first values.

    Raises:
        ConfigError: E-LORA-TARGET for a target that no layer has; E-LORA for a number out of range,
            dropout on the head, or a model that has an adapter.
    """
    raise_all(_faults(model, rank, alpha, dropout))
    names = find_targets(model, targets, "peft.targets")
    if dropout and any(isinstance(model.get_submodule(name), OutputLinear) for name in names):
        raise ConfigError(
            "E-LORA", "dropout on the head is not possible: it reaches the loss as one matrix",
            where="peft.dropout", do=f"set dropout to 0, or leave {HEAD} out of the targets",
        )  # fmt: skip
    adapt(model, names, rank=rank, alpha=alpha, dropout=dropout, rslora=rslora)
    _fill(model, seed)
    return model


def adapt(
    model: nn.Module,
    names: Iterable[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    rslora: bool,
) -> None:
    """Put LoRA layers in place of the linear layers of these full names; freeze all else."""
    model.requires_grad_(False)
    for name in names:
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)  # for the type checker: the names are linear layers'
        kind = LoRAOutputLinear if isinstance(base, OutputLinear) else LoRALinear
        layer = kind(base, rank=rank, alpha=alpha, dropout=dropout, rslora=rslora)
        replace(model, name, layer)


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` where the submodule of this full name is."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the LoRA layers of `model` by their full names."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def adapter_names(model: nn.Module) -> set[str]:
    """Return the full names of the parameters that are `model`'s adapter: what a save writes."""
    return {f"{name}.{part}" for name in adapters(model) for part in ("lora_a", "lora_b")}


def _faults(model: nn.Module, rank: int, alpha: float, dropout: float) -> list[TuneError]:
    rules = [
        ("rank", rank, rank >= 1, "at least 1"),
        ("alpha", alpha, alpha > 0, "above 0"),
        ("dropout", dropout, 0 <= dropout < 1, "at least 0 and below 1"),
    ]
    faults: list[TuneError] = [
        ConfigError("E-LORA", f"{key} is {value}, but must be {rule}", where=f"peft.{key}")
        for key, value, right, rule in rules
        if not right
    ]
    if adapters(model):
        faults.append(ConfigError("E-LORA", "this model has LoRA layers already", where="peft"))
    return faults


def _fill(model: nn.Module, seed: int) -> None:
    for layer_name, layer in adapters(model).items():
        if layer.lora_a.is_meta:
            continue
        name = f"{layer_name}.lora_a"
        generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
        with torch.no_grad():
            layer.lora_a.copy_(_first_a(layer.lora_a.shape, generator))


def _first_a(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return the value of `shape [rank, in]` that `lora_a` begins with."""
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(*shape).uniform_(-bound, bound, generator=generator)
