"""Which files that a config names are not on this machine."""

import glob
from dataclasses import fields, is_dataclass
from typing import Any

from torchtune.config.dataset import exists, looks_like_path
from torchtune.errors import MissingError, TuneError

__all__ = ["lacks_files"]

PATH_KEYS = ("checkpoint", "source", "path", "chat_template", "tokenizer_path", "base")


def lacks_files(params: object) -> list[TuneError]:
    """Return the files and folders that `params`, a dataclass, name and this machine has not."""
    faults: list[TuneError] = []
    for field in fields(params):  # type: ignore[arg-type]
        faults += _absent(field.name, getattr(params, field.name))
    return faults


def _exists(path: str) -> bool:
    if "://" in path:
        return True  # on another machine: found out where it is read
    if "*" not in path:
        return exists(path)
    return bool(glob.glob(path, recursive=True))  # noqa: PTH207 - it may be absolute


def _absent(key: str, value: Any) -> list[TuneError]:
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return [fault for name, item in value.items() for fault in _absent(f"{key}.{name}", item)]
    if isinstance(value, list):
        return [fault for i, item in enumerate(value) for fault in _absent(f"{key}[{i}]", item)]
    last = key.split(".")[-1].split("[")[0]
    if not isinstance(value, str) or last not in PATH_KEYS or _exists(value):
        return []
    if last != "checkpoint" and not looks_like_path(value):
        return []  # a hub id, or the name of a built-in template
    return [MissingError("E-FILE", f"'{value}' is not on this machine", where=key)]
