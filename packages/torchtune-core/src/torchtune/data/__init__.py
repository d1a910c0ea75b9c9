"""From rows to flat micro-batches: sources, templates, tokens and labels, steps."""

from torchtune.data.batch import IGNORED, Batch, flat_batch, idle_batch
from torchtune.data.documents import Documents, split_documents
from torchtune.data.order import permutation
from torchtune.data.packing import best_fit
from torchtune.data.steps import Steps, validation_batches

__all__ = [
    "IGNORED",
    "Batch",
    "Documents",
    "Steps",
    "best_fit",
    "flat_batch",
    "idle_batch",
    "permutation",
    "split_documents",
    "validation_batches",
]
