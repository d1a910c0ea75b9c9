"""A step folder as a recipe saves and loads it: the model or its adapter, and all that resumes it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchtune.checkpoint.adapter import load_adapter, save_adapter
from torchtune.checkpoint.disk import on_main
from torchtune.checkpoint.model import load_model, save_model
from torchtune.checkpoint.training_state import save_training_state
from torchtune.peft import adapter_config, adapter_names

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from torchtune.data import Tokenizer
    from torchtune.distributed import World
    from torchtune.modules import Decoder

__all__ = ["load_step", "save_step"]


def save_step(
    folder: str | os.PathLike[str],
    *,
    model: "Decoder",
    dtype: torch.dtype,
    base: str | os.PathLike[str] | None,
    tokenizer: "Tokenizer",
    optimizer: torch.optim.Optimizer,
    scheduler: "LRScheduler | None",
    world: "World",
    info: Mapping[str, Any],
) -> None:
    """Write what transformers and PEFT load, and what a resume needs beside it.

    All ranks call this, inside `RunFolder.writing`. A model with an adapter gives PEFT's files,
    another one whole weights. Weights held in another dtype than `dtype` (master weights) are
    kept as they are with the training state too.

    Args:
        folder: Where to.
        model: The model; plain or distributed.
        dtype: Of whole weights in their files.
        base: The folder that the model started from; an adapter names it as its base.
        tokenizer: Saved beside the weights.
        optimizer: Its state is saved.
        scheduler: Its state is saved, where there is one.
        world: The processes that take part.
        info: What `read_info` gives back: progress and whatever else a resume compares.

    Raises:
        TuneError: The disk is full, or a file cannot be written; raised on every rank.
    """
    folder, adapter = Path(folder), adapter_names(model)
    if adapter:
        config = adapter_config(model, base=str(Path(base or "").absolute()))
        save_adapter(model, folder, names=adapter, config=config, world=world)
    else:
        save_model(model, folder, world=world, config=model.hf_config, dtype=dtype)
    on_main(world, lambda: tokenizer.save(folder), folder)
    master = not adapter and any(parameter.dtype != dtype for parameter in model.parameters())
    save_training_state(
        folder, model=model, optimizer=optimizer, scheduler=scheduler, world=world, info=info,
        weights=master,
    )  # fmt: skip


def load_step(
    model: nn.Module,
    *,
    base: str | os.PathLike[str] | None,
    step: str | os.PathLike[str] | None = None,
) -> set[str]:
    """Fill a model from the checkpoint that it starts from and, with `step`, from what was saved.

    Args:
        model: The model, perhaps with an adapter; plain or distributed.
        base: The folder of the first weights; None leaves them to be initialised.
        step: A step folder: an adapter's values, else whole weights.

    Returns:
        The names of the parameters that are filled; the others hold nothing yet.

    Raises:
        MissingError: A file or a tensor is missing or cut.
        ConfigError: Tensors do not fit the model.
    """
    adapter = adapter_names(model)
    source = base if adapter or not step else step
    filled = load_model(model, source, skip=adapter) if source else set()
    return filled | load_adapter(model, step, names=adapter) if step and adapter else filled
