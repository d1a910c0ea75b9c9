"""Components for post-training language models in PyTorch."""

__version__ = "0.1.0"
