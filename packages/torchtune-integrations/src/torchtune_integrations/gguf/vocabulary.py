"""A tokenizer's tokens and rules as GGUF holds them.

llama.cpp has its own code for each way to split a text before byte-pair encoding, and a file only
names one of them. So a tokenizer is exported only where its own splitting is one that has a name.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchtune.data import Tokenizer
from torchtune.errors import ConfigError

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["Vocabulary", "add_vocabulary", "read_vocabulary"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens, by GGUF's numbers."""

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPACE = "\u2581"  # what sentencepiece writes for a space
PROBE = " a  \ufb01 \uff21 "


@dataclass
class Vocabulary:
    """What GGUF says of a tokenizer besides its special ids.

    Args:
        model: ``llama`` (sentencepiece) or ``gpt2`` (byte-level BPE).
        pre: llama.cpp's name of the way to split a text first.
        tokens: All tokens by id, as many as the model has rows.
        types: The kind of each.
        scores: Of sentencepiece's pieces.
        merges: Of BPE, the first to be made first.
        space_prefix: Whether a space is put before a text.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    space_prefix: bool = True

    def put(self, number: int, text: str, kind: int) -> None:
        """Set the token of the id `number`."""
        self.tokens[number], self.types[number] = text, kind


def read_vocabulary(folder: Path, *, size: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint's folder.

    Args:
        folder: With tokenizer.json or tokenizer.model.
        size: The model's rows; ids without a token are filled up as unused.

    Raises:
        ConfigError: E-GGUF; llama.cpp could not split texts as this tokenizer does.
    """
    path = folder / "tokenizer.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    model = said.get("model") or {}
    if said and model.get("type") != "BPE":
        raise _unknown(str(path))
    if model.get("byte_fallback") or not said:
        found = _sentencepiece(folder, size)
    else:
        found = _byte_level(said, size, str(path))
    listed = [(token["id"], token) for token in said.get("added_tokens", [])]
    for number, token in [*listed, *_decoder(folder)]:
        kind = CONTROL if token.get("special", True) else USER_DEFINED
        if number < size and found.types[number] not in (UNKNOWN, BYTE):
            found.put(number, token["content"], kind)
    return found


def add_vocabulary(writer: "GGUFWriter", vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    """Write the tokens, the special ids and the chat template."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_add_space_prefix(vocabulary.space_prefix)
    unknown, pad = (tokenizer.names.get(f"{name}_token", "") for name in ("unk", "pad"))
    ids = {
        writer.add_bos_token_id: tokenizer.bos_id,
        writer.add_eos_token_id: tokenizer.eos_id,
        writer.add_eot_token_id: _turn_end(tokenizer),
        writer.add_unk_token_id: tokenizer.special_tokens.get(unknown),
        writer.add_pad_token_id: tokenizer.special_tokens.get(pad),
    }
    for add, number in ids.items():
        if number is not None:
            add(number)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _turn_end(tokenizer: Tokenizer) -> int | None:
    """Return the stop token that is not the end of a text, where there is one."""
    own = (tokenizer.bos_id, tokenizer.eos_id)
    return next((number for number in tokenizer.stop_ids if number not in own), None)


def _decoder(folder: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return ((int(number), token) for number, token in said.get("added_tokens_decoder", {}).items())


def _sentencepiece(folder: Path, size: int) -> Vocabulary:
    from sentencepiece import SentencePieceProcessor

    path = folder / "tokenizer.model"
    if not path.is_file():
        what = "a tokenizer of sentencepiece's kind is exported from its tokenizer.model"
        raise ConfigError("E-GGUF", what, where=str(folder), do="put that file into the folder")
    model = SentencePieceProcessor(model_file=str(path))
    tokens = [f"[PAD{number}]" for number in range(size)]
    found = Vocabulary("llama", "default", tokens, [UNUSED] * size, scores=[-10_000.0] * size)
    for number in range(min(size, model.vocab_size())):
        kinds = {
            UNKNOWN: model.is_unknown,
            CONTROL: model.is_control,
            UNUSED: model.is_unused,
            BYTE: model.is_byte,
        }
        kind = next((kind for kind, holds in kinds.items() if holds(number)), NORMAL)
        found.put(number, model.id_to_piece(number), kind)
        found.scores[number] = model.get_score(number)
    plain, shown = PROBE.replace(" ", SPACE), model.normalize(PROBE)
    if shown not in (plain, SPACE + plain):  # it folds spaces or letters, and llama.cpp would not
        raise _unknown(str(path))
    found.space_prefix = shown != plain
    return found


def _byte_level(said: Mapping[str, Any], size: int, where: str) -> Vocabulary:
    pre = _splitting(said)
    if pre is None:
        raise _unknown(where)
    tokens = [f"[PAD{number}]" for number in range(size)]
    found = Vocabulary("gpt2", pre, tokens, [UNUSED] * size)
    for text, number in said["model"]["vocab"].items():
        found.put(number, text, NORMAL)
    merges = said["model"].get("merges", [])
    found.merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    return found


def _unknown(where: str) -> ConfigError:
    what = "llama.cpp does not know the way in which this tokenizer reads a text"
    do = "exported are tokenizers that work as Llama 2's, Llama 3's, SmolLM's or GPT-2's"
    return ConfigError("E-GGUF", what, where=where, do=do)


def _splitting(said: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name of how a tokenizer.json splits texts, if it has one."""
    first = said.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers", [first])
    words = {
        ("Split", LLAMA3): "llama-bpe",
        ("Digits", True): "smollm",
    }
    if said.get("normalizer") or not steps or steps[-1].get("type") != "ByteLevel":
        return None
    if steps[-1].get("add_prefix_space") or len(steps) > 2:
        return None
    whole = bool(said["model"].get("ignore_merges"))
    if len(steps) == 1:
        return "gpt-2" if steps[0].get("use_regex", True) and not whole else None
    kind = steps[0].get("type")
    rule = steps[0].get("individual_digits") or (steps[0].get("pattern") or {}).get("Regex")
    name = words.get((kind, rule))
    # Llama 3 takes a word that is a token as it is; its own pattern makes ByteLevel's needless
    alike = {"llama-bpe": (True, False), "smollm": (False, True)}.get(name or "")
    return name if alike == (whole, steps[1].get("use_regex", True)) else None
