"""From rows to flat micro-batches: sources, templates, tokens and labels, steps."""

from torchtune.data.batch import IGNORED, Batch, flat_batch, idle_batch, pad_batch
from torchtune.data.chat_format import ChatFormat, Encoded
from torchtune.data.chat_template import builtin_templates, find_template
from torchtune.data.check import CheckedRow, CheckSummary, Fault, check_rows
from torchtune.data.documents import Documents, Preparation, join_documents, split_documents
from torchtune.data.forms import Chat, Example, Text, Tokens, to_messages
from torchtune.data.messages import Message
from torchtune.data.order import permutation
from torchtune.data.packing import best_fit
from torchtune.data.preparation import encode_example, tokenize_rows
from torchtune.data.remote_files import cache_folder, is_remote, local_copy, remote_place
from torchtune.data.rows import Rows, alpaca, alpaca_cleaned, load_rows
from torchtune.data.sources import Source, open_sources
from torchtune.data.steps import Steps, row_limit, validation_batches
from torchtune.data.tokenizer import Tokenizer
from torchtune.data.tokenizer_loading import (
    auto_tokenizer,
    llama3_tiktoken,
    sentencepiece,
    tokenizer_json,
)

__all__ = [
    "IGNORED",
    "Batch",
    "Chat",
    "ChatFormat",
    "CheckSummary",
    "CheckedRow",
    "Documents",
    "Encoded",
    "Example",
    "Fault",
    "Message",
    "Preparation",
    "Rows",
    "Source",
    "Steps",
    "Text",
    "Tokenizer",
    "Tokens",
    "alpaca",
    "alpaca_cleaned",
    "auto_tokenizer",
    "best_fit",
    "builtin_templates",
    "cache_folder",
    "check_rows",
    "encode_example",
    "find_template",
    "flat_batch",
    "idle_batch",
    "is_remote",
    "join_documents",
    "llama3_tiktoken",
    "load_rows",
    "local_copy",
    "open_sources",
    "pad_batch",
    "permutation",
    "remote_place",
    "row_limit",
    "sentencepiece",
    "split_documents",
    "to_messages",
    "tokenize_rows",
    "tokenizer_json",
    "validation_batches",
]
