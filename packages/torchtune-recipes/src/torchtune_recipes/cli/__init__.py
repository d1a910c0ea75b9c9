"""One file per command of `tune`."""
