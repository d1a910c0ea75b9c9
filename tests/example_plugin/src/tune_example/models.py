"""A family of its own: a Llama whose feed-forward layers are ungated and square their ReLU."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.errors import ConfigError
from torchtune.modules import Attention, Block, Decoder, RMSNorm, Rope

KEYS = (
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "intermediate_size",
)


class SquaredReLU(nn.Module):
    """`down(relu(up(x))²)` (So et al., 2021)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., dim]` to `[..., dim]`."""
        return self.down_proj(F.relu(self.up_proj(x)).square())


def from_hf_config(config: Mapping[str, Any], *, where: str = "config.json") -> Decoder:
    """Build the decoder that a config.json of ``"model_type": "relu2"`` describes.

    Args:
        config: The file's content.
        where: The file's name for error messages.

    Raises:
        ConfigError: A key is missing.
    """
    if missing := [key for key in KEYS if key not in config]:
        raise ConfigError("E-MODEL-CONFIG", f"keys are missing: {', '.join(missing)}", where=where)
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    blocks = [
        Block(
            attention=Attention(dim, heads=heads, kv_heads=heads, head_dim=dim // heads),
            mlp=SquaredReLU(dim, config["intermediate_size"]),
            attention_norm=RMSNorm(dim),
            mlp_norm=RMSNorm(dim),
        )
        for _ in range(config["num_hidden_layers"])
    ]
    return Decoder(
        vocab_size=config["vocab_size"],
        dim=dim,
        blocks=blocks,
        norm=RMSNorm(dim),
        rope=Rope(dim // heads),
        tied=False,
        max_positions=config.get("max_position_embeddings", 2048),
        hf_config=dict(config),
    )


def relu2_tiny(vocab_size: int = 512) -> Decoder:
    """Build a small one with random weights, for a run without a checkpoint's config.json."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    sizes |= {"intermediate_size": 128, "vocab_size": vocab_size, "max_position_embeddings": 256}
    return from_hf_config({"model_type": "relu2", "architectures": ["ReLU2ForCausalLM"], **sizes})
