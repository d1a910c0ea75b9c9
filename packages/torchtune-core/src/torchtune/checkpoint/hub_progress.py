"""One progress bar for a download: the bytes on disk, out of those that are needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(needed: int) -> Iterator[type[Any]]:
    """Give the bar that huggingface_hub is to use in the block, for `needed` bytes in all.

    The library would show three: files, bytes received, and bytes on disk, with a total that grows
    as it comes upon files; and it closes none, so that the last state appears when the process
    ends. Of these the third stays, with the total that is known beforehand.
    """
    from huggingface_hub.utils.tqdm import tqdm

    shown: list[Any] = []

    class Bar(tqdm):
        total = property(lambda _: needed, lambda *_: None)

        def __init__(self, *args: Any, **options: Any) -> None:
            kind = str(options.pop("desc", ""))
            options.pop("bar_format", None)
            if options.get("unit") != "B" or kind.startswith("Downloading"):
                options["disable"] = True
            super().__init__(*args, **options)
            shown.append(self)

        def set_description(self, *_: Any, **__: Any) -> None:
            """Keep silent: the library's words tell of its own workings."""

        set_description_str = set_postfix_str = set_description

    try:
        yield Bar
    finally:
        for bar in shown:
            bar.close()
