"""An adapter merged into its base: whole weights, written tensor by tensor."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchtune.checkpoint.adapter import ADAPTER_CONFIG, load_adapter
from torchtune.checkpoint.disk import disk_error, flush
from torchtune.checkpoint.found import FoundCheckpoint, find_checkpoint, read_adapter_config
from torchtune.checkpoint.hub_download import hub_source
from torchtune.checkpoint.manifest import latest_step
from torchtune.checkpoint.model import check_model, save_tensors
from torchtune.checkpoint.safetensors_file import DTYPES
from torchtune.checkpoint.weights import Weights, read_weights
from torchtune.errors import ConfigError, MissingError, TuneError
from torchtune.peft import LoRALinear, adapter_names, adapters, lora_from_config

__all__ = ["MERGED_FROM", "merge_adapter"]

MERGED_FROM = "merged_from.json"
"""What a merged folder says of its base and of the adapter."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_KEPT = ("LICEN[CS]E*", "NOTICE*", "USE_POLICY*", "generation_config.json")


def merge_adapter(
    base: str | Path,
    adapter: str | Path,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
) -> Path:
    """Write `base` with `adapter` merged in as a folder that transformers, vLLM and we load.

    Each merged weight is `W + scale * B A`, the product and the sum in fp32 and rounded once, as
    PEFT's `merge_and_unload` does. One tensor is held at a time and the files are mapped, so
    memory is the adapter plus a few times the largest matrix in fp32. Config, tokenizer, chat
    template and licence files go along; merged_from.json says what was merged. The folder appears
    whole, by a rename, or not at all.

    Args:
        base: A model in Hugging Face's format, or a run's folder with whole weights.
        adapter: A folder in PEFT's format, a step folder, or a run's folder (its latest step).
        folder: Where to; made with its parents.
        dtype: Of floating point weights in the files; None keeps each as it is in the base.
        force: Replace `folder` if it holds a model.

    Returns:
        `folder`, absolute.

    Raises:
        MissingError: A folder, a file or a tensor is missing.
        ConfigError: The base is not the one that the adapter was trained on, the adapter is not one
            that can be merged, or E-FOLDER-EXISTS because of what is in `folder`.
        TuneError: E-MERGE-RANGE for a value that `dtype` cannot hold; the disk is full.
    """
    base = Path(base).expanduser()
    _check_is_adapter(Path(adapter).expanduser())
    found = find_checkpoint(adapter, base=latest_step(base) or base)
    place = Path(folder).expanduser().absolute()
    _check_place(place, found, force)
    with _appearing(place) as aside:
        _write_model(found, aside, dtype)
        _copy_rest(found, aside)
    return place


def _check_is_adapter(given: Path) -> None:
    folder = latest_step(given) or given
    if not (folder / ADAPTER_CONFIG).is_file():
        what = f"there is no adapter in {str(folder)!r}: no {ADAPTER_CONFIG}"
        raise MissingError("E-ADAPTER", what, do="the order is BASE ADAPTER OUT")


def _check_place(place: Path, found: FoundCheckpoint, force: bool) -> None:
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    sources = [source.resolve() for source in found]
    if any(place.resolve() in (source, *source.parents) for source in sources):
        what = f"{place} holds what is to be merged"
        raise ConfigError("E-FOLDER-EXISTS", what, do="choose another folder")
    if not (place / "config.json").is_file():
        what = f"{place} exists and is no model"
        raise ConfigError("E-FOLDER-EXISTS", what, do="choose another folder")
    if not force:
        what = f"{place} holds a model already"
        raise ConfigError("E-FOLDER-EXISTS", what, do="--force replaces it")


@contextmanager
def _appearing(place: Path) -> Iterator[Path]:
    """Give a folder beside `place` that takes its place when the block ends, or vanishes."""
    aside, old = (place.with_name(f".{place.name}.{end}") for end in ("partial", "old"))
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for path in aside.iterdir():
            flush(path)
        flush(aside)
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
        aside.rename(place)
        flush(place.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise disk_error(error, place) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_model(found: FoundCheckpoint, folder: Path, dtype: torch.dtype | None) -> None:
    from torchtune.distributed import World  # late: brings torch.distributed
    from torchtune.models import auto

    with torch.device("meta"):
        model = lora_from_config(auto(found.base), read_adapter_config(found.folder))
    names = adapter_names(model)
    check_model(model, found.base, skip=names)
    for layer in adapters(model).values():
        layer.lora_a, layer.lora_b = (_in_memory(part) for part in (layer.lora_a, layer.lora_b))
    load_adapter(model, found.folder, names=names)
    weights = read_weights(found.base)
    kinds = {name: DTYPES[weights.entry(name).dtype] for name in weights}
    tensors = {
        name: torch.empty_like(tensor, dtype=kinds[name], device="meta")
        for name, tensor in model.state_dict().items()
        if name not in names
    }
    value = _merged(weights, adapters(model), dtype)
    save_tensors(tensors, folder, world=World(), config=model.hf_config, dtype=dtype, value=value)


def _in_memory(part: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty(part.shape, device="cpu"), requires_grad=False)


def _merged(
    weights: Weights, layers: dict[str, LoRALinear], dtype: torch.dtype | None
) -> Callable[[str], Tensor]:
    """Return a function from a weight's name to its merged value in the files' dtype."""

    def value(name: str) -> Tensor:
        weight = weights[name]
        layer = layers.get(name.removesuffix(".weight"))
        total = weight if layer is None else weight + layer.delta()
        if not weight.is_floating_point():
            return weight
        result = total.to(dtype or weight.dtype)
        if not torch.isfinite(result).all():
            kind = str(result.dtype).removeprefix("torch.")
            raise TuneError(
                "E-MERGE-RANGE", f"{name} has values that are not finite in {kind}",
                do="bf16 and fp32 reach further than fp16; if they fail too, the adapter is broken",
            )  # fmt: skip
        return result

    return value


def _copy_rest(found: FoundCheckpoint, folder: Path) -> None:
    from torchtune.data import auto_tokenizer

    for path in (path for pattern in _KEPT for path in found.base.glob(pattern) if path.is_file()):
        shutil.copyfile(path, folder / path.name)
    holders = (place for place in found if any((place / name).is_file() for name in _TOKENIZERS))
    if (holder := next(holders, None)) is not None:  # the adapter's own comes first
        auto_tokenizer(holder).save(folder)
    text = json.dumps(_origin(found), indent=2) + "\n"
    (folder / MERGED_FROM).write_text(text, encoding="utf-8")


def _origin(found: FoundCheckpoint) -> dict[str, Any]:
    """Return what was merged, without paths: the folder may be published."""
    hub = hub_source(found.base) or {}
    source = {key: hub[key] for key in ("repo", "revision") if key in hub}
    said = read_adapter_config(found.folder)
    kept = ("r", "lora_alpha", "use_rslora")
    return {
        "base": {"name": found.base.name, **source},
        "adapter": {"name": found.folder.name, **{key: said.get(key) for key in kept}},
    }
