"""What the files beside a vocabulary say: named tokens, stop tokens, the chat template."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchtune.errors import ConfigError, MissingError

__all__ = ["TokenizerFiles", "read_tokenizer_files", "write_tokenizer_files"]

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)


@dataclass(frozen=True)
class TokenizerFiles:
    """The facts that a checkpoint folder holds besides the vocabulary itself.

    Args:
        folder: Where they were read; None for a tokenizer made by a program.
        config: ``tokenizer_config.json`` as it is.
        names: Texts of the named tokens (``bos_token`` ...), as templates print them.
        added: Ids of tokens added to the vocabulary, by their text.
        stop_ids: End tokens named by ``generation_config.json`` and ``config.json``.
        model_ids: ``bos_token`` and ``eos_token`` ids of ``config.json``, where it has them.
        chat_template: The model's own template.
        model_vocab: ``vocab_size`` of ``config.json``: how many ids the model there can take.
    """

    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    added: Mapping[str, int] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
    model_ids: Mapping[str, int] = field(default_factory=dict)
    chat_template: str | None = None
    model_vocab: int | None = None


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read the small files of a checkpoint folder; each of them may be absent.

    Raises:
        ConfigError: One of them is not the JSON that it should be.
    """
    config = _json(folder / "tokenizer_config.json")
    model = _json(folder / "config.json")
    generation = _json(folder / "generation_config.json")
    stop = dict.fromkeys([*_ids(generation.get("eos_token_id")), *_ids(model.get("eos_token_id"))])
    model_ids = {f"{n}_token": _ids(model.get(f"{n}_token_id"))[:1] for n in ("bos", "eos")}
    return TokenizerFiles(
        folder=folder,
        config=config,
        names=_names(_json(folder / "special_tokens_map.json")) | _names(config),
        added=_added(folder, config),
        stop_ids=tuple(stop),
        model_ids={name: ids[0] for name, ids in model_ids.items() if ids},
        chat_template=_template(folder, config),
        model_vocab=next(iter(_ids(model.get("vocab_size"))), None),
    )


def write_tokenizer_files(
    files: TokenizerFiles, folder: Path, chat_template: str | None, config: Mapping[str, Any]
) -> None:
    """Copy what transformers needs beside the vocabulary, with the template in use.

    The template goes into ``chat_template.jinja`` and nowhere else, so that no reader finds two.
    ``generation_config.json`` goes along, for it names the stop tokens; one that is there stays.

    Args:
        files: Where they come from.
        folder: Where they go; it is made.
        chat_template: The jinja source, if any.
        config: What ``tokenizer_config.json`` is to say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source = files.folder / name if files.folder else None
        keep = name == "generation_config.json" and (folder / name).exists()
        if (
            source
            and source.is_file()
            and not keep
            and source.resolve() != (folder / name).resolve()
        ):
            (folder / name).write_bytes(source.read_bytes())
    said = {key: value for key, value in config.items() if key != "chat_template"}
    write_json(folder / "tokenizer_config.json", said)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_bytes(chat_template.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as JSON with two spaces of indent, UTF-8, lines ending in a line feed."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode())


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError("E-JSON", f"not JSON: {error}", where=str(path)) from None
    if not isinstance(value, dict):
        raise ConfigError("E-JSON", "an object was wanted", where=str(path))
    return value


def _text(value: Any) -> str | None:
    """The text of a token, given as a string or as an object with its flags."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    extra = config.get("extra_special_tokens")
    found = {name: _text(config.get(name)) for name in NAMES}
    found |= {k: _text(v) for k, v in extra.items()} if isinstance(extra, dict) else {}
    return {name: text for name, text in found.items() if text}


def _added(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    def listed() -> Iterator[tuple[str, int]]:
        for text, number in _json(folder / "added_tokens.json").items():
            yield text, int(number)
        for number, token in (config.get("added_tokens_decoder") or {}).items():
            text_of = _text(token)
            if text_of and token.get("special", True):
                yield text_of, int(number)

    return dict(listed())


def _ids(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [int(v) for v in value] if isinstance(value, list) else []


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_bytes().decode("utf-8")
    for value in (
        config.get("chat_template"),
        _json(folder / "chat_template.json").get("chat_template"),
    ):
        named = {t["name"]: t["template"] for t in value} if isinstance(value, list) else value
        chosen = named.get("default") if isinstance(named, dict) else named
        if isinstance(chosen, str):
            return chosen
        if isinstance(named, dict) and named:
            names = ", ".join(sorted(named))
            what = f"the checkpoint has the chat templates {names} and none is the default"
            raise ConfigError("E-CHAT-TEMPLATE", what, where=str(folder), do="set chat_template")
    return None


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """Return `checkpoint` as a folder that is there.

    Raises:
        MissingError: It is not there, or is not a folder.
    """
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise MissingError("E-CHECKPOINT", what, where=str(folder), do="give a checkpoint folder")
    return folder
