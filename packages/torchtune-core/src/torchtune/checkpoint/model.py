"""A model's weights, between its parameters and a folder that transformers loads."""

import os
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchtune.checkpoint.safetensors_file import nbytes
from torchtune.checkpoint.saving import make_folder, write_files, write_json
from torchtune.checkpoint.staged_work import THREADS
from torchtune.checkpoint.tensor_files import whole_file
from torchtune.checkpoint.weights import INDEX_FILE, WEIGHTS_FILE, Weights, read_weights
from torchtune.errors import ConfigError, MissingError, TuneError

if TYPE_CHECKING:
    from torchtune.distributed import World

__all__ = [
    "check_model",
    "check_names",
    "fill_all",
    "load_model",
    "save_model",
    "save_tensors",
]

# Old conversions saved these; every reader computes them from config.json.
_COMPUTED = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
MAX_SHARD_BYTES = 5 * 2**30
"""Where transformers and the hub have long cut files of weights."""

SHOWN = 3
"""Names of each kind that an error gives; a model of another size differs in hundreds."""

_WEIGHTS = (WEIGHTS_FILE, INDEX_FILE, "model-*-of-*.safetensors")
_READERS = 4

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def load_model(
    model: nn.Module, folder: str | os.PathLike[str], *, skip: Collection[str] = ()
) -> set[str]:
    """Fill the parameters of `model` from the safetensors in `folder`, tensor by tensor.

    Parameters keep their dtype and device, and may be distributed: each rank reads the files and
    takes its part, without communication. The model may come from the meta device by `to_empty`.

    Args:
        model: Its parameter names are those of the files.
        folder: A folder in Hugging Face's layout.
        skip: Names that the files need not hold, such as those of an adapter.

    Returns:
        The names that were filled.

    Raises:
        MissingError: A file, shard or tensor is absent, or a file is cut short. Missing,
            unexpected and misshapen tensors are all in one error.
        ConfigError: Nothing is missing, but tensors are unexpected or misshapen.
    """
    weights = read_weights(folder)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in skip}
    ignored = _ignored(weights, tensors)
    return fill_all(tensors, weights, where=str(folder), ignored=ignored)


def check_model(
    model: nn.Module, folder: str | os.PathLike[str], *, skip: Collection[str] = ()
) -> None:
    """Raise what `load_model` would, by headers alone; the model may be on the meta device."""
    weights = read_weights(folder)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in skip}
    check_names(tensors, weights, _ignored(weights, tensors), str(folder))


def _ignored(weights: Weights, tensors: Mapping[str, Tensor]) -> set[str]:
    """Return the names in the files that a model with these `tensors` does without."""
    found = {name for name in weights if name.endswith(_COMPUTED) and name not in tensors}
    return found | {_HEAD} if _is_spare_head(weights, tensors) else found


def _is_spare_head(weights: Weights, tensors: Mapping[str, Tensor]) -> bool:
    """Say whether the files of a tied model hold the embedding a second time, as the head."""
    if _HEAD in tensors or _HEAD not in weights or _EMBEDDING not in weights:
        return False
    return weights.same(_HEAD, _EMBEDDING)


def fill_all(
    tensors: Mapping[str, Tensor],
    weights: Weights,
    *,
    where: str,
    ignored: Collection[str] = (),
    file_name: Callable[[str], str] = str,
) -> set[str]:
    """Copy each of `weights` into the one of `tensors` that has its name.

    Args:
        tensors: What is to be filled, all of it; plain or distributed.
        weights: What is read.
        where: The place for the error.
        ignored: Names in the files that may be there or not.
        file_name: From a name in `tensors` to that in the files.

    Returns:
        The names that were filled.

    Raises:
        TuneError: As `load_model`.
    """
    targets = {file_name(name): name for name in tensors}
    check_names({key: tensors[name] for key, name in targets.items()}, weights, ignored, where)
    with ThreadPoolExecutor(max_workers=_READERS) as readers:
        keys = [key for key in weights if key in targets]
        deque(readers.map(lambda key: weights.fill(key, tensors[targets[key]]), keys), maxlen=0)
    return set(tensors)


