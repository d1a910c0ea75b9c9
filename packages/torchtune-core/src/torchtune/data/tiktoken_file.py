"""Read the tiktoken-format ``tokenizer.model`` of Llama 3 into a `tokenizers` tokenizer.

Such a file has one line a token: its bytes in base64, and its rank. tiktoken joins the neighbours
whose joint token has the lowest rank, so every way to cut a token in two tokens is a merge of that
token's rank. Pattern and special tokens: ``models/llama3/tokenizer.py`` of meta-llama/llama-models.
"""

import base64
import binascii
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from torchtune.errors import ConfigError

__all__ = ["is_tiktoken", "tiktoken_names", "tiktoken_to_backend"]

LLAMA3_RANKS = 128_000
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_NAMED = {  # places behind the ranks; the other 244 are reserved
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    5: "<|step_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
    11: "<|image|>",
}
LLAMA3_SPECIALS = 256


def is_tiktoken(path: Path) -> bool:
    """Say whether `path` begins with a line of base64, a space and a rank."""
    with path.open("rb") as file:
        parts = file.readline(1024).split()
    return len(parts) == 2 and parts[1].isdigit() and _bytes(parts[0]) is not None


def tiktoken_names() -> tuple[dict[str, str], tuple[str, ...]]:
    """Return Llama 3's named tokens and, beside the end token, those that end a turn."""
    names = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "pad_token": "<|finetune_right_pad_id|>",
    }
    return names, ("<|eot_id|>", "<|eom_id|>")


def tiktoken_to_backend(path: Path) -> Tokenizer:
    """Return the tokenizer of a Llama 3 file, with its 256 special tokens.

    Raises:
        ConfigError: A line is not a token and its rank, or the file is not Llama 3's.
    """
    ranks = _ranks(path)
    if len(ranks) != LLAMA3_RANKS:
        what = f"{len(ranks)} tokens, Llama 3 has {LLAMA3_RANKS}"
        do = "only Llama 3's tiktoken file is known; give a folder with tokenizer.json"
        raise ConfigError("E-TOKENIZER", what, where=str(path), do=do)
    tokenizer = Tokenizer(models.BPE(vocab=ranks, merges=_merges(ranks), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = _specials()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    begin = (specials[0], LLAMA3_RANKS)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin[0]} $A", pair=f"{begin[0]} $A {begin[0]} $B", special_tokens=[begin]
    )
    return tokenizer


def _specials() -> list[str]:
    places = range(LLAMA3_SPECIALS)
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(LLAMA3_SPECIALS))
    return [LLAMA3_NAMED.get(place) or next(reserved) for place in places]


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
