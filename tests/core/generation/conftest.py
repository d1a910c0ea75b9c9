"""The trained model that is generated with."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260k"
