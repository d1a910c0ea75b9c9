"""A model from a checkpoint folder's own config.json."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchtune.config import allowed_names, locate
from torchtune.errors import ConfigError, MissingError
from torchtune.models import llama
from torchtune.modules import Decoder

__all__ = ["auto", "config_digest", "families", "from_pretrained"]

FAMILIES = {"llama": llama.from_hf_config}
"""`model_type` of a config.json to the function that builds its model."""

SLOT = "family"

LABELS = frozenset(
    {
        *("architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype"),
        *("use_cache", "initializer_range", "pretraining_tp"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),  # a tokenizer's own files say which
    }
)
"""Keys of a config.json that a model's numbers do not hang on."""


def auto(checkpoint: str | Path) -> Decoder:
    """Build the model that a checkpoint's config.json describes, without reading its weights.

    Args:
        checkpoint: A folder in Hugging Face's format.

    Raises:
        MissingError: There is no such folder or config.json.
        ConfigError: The architecture is not supported, or the file is not valid.
    """
    path = Path(checkpoint).expanduser() / "config.json"
    config = _read(path)
    kind = config.get("model_type")
    if kind not in families():
        raise ConfigError(
            "E-MODEL-UNKNOWN", f"architecture {kind!r} is not supported", where=str(path),
            do=f"supported model_type: {', '.join(families())}",
        )  # fmt: skip
    build = FAMILIES[kind] if kind in FAMILIES else locate(SLOT, kind)
    return build(config, where=str(path))


def families() -> list[str]:
    """Return each `model_type` that `auto` builds: those here, and those of installed plug-ins.

    A plug-in's is an entry point ``family.<model_type>`` of the group ``torchtune.components``: a
    function ``(config, *, where) -> Decoder`` of the config.json's content and its name in errors.
    """
    return [*FAMILIES, *(name for name in allowed_names(SLOT) if name not in FAMILIES)]


def config_digest(config: Mapping[str, Any]) -> str:
    """Return a sha256 over what of a config.json makes a model compute as it does, as hexadecimal.

    Args:
        config: The content (`Decoder.hf_config`). Which program wrote it, the dtype and token ids do
            not count.
    """
    kept = {key: value for key, value in config.items() if key not in LABELS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def from_pretrained(
    checkpoint: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
) -> Decoder:
    """Load a model with its weights; `from_pretrained(dir)(tokens)` gives logits `[batch, seq, vocab]`.

    Args:
        checkpoint: A folder in Hugging Face's format, with safetensors weights.
        dtype: The dtype of the weights in memory; bf16 halves the memory of fp32.
        device: Where they go.

    Raises:
        MissingError: A file or a tensor is missing or cut.
        ConfigError: The architecture is not supported, or tensors do not fit it.
    """
    from torchtune.checkpoint import load_model  # the one arrow that points down

    with torch.device("meta"):
        model = auto(checkpoint)
    model = model.to(dtype).to_empty(device=device)
    load_model(model, checkpoint)
    return model.eval()


def _instead(path: Path) -> str:
    latest = path.parent / "latest"
    if latest.exists():
        return f"that is a run's folder; its newest checkpoint is {latest}"
    return "give a folder in Hugging Face's format: config.json, safetensors, tokenizer"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingError(
            "E-CHECKPOINT-MISSING", "no such checkpoint file", where=str(path), do=_instead(path),
        )  # fmt: skip
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError("E-MODEL-CONFIG", f"not valid JSON: {error}", where=str(path)) from error
    if not isinstance(found, dict):
        what = f"a JSON object is wanted, found {str(found)[:60]}"
        raise ConfigError("E-MODEL-CONFIG", what, where=str(path))
    return found
