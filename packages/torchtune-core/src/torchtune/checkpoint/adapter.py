"""Adapters in PEFT's files: adapter_model.safetensors and adapter_config.json."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from torchtune.checkpoint.model import check_names, fill_all
from torchtune.checkpoint.saving import make_folder, write_files, write_json
from torchtune.checkpoint.tensor_files import whole_file
from torchtune.checkpoint.weights import Weights, read_weights

if TYPE_CHECKING:
    from torchtune.distributed import World

__all__ = ["ADAPTER_CONFIG", "ADAPTER_FILE", "check_adapter", "load_adapter", "save_adapter"]

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_BASE_SUFFIX = ".base_layer.weight"
_SUFFIXES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}


def save_adapter(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    names: Collection[str],
    config: Mapping[str, Any],
    world: "World",
) -> None:
    """Write the parameters `names` of `model` in PEFT's format.

    All ranks call this, and each writes what it holds. Weights keep their dtype.

    Args:
        model: The model with its adapter; plain or distributed.
        folder: Where to; made where absent.
        names: Parameter names, ``<module>.lora_a`` and ``<module>.lora_b``.
        config: What adapter_config.json says.
        world: The processes that take part.

    Raises:
        TuneError: The disk is full, or a file cannot be written; raised on every rank.
    """
    folder = Path(folder)
    make_folder(folder, world, without=[ADAPTER_FILE])
    state = model.state_dict()
    tensors = {_peft_name(name): state[name] for name in state if name in names}
    with write_files(world) as saving:
        saving.add(whole_file(folder / ADAPTER_FILE, tensors, world))
        write_json(folder / ADAPTER_CONFIG, config, saving)


def load_adapter(
    model: nn.Module, folder: str | os.PathLike[str], *, names: Collection[str]
) -> set[str]:
    """Fill the parameters `names` of `model` from the adapter that PEFT or we saved in `folder`.

    Returns:
        The names that were filled.

    Raises:
        MissingError: The file or a tensor is absent; missing, unexpected and misshapen tensors are
            all in one error.
        ConfigError: Nothing is missing, but tensors are unexpected or misshapen.
    """
    path = Path(folder) / ADAPTER_FILE
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name in names}
    weights, ignored = _read(path)
    return fill_all(tensors, weights, where=str(path), ignored=ignored, file_name=_peft_name)


def check_adapter(
    model: nn.Module, folder: str | os.PathLike[str], *, names: Collection[str]
) -> None:
    """Raise what `load_adapter` would, by the header alone; the model may be on the meta device."""
    path = Path(folder) / ADAPTER_FILE
    state = model.state_dict()
    weights, ignored = _read(path)
    check_names({_peft_name(name): state[name] for name in names}, weights, ignored, str(path))


def _read(path: Path) -> tuple[Weights, set[str]]:
    """Return the file's weights, and those names in it that are no adapter's."""
    weights = read_weights(path)
    # of a head that it adapts PEFT writes the base's own matrix too
    return weights, {name for name in weights if name.endswith(_BASE_SUFFIX)}


def _peft_name(name: str) -> str:
    """Return PEFT's name of our parameter: its layers hold the matrices as modules of their own."""
    module, _, last = name.rpartition(".")
    return f"{_PREFIX}{module}.{_SUFFIXES.get(last, last)}"
