"""The two things that the quickstart does twice, both by the command: train, and answer."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from torchtune.errors import ConfigError, TuneError

from torchtune_recipes.quickstart.data import FOLDER

__all__ = ["Answers", "answer", "empty_folder", "train"]

MARK = ".quickstart"


@dataclass(frozen=True)
class Answers:
    """What a model said to questions.

    Args:
        questions: The questions.
        right: The answers to find.
        given: The model's.
    """

    questions: list[str]
    right: list[str]
    given: list[str]

    @property
    def share(self) -> float:
        """The share of answers that are right to the letter."""
        pairs = zip(self.right, self.given, strict=True)
        return sum(right == given for right, given in pairs) / len(self.right)


def empty_folder(folder: Path) -> None:
    """Make `folder`, or empty it if an earlier quickstart made it, and put the data into it.

    Raises:
        ConfigError: It holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).is_file():
        what = f"{folder} holds files that no quickstart wrote"
        raise ConfigError("E-FOLDER-FOREIGN", what, do="--output-dir takes another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    for name in ("base.yaml", "lora.yaml", "sentences.jsonl", "instructions.jsonl"):
        shutil.copy(FOLDER / name, folder)
    shutil.copytree(FOLDER / "tokenizer", folder / "tokenizer")


def train(config: Path, output: Path, **keys: Path) -> float:
    """Train by ``tune run sft``; return the time of its first step on `time.monotonic`'s clock.

    Args:
        config: The YAML.
        output: The run's output folder.
        keys: Further settings; ``__`` in a key stands for a dot.
    """
    keys = {**keys, "output_dir": output}
    pairs = [f"{key.replace('__', '.')}={path}" for key, path in keys.items()]
    process = _start(["run", "sft", "--config", str(config), *pairs])
    first = None
    while process.poll() is None:
        if first is None and _has_a_line(output / "metrics.jsonl"):
            first = time.monotonic()
        time.sleep(0.05)
    _check(process.returncode)
    return first or time.monotonic()


def answer(checkpoint: Path, questions: Path) -> Answers:
    """Ask the model in `checkpoint` by ``tune generate``; `questions` has a right answer each."""
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    asked = [row["instruction"] for row in rows]
    prompts = checkpoint.parent / "questions.txt"
    prompts.write_text("\n".join(asked) + "\n", encoding="utf-8")
    sizes = ["--batch-size", str(len(asked)), "--max-new-tokens", "16", "--device", "cpu"]
    words = ["--checkpoint", str(checkpoint), "--prompts", str(prompts), "--json", *sizes]
    process = _start(["generate", *words], stdout=subprocess.PIPE)
    said, _ = process.communicate()
    _check(process.returncode)
    given = [json.loads(line)["answer"].strip() for line in said.splitlines()]
    return Answers(asked, [row["output"] for row in rows], given)


def _start(words: list[str], stdout: int | None = None) -> "subprocess.Popen[str]":
    print(f"\n$ tune {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "torchtune_recipes.cli.main", *words]
    # Matrices this small gain nothing from a second thread, and lose on a busy machine. One thread
    # also adds up in one order, however many cores there are.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=stdout, env=environment, text=True)


def _check(code: int) -> None:
    if code:
        raise TuneError("E-QUICKSTART", f"the command above ended with exit code {code}")


def _has_a_line(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
