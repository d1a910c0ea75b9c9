"""Read a tiktoken-format ``tokenizer.model``, Llama 3's or 4's, into a `tokenizers` tokenizer.

Such a file has one line a token: its bytes in base64, and its rank. tiktoken joins the neighbours
whose joint token has the lowest rank, so every way to cut a token in two tokens is a merge of that
token's rank. Pattern and special tokens: ``models/llama3/tokenizer.py`` of meta-llama/llama-models.
"""

import base64
import binascii
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from torchtune.data.tiktoken_families import FAMILIES, Family
from torchtune.errors import ConfigError

__all__ = ["is_tiktoken", "tiktoken_to_backend"]


def is_tiktoken(path: Path) -> bool:
    """Say whether `path` begins with a line of base64, a space and a rank."""
    with path.open("rb") as file:
        parts = file.readline(1024).split()
    return len(parts) == 2 and parts[1].isdigit() and _bytes(parts[0]) is not None


def tiktoken_to_backend(path: Path) -> tuple[Tokenizer, Family]:
    """Return the tokenizer of a file of Llama 3 or 4 with its special tokens, and its family.

    Raises:
        ConfigError: A line is not a token and its rank, or the file is of another family.
    """
    ranks = _ranks(path)
    family = FAMILIES.get(len(ranks))
    if family is None:
        what = f"{len(ranks)} tokens; Llama 3 has 128000 and Llama 4 200000"
        do = "of another model give a folder with tokenizer.json"
        raise ConfigError("E-TOKENIZER", what, where=str(path), do=do)
    tokenizer = Tokenizer(models.BPE(vocab=ranks, merges=_merges(ranks), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(family.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(text, special=True, normalized=False) for text in family.specials]
    tokenizer.add_special_tokens(specials)
    begin = (family.specials[0], len(ranks))
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin[0]} $A", pair=f"{begin[0]} $A {begin[0]} $B", special_tokens=[begin]
    )
    return tokenizer, family


def _bytes(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def _ranks(path: Path) -> dict[str, int]:
    """Ranks by token, each byte written as the character that byte-level BPE has for it."""
    alphabet = _alphabet()
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        parts = line.split()
        token = _bytes(parts[0]) if len(parts) == 2 and parts[1].isdigit() else None
        if token is None and line.strip():
            what = "not a token in base64 and its rank"
            raise ConfigError("E-TOKENIZER", what, where=f"{path}:{number}")
        if token is not None:
            ranks[token.decode("latin-1").translate(alphabet)] = int(parts[1])
    return ranks


def _alphabet() -> dict[int, int]:
    """GPT-2's table: printable bytes stand for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {b: 0x100 + i for i, b in enumerate(others)}


def _merges(ranks: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                merges.append((left, right))
    return merges
