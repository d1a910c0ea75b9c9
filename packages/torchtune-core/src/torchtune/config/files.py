"""Which files that a config names are not on this machine."""

from pathlib import Path
from typing import Any

from torchtune.config.dataset import looks_like_path
from torchtune.errors import MissingError, TuneError

__all__ = ["lacks_files"]

PATH_KEYS = ("checkpoint", "source", "path", "chat_template", "tokenizer_path", "base")


def lacks_files(params: object) -> list[TuneError]:
    """Return the files and folders that `params` name and that are not on this machine."""
    faults: list[TuneError] = []
    for name, value in vars(params).items():
        faults += _absent(name, value)
    return faults


def _absent(key: str, value: Any) -> list[TuneError]:
    if isinstance(value, dict):
        return [fault for name, item in value.items() for fault in _absent(f"{key}.{name}", item)]
    if isinstance(value, list):
        return [fault for i, item in enumerate(value) for fault in _absent(f"{key}[{i}]", item)]
    last = key.split(".")[-1].split("[")[0]
    if not isinstance(value, str) or last not in PATH_KEYS or Path(value).expanduser().exists():
        return []
    if last != "checkpoint" and not looks_like_path(value):
        return []  # a hub id, or the name of a built-in template
    return [MissingError("E-FILE", f"'{value}' is not on this machine", where=key)]
