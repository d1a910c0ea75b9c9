"""The lines of a run's metrics up to the step that it goes on from."""

import json
import os
from pathlib import Path

__all__ = ["cut_lines"]


def cut_lines(path: str | os.PathLike[str], step: int) -> None:
    """Cut the JSON lines of `path` after the last that belongs to `step` or before.

    What stays, stays byte for byte. A line that a kill left half written goes too. An absent file
    is left absent.

    Args:
        path: A file of JSON objects, one a line, each with ``step`` as an integer, ascending.
        step: The step of the checkpoint; 0 empties the file.
    """
    path = Path(path)
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            if not _belongs(line, step):
                break
            end += len(line)
    if end < path.stat().st_size:
        os.truncate(path, end)


def _belongs(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
