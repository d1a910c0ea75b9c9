"""A record of what a run ran on."""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchtune.config import resolved_yaml
from torchtune.data import is_remote, local_copy

__all__ = ["data_digests", "file_digest", "record_run"]

PACKAGES = ("torchtune-core", "torchtune-recipes", "torch", "tokenizers", "safetensors", "datasets")


def record_run(folder: str | Path, params: Any, *, base_sha256: str | None) -> None:
    """Write `config.yaml`, and `environment.json` with versions, machine, git commit, digests.

    Args:
        folder: The run's output folder.
        params: The recipe's Params; the local files of its datasets are digested.
        base_sha256: Of the weights that the run begins with; None where there are none.
    """
    datasets = (getattr(params, key, None) for key in ("dataset", "dataset_val"))
    record = {
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "devices": _devices(),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "base": {"path": getattr(params, "checkpoint", None), "sha256": base_sha256},
        "data": data_digests(*datasets),
    }
    text = json.dumps(record, indent=2) + "\n"
    Path(folder, "environment.json").write_text(text, encoding="utf-8")
    Path(folder, "config.yaml").write_text(resolved_yaml(params), encoding="utf-8")


def file_digest(path: str | Path) -> str | None:
    """Return the sha256 of the file `path`, or over a folder's sorted files; None if there is none."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def data_digests(*datasets: Any) -> dict[str, str | None]:
    """Return the sha256 of the local files that dataset components read, by their `source`.

    Args:
        *datasets: Components as a recipe's Params hold them; None where there is none.
    """
    found = [dataset.get("source") for dataset in datasets if isinstance(dataset, Mapping)]
    listed = [s for source in found for s in (source if isinstance(source, list) else [source])]
    places = {str(s): local_copy(s) if is_remote(s) else Path(s) for s in listed if s}
    return {name: file_digest(place) for name, place in places.items() if place.exists()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [platform.processor() or platform.machine()]


def _git_commit() -> str | None:
    """Return the commit of the current folder's repository, where there is one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
