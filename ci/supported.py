"""Keep the lists of what is supported: `python ci/supported.py --write`.

They stand between markers in README.md and docs/supported.md and are read from the code: names on
the hub, headers of the shipped configs, forms of rows, and the registry. Plug-ins that happen to be
installed do not appear. Without `--write` the script compares, and names what is out of date.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from torchtune.config import locate
from torchtune.config.registry import COMPONENTS, EXTRAS
from torchtune.data import builtin_templates
from torchtune.data.forms import FORMATS, Form
from torchtune.data.sources import SUFFIXES
from torchtune.models.llama import HUB_NAMES
from torchtune.models.pretrained import FAMILIES
from torchtune_recipes import catalog

ROOT = Path(__file__).resolve().parents[1]
HUB = "https://huggingface.co"
BEGIN, END = "<!-- supported: written by ci/supported.py -->", "<!-- supported: end -->"
ABOUT = re.compile(r"(?P<family>.+) (?P<size>\S+), (?P<method>\w+): about (?P<memory>.+)")
SLOTS = ("tokenizer", "peft", "optimizer", "lr_scheduler", "loss", "metric_logger", "profiler")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    head = [*head]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def published() -> Iterator[dict[str, str]]:
    """Yield each published size that has a config: its names, and what each method needs."""
    configs = [
        entry for entry in catalog.entries("config") if entry.package.startswith("torchtune-")
    ]
    for key, repo in HUB_NAMES.items():
        size = {"repo": repo}
        for entry in configs:
            name, _, method = entry.name.rpartition("_")
            if name.replace("/", "_") == key and (about := ABOUT.fullmatch(entry.about)):
                size |= about.groupdict() | {"configs": entry.family, method: about["memory"]}
        yield size


def models() -> str:
    """Return a line a family, its sizes leading to their pages on the hub."""
    families: dict[tuple[str, str], list[str]] = {}
    for size in published():
        link = f"[{size['size']}]({HUB}/{size['repo']})"
        families.setdefault((size["family"], size["configs"]), []).append(link)
    rows = ([name, ", ".join(links), f"`{of}/…`"] for (name, of), links in families.items())
    return table(("model", "sizes", "configs"), rows)


def sizes() -> str:
    """Return a line a size, with the memory that its configs' headers name."""
    rows = (
        [
            f"[{size['family']} {size['size']}]({HUB}/{size['repo']})",
            f"`{size['configs']}/…`",
            size.get("full", "no config"),
            size.get("lora", "no config"),
        ]
        for size in published()
    )
    return table(("model", "configs", "full, GiB", "LoRA, GiB"), map(shorter, rows))


def shorter(row: list[str]) -> list[str]:
    """Say the unit in the head of the table alone."""
    return [cell.replace(" GiB", "") for cell in row]


def forms() -> str:
    """Return a line a form of rows: what a row must have, and what it may."""
    rows = (
        [f"`{form.name}`", columns(form, True), columns(form, False)] for form in FORMATS.values()
    )
    return table(("`format`", "a row has", "and may have"), rows)


def columns(form: Form, needed: bool) -> str:
    """Return the columns of a form, other names for the same thing beside one another."""
    parts = [part for part in form.parts if (part in form.needed) is needed]
    return ", ".join(" / ".join(f"`{name}`" for name in form.parts[part]) for part in parts)


def datasets() -> str:
    """Return the data sets of the hub that a config can name in one word."""
    names = [name.partition(".")[2] for name in COMPONENTS if name.startswith("dataset.")]
    rows = []
    for name in names:
        source = inspect.signature(locate("dataset", name)).parameters["source"].default
        if source is not inspect.Parameter.empty:
            rows.append([f"`dataset: {name}`", f"[{source}]({HUB}/datasets/{source})"])
    return table(("key", "on the hub"), rows)


def data() -> str:
    """Say in two sentences what rows can be."""
    named = [name.partition(".")[2] for name in COMPONENTS if name.startswith("dataset.")]
    kinds = ", ".join(f"`{suffix}`" for suffix in SUFFIXES)
    return "\n".join(
        [
            f"Files: {kinds}, also",
            "`.gz`, a folder of them, or the id of a data set on the hub. Rows:",
            f"{', '.join(f'`{name}`' for name in FORMATS)}.",
            f"By name: {', '.join(f'`{name}`' for name in named if name != 'rows')}.",
        ]
    )


def parts() -> str:
    """Return a line a slot: the short names that a config can give."""
    names: dict[str, list[str]] = {slot: [] for slot in SLOTS}
    names["evaluate"] = []
    for name in (*COMPONENTS, *EXTRAS):
        slot, _, short = name.partition(".")
        slot = "evaluate" if slot == "evaluator" else slot
        if slot in names:
            extra = f" (`[{EXTRAS[name]}]`)" if name in EXTRAS else ""
            names[slot].append(f"`{short}`{extra}")
    rows = ([f"`{slot}`", ", ".join(found)] for slot, found in names.items())
    return table(("key", "names"), rows)


def blocks() -> dict[Path, str]:
    """Return the text that belongs between the markers of each file."""
    kinds = ", ".join(f"`{kind}`" for kind in FAMILIES)
    other = f"Any other checkpoint whose `config.json` has the `model_type` {kinds} works too."
    templates = ", ".join(f"`{name}`" for name in builtin_templates())
    page = [
        f"## Models\n\n{other}\n\n{sizes()}",
        f"## Rows\n\n{data()}\n\n{forms()}",
        f"## Data sets by name\n\n{datasets()}",
        f"## Chat templates\n\nThe model's own, or `chat_template:` {templates}, or a file.",
        f"## Parts\n\n{parts()}\n\nWhat stands in brackets is the extra of `torchtune-integrations`.",
    ]
    return {
        ROOT / "README.md": f"{models()}\n\n{other}\n\n{data()}",
        ROOT / "docs" / "supported.md": "\n\n".join(page),
    }


def main() -> int:
    """Write or compare the files; return 1 where one is out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the files")
    write, stale = parser.parse_args().write, 0
    for path, text in blocks().items():
        old = path.read_text(encoding="utf-8")
        head, _, rest = old.partition(BEGIN)
        new = f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"
        if new == old:
            continue
        if write:
            path.write_text(new, encoding="utf-8")
        else:
            print(
                f"{path.relative_to(ROOT)} is out of date: python ci/supported.py --write",
                file=sys.stderr,
            )
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
