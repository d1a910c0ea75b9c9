"""Randomness and determinism."""

import os
import random

import torch

from torchtune.errors import ConfigError

__all__ = ["set_seed"]


def set_seed(seed: int, *, deterministic: bool = False) -> None:
    """Seed torch and Python; ask torch for deterministic kernels where wanted.

    Args:
        seed: The run's seed.
        deterministic: Use torch's deterministic algorithms, slower on a GPU; a CPU is so anyway.

    Raises:
        ConfigError: `seed` does not fit into 64 bits.
    """
    if not -(2**63) <= seed < 2**63:
        what = f"'seed' must be a number of 64 bits, found {seed}"
        raise ConfigError("E-CONFIG-VALUE", what, where="seed")
    random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
