"""Names of keys: lists of them, and the nearest right one for a wrong one."""

import difflib
from collections.abc import Iterable

__all__ = ["nearest", "split_names"]


def split_names(items: Iterable[str] | None) -> list[str]:
    """Return the names in `items`, each of which may be several with commas between them."""
    return [name.strip() for item in items or () for name in item.split(",") if name.strip()]


def nearest(word: str, names: Iterable[str]) -> str:
    """Return ``did you mean 'name'?`` for the one of `names` most like `word`, or ""."""
    by_form = {name.lower().replace("-", "_"): name for name in names}
    form = word.lower().replace("-", "_")
    found = difflib.get_close_matches(form, by_form, n=1, cutoff=0.6)
    found = found or [name for name in by_form if len(form) > 2 and form in name.split("_")][:1]
    return f"did you mean '{by_form[found[0]]}'?" if found else ""
