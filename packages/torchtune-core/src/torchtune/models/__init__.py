"""Model families: one file each, with its sizes and its builder."""

from torchtune.models import llama
from torchtune.models.pretrained import auto, families, from_pretrained

__all__ = ["auto", "families", "from_pretrained", "llama"]
