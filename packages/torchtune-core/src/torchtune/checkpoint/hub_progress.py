"""One progress bar for a download: the bytes on disk, out of those that are needed."""

from typing import Any

__all__ = ["progress_bar"]


def progress_bar(needed: int) -> type[Any]:
    """Return the bar that huggingface_hub is to use, for `needed` bytes in all.

    The library would show three: files, bytes received, and bytes on disk, with a total that grows
    as it comes upon files. Of these the last stays, with the total that is known beforehand.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        total = property(lambda _: needed, lambda *_: None)

        def __init__(self, *args: Any, **options: Any) -> None:
            kind = str(options.pop("desc", ""))
            options.pop("bar_format", None)
            if options.get("unit") != "B" or kind.startswith("Downloading"):
                options["disable"] = True
            super().__init__(*args, unit_divisor=1000, **options)

        def set_description(self, *_: Any, **__: Any) -> None:
            """Keep silent: the library's words tell of its own workings."""

        set_description_str = set_postfix_str = set_description

    return Bar
