"""What every test may use: the shared test data, and quiet, repeatable torch."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from warm_python import WarmPython

os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist has a worker for each core

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))  # for `fake_hub` and `warm_python`
sys.path.append(str(ROOT / "ci"))  # for `killed_runs`, which the kill test shares with us
pytest_plugins = ["fake_hub.fixtures"]


LONG = (
    "test_same_numbers", "test_sft_resume", "test_launch", "test_tensor_parallel", "test_run_forms",
    "test_docs_run", "test_sft_looks", "test_context_parallel", "test_shard", "test_save_worlds",
    "test_chat_page", "test_restarts", "test_memory_techniques", "test_sft_loggers", "test_kills",
)  # fmt: skip
"""Files that take long, the longest first."""


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist take files in our order, not those first that have many tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background ignores Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no worker is left with it in the end."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data; TUNE_TEST_SHARED names another place."""
    folder = Path(os.environ.get("TUNE_TEST_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared test data: {folder} does not exist (set TUNE_TEST_SHARED)")
    return folder.resolve()


@pytest.fixture(scope="session")
def warm_python() -> "Iterator[WarmPython]":
    """What runs programs of ours in copies of a Python that has loaded torch."""
    from warm_python import WarmPython

    python = WarmPython()
    yield python
    python.close()
