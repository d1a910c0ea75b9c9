"""Which files of a checkpoint go to the hub, and those that must be changed for it."""

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from torchtune_integrations.hub.base_model import BaseModel
from torchtune_integrations.hub.card import BADGE, PICTURE
from torchtune_integrations.hub.licence import LEGAL_FILES
from torchtune_integrations.hub.local_paths import is_local_path
from torchtune_integrations.hub.trained_model import TrainedModel

__all__ = ["belongs_to_model", "files_to_push"]

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
TEXTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
OF_MODELS = (
    "config.json", INDEX, "model.safetensors", "model-*-of-*.safetensors", "adapter_model.bin",
    "pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
"""What a loader takes for the model by its name."""

REWRITTEN = ("config.json", "tokenizer_config.json", "adapter_config.json")
"""Files that may tell where on a disk something lay."""


def files_to_push(model: TrainedModel, base: BaseModel) -> dict[str, Path | bytes]:
    """Return what goes up by its name there: a path, or bytes where the file must be changed.

    Weights are safetensors; beside them config, tokenizer, chat template, licence texts, the loss
    picture and the badge. Whatever else lies in the folder stays. The folder is not touched.

    Args:
        model: The checkpoint.
        base: What an adapter's adapter_config.json will name; its licence texts come along.
    """
    names = [*(ADAPTER if model.is_adapter else _weights(model.folder)), *TEXTS]
    found: dict[str, Path | bytes] = {}
    for name in names:
        if (path := model.folder / name).is_file():
            found[name] = _rewritten(path, base) if name in REWRITTEN else path
    for folder in reversed((model.folder, *base.folders[:1])):
        legal = (path for pattern in LEGAL_FILES for path in folder.glob(pattern))
        found |= {path.name: path for path in sorted(legal) if path.is_file()}
    if model.run and (model.run / PICTURE).is_file():
        found[PICTURE] = model.run / PICTURE
    found[BADGE] = package_files(__package__).joinpath(BADGE).read_bytes()
    return found


def belongs_to_model(name: str) -> bool:
    """Whether a file of a repository is a model's weights, or says which they are.

    Those of an earlier push would be loaded in place of, or beside, what a later one brings.
    """
    return any(fnmatch(name, pattern) for pattern in (*ADAPTER, *OF_MODELS))


def _weights(folder: Path) -> list[str]:
    """Return the names of the weight files, those that the index names where there is one."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    named: Mapping[str, str] = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
    return [INDEX, *sorted({Path(name).name for name in named.values()})]


def _rewritten(path: Path, base: BaseModel) -> Path | bytes:
    """Return the file, or, where it names places on this machine, its content without them."""
    said: dict[str, Any] = json.loads(path.read_text("utf-8"))
    kept = {
        key: value
        for key, value in said.items()
        if not (isinstance(value, str) and key.endswith(("path", "file")) and is_local_path(value))
    }
    if path.name == "adapter_config.json":
        kept = {**said, "base_model_name_or_path": base.repo}
    if kept == said:
        return path
    return (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()
