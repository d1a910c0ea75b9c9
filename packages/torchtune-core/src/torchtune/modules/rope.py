"""Rotary position embeddings, half-split as in Hugging Face's checkpoints."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchtune.errors import ConfigError

__all__ = ["Rope", "rope_frequencies", "rotate"]

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each `[*, 1, head_dim]`, for the tokens of one forward."""


def rope_frequencies(
    head_dim: int, base: float, scaling: Mapping[str, Any] | None = None
) -> Callable[[torch.device], Tensor]:
    """Return a function that makes the angular frequencies `[head_dim // 2]`, fp32, on a device.

    Args:
        head_dim: Size of one head; even.
        base: The base of the geometric series (Su et al., 2021: 10,000).
        scaling: As ``rope_scaling`` in a config.json: None, or ``rope_type`` of ``default``,
            ``linear`` (``factor``) or ``llama3`` (Llama 3.1's: ``factor``, ``low_freq_factor``,
            ``high_freq_factor``, ``original_max_position_embeddings``).

    Raises:
        ConfigError: For another kind of scaling, or a missing number.
    """
    scaling = dict(scaling or {})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    needed = {"default": (), "linear": ("factor",), "llama3": LLAMA3_KEYS}
    if kind not in needed:
        raise ConfigError(
            "E-ROPE", f"rope scaling {kind!r} is not supported", where="rope_scaling",
            do=f"supported: {', '.join(needed)}",
        )  # fmt: skip
    if missing := [key for key in needed[kind] if key not in scaling]:
        raise ConfigError("E-ROPE", f"rope scaling {kind!r} needs {missing}", where="rope_scaling")
    if wrong := {key: scaling[key] for key in needed[kind] if not _is_factor(scaling[key])}:
        what = f"rope scaling {kind!r} needs numbers above 0, found {wrong}"
        raise ConfigError("E-ROPE", what, where="rope_scaling")

    def frequencies(device: torch.device) -> Tensor:
        steps = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float()
        inverse = 1.0 / (base ** (steps / head_dim))
        if kind == "linear":
            return inverse / scaling["factor"]
        return _llama3(inverse, scaling) if kind == "llama3" else inverse

    return frequencies


def _is_factor(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _llama3(inverse: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Stretch low frequencies by `factor`, keep high ones, blend between (Llama 3.1's release)."""
    factor, low, high, original = (scaling[key] for key in LLAMA3_KEYS)
    wavelength = 2 * math.pi / inverse
    blend = (original / wavelength - low) / (high - low)
    blended = (1 - blend) * inverse / factor + blend * inverse
    stretched = torch.where(wavelength > original / low, inverse / factor, blended)
    return torch.where(wavelength < original / high, inverse, stretched)


class Rope(nn.Module):
    """Angles from positions, computed in each forward: nothing is kept that could be left unfilled.

    Args:
        head_dim: Size of one head.
        base: See `rope_frequencies`.
        scaling: See `rope_frequencies`.
    """

    def __init__(
        self, head_dim: int, *, base: float = 10_000.0, scaling: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.frequencies = rope_frequencies(head_dim, base, scaling)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Return cosines and signed sines `[*, 1, head_dim]` in `dtype` for integer `positions [*]`.

        The sines of the first half carry the minus sign of the rotation.
        """
        angles = positions.unsqueeze(-1).float() * self.frequencies(positions.device)
        cos, sin = angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Return `x [*, heads, head_dim]` with each pair (i, i + head_dim / 2) turned by `rotation`."""
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
