"""The same checkpoints in our code and in transformers."""

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
def load() -> Callable[..., Decoder]:
    def load(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
        model = auto(folder).to(dtype)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model

    return load


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture(scope="session")
def random_models(shared: Path) -> ModuleType:
    pytest.importorskip("transformers")
    sys.path.insert(0, str(shared / "reference"))
    return pytest.importorskip("random_models")
