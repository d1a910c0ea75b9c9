"""A model with its tokenizer, ready to answer, from whatever a user calls a checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from torchtune import checkpoint as files
from torchtune.data import ChatFormat, Message, Tokenizer, auto_tokenizer
from torchtune.distributed import DTYPES, World, check_dtype, shard, tensor_parallel
from torchtune.errors import ConfigError, DataError, MissingError
from torchtune.generation.generate import check_prompts
from torchtune.generation.packing import pack_linears
from torchtune.models import auto
from torchtune.modules import Decoder
from torchtune.peft import lora_from_config

__all__ = ["DtypeName", "LoadedCheckpoint", "load_checkpoint", "raw_ids"]

DtypeName = Literal["auto", "bf16", "fp32"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model and what goes with it.

    Args:
        model: The model, in eval mode and without gradients; an adapter is on its base, not merged.
        tokenizer: The checkpoint's own tokenizer, an adapter's base's where it has none.
        form: How conversations are put to it; None where the checkpoint has no chat template.
        folder: What was loaded: a step folder, an adapter or a model.
        base: The folder of the whole weights.
    """

    model: Decoder
    tokenizer: Tokenizer
    form: ChatFormat | None
    folder: Path
    base: Path

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids at which an answer ends."""
        return tuple(self.tokenizer.stop_ids if self.form is None else self.form.stop_ids)

    def prompt_ids(
        self, prompt: str | Sequence[Message], *, system: str | None = None, raw: bool = False
    ) -> list[int]:
        """Return the ids of a prompt, up to where the answer begins.

        Args:
            prompt: The user's text, put into the chat template where there is one; or the turns of
                a conversation so far.
            system: A system message before it.
            raw: Continue the text as it stands.

        Raises:
            MissingError: E-CHAT-TEMPLATE for a conversation or a system message where there is no
                template.
            ConfigError: E-PROMPT for a conversation that is to be continued as it stands.
            DataError: E-CHAT-TEMPLATE: the template does not take this conversation.
        """
        said = [] if system is None else [Message("system", system)]
        turns = [Message.task(prompt)] if isinstance(prompt, str) else list(prompt)
        if self.form is not None and not raw:
            return self.form.prompt([*said, *turns])
        if said or not isinstance(prompt, str):
            subject = "a system message" if said else "a conversation"
            if raw:
                raise ConfigError("E-PROMPT", f"{subject} is no raw text", where="raw")
            what = f"{subject} needs a chat template, and this checkpoint has none"
            raise MissingError("E-CHAT-TEMPLATE", what, where=str(self.folder))
        return raw_ids(self.tokenizer, prompt)

    def placed_ids(
        self,
        prompts: Sequence[tuple[str, str | Sequence[Message]]],
        *,
        system: str | None = None,
        raw: bool = False,
    ) -> list[list[int]]:
        """Return the `prompt_ids` of several prompts that the model can answer.

        Args:
            prompts: Where each stands, for the error, and itself: `placed_prompts`.
            system: A system message before each.
            raw: Continue the texts as they stand.

        Raises:
            MissingError: As `prompt_ids`.
            ConfigError: As `prompt_ids`; E-PROMPT for those that `generate` refuses, all at once.
            DataError: E-CHAT-TEMPLATE: the template does not take one of them.
        """
        found = []
        for place, prompt in prompts:
            try:
                found.append(self.prompt_ids(prompt, system=system, raw=raw))
            except DataError as error:
                raise DataError(error.code, error.what, where=place, do=error.do) from None
        check_prompts(self.model, found, [place for place, _ in prompts])
        return found


def raw_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text that is continued as it stands, begun as the tokenizer begins one."""
    begin = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    return begin + tokenizer.encode(text)


def load_checkpoint(
    checkpoint: str | Path,
    *,
    base: str | Path | None = None,
    dtype: DtypeName | torch.dtype = "auto",
    device: torch.device | str = "cpu",
    pack: bool = True,
    world: World | None = None,
) -> LoadedCheckpoint:
    """Load what `find_checkpoint` finds: a run's latest step, a step, an adapter on its base, a model.

    Args:
        checkpoint: The folder.
        base: An adapter's base; None looks where the adapter says that it is.
        dtype: Of the weights in memory; ``auto`` is fp32 where the checkpoint says float32, else bf16.
        device: Where they go.
        pack: Lay the weights out for fast generation (`pack_linears`); False keeps plain layers, and
            so does a model that is cut.
        world: The processes, where several hold one model together: each then has its part, on its
            own device, and all must compute at the same time. The main one decides which step is a run's
            latest.

    Raises:
        MissingError: A folder, a file or a tensor is missing.
        ConfigError: The base is another one, or the architecture, a file or the dtype
            is not one that can be used.
    """
    world = world or World(device=torch.device(device))
    device = world.device
    found = files.find_checkpoint(checkpoint, base=base, world=world)
    weights_dtype = _dtype(dtype, found.base)
    check_dtype(weights_dtype, device)
    with torch.device("meta"):
        model = auto(found.base)
        if found.is_adapter:
            lora_from_config(model, files.read_adapter_config(found.folder))
    model = _cut(model.to(weights_dtype), world).to_empty(device=device)
    files.load_step(model, base=found.base, step=found.folder if found.is_adapter else None)
    model = model.requires_grad_(False).eval()
    own = any((found.folder / file).is_file() for file in TOKENIZER_FILES)
    tokenizer = auto_tokenizer(found.folder if own else found.base)
    form = None
    if tokenizer.chat_template is not None:
        form = ChatFormat(tokenizer, date=files.run_info(found.folder).get("date"))
    whole = world.size == world.replicas
    return LoadedCheckpoint(
        pack_linears(model) if pack and whole else model, tokenizer, form, *found
    )


def _cut(model: Decoder, world: World) -> Decoder:
    """Cut the model over the processes that hold it together; a whole one keeps its plain layers."""
    model = tensor_parallel(model, world)
    return shard(model, world) if world.data_size > world.replicas else model


def _dtype(wanted: DtypeName | torch.dtype, folder: Path) -> torch.dtype:
    if isinstance(wanted, torch.dtype):
        return wanted
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = config.get("dtype", config.get("torch_dtype"))
    return DTYPES.get(wanted, torch.float32 if own == "float32" else torch.bfloat16)
