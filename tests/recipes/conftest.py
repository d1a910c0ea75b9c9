"""What tests of the command share: `tune` in a fresh process, and an installed plug-in."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Tune = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tune(tmp_path: Path) -> Tune:
    """Run ``tune WORDS`` in an empty folder; `path` is put in front of Python's search path."""

    def call(*words: str, path: Path | None = None, **environment: str):
        there = {"PYTHONPATH": str(path)} if path else {}
        alone = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "torchtune_recipes.cli.main", *words]
        folder = tmp_path / "here"
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **alone, **there, **environment},
            capture_output=True,
            text=True,
            timeout=120,
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