def check_names(
    tensors: Mapping[str, Tensor], weights: Weights, ignored: Collection[str], where: str
) -> None:
    """Raise unless `weights` has the names and shapes of `tensors`; all kinds of faults in one error."""
    missing = [name for name in tensors if name not in weights]
    unexpected = [name for name in weights if name not in tensors and name not in ignored]
    misshapen = [
        f"{name} {list(weights.shape(name))} for {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in weights and weights.shape(name) != tuple(tensor.shape)
    ]
    found = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    faults = [f"{kind}: {_first_few(names)}" for kind, names in found.items() if names]
    if faults:
        kind: type[TuneError] = MissingError if missing else ConfigError
        raise kind(
            "E-WEIGHTS",
            f"the weights do not fit the model; {'; '.join(faults)}",
            where=where,
            do="is config.json that of these weights, and is the folder whole?",
        )


def _first_few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def save_model(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    world: "World",
    config: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    skip: Collection[str] = (),
    durable: bool = True,
) -> None:
    """Write `model` so that transformers and `load_model` load the folder as it is.

    All ranks call this, and each writes what it holds at its place in the files: nothing is
    gathered, and no rank holds more than its own part. The folder must be one that all ranks see.

    Args:
        model: Plain or distributed over the ranks.
        folder: Where to; made where absent, older weights in it are removed.
        world: The processes that take part.
        config: What config.json says, the dtype apart, which is that of the files.
        dtype: What floating point weights are cast to; None keeps theirs.
        max_shard_bytes: Above this the weights are spread over several files with an index; 5 GiB
            is what transformers and the hub have long used.
        skip: Names to leave out, such as those of an adapter.
        durable: Flush the files to disk; False leaves that out, to measure its cost.

    Raises:
        TuneError: The disk is full, or a file cannot be written; raised on every rank.
    """
    state = model.state_dict(keep_vars=True).items()
    buffers = {id(buffer) for buffer in model.buffers()}  # which a forward may change
    save_tensors(
        {
            name: tensor.detach().clone() if id(tensor) in buffers else tensor.detach()
            for name, tensor in state
            if name not in skip
        },
        Path(folder),
        world=world,
        config=config,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        durable=durable,
    )


def save_tensors(
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    world: "World",
    config: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    durable: bool = True,
    value: Callable[[str], Tensor] | None = None,
) -> None:
    """Write a model's `tensors` as `save_model` does; with `value`, as `whole_file`, one by one."""
    make_folder(folder, world, without=_WEIGHTS)
    shards = _shards(tensors, dtype, max_shard_bytes)
    with write_files(world, durable=durable, threads=1 if value else THREADS) as saving:
        for file, names in shards.items():
            shard = {name: tensors[name] for name in names}
            saving.add(whole_file(folder / file, shard, world, dtype=dtype, value=value))
        if len(shards) > 1:
            write_json(folder / INDEX_FILE, _index(tensors, shards, dtype), saving)
        write_json(folder / "config.json", _with_dtype(config, tensors, dtype), saving)


def _shards(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int
) -> dict[str, list[str]]:
    """Return file -> names: a new file begins where the next tensor would go over `limit` bytes."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        size += nbytes(tensor, dtype)
        if size > limit and groups[-1]:
            groups.append([])
            size = nbytes(tensor, dtype)
        groups[-1].append(name)
    if len(groups) == 1:
        return {WEIGHTS_FILE: groups[0]}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": names
        for number, names in enumerate(groups, 1)
    }


def _index(
    tensors: Mapping[str, Tensor], shards: Mapping[str, list[str]], dtype: torch.dtype | None
) -> dict[str, Any]:
    total = sum(nbytes(tensor, dtype) for tensor in tensors.values())
    files = {name: file for file, names in shards.items() for name in names}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}


def _with_dtype(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype | None
) -> dict[str, Any]:
    """Return `config` with the dtype of the files, under the key that it uses (older: torch_dtype)."""
    dtype = dtype or next(iter(tensors.values())).dtype
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    return {**config, key: str(dtype).removeprefix("torch.")}
