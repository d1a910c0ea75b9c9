"""The shipped JSON Schemas are those of today's Params and components."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_schemas_are_current():
    if not entry_points(group="torchtune.components"):
        pytest.skip("needs torchtune-integrations: the schemas name its components")
    command = [sys.executable, str(ROOT / "ci" / "schemas.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
