"""Text from a model: a cache of keys and values, and sampling."""

from torchtune.generation.cache import KVCache
from torchtune.generation.generate import generate, stream
from torchtune.generation.loading import LoadedCheckpoint, load_checkpoint
from torchtune.generation.packing import pack_linears
from torchtune.generation.sampling import Sampling, sample
from torchtune.generation.text import Answer, TextStream, generate_text, stream_text

__all__ = [
    "Answer",
    "KVCache",
    "LoadedCheckpoint",
    "Sampling",
    "TextStream",
    "generate",
    "generate_text",
    "load_checkpoint",
    "pack_linears",
    "sample",
    "stream",
    "stream_text",
]
