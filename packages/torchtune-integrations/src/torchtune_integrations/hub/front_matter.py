"""The YAML between ``---`` lines at the head of a model card."""

import re
from collections.abc import Mapping
from typing import Any

from torchtune.errors import ConfigError

__all__ = ["read_front_matter", "write_front_matter"]

_HEAD = re.compile(r"\A---[ \t]*\r?\n(.*?)(?:^|\r?\n)---[ \t]*(?:\r?\n|\Z)", re.S | re.M)


def read_front_matter(card: str, *, where: str = "the model card") -> dict[str, Any]:
    """Return the fields at the head of a card; none where it has no such head.

    Args:
        card: Markdown.
        where: The file's name, for the error.

    Raises:
        ConfigError: E-CARD if the head is not YAML, or no mapping.
    """
    import yaml

    head = _HEAD.match(card.lstrip("\ufeff"))
    try:
        fields = yaml.safe_load(head[1]) if head else {}
    except yaml.YAMLError as error:
        what = f"the head of the card is not YAML: {' '.join(str(error).split())}"
        raise ConfigError("E-CARD", what, where=where, do="mend it between the --- lines") from None
    if not isinstance(fields or {}, dict):
        do = "write `name: value` lines between the --- lines"
        raise ConfigError("E-CARD", "the head of the card holds no fields", where=where, do=do)
    return fields or {}


def write_front_matter(fields: Mapping[str, Any]) -> str:
    """Return `fields` as the head of a card, without those that are empty."""
    import yaml

    said = {name: value for name, value in fields.items() if value not in (None, [], "")}
    text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return f"---\n{text}---\n"
