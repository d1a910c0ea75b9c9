"""How a model's layers are cut over the processes of a tensor group, from the plan of its family."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
    """

    style: str
    dimensions: Mapping[str, int] = field(default_factory=dict)
    summed: frozenset[str] = frozenset()


_BY_OUTPUT = {"weight": 0, "bias": 0, "lora_b": 0}
CUTS = {
    "column": Cut("column", _BY_OUTPUT, frozenset({"lora_a"})),
    "row": Cut("row", {"weight": 1, "lora_a": 1}, frozenset({"lora_b"})),
    "gather": Cut("gather"),
    "vocabulary": Cut("vocabulary", _BY_OUTPUT, frozenset({"lora_a"})),
}
"""What each word of a plan means. An adapter's narrow side is whole: cutting it would cost a gather."""


def cuts_of(model: Decoder) -> Iterator[tuple[nn.Module, Cut]]:
    """Yield each layer that has parameters of its own, with its cut.

    Raises:
        ConfigError: E-PARALLEL: the model's plan says nothing of a layer.
    """
    yield model.model.embed_tokens, CUTS["vocabulary"]
    for name, layer in model.blocks.named_modules():
        if layer._parameters:
            yield layer, CUTS[_style(model, name)]
    yield model.model.norm, CUTS["gather"]
    if model.lm_head is not None:
        yield model.lm_head, CUTS["vocabulary"]


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
    for _ in cuts_of(model):  # a layer without a word in the plan
        pass
    counts = _counts(model)
    rows = model.model.embed_tokens.num_embeddings
    misfits = [
        f"{count} {what} ({', '.join(layers)})"
        for (count, what), layers in counts.items()
        if count % size
    ]
    if (size - 1) * -(-rows // size) >= rows:  # the last process would have none
        misfits.append(f"{rows} token ids")
    if misfits:
        common = math.gcd(*(count for count, _ in counts))
        *fitting, most = (str(n) for n in range(1, common + 1) if common % n == 0)
        raise ConfigError(
            "E-PARALLEL", f"{', '.join(misfits)} do not divide by {size}",
            where="parallel.tensor",
            do=f"use tensor={', '.join(fitting)} or {most}" if fitting else "use tensor=1",
        )  # fmt: skip


def _counts(model: Decoder) -> dict[tuple[int, str], list[str]]:
    """Return of how many heads or features layers are cut, and the last parts of their names."""
    counts: dict[tuple[int, str], list[str]] = {}
    for name, layer in model.blocks.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        parent, _, last = name.rpartition(".")
        head_dim: Any = getattr(model.blocks.get_submodule(parent), "head_dim", None)
        features = layer.out_features if _style(model, name) == "column" else layer.in_features
        key = (features // head_dim, "heads") if head_dim else (features, "features")
        layers = counts.setdefault(key, [])
        layers += [] if last in layers else [last]
    return counts
