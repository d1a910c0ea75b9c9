"""Small Llama models of random weights to put adapters on."""

from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="session")
def untied(random_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of 2 layers, with a head of its own."""
    folder = tmp_path_factory.mktemp("untied")
    random_models.write("llama3", folder)
    return folder


@pytest.fixture(scope="session")
def tied(random_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of 2 layers, whose head is the embedding."""
    folder = tmp_path_factory.mktemp("tied")
    random_models.write("llama3_2", folder)
    return folder


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(512, (2, 12), generator=torch.Generator().manual_seed(1))
