"""A Llama model's tensors by the names, in the order of rows and in the types that llama.cpp wants."""

from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torchtune.checkpoint import Weights
from torchtune.errors import ConfigError
from torchtune.modules import Decoder, rope_frequencies

from torchtune_integrations.gguf.sizes import head_dim, rope_kind

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

__all__ = ["add_tensors", "write_tensors"]


class Part(NamedTuple):
    """One tensor of the file.

    Args:
        name: GGUF's name of it.
        shape: Its sizes, the rows first.
        kind: The type of its values in the file.
        read: Gives its values.
    """

    name: str
    shape: tuple[int, ...]
    kind: "GGMLQuantizationType"
    read: Callable[[], Tensor]


def add_tensors(writer: "GGUFWriter", model: Decoder, weights: Weights, kind: str) -> list[Part]:
    """Name all tensors with their shapes in the file's header; return them for `write_tensors`.

    Args:
        writer: The file, not yet opened.
        model: The model, on the meta device.
        weights: Its values.
        kind: What matrices are written as, by GGUF's name.
    """
    import numpy as np
    from gguf.quants import quant_shape_to_byte_shape

    parts = [*_rope(model), *_weights(model, weights, kind)]
    for part in parts:
        # told as bytes, which is what a type of blocks is; the writer counts back the elements
        stored = quant_shape_to_byte_shape(part.shape, part.kind)
        writer.add_tensor_info(part.name, stored, np.dtype(np.uint8), prod(stored), part.kind)
    return parts


def write_tensors(writer: "GGUFWriter", parts: list[Part]) -> None:
    """Write the values behind the header, one tensor at a time."""
    from gguf.quants import quantize

    for part in parts:
        writer.write_tensor_data(quantize(part.read().float().contiguous().numpy(), part.kind))


def _rope(model: Decoder) -> Iterator[Part]:
    """Give the factors by which Llama 3.1 stretches each frequency, as llama.cpp reads them."""
    from gguf import GGMLQuantizationType

    said = model.hf_config
    if rope_kind(said) != "llama3":
        return
    size, base = head_dim(said), said["rope_theta"]
    plain, stretched = (
        rope_frequencies(size, base, scaling)(torch.device("cpu"))
        for scaling in (None, said["rope_scaling"])
    )
    yield Part(
        "rope_freqs.weight", (size // 2,), GGMLQuantizationType.F32, lambda: plain / stretched
    )


def _weights(model: Decoder, weights: Weights, kind: str) -> Iterator[Part]:
    from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, model.hf_config["num_hidden_layers"])
    for ours, parameter in model.state_dict().items():
        name = names.get_name(ours, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ConfigError("E-GGUF", f"GGUF has no name for {ours}", where="checkpoint")
        shape = tuple(parameter.shape)
        wanted = kind if len(shape) > 1 else "F32"  # llama.cpp keeps norms and biases in fp32
        if wanted == "Q8_0" and shape[-1] % 32:
            wanted = "F16"
        yield Part(name, shape, GGMLQuantizationType[wanted], _reader(ours, model, weights))


def _reader(name: str, model: Decoder, weights: Weights) -> Callable[[], Tensor]:
    heads = model.hf_config["num_attention_heads"]
    if ".k_proj." in name:
        heads = model.hf_config.get("num_key_value_heads") or heads
    if ".q_proj." in name or ".k_proj." in name:
        return lambda: _interleaved(weights[name], heads)
    return lambda: weights[name]


def _interleaved(rows: Tensor, heads: int) -> Tensor:
    """Reorder the outputs of each head from (i, i + half) pairs, our RoPE's, to neighbours."""
    halves = rows.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)
