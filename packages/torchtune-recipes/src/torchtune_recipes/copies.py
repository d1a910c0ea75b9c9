"""Copies of shipped files: the line that says where each came from, and the text that it had then.

A copy's header names package, version, file and the sha256 of the text. The text itself is kept
under that sum in the user's cache folder, so that what was changed can be told from what came with
a later version, without a network.
"""

import difflib
import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from torchtune_recipes import catalog

__all__ = [
    "Origin",
    "copy_of",
    "differences",
    "is_original",
    "kept_text",
    "origin_of",
    "shipped_today",
]

HEADER = re.compile(r"# Copied from (\S+) (\S+): (\S+?)(?: \(sha256 ([0-9a-f]{16})\))?\s*$")


class Origin(NamedTuple):
    """Where a copy came from.

    Args:
        package: The package that shipped the file.
        version: That package's version.
        file: The file's place in it, such as ``recipes/sft.py``.
        digest: The first 16 digits of the text's sha256; empty where the header has none.
    """

    package: str
    version: str
    file: str
    digest: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}: {self.file}"


def copy_of(entry: catalog.Entry) -> str:
    """Return the text of a copy of a shipped file, and keep the text that it is a copy of.

    An editor finds the schema of a copied config by its absolute address, as the relative one of
    the shipped file would lead nowhere.
    """
    text = entry.path.read_text(encoding="utf-8")
    digest = _digest(text)
    _keep(text, digest)
    head = f"# Copied from {entry.package}: {entry.file} (sha256 {digest})\n"
    return head + _with_absolute_schema(text, entry.path.parent)


def origin_of(text: str) -> Origin | None:
    """Return where a text says that it was copied from, None where it does not say."""
    found = next(filter(None, map(HEADER.match, text.splitlines()[:5])), None)
    return Origin(*(part or "" for part in found.groups())) if found else None


def shipped_today(origin: Origin) -> catalog.Entry | None:
    """Return the file as its package ships it today, None where it does so no longer."""
    entries = (e for e in catalog.entries() if e.package.split()[0] == origin.package)
    return next((entry for entry in entries if entry.file == origin.file), None)


def kept_text(origin: Origin) -> str | None:
    """Return the text that was copied: today's if it is still the same, else the one kept then."""
    today = shipped_today(origin)
    if today is not None:
        text = today.path.read_text(encoding="utf-8")
        same = today.package == f"{origin.package} {origin.version}"
        if is_original(text, origin) if origin.digest else same:
            return text
    kept = _folder() / origin.digest
    if not origin.digest or not kept.is_file():
        return None
    text = kept.read_text(encoding="utf-8")
    return text if is_original(text, origin) else None


def is_original(text: str, origin: Origin) -> bool:
    """Say whether this is the very text that was copied, as far as the copy's header tells."""
    return origin.digest in ("", _digest(text))


def differences(old: str, new: str, old_name: str, new_name: str) -> list[str]:
    """Return the lines of a unified diff without what copying wrote; numbers are those of `new`.

    Each line ends in a line break. Without a difference there is no line.
    """
    marks, body = _split(new)
    lines = difflib.unified_diff(marks + _split(old)[1], marks + body, old_name, new_name)
    last = "\n\\ No newline at end of file\n"
    return [line if line.endswith("\n") else line + last for line in lines]


def _split(text: str) -> tuple[list[str], list[str]]:
    """Return the lines that copying wrote (header, schema) and all others, ends of lines kept."""
    lines = text.splitlines(keepends=True)
    marks = [n for n, line in enumerate(lines[:5]) if _is_mark(line)]
    return [lines[n] for n in marks], [line for n, line in enumerate(lines) if n not in marks]


def _is_mark(line: str) -> bool:
    return bool(HEADER.match(line)) or line.startswith(catalog.MODELINE)


def _with_absolute_schema(text: str, folder: Path) -> str:
    first, end, rest = text.partition("\n")
    if not first.startswith(catalog.MODELINE):
        return text
    schema = folder / first.removeprefix(catalog.MODELINE).strip()
    return f"{catalog.MODELINE}{schema.resolve().as_uri()}{end}{rest}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "torchtune" / "originals"


def _keep(text: str, digest: str) -> None:
    """Write the text into the cache; without one `tune diff` asks for the text where it needs it."""
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        (_folder() / digest).write_text(text, encoding="utf-8")
    except (OSError, RuntimeError):  # a home that is read-only, or none at all
        pass
