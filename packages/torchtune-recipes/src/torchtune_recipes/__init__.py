"""The `tune` command, its recipes and their configs."""

__version__ = "0.1.0"
