"""What a bare word in a data set's place means: a path, a registered name, or a hub id."""

from pathlib import Path

from torchtune.config.names import nearest
from torchtune.config.reader import Node
from torchtune.config.registry import allowed_names
from torchtune.config.signature import COMPONENT
from torchtune.errors import ConfigError

__all__ = ["exists", "looks_like_path", "name_source"]

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
ROWS = "rows"  # the component that reads a path or hub id


def looks_like_path(text: str) -> bool:
    """Say whether a text can only be a path: ``./x``, ``/x``, ``~/x``, ``x.jsonl``, ``s3://x``."""
    name, marked = text.lower().removesuffix(".gz"), "*" in text or "://" in text
    return text.startswith((".", "/", "~")) or marked or name.endswith(SUFFIXES)


def exists(path: str) -> bool:
    """Say whether a path is there; text that can be no path is not."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long; ~nobody; a null byte
        return False


def name_source(node: Node) -> ConfigError | None:
    """Turn a data set given as a bare path or hub id into ``rows`` with its ``source``, in place.

    An existing path goes before a registered name, that before a hub id (which holds ``/``).
    A path that does not exist stays a path, to be reported where the files are read.
    """
    name = node.value[COMPONENT]
    text = name.value
    if not node.text or not isinstance(text, str):
        return None
    names = allowed_names("dataset")
    there = exists(text)
    if not there and (text in names or _dotted(text)):
        return None
    if there or looks_like_path(text) or "/" in text:
        rows = Node(ROWS, name.where, ROWS)
        node.value = {COMPONENT: rows, "source": name, **_arguments(node)}
        node.text = ""
        return None
    what = f"{text!r} is no existing path, no registered data set ({', '.join(names)}), no hub id"
    return ConfigError("E-CONFIG-DATASET", what, where=name.where, do=nearest(text, names))


def _dotted(text: str) -> bool:
    parts = text.split(".")
    return len(parts) > 1 and all(map(str.isidentifier, parts)) and not looks_like_path(text)


def _arguments(node: Node) -> dict[str, Node]:
    return {key: value for key, value in node.value.items() if key not in (COMPONENT, "source")}
