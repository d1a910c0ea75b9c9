"""Time the sft recipe on a folder with a model and rows; print one JSON line.

    python benchmarks/ours.py METHOD PACKED BENCH STEPS BATCH MAX_LEN

METHOD is full or lora, PACKED 0 or 1; BENCH holds model/ and tune.json (rows of messages). The recipe
runs as for a user, in bf16 with AdamW at 2e-5, rows in file order; LoRA has rank 8, alpha 16, on every
linear layer of the blocks. The first step warms up and is not counted. Times are taken where the
optimizer's step ends; counts and losses come from the run's own metrics.jsonl.
"""

import json
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path

WARMUP = 1


def process_age() -> float:
    """Return the seconds since this process started."""
    started = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - started / os.sysconf("SC_CLK_TCK")


def peak_rss_mb() -> float:
    """Return the most memory this process has held, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def arguments(method: str, packed: str, bench: str, steps: str, batch: str, length: str, out: str):
    """Return the command line of the run."""
    lora = ["peft=lora", "peft.rank=8", "peft.alpha=16"] if method == "lora" else []
    return [
        "--checkpoint", f"{bench}/model", "--dataset", f"{bench}/tune.json", "--output-dir", out,
        "--batch-size", batch, "--max-seq-len", length, f"packed={'true' if int(packed) else 'false'}",
        "--max-steps", str(int(steps) + WARMUP), "shuffle=false", "optimizer.lr=2e-5", *lora,
    ]  # fmt: skip


def main() -> None:
    """Run the recipe, timing the end of each optimizer step."""
    ends: list[tuple[float, float, float, float]] = []

    def note(*_) -> None:
        ends.append((time.perf_counter(), time.process_time(), process_age(), peak_rss_mb()))

    from torch.optim.optimizer import register_optimizer_step_post_hook
    from torchtune_recipes.catalog import resolve_recipe

    register_optimizer_step_post_hook(note)
    method, packed, *_ = sys.argv[1:]
    with tempfile.TemporaryDirectory() as out:
        recipe = str(resolve_recipe("sft"))
        sys.argv = [recipe, *arguments(*sys.argv[1:], f"{out}/run")]
        runpy.run_path(recipe, run_name="__main__")
        text = (Path(out) / "run/metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    print(json.dumps(report(method, bool(int(packed)), lines, ends)))


def report(method: str, packed: bool, lines: list[dict], ends: list[tuple[float, ...]]) -> dict:
    """Return the figures of the steps after the warm-up."""
    timed = lines[WARMUP:]
    tokens = sum(line["tokens"] for line in timed)
    wall, cpu = (ends[-1][i] - ends[WARMUP - 1][i] for i in (0, 1))
    return {
        "system": "ours", "method": method, "packed": packed, "steps": len(timed),
        "real_tokens": tokens, "supervised_tokens": sum(line["supervised_tokens"] for line in timed),
        "padded_tokens": tokens, "wall_s": round(wall, 3), "tokens_per_s": round(tokens / wall, 1),
        "cpu_s": round(cpu, 3), "tokens_per_cpu_s": round(tokens / cpu, 1),
        "first_step_s": round(ends[0][2], 2), "peak_rss_mb": round(ends[-1][3]),
        "losses": [round(line["loss"], 4) for line in lines],
    }  # fmt: skip


if __name__ == "__main__":
    main()
