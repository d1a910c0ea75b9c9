"""What a text tells of the machine it was written on, taken out of it."""

import re
from typing import Any

__all__ = ["is_local_path", "without_local_paths"]

_BEGINS = r"(?:file://)?(?:~[\w.-]*[\\/]|[A-Za-z]:[\\/]|\\\\|/(?!/)|(?:\.\.[\\/])+)"
_WHOLE = re.compile(_BEGINS + r"[^\n]*")
# inside a longer text a path begins after a blank, a quote or a sign, and ends at the next
_INSIDE = re.compile(r"(?<![^\s'\"=:,(\[])" + _BEGINS + r"[^\s'\",)\]]+")
_HOME = re.compile(r"(?:[A-Za-z]:)?[\\/](?:home|Users)[\\/][^\\/]+[\\/]?|/root/?|~[^\\/]*[\\/]?")


def is_local_path(text: str) -> bool:
    """Whether `text` is a path that means something on one machine alone."""
    return _WHOLE.fullmatch(text) is not None


def without_local_paths(value: Any) -> Any:
    """Return `value` with the last part alone of each path that is absolute or leads outside.

    Args:
        value: JSON or YAML values; paths inside longer texts are found too.
    """
    if isinstance(value, dict):
        return {_shortened(key): without_local_paths(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [without_local_paths(inside) for inside in value]
    return _shortened(value)


def _shortened(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if is_local_path(value):
        return _last_part(value)
    return _INSIDE.sub(lambda found: _last_part(found[0]), value)


def _last_part(path: str) -> str:
    path = path.removeprefix("file://")
    if _HOME.fullmatch(path):
        return "~"  # the last part would be somebody's name
    parts = [part for part in re.split(r"[\\/]", path) if part not in ("", "..", ".")]
    return parts[-1] if parts else "."
