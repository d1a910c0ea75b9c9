"""Runs of the real recipe, as a user starts them."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torchtune_recipes.cli.main import main
from warm_python import WarmPython

MAIN = "torchtune_recipes.cli.main"
TUNE = Path(sys.executable).with_name("tune")


class Runs:
    """Starts `tune run sft` on the small trained model and a few Alpaca rows."""

    def __init__(self, shared: Path, folder: Path, python: WarmPython) -> None:
        self.python = python
        self.base = shared / "models/stories260k"
        self.rows = shared / "data/alpaca/alpaca_small.json"
        self.folder = folder

    def command(self, name: str, *arguments: str, processes: int = 1) -> list[str]:
        """Return the command of a run that writes into the folder `name`."""
        launch = ["--nproc_per_node", str(processes)] if processes > 1 else []
        return [
            str(TUNE), "run", *launch, "sft", "--checkpoint", str(self.base),
            f"dataset={self.rows}", "dataset.split=train[:120]", "--max-seq-len", "192",
            "--output-dir", str(self.folder / name), "device=cpu", "dtype=fp32",
            "optimizer=adamw", "optimizer.lr=1e-3", *arguments,
        ]  # fmt: skip

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        """Start a run in a process group of its own."""
        return subprocess.Popen(
            self.command(*arguments, **options), env=environment(), cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, name: str, *arguments: str, code: int = 0, **options) -> list[dict]:
        """Run to the end; return the lines of metrics.jsonl, if it wrote any."""
        words = self.command(name, *arguments, **options)[1:]
        done = self.python.run(MAIN, *words, cwd=self.folder, env=environment())
        assert done.returncode == code, done.stderr[-3000:]
        self.said = done.stderr
        return self.metrics(name)

    def here(self, name: str, *arguments: str, code: int = 0) -> list[dict]:
        """Run in this process, which has torch loaded; return the lines of metrics.jsonl."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                found = main(self.command(name, *arguments)[1:])
            except SystemExit as end:
                found = end.code or 0
        self.said = said.getvalue()
        assert found == code, self.said[-3000:]
        return self.metrics(name)

    def copy(self, name: str, other: str) -> Path:
        """Copy the output folder of a run, so that another may go on from it; return it."""
        place = self.folder / other
        shutil.copytree(self.folder / name, place, symlinks=True)
        return place

    def metrics(self, name: str) -> list[dict]:
        """Return the lines of metrics.jsonl."""
        path = self.folder / name / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


def environment() -> dict[str, str]:
    """Return one thread a process, so that results do not hang on the machine."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def runs(shared, tmp_path, warm_python) -> Runs:
    """What starts runs, in a fresh folder."""
    return Runs(shared, tmp_path, warm_python)


@pytest.fixture(scope="module")
def module_runs(shared, tmp_path_factory, warm_python) -> Runs:
    """The same for a module, whose tests share runs."""
    return Runs(shared, tmp_path_factory.mktemp("runs"), warm_python)
