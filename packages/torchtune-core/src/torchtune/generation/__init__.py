"""Text from a model: a cache of keys and values, and sampling."""

from torchtune.generation.cache import KVCache
from torchtune.generation.compiled import compile_decoding
from torchtune.generation.conversation import Conversation
from torchtune.generation.generate import generate, stream
from torchtune.generation.loading import LoadedCheckpoint, load_checkpoint
from torchtune.generation.packing import pack_linears
from torchtune.generation.prompts import Prompt, placed_prompts, read_prompts
from torchtune.generation.samples import write_samples
from torchtune.generation.sampling import Sampling, sample
from torchtune.generation.text import Answer, TextStream, generate_text, stream_text

__all__ = [
    "Answer",
    "Conversation",
    "KVCache",
    "LoadedCheckpoint",
    "Prompt",
    "Sampling",
    "TextStream",
    "compile_decoding",
    "generate",
    "generate_text",
    "load_checkpoint",
    "pack_linears",
    "placed_prompts",
    "read_prompts",
    "sample",
    "stream",
    "stream_text",
    "write_samples",
]
