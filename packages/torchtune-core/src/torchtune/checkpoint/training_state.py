"""What a resume needs beside the weights: optimizer, schedule, generators, progress."""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchtune.checkpoint.model import fill_all
from torchtune.checkpoint.random_state import random_state, restore_random_state
from torchtune.checkpoint.safetensors_file import DTYPES
from torchtune.checkpoint.saving import make_folder, write_files, write_json
from torchtune.checkpoint.state_values import pack, unpack
from torchtune.checkpoint.states_in_8_bits import own_parts, read_state
from torchtune.checkpoint.tensor_files import own_files
from torchtune.checkpoint.weights import Weights
from torchtune.errors import ConfigError, MissingError, TuneError

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from torchtune.distributed import World

__all__ = ["load_training_state", "read_info", "save_training_state"]

FOLDER = "training_state"
_STATE = "state.json"
RATES = {"lr", "initial_lr", "weight_decay", "betas", "eps", "fused", "foreach"}
"""Options that an optimizer's state does not hang on."""

_SHARDS, _SHARD = "shard-*.safetensors", "shard-{rank:05d}-{number:05d}.safetensors"
_WEIGHT = "weight/"
_LAYOUT = 1
"""Number of the layout of this folder; a reader of another one says so instead of guessing."""


def save_training_state(
    folder: str | os.PathLike[str],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: "LRScheduler | None",
    world: "World",
    info: Mapping[str, Any],
    weights: bool = False,
    durable: bool = True,
) -> None:
    """Write into ``folder/training_state`` what an exact resume needs beside the weights.

    All ranks call this, and each writes the parts of tensors that it holds into safetensors files
    of its own, in the layout of torch.distributed.checkpoint's Hugging Face storage; where ranks
    hold the same, one writes it. All else goes into state.json; nothing is pickled or gathered.

    Args:
        folder: A step folder.
        model: Names the parameters of `optimizer`; plain or distributed.
        optimizer: Of any class whose state is numbers and tensors.
        scheduler: Its state is saved too; None where there is none.
        world: The processes; the random generators of each are saved.
        info: What the caller wants back: progress, data position; as JSON can hold it.
        weights: Also save the trainable weights as they are: needed where the step folder's own
            weight files hold another dtype.
        durable: Flush the files to disk; False leaves that out, to measure its cost.

    Raises:
        TuneError: The disk is full, a file cannot be written, or the optimizer or scheduler holds
            what is no number or tensor.
    """
    place = Path(folder) / FOLDER
    tensors: dict[str, Tensor] = {}
    fields = {
        "layout": _LAYOUT,
        "info": dict(info),
        "optimizer": _pack_optimizer(model, optimizer, tensors),
        "scheduler": scheduler and _pack_now(scheduler.state_dict(), "scheduler", tensors),
        "random": world.gather(random_state(world.device)),
    }
    if weights:
        tensors |= {_WEIGHT + name: tensor for name, tensor in _trainable(model).items()}
    make_folder(place, world, without=[_SHARDS])
    with write_files(world, durable=durable) as saving:
        for file in own_files(place, own_parts(tensors, world), world, pattern=_SHARD):
            saving.add(file)
        write_json(place / _STATE, fields, saving)


def load_training_state(
    folder: str | os.PathLike[str],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: "LRScheduler | None",
    world: "World",
    settings: bool = True,
) -> dict[str, Any]:
    """Restore what `save_training_state` wrote, to the bit; return its `info`.

    Each rank reads the parts of tensors that it holds now, whichever ranks wrote them. The random
    generators are restored only in a world of the size that saved them.

    Args:
        folder: A step folder.
        model: As when saving, its weights loaded; trainable weights are filled again where the
            training state holds them.
        optimizer: Built as when saving, over the same parameters.
        scheduler: As when saving.
        world: The processes; of any size.
        settings: Also restore the optimizer's numbers, such as its learning rate, and the schedule.
            False leaves both as given and restores running means and the like alone, nothing for an
            optimizer of another class or with options that ask for other state.

    Raises:
        MissingError: The folder holds no training state, or a file is cut short.
        ConfigError: The optimizer is of another class or over other parameters, or there was a
            scheduler where now is none, or none where now is one; or a version with another layout
            wrote the folder.
    """
    place = Path(folder) / FOLDER
    fields = _read_state(place / _STATE)
    tensors = Weights(sorted(place.glob(_SHARDS)))
    _unpack_optimizer(fields["optimizer"], model, optimizer, tensors, settings)
    if settings:
        read = partial(_placed, tensors, world.device)
        _restore_scheduler(fields["scheduler"], scheduler, read)
    _restore_weights(model, tensors, place)
    if len(fields["random"]) == world.size:
        restore_random_state(fields["random"][world.rank], world.device)
    return dict(fields["info"])


