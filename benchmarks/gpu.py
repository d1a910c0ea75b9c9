"""Train a model's shape with random weights on one device: `gpu.py [MODEL] [--steps 12] [key=value ...]`.

Runs the `sft` recipe as a user would, on made-up rows of `max_seq_len` tokens in which all are learnt,
once with LoRA and once with all weights, compiled and in bf16; what follows the model overrides any
key. Prints tokens per second, MFU and the most memory, medians of the steps after the first three,
beside what `tune estimate` says (on a CPU the process's resident memory, which is another thing). The
run is ended when its last step is logged: nothing is saved.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from torchtune.models.llama import SIZES
from torchtune_recipes import quickstart

TUNE = [str(Path(sys.executable).with_name("tune"))]
TOKENIZER = Path(quickstart.__file__).parent / "tokenizer/tokenizer.json"
WARMUP = 3
METHODS = {
    "LoRA": ["peft=lora", "peft.rank=8", "peft.alpha=16", "optimizer.lr=2e-4"],
    "all weights": ["optimizer.lr=2e-5"],
}
SETTINGS = [
    "dtype=bf16", "compile=true", "enable_activation_checkpointing=true", "packed=true",
    "max_seq_len=2048", "batch_size=4", "epochs=1000",
]  # fmt: skip
FIGURES = ("tokens_per_second", "mfu", "peak_memory_bytes")


def write_rows(path: Path, *, tokens: int, count: int = 64) -> None:
    """Write rows of so many ready tokens each, all of them in the quickstart's small vocabulary."""
    drawn = random.Random(0)
    with path.open("w") as file:
        for _ in range(count):
            row = [drawn.randrange(1000) for _ in range(tokens)]
            file.write(json.dumps({"input_ids": row, "labels": row}) + "\n")


def run(arguments: list[str], folder: Path, steps: int) -> list[dict[str, float]]:
    """Return what the run logged of its first `steps` steps, and end it then."""
    command = [*TUNE, "run", "sft", *arguments, f"output_dir={folder}"]
    with subprocess.Popen(command) as process:
        lines: list[str] = []
        while len(lines) < steps and process.poll() is None:
            time.sleep(0.5)
            log = folder / "metrics.jsonl"
            lines = log.read_text().splitlines() if log.is_file() else []
        process.kill()
    if len(lines) < steps:
        raise SystemExit(f"the run ended after {len(lines)} steps")
    return [json.loads(line) for line in lines[:steps]]


def estimate(arguments: list[str]) -> int:
    """Return the bytes that `tune estimate` says the run takes at most."""
    command = [*TUNE, "estimate", "sft", *arguments, "--json"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(answer.stdout)["peak_bytes"])


def main() -> None:
    """Print one line a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="llama3_8b", choices=SIZES, metavar="MODEL")
    parser.add_argument("--steps", type=int, default=12)
    options, overrides = parser.parse_known_args()
    keys = dict(item.split("=", 1) for item in [*SETTINGS, *overrides])
    for method, own in METHODS.items():
        with tempfile.TemporaryDirectory() as name:
            rows = Path(name) / "rows.jsonl"
            write_rows(rows, tokens=int(keys["max_seq_len"]))
            arguments = [
                f"model={options.model}", "tokenizer=tokenizer_json", f"tokenizer.path={TOKENIZER}",
                f"dataset={rows}", *own, *(f"{key}={value}" for key, value in keys.items()),
            ]  # fmt: skip
            logged = run(arguments, Path(name) / "run", WARMUP + options.steps)[WARMUP:]
            found = {key: [line[key] for line in logged if key in line] for key in FIGURES}
            middle = {key: statistics.median(values) for key, values in found.items() if values}
            middle["estimated / peak"] = estimate(arguments) / middle["peak_memory_bytes"]
            print(f"{method}: " + ", ".join(f"{key} {value:,.3f}" for key, value in middle.items()))


if __name__ == "__main__":
    main()
