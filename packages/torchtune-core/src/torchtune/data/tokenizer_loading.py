"""Find the tokenizer of a checkpoint folder and load it."""

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer as Backend

from torchtune.data.chat_template import find_template
from torchtune.data.tiktoken_file import is_tiktoken, tiktoken_to_backend
from torchtune.data.tokenizer import FastTokenizer, SentencePieceTokenizer, Tokenizer
from torchtune.data.tokenizer_files import (
    checkpoint_folder,
    read_tokenizer_files,
)
from torchtune.errors import ConfigError, MissingError

__all__ = ["auto_tokenizer", "llama3_tiktoken", "sentencepiece", "tokenizer_json"]


def auto_tokenizer(checkpoint: str | Path, chat_template: str | None = None) -> Tokenizer:
    """Return the tokenizer of a checkpoint folder, whatever its format.

    ``tokenizer.json`` is taken where there is one, else ``tokenizer.model``, which is either
    tiktoken's or sentencepiece's.

    Args:
        checkpoint: A folder in Hugging Face's layout, or Meta's.
        chat_template: A built-in template or the path of one; None takes the checkpoint's own.

    Raises:
        MissingError: The folder, its tokenizer or the template is not there.
        ConfigError: One of the files is not what it should be.
    """
    folder = checkpoint_folder(checkpoint)
    if (folder / "tokenizer.json").is_file():
        tokenizer = tokenizer_json(folder / "tokenizer.json")
    elif not (folder / "tokenizer.model").is_file():
        what = "no tokenizer: neither tokenizer.json nor tokenizer.model"
        do = "copy the tokenizer's files from the original model into it"
        raise MissingError("E-TOKENIZER", what, where=str(folder), do=do)
    elif is_tiktoken(folder / "tokenizer.model"):
        tokenizer = llama3_tiktoken(folder / "tokenizer.model")
    else:
        tokenizer = sentencepiece(folder / "tokenizer.model")
    if isinstance(tokenizer, FastTokenizer | SentencePieceTokenizer):
        tokenizer.model_vocab = tokenizer.files.model_vocab
    if chat_template is not None:
        tokenizer.chat_template = find_template(chat_template)
    return tokenizer


def tokenizer_json(path: str | Path) -> Tokenizer:
    """Return the tokenizer at `path`, a ``tokenizer.json``; the files beside it are heard too.

    Raises:
        MissingError: There is no such file.
        ConfigError: It is not a tokenizer.
    """
    path = _file(path)
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        what = f"not a tokenizer: {error}"
        raise ConfigError("E-TOKENIZER", what, where=str(path)) from None
    return FastTokenizer(backend, read_tokenizer_files(path.parent))


def sentencepiece(path: str | Path) -> Tokenizer:
    """Return the tokenizer at `path`, a sentencepiece ``tokenizer.model`` such as Llama 2's.

    Raises:
        MissingError: There is no such file.
        ConfigError: It is not a sentencepiece model.
    """
    path = _file(path)
    return SentencePieceTokenizer(path.read_bytes(), read_tokenizer_files(path.parent))


def llama3_tiktoken(path: str | Path) -> Tokenizer:
    """Return the tokenizer at `path`, the tiktoken-format ``tokenizer.model`` of Llama 3 or 4.

    Generation ends at ``<|end_of_text|>`` and at the two tokens that end a turn. `save` writes a
    ``tokenizer.json`` of the same ids.

    Raises:
        MissingError: There is no such file.
        ConfigError: It is not Llama's.
    """
    path = _file(path)
    backend, family = tiktoken_to_backend(path)
    read = read_tokenizer_files(path.parent)
    numbers = (backend.token_to_id(text) for text in family.turn_ends)
    stop_ids = dict.fromkeys([*read.stop_ids, *(i for i in numbers if i is not None)])
    names = family.names | dict(read.names)
    return FastTokenizer(backend, replace(read, names=names, stop_ids=tuple(stop_ids)))


def _file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingError("E-TOKENIZER", "no such file", where=str(path))
    return path
