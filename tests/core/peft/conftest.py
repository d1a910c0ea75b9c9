"""Small Llama models of random weights, the same ones in our code and in transformers."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torchtune.models import auto
from torchtune.modules import Decoder


@pytest.fixture(scope="session")
def random_models(shared: Path) -> ModuleType:
    pytest.importorskip("transformers")
    sys.path.insert(0, str(shared / "reference"))
    return pytest.importorskip("random_models")


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


@pytest.fixture(scope="session")
def load() -> Callable[..., Decoder]:
    def load(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
        model = auto(folder).to(dtype)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model

    return load


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(512, (2, 12), generator=torch.Generator().manual_seed(1))
