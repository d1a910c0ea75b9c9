"""Write a sentencepiece BPE model as the ``tokenizer.json`` that transformers loads.

transformers' own conversion of a ``tokenizer.model`` gives other ids where a text begins with a
space or holds several; the one here is compared with the model before it is used.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing

__all__ = ["begin_with", "sentencepiece_to_backend"]

SPACE = "\u2581"  # what sentencepiece writes for a space
SAMPLES = (
    "Hello, world!",
    " leading  spaces,   and trailing ",
    "\ttabs\n\n  lines\r\n",
    "it's 3:45pm; 12345 def f(x):\n    return {'a': [x ** 2]}\n",
    "caf\u00e9 cafe\u0301 \ufb01 \uff21 \u4f60\u597d \u041c\u0438\u0440 \U0001f680\u200d\u00a0\u2581",
)


def sentencepiece_to_backend(model: Any, special_tokens: Mapping[str, int]) -> Tokenizer | None:
    """Return a `tokenizers` tokenizer of the same ids, or None where there can be none.

    Any two neighbours whose joint text is a piece are a merge, the best score first; special
    tokens split the text, and each part gets the prefix of a text of its own.

    Args:
        model: A loaded ``SentencePieceProcessor``.
        special_tokens: Ids of the special tokens, by their text.
    """
    pieces = {model.id_to_piece(i): i for i in range(model.vocab_size())}
    unknown = model.id_to_piece(model.unk_id())
    bpe = models.BPE(
        vocab=pieces,
        merges=_merges(model, pieces),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=any(model.is_byte(i) for i in pieces.values()),
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = _normalizer(model)
    strip = decoders.Strip(content=" ", left=1)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    tokenizer.decoder = decoders.Sequence(steps)
    ordered = sorted(special_tokens, key=special_tokens.__getitem__)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ordered])
    tokenizer.encode_special_tokens = True
    same = all(tokenizer.encode(text).ids == list(model.encode(text)) for text in SAMPLES)
    tokenizer.encode_special_tokens = False
    named = all(tokenizer.token_to_id(text) == i for text, i in special_tokens.items())
    return tokenizer if same and named else None


def begin_with(tokenizer: Tokenizer, special_tokens: Mapping[str, int], bos: int | None) -> None:
    """Make `tokenizer` put BOS before a text when it is asked for special tokens."""
    text = next((text for text, number in special_tokens.items() if number == bos), None)
    if text is not None and bos is not None:
        pair = f"{text} $A {text} $B"
        tokenizer.post_processor = TemplateProcessing(
            single=f"{text} $A", pair=pair, special_tokens=[(text, bos)]
        )


def _merges(model: Any, pieces: Mapping[str, int]) -> list[tuple[str, str]]:
    found = []
    for piece, number in pieces.items():
        if model.is_control(number) or model.is_byte(number) or model.is_unknown(number):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                found.append((-model.get_score(number), number, pieces[left], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _normalizer(model: Any) -> normalizers.Sequence:
    """What the model does to a text first, in its own order, found by trying it."""
    steps: list[Any] = []
    extra = model.encode(" a  a ") == model.encode("a a")
    if extra:
        steps += [
            normalizers.Replace(Regex(r"\A +"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if model.encode("a", out_type=str)[0].startswith(SPACE):
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    if extra:
        steps.append(normalizers.Replace(Regex(f"{SPACE}+\\z"), ""))
    return normalizers.Sequence(steps)
