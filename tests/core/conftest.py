"""Checkpoints in Hugging Face format, and our models of them."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torchtune.models import from_pretrained
from torchtune.modules import Decoder


@pytest.fixture(scope="session")
def random_models(shared: Path) -> ModuleType:
    """The module that writes tiny random checkpoints and gives transformers' logits of them."""
    pytest.importorskip("transformers")
    sys.path.insert(0, str(shared / "reference"))
    return pytest.importorskip("random_models")


@pytest.fixture(scope="session")
def load() -> Callable[..., Decoder]:
    """`from_pretrained`, in fp32 unless told otherwise."""
    return partial(from_pretrained, dtype=torch.float32)