def read_info(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the `info` of the training state in a step folder, without restoring anything.

    Raises:
        MissingError: The folder holds no training state, or a damaged one.
    """
    return dict(_read_state(Path(folder) / FOLDER / _STATE)["info"])


def _read_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingError(
            "E-STATE-MISSING",
            "the folder holds no training state to go on from",
            where=str(path),
            do="to begin a new run on these weights, give the folder as checkpoint",
        )
    try:
        fields = dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise MissingError("E-FILE-DAMAGED", f"{path.name}: {error}", where=str(path)) from error
    if fields.get("layout") != _LAYOUT:
        raise ConfigError(
            "E-STATE-LAYOUT",
            "this training state was written by another version of torchtune-core",
            where=str(path),
            do="resume with that version, or begin a new run with the step folder as checkpoint",
        )
    return fields


def _restore_weights(model: nn.Module, tensors: Weights, place: Path) -> None:
    if any(name.startswith(_WEIGHT) for name in tensors):
        others = {name for name in tensors if not name.startswith(_WEIGHT)}
        named = partial(str.__add__, _WEIGHT)
        fill_all(_trainable(model), tensors, where=str(place), ignored=others, file_name=named)


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in state.items() if tensor.requires_grad}


def _group_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Return the names of the parameters of each group."""
    names = {id(value): name for name, value in model.state_dict(keep_vars=True).items()}
    try:
        return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    except KeyError:
        what = "the optimizer holds a parameter that is not the model's"
        raise TuneError("E-STATE", what, where="optimizer") from None


def _pack_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    groups, state = [], {}
    for number, names in enumerate(_group_names(model, optimizer)):
        group = optimizer.param_groups[number]
        options = {key: value for key, value in group.items() if key != "params"}
        packed = _pack_now(options, f"group{number}", tensors)
        groups.append({"names": names, "options": packed})
        for name, parameter in zip(names, group["params"], strict=True):
            if parameter in optimizer.state:
                values = optimizer.state[parameter]
                state[name] = pack(values, f"state/{name}", tensors)
    return {"class": _class_name(optimizer), "groups": groups, "state": state}


def _pack_now(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """As `pack`, with copies of tensors, which a schedule may change outside of an optimizer's step."""
    found: dict[str, Tensor] = {}
    packed = pack(value, name, found)
    tensors |= {key: tensor.detach().clone() for key, tensor in found.items()}
    return packed


def _unpack_optimizer(
    fields: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Weights,
    settings: bool,
) -> None:
    _check_optimizer(fields, model, optimizer, settings)
    optimizer.state.clear()
    same_class = fields["class"] == _class_name(optimizer)
    for saved, group in zip(fields["groups"], optimizer.param_groups, strict=True):
        place = partial(_placed, tensors, group["params"][0].device)
        options = unpack(saved["options"], place)
        if settings:
            group.update(options)
        elif not same_class or _changes_form(options, group):
            continue
        for name, parameter in zip(saved["names"], group["params"], strict=True):
            if name in fields["state"]:
                read = partial(
                    _state_tensor, tensors, optimizer, parameter, as_parameter=not settings
                )
                optimizer.state[parameter] = unpack(fields["state"][name], read)


def _changes_form(saved: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether another option asks for other state, as ``amsgrad`` does."""
    others = {*saved, *now} - {"params", *RATES}
    return any(saved.get(key) != now.get(key) for key in others)


def _state_tensor(
    tensors: Weights,
    optimizer: torch.optim.Optimizer,
    parameter: Tensor,
    name: str,
    on_cpu: bool,
    *,
    as_parameter: bool,
) -> Tensor:
    """Return a state tensor of `parameter`: one of its shape lies where and as it does.

    With `as_parameter` it has the parameter's dtype too, which may be another than when saving.
    """
    if (state := read_state(tensors, name, parameter, optimizer)) is not None:
        return state
    if tensors.shape(name) != tuple(parameter.shape) or not parameter.dim():
        return _placed(tensors, parameter.device, name, on_cpu)
    dtype = DTYPES[tensors.entry(name).dtype]
    dtype = parameter.dtype if as_parameter and dtype.is_floating_point else dtype
    place = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    tensors.fill(name, place)
    return place


def _placed(tensors: Weights, device: torch.device, name: str, on_cpu: bool) -> Tensor:
    """Return the whole tensor, on the CPU if it was there: a count of steps often is, beside a GPU."""
    dtype = DTYPES[tensors.entry(name).dtype]
    place = torch.empty(tensors.shape(name), dtype=dtype, device="cpu" if on_cpu else device)
    tensors.fill(name, place)
    return place


def _check_optimizer(
    fields: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, settings: bool
) -> None:
    where, do = "optimizer", "resume with the config that the run was started with"
    if settings and fields["class"] != _class_name(optimizer):
        what = f"the checkpoint's optimizer is {fields['class']}, not {_class_name(optimizer)}"
        raise ConfigError("E-RESUME", what, where=where, do=do)
    names = _group_names(model, optimizer)
    saved = [group["names"] for group in fields["groups"]]
    if names != saved:
        differ = sorted({*chain(*names)} ^ {*chain(*saved)}) or ["their groups or order"]
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        what = f"the checkpoint trains other parameters: {', '.join(differ[:3])}{more}"
        raise ConfigError("E-RESUME", what, where=where, do=do)


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _restore_scheduler(
    fields: Any, scheduler: "LRScheduler | None", read: Callable[[str, bool], Tensor]
) -> None:
    if (fields is None) != (scheduler is None):
        what = f"the checkpoint was saved with{'out' if fields is None else ''} a schedule"
        do = "resume with the config that the run was started with"
        raise ConfigError("E-RESUME", what, where="lr_scheduler", do=do)
    if scheduler is not None:
        scheduler.load_state_dict(unpack(fields, read))
