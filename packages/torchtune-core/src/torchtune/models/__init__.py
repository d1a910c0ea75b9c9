"""Model families: one file each, with its sizes and its builder."""

from torchtune.models import llama
from torchtune.models.pretrained import auto, config_digest, families, from_pretrained

__all__ = ["auto", "config_digest", "families", "from_pretrained", "llama"]
