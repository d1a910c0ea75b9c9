"""Write a Llama checkpoint as GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torchtune.checkpoint import describe, find_checkpoint, read_weights
from torchtune.data import auto_tokenizer
from torchtune.errors import ConfigError, MissingError, TuneError
from torchtune.models import auto

from torchtune_integrations.gguf.sizes import add_sizes
from torchtune_integrations.gguf.tensors import add_tensors, write_tensors
from torchtune_integrations.gguf.vocabulary import add_vocabulary, read_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["KINDS", "export_gguf"]

KINDS = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
"""What matrices may be written as, and what the format calls such a file."""


def export_gguf(
    checkpoint: str | Path, file: str | Path, *, kind: str = "f16", force: bool = False
) -> Path:
    """Write the Llama model in `checkpoint`, with tokenizer and chat template, as one GGUF file.

    Tensors are converted one at a time. Norms stay fp32, as llama.cpp wants them; a matrix whose
    rows cannot be cut into blocks of 32 is written as f16 where q8_0 is asked for. The file appears
    whole, by a rename, or not at all.

    Args:
        checkpoint: A model in Hugging Face's format, or the folder of a run that trained all weights.
        file: Where to.
        kind: ``f32``, ``f16``, ``bf16``, or ``q8_0`` (8 bits, and a scale for each 32 weights).
        force: Replace `file` if it is there.

    Returns:
        `file`, absolute.

    Raises:
        MissingError: E-EXTRA without the package gguf; the checkpoint is missing or not whole.
        ConfigError: E-GGUF for an adapter, another architecture, or a tokenizer that llama.cpp
            does not know; E-FILE-EXISTS for `file`.
        TuneError: The file cannot be written.
    """
    create, place = _writer_class(), Path(file).expanduser().absolute()
    if place.exists() and not force:
        raise ConfigError("E-FILE-EXISTS", f"{place} exists already", do="--force overwrites it")
    folder = _model_folder(checkpoint)
    writer = create(None, "llama", use_temp_file=False)
    aside = place.with_name(f".{place.name}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _write(writer, folder, aside, kind)
        aside.replace(place)
    except OSError as error:
        what = f"cannot write {place.name}: {error.strerror or error}"
        raise TuneError("E-DISK", what, where=str(place)) from error
    finally:
        writer.close()
        aside.unlink(missing_ok=True)
    return place


def _write(writer: "GGUFWriter", folder: Path, path: Path, kind: str) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    with torch.device("meta"):
        model = auto(folder)
    writer.add_type("model")
    writer.add_name(folder.resolve().name)
    writer.add_file_type(LlamaFileType[KINDS[kind]])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    add_sizes(writer, model.hf_config)
    vocabulary = read_vocabulary(folder, size=model.hf_config["vocab_size"])
    add_vocabulary(writer, vocabulary, auto_tokenizer(folder))
    parts = add_tensors(writer, model, read_weights(folder), kind.upper())
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    write_tensors(writer, parts)
    writer.close()


def _writer_class() -> "type[GGUFWriter]":
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise MissingError(
            "E-EXTRA", "a GGUF file needs the package 'gguf', which is not installed",
            do="pip install 'torchtune-integrations[gguf]'",
        ) from None  # fmt: skip
    return GGUFWriter


def _model_folder(checkpoint: str | Path) -> Path:
    found = find_checkpoint(checkpoint, check_base=False)
    if found.is_adapter:
        what = f"{str(checkpoint)!r} is an adapter, and GGUF holds whole weights"
        raise ConfigError("E-GGUF", what, do="merge it first: tune merge BASE ADAPTER OUT")
    report = describe(found.folder)
    if report["model_type"] != "llama":
        what = f"architecture {report['model_type']!r} cannot be exported, only 'llama'"
        raise ConfigError("E-GGUF", what, where=str(found.folder))
    if report["problems"]:
        what = f"the checkpoint is not whole: {report['problems'][0]}"
        raise MissingError("E-GGUF", what, where=str(found.folder), do="`tune inspect` tells more")
    return found.folder
