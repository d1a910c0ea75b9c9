"""Text to token ids and back: one protocol, with a backend each for `tokenizers` and sentencepiece.

Nothing is ever added to a text (no BOS, no EOS), and what looks like a special token in it stays
text unless parsing is asked for.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.processors import ByteLevel

from torchtune.data.sentencepiece_file import begin_with, sentencepiece_to_backend
from torchtune.data.tokenizer_files import TokenizerFiles, write_tokenizer_files
from torchtune.errors import ConfigError, DataError

__all__ = ["FastTokenizer", "SentencePieceTokenizer", "Tokenizer"]

PLACEHOLDERS = 0xF0000  # the first code point of a private plane
Offsets = list[tuple[int, int]]


class Tokenizer(Protocol):
    """What the library asks of a tokenizer.

    Attributes:
        bos_id: Id of the token that begins a text, where there is one.
        eos_id: Id of the token that ends a text, where there is one.
        stop_ids: Ids at which generation ends: the end token and those of the checkpoint's files.
        vocab_size: How many ids there are, added tokens among them.
        adds_bos: Whether the model's texts begin with BOS.
        names: Texts of the named tokens (``bos_token`` ...), as templates print them.
        special_tokens: Ids of the special tokens, by their text.
        chat_template: The jinja source of the model's chat template, where it has one.
        source: Where it was read, for messages.
    """

    source: str
    bos_id: int | None
    eos_id: int | None
    stop_ids: tuple[int, ...]
    vocab_size: int
    adds_bos: bool
    names: Mapping[str, str]
    special_tokens: Mapping[str, int]
    chat_template: str | None

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of `text`; with `special`, special tokens written in it are parsed."""

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of `ids`, without special tokens unless `special`."""

    def tokenize(self, text: str, *, guard: str = "") -> tuple[list[int], Offsets]:
        """Return ids, special tokens parsed, and the characters ``[start, end)`` each came from.

        Args:
            text: The text.
            guard: A character to be dropped from the text. A special token's text that holds it
                is not parsed: so a text can hold both special tokens and their look-alikes.
        """

    def save(self, folder: str | Path) -> None:
        """Write what transformers loads into `folder`, `chat_template` as chat_template.jinja."""


class _Shared:
    """What both backends take from the files beside the vocabulary."""

    bos_id: int | None
    eos_id: int | None
    special_tokens: Mapping[str, int]

    def _set(self, files: TokenizerFiles, named: Mapping[str, int | None]) -> None:
        self.files = files
        self.model_vocab: int | None = None  # set where the model of the same folder is meant
        self.source = str(files.folder or "a tokenizer made by a program")
        self.names: Mapping[str, str] = files.names
        self.chat_template = files.chat_template
        self.bos_id = named.get("bos_token")
        self.eos_id = named.get("eos_token")
        ends = [] if self.eos_id is None else [self.eos_id]
        self.stop_ids = tuple(dict.fromkeys([*ends, *files.stop_ids]))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return special_pattern(self.special_tokens)

    def _config(self) -> dict[str, Any]:
        """A tokenizer_config.json by which transformers takes tokenizer.json as it is.

        By another class's name it puts that class's own way to split texts in place of the file's.
        """
        inputs = {"model_input_names": ["input_ids", "attention_mask"]}
        said = {"clean_up_tokenization_spaces": False, **inputs, **self.names, **self.files.config}
        return {**said, "tokenizer_class": "PreTrainedTokenizerFast"}


class FastTokenizer(_Shared):
    """A tokenizer of the `tokenizers` library, such as ``tokenizer.json`` holds.

    Args:
        backend: The tokenizer; it is changed, give it to nobody else.
        files: What the files beside it say.

    Raises:
        ConfigError: ``tokenizer_config.json`` gives a token another id than the vocabulary does.
    """

    def __init__(self, backend: Backend, files: TokenizerFiles | None = None) -> None:
        files = files or TokenizerFiles()
        _complete(backend, files)
        named = {n: backend.token_to_id(text) for n, text in files.names.items()}
        added = backend.get_added_tokens_decoder()
        self.special_tokens = {t.content: i for i, t in sorted(added.items()) if t.special}
        self._set(files, {**files.model_ids, **named})
        if not files.config:  # else what it does not name templates do not print
            found = {n: backend.id_to_token(i) for n, i in files.model_ids.items()}
            self.names = {n: text for n, text in found.items() if text} | dict(files.names)
        self.adds_bos = self._begins(backend)
        self.vocab_size = backend.get_vocab_size()
        backend.no_truncation()
        backend.no_padding()
        self._post = backend.post_processor
        # A post-processor would trim white space from the offsets; of its tokens none is wanted.
        backend.post_processor = ByteLevel(trim_offsets=False)
        self._backend = backend

    def _begins(self, backend: Backend) -> bool:
        said = self.files.config.get("add_bos_token")
        return said if isinstance(said, bool) else backend.encode("a").ids[:1] == [self.bos_id]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of `text`; with `special`, special tokens written in it are parsed."""
        self._backend.encode_special_tokens = not special
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of `ids`, without special tokens unless `special`."""
        return str(self._backend.decode(list(ids), skip_special_tokens=not special))

    def tokenize(self, text: str, *, guard: str = "") -> tuple[list[int], Offsets]:
        """Return ids and offsets; see `Tokenizer.tokenize`."""
        if guard:
            return self._tokenize_guarded(text, guard)
        self._backend.encode_special_tokens = False
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def _tokenize_guarded(self, text: str, guard: str) -> tuple[list[int], Offsets]:
        backend, placeholder = self._shielded
        if any(PLACEHOLDERS <= ord(c) <= PLACEHOLDERS + len(placeholder) for c in text):
            what = "a look-alike of a special token beside private-use characters (U+F0000 ...)"
            raise DataError("E-TEXT", what, do="take one of the two out of the row")
        written, places = [], []  # the text with placeholders, and where each character was
        for match in re.finditer(f"{self._pattern.pattern}|{re.escape(guard)}|.", text, re.DOTALL):
            if match[0] != guard:
                written.append(placeholder.get(match[0], match[0]))
                places.append(match.span())
        encoding = backend.encode("".join(written), add_special_tokens=False)
        ids = {backend.token_to_id(p): self.special_tokens[t] for t, p in placeholder.items()}
        offsets = [(places[a][0], places[max(a, b - 1)][1]) for a, b in encoding.offsets]
        return [ids.get(i, i) for i in encoding.ids], offsets

    @cached_property
    def _shielded(self) -> tuple[Backend, dict[str, str]]:
        """A copy that parses placeholders as it would the special tokens, and those as text."""
        copy = Backend.from_str(self._backend.to_str())
        placeholder = {t: chr(PLACEHOLDERS + i) for i, t in enumerate(self.special_tokens)}
        flags = {t.content: t for t in copy.get_added_tokens_decoder().values()}
        copy.add_tokens(
            [
                AddedToken(p, lstrip=flags[t].lstrip, rstrip=flags[t].rstrip, normalized=False)
                for t, p in placeholder.items()
            ]
        )
        copy.encode_special_tokens = True
        return copy, placeholder

    def save(self, folder: str | Path) -> None:
        """Write what transformers loads into `folder`, `chat_template` as chat_template.jinja."""
        write_tokenizer_files(self.files, Path(folder), self.chat_template, self._config())
        if not (Path(folder) / "tokenizer.json").is_file():
            ours, self._backend.post_processor = self._backend.post_processor, self._post
            (Path(folder) / "tokenizer.json").write_bytes(self._backend.to_str().encode())
            self._backend.post_processor = ours


class SentencePieceTokenizer(_Shared):
    """A sentencepiece model; special tokens split the text, and each piece is encoded alone.

    That is what Meta's code does, where every piece begins a text of its own.

    Args:
        model: The serialized model, the content of ``tokenizer.model``.
        files: What the files beside it say; tokens they add lie behind the model's own.

    Raises:
        ConfigError: `model` is no sentencepiece model.
    """

    def __init__(self, model: bytes, files: TokenizerFiles | None = None) -> None:
        import sentencepiece  # here, for few checkpoints need it

        files = files or TokenizerFiles()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as error:
            what = f"not a sentencepiece model: {error}"
            raise ConfigError("E-TOKENIZER", what, where=str(files.folder or "")) from None
        size = self._model.vocab_size()
        own = (i for i in range(size) if self._model.is_control(i) or self._model.is_unknown(i))
        self.special_tokens = {self._model.id_to_piece(i): i for i in own} | dict(files.added)
        named = {"bos_token": self._model.bos_id(), "eos_token": self._model.eos_id()}
        named = {name: i for name, i in named.items() if i >= 0}
        own_names = {name: self._model.id_to_piece(i) for name, i in named.items()}
        found = {n: self.special_tokens.get(text) for n, text in files.names.items()}
        self._set(files, named | {n: i for n, i in found.items() if i is not None})
        self.names = own_names | dict(files.names)
        self.adds_bos = bool(files.config.get("add_bos_token", self.bos_id is not None))
        self.vocab_size = max([size, *(i + 1 for i in self.special_tokens.values())])

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of `text`; with `special`, special tokens written in it are parsed."""
        return self.tokenize(text)[0] if special else list(self._model.encode(text))

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of `ids`, without special tokens unless `special`."""
        texts = {i: text for text, i in self.special_tokens.items()}
        if not special:
            return str(self._model.decode([i for i in ids if i not in texts]))
        parts: list[str] = []
        run: list[int] = []
        for i in [*ids, None]:
            if i is None or i in texts:
                parts += [self._model.decode(run), texts[i] if i is not None else ""]
                run = []
            else:
                run.append(i)
        return "".join(parts)

    def tokenize(self, text: str, *, guard: str = "") -> tuple[list[int], Offsets]:
        """Return ids and offsets; see `Tokenizer.tokenize`."""
        ids: list[int] = []
        offsets: Offsets = []
        at = 0
        for match in [*self._pattern.finditer(text), None]:
            end = len(text) if match is None else match.start()
            places = [i for i in range(at, end) if text[i] != guard]
            piece = text[at:end].replace(guard, "") if guard else text[at:end]
            for number, (a, b) in _pieces(self._model, piece):
                ids.append(number)
                start = places[a] if a < len(places) else end
                offsets.append((start, places[b - 1] + 1 if b > a else start))
            if match is not None:
                ids.append(self.special_tokens[match[0]])
                offsets.append(match.span())
                at = match.end()
        return ids, offsets

    def save(self, folder: str | Path) -> None:
        """Write what transformers loads into `folder`, `chat_template` as chat_template.jinja."""
        folder = Path(folder)
        config = {"add_bos_token": self.adds_bos, **self._config()}
        write_tokenizer_files(self.files, folder, self.chat_template, config)
        (folder / "tokenizer.model").write_bytes(self._model.serialized_model_proto())
        backend = sentencepiece_to_backend(self._model, self.special_tokens)
        if backend is None:
            return  # transformers converts the model itself, not always to the same ids
        if self.adds_bos:
            begin_with(backend, self.special_tokens, self.bos_id)
        (folder / "tokenizer.json").write_bytes(backend.to_str().encode())


def special_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for any of `texts`, the longest first; it never matches where none is given."""
    longest = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def _pieces(model: Any, text: str) -> Iterable[tuple[int, tuple[int, int]]]:
    if not text:
        return []
    if hasattr(model, "encode_as_offset_mapping"):
        found = model.encode_as_offset_mapping(text)
        return zip(found["ids"], found["offsets"], strict=True)
    proto = model.encode(text, out_type="immutable_proto")  # sentencepiece before 0.2.2
    return [(piece.id, (piece.begin, piece.end)) for piece in proto.pieces]


def _complete(backend: Backend, files: TokenizerFiles) -> None:
    """Add the tokens that only ``tokenizer_config.json`` knows, as transformers does."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    wanted = dict.fromkeys([*files.added, *files.names.values()])
    missing = [text for text in wanted if text not in known]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in missing])
    for text in missing:
        number, found = files.added.get(text), backend.token_to_id(text)
        if number is not None and number != found:
            what = f"token {text!r} has id {found} in tokenizer.json, {number} beside it"
            raise ConfigError("E-TOKENIZER", what, where=str(files.folder or ""))
