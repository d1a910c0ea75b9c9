"""How a model's layers are cut over the processes of a tensor group, from the plan of its family."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from torchtune.errors import ConfigError
from torchtune.modules import Decoder

__all__ = ["Cut", "check_tensor_plan", "cuts_of"]


@dataclass(frozen=True)
class Cut:
    """How one layer is cut.

    Args:
        style: ``column``, ``row``, ``gather`` or ``vocabulary``.
        dimensions: The cut dimension of each parameter that is cut; the others are whole.
        summed: Whole parameters of whose gradient each process always has a part.
        repeats: How many neighbouring processes compute the same outputs of a layer that is whole.
    """

    style: str
    dimensions: Mapping[str, int] = field(default_factory=dict)
    summed: frozenset[str] = frozenset()
    repeats: int = 1


BY_OUTPUT = {"weight": 0, "bias": 0, "lora_b": 0}
CUTS = {
    "column": Cut("column", BY_OUTPUT, frozenset({"lora_a"})),
    "row": Cut("row", {"weight": 1, "lora_a": 1}, frozenset({"lora_b"})),
    "gather": Cut("gather"),
    "vocabulary": Cut("vocabulary", BY_OUTPUT, frozenset({"lora_a"})),
}
"""What each word of a plan means. An adapter's narrow side is whole: cutting it would cost a gather."""

REPEATED = "key heads"
"""The word for layers cut by columns of which several processes may take the same heads."""


def cuts_of(model: Decoder, size: int) -> Iterator[tuple[nn.Module, Cut]]:
    """Yield each layer that has parameters of its own, with its cut over `size` processes.

    Raises:
        ConfigError: E-PARALLEL: the model's plan says nothing of a layer.
    """
    yield model.model.embed_tokens, CUTS["vocabulary"]
    for name, layer in model.blocks.named_modules():
        if layer._parameters:
            style = _style(model, name)
            yield layer, _of_heads(model, name, size) if style == REPEATED else CUTS[style]
    yield model.model.norm, CUTS["gather"]
    if model.lm_head is not None:
        yield model.lm_head, CUTS["vocabulary"]


def _of_heads(model: Decoder, name: str, size: int) -> Cut:
    heads, _ = _size(model, name)
    if heads % size == 0:
        return CUTS["column"]
    summed = frozenset({*BY_OUTPUT, "lora_a"})
    return replace(CUTS["column"], dimensions={}, summed=summed, repeats=size // heads)


def _style(model: Decoder, name: str) -> str:
    style = (model.tensor_plan or {}).get(name.rpartition(".")[2])
    if style is None:
        family = model.hf_config.get("model_type")
        what = f"the plan of {family} models says nothing of their layer {name}"
        raise ConfigError("E-PARALLEL", what, where="parallel.tensor", do="use tensor=1")
    return style


def check_tensor_plan(model: Decoder, size: int) -> None:
    """Refuse what cannot be cut over `size` processes.

    Raises:
        ConfigError: E-PARALLEL, with the sizes that can be.
    """
    layers = _layers(model)
    rows = model.model.embed_tokens.num_embeddings
    misfits = [
        f"{count} {what} ({', '.join(names)})"
        for (count, what, repeats), names in layers.items()
        if not _fits(count, size, repeats)
    ]
    if (size - 1) * -(-rows // size) >= rows:  # the last process would have none
        misfits.append(f"{rows} token ids")
    if misfits:
        *fitting, most = (
            str(n)
            for n in range(1, max(count for count, *_ in layers) + 1)
            if all(_fits(count, n, repeats) for count, _, repeats in layers)
        )
        raise ConfigError(
            "E-PARALLEL", f"{', '.join(misfits)} do not divide by {size}",
            where="parallel.tensor",
            do=f"use tensor={', '.join(fitting)} or {most}" if fitting else "use tensor=1",
        )  # fmt: skip


def _fits(count: int, size: int, repeats: bool) -> bool:
    return count % size == 0 or (repeats and size % count == 0)


def _layers(model: Decoder) -> dict[tuple[int, str, bool], list[str]]:
    """Return of how many heads or features layers are cut, if they repeat, and their last names."""
    found: dict[tuple[int, str, bool], list[str]] = {}
    for name, layer in model.blocks.named_modules():
        if layer._parameters and (style := _style(model, name)) != "gather":
            names = found.setdefault((*_size(model, name), style == REPEATED), [])
            last = name.rpartition(".")[2]
            names += [] if last in names else [last]
    return found


def _size(model: Decoder, name: str) -> tuple[int, str]:
    """Return how many heads or features of a layer there are to cut, and which of the two."""
    layer: Any = model.blocks.get_submodule(name)
    parent = model.blocks.get_submodule(name.rpartition(".")[0])
    head_dim: Any = getattr(parent, "head_dim", None)
    features = layer.in_features if _style(model, name) == "row" else layer.out_features
    return (features // head_dim, "heads") if head_dim else (features, "features")
