"""Recipes are run or copied, never imported: their arguments are theirs alone."""

raise ImportError(
    "recipes cannot be imported, only run or copied: `tune run sft ...`, or `tune cp sft my_sft.py`"
)
