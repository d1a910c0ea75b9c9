"""What every test may use: the shared test data, and quiet, repeatable torch."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist has a worker for each core

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))  # for `fake_hub`, which several folders of tests import
sys.path.append(str(ROOT / "ci"))  # for `killed_runs`, which the kill test shares with us
pytest_plugins = ["fake_hub.fixtures"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data; TUNE_TEST_SHARED names another place."""
    folder = Path(os.environ.get("TUNE_TEST_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared test data: {folder} does not exist (set TUNE_TEST_SHARED)")
    return folder.resolve()
