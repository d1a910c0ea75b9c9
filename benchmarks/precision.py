"""What each precision costs in loss: `python benchmarks/precision.py CHECKPOINT DATASET`.

Runs the `sft` recipe on all weights, in each precision and at several learning rates, and prints
the table of docs/precision.md: the loss on held-out rows after the last step, one seed, a constant
rate.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

MODES = {
    "fp32": ["dtype=fp32"],
    "bf16, master_weights": ["dtype=bf16", "master_weights=true"],
    "bf16": ["dtype=bf16"],
}


def val_loss(arguments: list[str]) -> float:
    """Run the recipe and return the loss on the held-out rows at its end."""
    with tempfile.TemporaryDirectory() as folder:
        tune = [sys.executable, "-m", "torchtune_recipes.cli.main", "run", "sft"]
        subprocess.run([*tune, f"output_dir={folder}", *arguments], check=True, capture_output=True)
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1])["val_loss"]


def main() -> None:
    """Print one row a precision, one column a learning rate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", nargs="+", default=["1e-5", "1e-4", "1e-3"])
    args = parser.parse_args()
    common = [f"checkpoint={args.checkpoint}", f"dataset={args.dataset}", "validation_split=0.1"]
    common += [f"max_steps={args.steps}", "device=cpu", "max_seq_len=128", "batch_size=2"]
    print("| | " + " | ".join(args.lr) + " |", "| --- |" + " --- |" * len(args.lr), sep="\n")
    for name, mode in MODES.items():
        losses = [val_loss([*common, *mode, f"optimizer.lr={lr}"]) for lr in args.lr]
        print(f"| {name} | " + " | ".join(f"{loss:.4f}" for loss in losses) + " |", flush=True)


if __name__ == "__main__":
    main()
