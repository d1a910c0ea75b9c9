"""What the quickstart prints."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torchtune.errors import TuneError

from torchtune_recipes.quickstart.steps import Answers

__all__ = ["adapter", "answers", "next_commands", "rows", "title"]

SHOWN = 6  # lines of a table


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n=== {text}", flush=True)


def rows(path: Path, *keys: str) -> None:
    """Print some rows of a JSONL file, spread over it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for number in range(3):
        row = json.loads(lines[number * (len(lines) // 3) + number])
        print("    " + "  ->  ".join(row[key] for key in keys), flush=True)


def answers(before: Answers, after: Answers) -> None:
    """Print a table of questions with the answers of both models, and the shares that are right."""
    print(f"    {'question':<46}{'before':<24}{'after':<18}right")
    table = zip(after.questions, before.given, after.given, after.right, strict=True)
    for question, first, second, right in list(table)[:SHOWN]:
        print(f"    {question:<46}{_cut(first):<24}{_cut(second):<18}{right}")
    print(f"    right of {len(after.right)}: before {before.share:.0%}, after {after.share:.0%}")


def adapter(folder: Path) -> str:
    """Check that `folder` holds an adapter as PEFT's files are; return its weights' sha256.

    Raises:
        TuneError: It does not.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    weights = folder / "adapter_model.safetensors"
    shapes = _shapes(weights)
    wanted = {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
    right = all(config.get(key) == value for key, value in wanted.items()) and shapes
    for name, shape in shapes.items():
        base, _, part = name.removesuffix(".weight").rpartition(".")
        rank = shape[0] if part == "lora_A" else shape[1] if part == "lora_B" else None
        targets = config.get("target_modules") or []
        known = base.startswith("base_model.model.") and base.split(".")[-1] in targets
        right = right and known and rank == config.get("r")
    if not right:
        raise TuneError("E-QUICKSTART", f"{folder} does not hold an adapter as PEFT writes them")
    print(f"\n    the adapter, in PEFT's format: {folder} ({len(shapes)} tensors)")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def next_commands(folder: Path) -> None:
    """Print where the losses are drawn, and the commands to go on with."""
    print(f"    losses: {folder / 'lora/loss.png'}")
    print(
        f"    ask it: tune generate --checkpoint {folder / 'lora'} --prompt 'Name the capital of Peru.'"
    )
    print("    your own model and data:")
    print("      tune run sft --checkpoint ./my-model --dataset ./my.jsonl peft=lora\n", flush=True)


def _cut(text: str, width: int = 16) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def _shapes(path: Path) -> dict[str, Any]:
    """Return the tensors' shapes by name, from the header of a safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
