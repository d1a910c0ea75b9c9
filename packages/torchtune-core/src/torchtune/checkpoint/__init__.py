"""Weights, adapters and training state on disk: the only room that knows a file format."""

from torchtune.checkpoint.adapter import load_adapter, save_adapter
from torchtune.checkpoint.disk import on_main
from torchtune.checkpoint.model import load_model, save_model
from torchtune.checkpoint.weights import Weights, read_weights, weights_digest

__all__ = [
    "Weights",
    "load_adapter",
    "load_model",
    "on_main",
    "read_weights",
    "save_adapter",
    "save_model",
    "weights_digest",
]
