"""A Llama checkpoint as one GGUF file, which llama.cpp and what is built on it run."""

from torchtune_integrations.gguf.export import KINDS, export_gguf

__all__ = ["KINDS", "export_gguf"]
