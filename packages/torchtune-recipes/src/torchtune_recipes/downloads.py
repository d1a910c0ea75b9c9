"""What to do with a model that has just been downloaded."""

import re
import shlex
from pathlib import Path

from torchtune_recipes import catalog

__all__ = ["what_next"]


def what_next(folder: Path) -> str:
    """Return the line with the command that a user types next, or what there is to know first.

    For a model that a shipped config reads, that config, an adapter's rather than full training;
    for another the shortest run; for an adapter the download of its base, or a question to it.
    """
    if (folder / "adapter_config.json").is_file():
        return _for_adapter(folder)
    if not (folder / "config.json").is_file():
        return f"next: tune inspect {_quoted(folder)}"
    return _why_not(folder) or f"next: {_with_config(folder) or _shortest(folder)}"


def _for_adapter(folder: Path) -> str:
    from torchtune.checkpoint import find_checkpoint, read_adapter_config
    from torchtune.errors import MissingError

    try:
        find_checkpoint(folder, check_base=False)
    except MissingError:
        base = str(read_adapter_config(folder).get("base_model_name_or_path"))
        if base.count("/") == 1 and not base.startswith((".", "/", "~")):
            return f"next: tune download {base}  # the model that this adapter is for"
        return f"this adapter is for the model {base}: name its folder with --base DIR"
    return f'next: tune generate --checkpoint {_quoted(folder)} --prompt "Name three rivers."'


def _why_not(folder: Path) -> str:
    """Say why the model cannot be trained, or nothing if it can."""
    import torch
    from torchtune.errors import ConfigError
    from torchtune.models import auto

    try:
        with torch.device("meta"):
            auto(folder)
    except ConfigError as error:
        return f"nothing here trains this model: {error.what} ({error.do})"
    return ""


def _with_config(folder: Path) -> str:
    """Return the command in the header of a shipped config for this model, if there is one."""
    found = []
    for entry in catalog.entries("config"):
        text = entry.path.read_text(encoding="utf-8")
        reads = re.search(r"^checkpoint: *(\S+)", text, re.M)
        command = re.search(r"^# +(tune run .+)$", text, re.M)
        if reads and command and Path(reads[1]).name == folder.absolute().name:
            there = Path(reads[1]).absolute() == folder.absolute()
            found.append(command[1] + ("" if there else f" --checkpoint {_quoted(folder)}"))
    lora = [command for command in found if "lora" in command]
    return next(iter(lora + found), "")


def _shortest(folder: Path) -> str:
    return f"tune run sft --checkpoint {_quoted(folder)} --dataset ./my.jsonl peft=lora"


def _quoted(folder: Path) -> str:
    """Return the folder as a shell takes it, and as a path: with ``./`` before a plain name."""
    plain = not folder.is_absolute() and folder.parts[:1] not in [(".",), ("..",)]
    return shlex.quote(f"./{folder.as_posix()}" if plain else str(folder))
