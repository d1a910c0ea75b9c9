"""A Llama model's sizes as GGUF's keys."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["add_sizes", "head_dim", "rope_kind"]


def add_sizes(writer: "GGUFWriter", config: Mapping[str, Any]) -> None:
    """Write what a Llama config.json says of sizes, norms and positions."""
    from gguf import RopeScalingType

    heads = config["num_attention_heads"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps") or 1e-6)
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(config.get("rope_theta") or 10_000.0)
    if rope_kind(config) == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])


def head_dim(config: Mapping[str, Any]) -> int:
    """Return the size of one head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rope_kind(config: Mapping[str, Any]) -> str:
    """Return how RoPE's frequencies are scaled: ``default``, ``linear`` or ``llama3``."""
    scaling = config.get("rope_scaling") or {}
    return str(scaling.get("rope_type", scaling.get("type", "default")))
