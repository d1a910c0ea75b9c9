"""Text from a model: a cache of keys and values, and sampling."""

from torchtune.generation.cache import KVCache
from torchtune.generation.generate import generate, stream
from torchtune.generation.loading import LoadedCheckpoint, load_checkpoint
from torchtune.generation.packing import pack_linears
from torchtune.generation.sampling import sample

__all__ = [
    "KVCache",
    "LoadedCheckpoint",
    "generate",
    "load_checkpoint",
    "pack_linears",
    "sample",
    "stream",
]
