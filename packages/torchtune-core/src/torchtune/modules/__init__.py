"""Layers: each takes numbers and parts, and can be used alone."""

from torchtune.modules.attention import Attend, Attention, dense_attention
from torchtune.modules.decoder import Block, Cache, Decoder, FlatRow, TokenLoss
from torchtune.modules.flat_attention import FlatAttention, flat_attention
from torchtune.modules.linear import OutputLinear
from torchtune.modules.mlp import SwiGLU
from torchtune.modules.norm import RMSNorm
from torchtune.modules.rope import Rope, rope_frequencies, rotate

__all__ = [
    "Attend",
    "Attention",
    "Block",
    "Cache",
    "Decoder",
    "FlatAttention",
    "FlatRow",
    "OutputLinear",
    "RMSNorm",
    "Rope",
    "SwiGLU",
    "TokenLoss",
    "dense_attention",
    "flat_attention",
    "rope_frequencies",
    "rotate",
]
