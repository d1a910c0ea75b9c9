"""What is at a path: a model, an adapter, a tokenizer, a data set, a run, a file of weights, a config."""

import json
from pathlib import Path
from typing import Any

from torchtune.checkpoint.adapter import ADAPTER_CONFIG
from torchtune.checkpoint.manifest import STEP_FOLDER, latest_step, read_manifest
from torchtune.checkpoint.weight_description import (
    describe_adapter,
    describe_files,
    describe_model,
    problem,
)
from torchtune.checkpoint.weights import INDEX_FILE, WEIGHTS_FILE
from torchtune.data.description import describe_rows, describe_tokenizer
from torchtune.errors import ConfigError, MissingError, TuneError

__all__ = ["describe"]

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_OF_A_FOLDER = {"config.json", INDEX_FILE, ADAPTER_CONFIG, "tokenizer_config.json", *_TOKENIZERS}
_DATA = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz")
_LOOKED_FOR = (
    "config.json or model.safetensors (a model), adapter_config.json (an adapter), tokenizer.json "
    "or tokenizer.model, a run's step folders, rows (JSON, JSONL, CSV, Parquet, Arrow, text), "
    "a .safetensors file, a config (.yaml)"
)


def describe(path: str | Path) -> dict[str, Any]:
    """Return what is at `path`, as JSON can hold it, by reading headers and small files alone.

    Every report has ``kind`` (``model``, ``adapter``, ``tokenizer``, ``dataset``, ``run``,
    ``safetensors`` or ``config``), ``path``, and ``problems``: what is missing, damaged or does not
    fit, in words; empty where the thing is whole. Contents of tensors are not looked at.

    Args:
        path: A file or folder. A file of a checkpoint's folder, such as config.json, means the folder.

    Raises:
        MissingError: E-FILE-MISSING; there is nothing.
        ConfigError: E-INSPECT; it is none of these, and what was looked for.
    """
    given = Path(path).expanduser()
    if not given.exists():
        raise MissingError("E-FILE-MISSING", f"there is no file or folder {str(path)!r}")
    place = given.parent if given.name in _OF_A_FOLDER else given
    report = _describe_file(place) if place.is_file() else _describe_folder(place)
    return {"kind": report.pop("kind"), "path": str(path), "problems": [], **report}


def _describe_file(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        facts, problems = describe_files([path])
        return {"kind": "safetensors", "weights": facts, "problems": problems}
    if path.suffix in (".yaml", ".yml"):
        return _describe_config(path)
    if path.suffix in _DATA:
        return _describe_dataset(path)
    raise _unknown(path)


def _describe_folder(folder: Path) -> dict[str, Any]:
    if _is_run(folder):
        return _describe_run(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        return describe_adapter(folder) | _tokenizer(folder)
    if any((folder / name).is_file() for name in ("config.json", WEIGHTS_FILE, INDEX_FILE)):
        return _with_tokenizer(describe_model(folder), folder)
    if any((folder / name).is_file() for name in _TOKENIZERS):
        return {"kind": "tokenizer", **describe_tokenizer(folder)}
    if any(path.suffix in _DATA for deep in ("*", "*/*") for path in folder.glob(deep)):
        return _describe_dataset(folder)
    raise _unknown(folder)


def _is_run(folder: Path) -> bool:
    steps = any(STEP_FOLDER.fullmatch(path.name) for path in folder.glob("step_*"))
    return steps or all((folder / name).is_file() for name in ("config.yaml", "environment.json"))


def _with_tokenizer(report: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Add the tokenizer to a model's report, and what of it does not fit the model."""
    found = _tokenizer(folder)
    report["problems"] += found.pop("problems", [])
    ids = (found["tokenizer"] or {}).get("vocabulary", 0)
    rows = report["sizes"].get("vocabulary", ids)
    if isinstance(rows, int) and ids > rows:
        report["problems"].append(f"the tokenizer has {ids:,} ids, the model {rows:,}")
    return report | found


def _tokenizer(folder: Path) -> dict[str, Any]:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return {"tokenizer": None}
    try:
        return {"tokenizer": describe_tokenizer(folder)}
    except TuneError as error:
        return {"tokenizer": None, "problems": problem(error)}


def _describe_dataset(path: Path) -> dict[str, Any]:
    return {"kind": "dataset", **describe_rows(path)}


def _describe_config(path: Path) -> dict[str, Any]:
    lines = path.read_text(encoding="utf-8").splitlines()
    said = (line.lstrip("# ") for line in lines if line.startswith("#") and "$schema" not in line)
    keys, problems = _yaml(path)
    return {"kind": "config", "about": next(said, None), "keys": keys, "problems": problems}


def _yaml(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the keys of a config, interpolations as they stand, and why it cannot be read."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        plain = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, ValueError, OSError) as error:
        return {}, [f"{path.name} is not YAML: {' '.join(str(error).split())}"]
    if not isinstance(plain, dict):
        return {}, [f"{path.name} is a list, and a config is keys with values"]
    return {str(key): value for key, value in plain.items()}, []


def _describe_run(folder: Path) -> dict[str, Any]:
    steps = sorted(path for path in folder.glob("step_*") if STEP_FOLDER.fullmatch(path.name))
    newest = latest_step(folder)
    lines = _metrics(folder / "metrics.jsonl")
    config, broken = _yaml(folder / "config.yaml")
    latest = describe(newest) if newest else None
    broken += [f"{path.name} is not whole" for path in steps if read_manifest(path) is None]
    return {
        "kind": "run",
        "steps": {path.name: read_manifest(path) is not None for path in steps},
        "last": next((line for line in reversed(lines) if "loss" in line), None),
        "validations": [line for line in lines if "val_loss" in line],
        "config": config,
        "latest": latest,
        "problems": broken + (latest["problems"] if latest else []),
    }


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics; a kill may have left the last one half written."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def _unknown(path: Path) -> ConfigError:
    what = f"{path.name!r} is nothing that torchtune reads"
    return ConfigError("E-INSPECT", what, where=str(path), do=f"looked for: {_LOOKED_FOR}")
