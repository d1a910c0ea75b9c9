"""What Meta's tiktoken files leave to code: how texts are split, and the special tokens.

From ``models/llama3/tokenizer.py`` and ``models/llama4/tokenizer.py`` of meta-llama/llama-models;
Llama 3.0 calls some of the named tokens reserved ones, the ids are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["FAMILIES", "Family"]

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"


@dataclass(frozen=True)
class Family:
    """A vocabulary of Meta's, known by its number of ranks.

    Args:
        pattern: A regular expression of the parts a text is split into.
        specials: Texts of the special tokens, whose ids follow the ranks.
        pad: The token that fills up.
        turn_ends: Tokens at which generation ends, beside the end of the text.
    """

    pattern: str
    specials: tuple[str, ...]
    pad: str
    turn_ends: tuple[str, ...]

    @property
    def names(self) -> dict[str, str]:
        """The named tokens, as ``tokenizer_config.json`` has them."""
        return {"bos_token": BEGIN, "eos_token": END, "pad_token": self.pad}


def _reserved(kind: str, first: int, end: int) -> list[str]:
    return [f"<|{kind}reserved_special_token_{i}|>" for i in range(first, end)]


def _angled(names: str) -> Iterator[str]:
    return (f"<|{name}|>" for name in names.split())


LLAMA3_SPECIALS = (
    *(BEGIN, END),
    *_reserved("", 0, 2),
    *_angled("finetune_right_pad_id step_id start_header_id end_header_id eom_id eot_id"),
    *_angled("python_tag image"),
    *_reserved("", 2, 246),
)
LLAMA4_SPECIALS = (
    *(BEGIN, END),
    *_angled("fim_prefix fim_middle fim_suffix header_start header_end eom eot step"),
    *_reserved("text_post_train_", 0, 6),
    *_angled("python_start python_end finetune_right_pad"),
    *_reserved("text_post_train_", 8, 69),
    *_angled("image_start image_end"),
    *_reserved("vision_", 0, 2),
    *_angled("tile_x_separator tile_y_separator"),
    *_reserved("vision_", 2, 6),
    "<|image|>",
    *_reserved("vision_", 6, 7),
    "<|patch|>",
    *_reserved("vision_", 7, 1048),
    *_reserved("reasoning_", 0, 8),
    *_angled("reasoning_thinking_start reasoning_thinking_end"),
)
FAMILIES = {
    128_000: Family(
        pattern=(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        specials=LLAMA3_SPECIALS,
        pad="<|finetune_right_pad_id|>",
        turn_ends=("<|eot_id|>", "<|eom_id|>"),
    ),
    200_000: Family(
        pattern=(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        specials=(*LLAMA4_SPECIALS, *_reserved("", 0, 2048 - len(LLAMA4_SPECIALS))),
        pad="<|finetune_right_pad|>",
        turn_ends=("<|eot|>", "<|eom|>"),
    ),
}
