"""What a model's or an adapter's files hold, by their headers, and whether anything is missing."""

import json
from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from torchtune.checkpoint.adapter import ADAPTER_FILE, check_adapter
from torchtune.checkpoint.found import find_checkpoint, read_adapter_config, run_info
from torchtune.checkpoint.hub_download import hub_source
from torchtune.checkpoint.manifest import MANIFEST, read_manifest
from torchtune.checkpoint.merging import MERGED_FROM
from torchtune.checkpoint.model import check_model
from torchtune.checkpoint.safetensors_file import DTYPES, read_header
from torchtune.checkpoint.weights import read_weights, weight_files
from torchtune.errors import Faults, TuneError

__all__ = ["describe_adapter", "describe_files", "describe_model", "problem"]

_SIZES = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "width": "hidden_size",
    "inner": "intermediate_size",
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
}


def describe_model(folder: Path) -> dict[str, Any]:
    """Return what a model's folder is, its tokenizer apart."""
    problems = _manifest_problems(folder)
    config = _json(folder / "config.json", problems)
    weights = _weights(folder, problems)
    supported = _is_supported(config)
    if not problems:
        problems += _mismatch(folder) if supported else _unreadable(folder)
    return {
        "kind": "model",
        "architecture": (config.get("architectures") or [None])[0],
        "model_type": config.get("model_type"),
        "supported": supported,
        "sizes": {name: config[key] for name, key in _SIZES.items() if config.get(key)},
        "tied": bool(config.get("tie_word_embeddings", False)),
        "rope_scaling": _rope(config),
        "weights": weights,
        "problems": problems,
        **_origin(folder),
    }


def describe_adapter(folder: Path) -> dict[str, Any]:
    """Return what an adapter's folder is: its numbers, its targets, its base and whether that is there.

    Raises:
        ConfigError: adapter_config.json is no JSON.
    """
    problems = _manifest_problems(folder)
    said = read_adapter_config(folder)
    base = _base(folder)
    weights, found = describe_files([folder / ADAPTER_FILE])
    problems += found
    if not problems and base is not None:
        problems += _adapter_mismatch(folder, base, said)
    return {
        "kind": "adapter",
        "method": said.get("peft_type"),
        "rank": said.get("r"),
        "alpha": said.get("lora_alpha"),
        "rslora": bool(said.get("use_rslora")),
        "dropout": said.get("lora_dropout"),
        "targets": said.get("target_modules"),
        "base": {"said": said.get("base_model_name_or_path"), "found": base and str(base)},
        "weights": weights,
        "problems": problems,
        **_origin(folder),
    }


def describe_files(files: Sequence[Path]) -> tuple[dict[str, Any], list[str]]:
    """Return what safetensors files hold, and what is wrong with them; only headers are read."""
    problems: list[str] = []
    kinds: Counter[str] = Counter()
    tensors = 0
    for path in files:
        try:
            entries = read_header(path).entries
        except TuneError as error:
            problems.append(error.what)
            continue
        tensors += len(entries)
        for entry in entries.values():
            kind = DTYPES.get(entry.dtype)
            kinds[str(kind).removeprefix("torch.") if kind else entry.dtype] += prod(entry.shape)
    sizes = {path.name: path.stat().st_size for path in files if path.is_file()}
    facts = {
        "parameters": sum(kinds.values()),
        "dtypes": dict(kinds.most_common()),
        "tensors": tensors,
        "files": sizes,
    }
    return facts, problems


def problem(error: TuneError) -> list[str]:
    """Return what an error says was found, or each of several, without codes and advice."""
    return [fault.what for fault in error.faults] if isinstance(error, Faults) else [error.what]


def _weights(folder: Path, problems: list[str]) -> dict[str, Any]:
    try:
        files = weight_files(folder)
    except TuneError as error:
        problems += problem(error)
        files = sorted(folder.glob("model*.safetensors"))
    facts, found = describe_files(files)
    problems += found
    return facts


def _is_supported(config: dict[str, Any]) -> bool:
    from torchtune.models import families

    return config.get("model_type") in families()


def _mismatch(folder: Path) -> list[str]:
    """Compare names and shapes in the files with those of the model that config.json describes."""
    from torchtune.models import auto

    try:
        with torch.device("meta"):
            model = auto(folder)
        check_model(model, folder)
    except TuneError as error:
        return problem(error)
    return []


def _unreadable(folder: Path) -> list[str]:
    try:
        read_weights(folder)
    except TuneError as error:
        return problem(error)
    return []


def _adapter_mismatch(folder: Path, base: Path, said: dict[str, Any]) -> list[str]:
    from torchtune.models import auto
    from torchtune.peft import adapter_names, lora_from_config

    try:
        with torch.device("meta"):
            model = lora_from_config(auto(base), said)
        check_adapter(model, folder, names=adapter_names(model))
    except TuneError as error:
        return problem(error)
    return []


def _base(folder: Path) -> Path | None:
    try:
        return find_checkpoint(folder, check_base=False).base
    except TuneError:
        return None


def _rope(config: dict[str, Any]) -> str | None:
    said = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = said.get("rope_type", said.get("type"))
    return None if kind == "default" else kind


def _origin(folder: Path) -> dict[str, Any]:
    """Return where a folder comes from: the hub, a step of a run, a merge."""
    found = {"hub": hub_source(folder), "merged": _json(folder / MERGED_FROM, [])}
    try:
        info = run_info(folder)
    except TuneError:
        info = {}
    kept = {key: info[key] for key in ("progress", "date", "base_sha256") if key in info}
    return {name: value for name, value in {**found, "run": kept}.items() if value}


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        problems.append(f"there is no {path.name}")
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        problems.append(f"{path.name} is not a JSON object: {error}")
        return {}


def _manifest_problems(folder: Path) -> list[str]:
    """Say which files are not as a step folder's manifest has them, by size."""
    if not (folder / MANIFEST).is_file() or read_manifest(folder) is not None:
        return []
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        wanted = {name: int(digest["size"]) for name, digest in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST} is damaged"]
    there = {name: (folder / name).stat().st_size for name in wanted if (folder / name).is_file()}
    absent = [f"{name} is absent, which {MANIFEST} names" for name in wanted if name not in there]
    cut = [
        f"{name} has {there[name]:,} bytes, {MANIFEST} says {size:,}"
        for name, size in wanted.items()
        if there.get(name, size) != size
    ]
    return absent + cut
