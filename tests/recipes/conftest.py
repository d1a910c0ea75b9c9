"""What tests of the command share: `tune` in a fresh process, and an installed plug-in."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from warm_python import WarmPython

MAIN = "torchtune_recipes.cli.main"
Tune = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tune(tmp_path: Path, warm_python: WarmPython) -> Tune:
    """Run ``tune WORDS`` in an empty folder; `path` is put in front of Python's search path."""

    def call(*words: str, path: Path | None = None, **environment: str):
        alone = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        there = {**os.environ, **alone, **environment}
        folder = tmp_path / "here"
        folder.mkdir(exist_ok=True)
        if path is None:
            return warm_python.run(MAIN, *words, cwd=folder, env=there)
        command, there["PYTHONPATH"] = [sys.executable, "-m", MAIN, *words], str(path)
        return subprocess.run(
            command, cwd=folder, env=there, capture_output=True, text=True, timeout=300
        )

    return call


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """An installed package `toy-plugin` with two commands, a recipe and a config of its own."""
    files = {
        "toy_plugin-1.2.dist-info/entry_points.txt": """
[console_scripts]
toy = toy_plugin:main

[torchtune.commands]
greet = toy_plugin.greet
needy = toy_plugin.needy [extra]

[torchtune.recipes]
toy = toy_plugin
""",
        "toy_plugin/__init__.py": "raise RuntimeError('a plug-in is not imported to be listed')\n",
        "toy_plugin/recipes/__init__.py": "",
        "toy_plugin/recipes/toy.py": '"""Play with a model."""\nprint("toy runs")\n',
        "toy_plugin/configs/toy/tiny/70b.yaml": "# The large toy\nbatch_size: 1\n",
        "toy_plugin/configs/toy/tiny/8b.yaml": "# The small toy\nbatch_size: 2\n",
    }
    for name, text in files.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(text)
    return tmp_path / "site"
