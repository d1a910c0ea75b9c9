"""Lay the quickstart's base model into a folder as its author would have it on the hub."""

import shutil
import sys
from importlib.resources import files
from pathlib import Path

CARD = """---
license: apache-2.0
pipeline_tag: text-generation
---

# Capitals

A model of 0.5 million parameters that has read sentences about countries.
"""


def main(quickstart: Path, folder: Path) -> None:
    """Copy the weights and the tokenizer, and nothing else, beside a card; questions come here."""
    keep = shutil.ignore_patterns("training_state", "manifest.json")
    shutil.copytree((quickstart / "base/latest").resolve(), folder, ignore=keep)
    shutil.copy(quickstart / "lora/latest/chat_template.jinja", folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    shutil.copy(files("torchtune_recipes") / "quickstart/questions.jsonl", ".")


main(Path(sys.argv[1]), Path(sys.argv[2]))
