"""Train a small base model, fine-tune it with LoRA, and show what it learned.

``python -m torchtune_recipes.quickstart [--output-dir DIR]`` needs no network and no model. The
base model reads sentences about countries; the instruction set asks about most of them; the
questions at the end are about the others. Both trainings are the command that is printed above
them. The last line of stdout is JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from torchtune.errors import TuneError, report_errors

from torchtune_recipes.quickstart import report
from torchtune_recipes.quickstart.data import FOLDER
from torchtune_recipes.quickstart.steps import Answers, answer, empty_folder, train

__all__ = ["main"]

MOST_BEFORE, LEAST_AFTER = 0.1, 0.9  # shares of right answers; a run outside of these has failed


def main() -> int:
    """Run the quickstart and return its exit code."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="quickstart", description="A first fine-tune, in a minute."
    )
    parser.add_argument("--output-dir", type=Path, default=Path("output/quickstart"))
    folder = parser.parse_args().output_dir
    with report_errors():
        print(json.dumps(_run(folder, started)))
    return 0


def _run(folder: Path, started: float) -> dict[str, float | str]:
    """Do the four parts and return what the last line says."""
    empty_folder(folder)
    report.title("1. A base model, trained from nothing on sentences such as:")
    report.rows(FOLDER / "sentences.jsonl", "text")
    tokenizer, rows = folder / "tokenizer/tokenizer.json", folder / "sentences.jsonl"
    first = train(folder / "base.yaml", folder / "base", dataset=rows, tokenizer__path=tokenizer)
    before = answer(folder / "base", FOLDER / "questions.jsonl")
    report.title("2. A LoRA adapter for it, trained on questions about other countries:")
    report.rows(FOLDER / "instructions.jsonl", "instruction", "output")
    rows = folder / "instructions.jsonl"
    train(folder / "lora.yaml", folder / "lora", dataset=rows, checkpoint=folder / "base/latest")
    after = answer(folder / "lora", FOLDER / "questions.jsonl")
    report.title("3. The same questions before and after; none of them was trained on:")
    report.answers(before, after)
    digest = report.adapter(folder / "lora/latest")
    report.title("4. What next:")
    report.next_commands(folder)
    _check(before, after)
    return {
        "base": before.share,
        "tuned": after.share,
        "first_step_s": round(first - started, 1),
        "adapter_sha256": digest,
    }


def _check(before: Answers, after: Answers) -> None:
    if before.share > MOST_BEFORE or after.share < LEAST_AFTER:
        what = f"right answers went from {before.share:.0%} to {after.share:.0%}"
        raise TuneError("E-QUICKSTART", f"{what}; expected at most 10% and at least 90%")


if __name__ == "__main__":
    sys.exit(main())
