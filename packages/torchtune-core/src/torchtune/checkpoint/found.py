"""Where the files of a checkpoint are, by whatever name the user gives it."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torchtune.checkpoint.disk import on_main
from torchtune.checkpoint.hub_download import download_folder, hub_source
from torchtune.checkpoint.manifest import latest_step
from torchtune.checkpoint.remote_folder import newest_remote_step
from torchtune.checkpoint.training_state import read_info
from torchtune.checkpoint.weights import weights_digest
from torchtune.data import is_remote, local_copy
from torchtune.errors import ConfigError, MissingError

if TYPE_CHECKING:
    from torchtune.distributed import World

__all__ = ["FoundCheckpoint", "find_checkpoint", "read_adapter_config", "run_info"]


class FoundCheckpoint(NamedTuple):
    """The folders that make up a checkpoint.

    Args:
        folder: The model's folder or, for an adapter, the adapter's.
        base: The folder of the whole weights: the adapter's base, else `folder` itself.
    """

    folder: Path
    base: Path

    @property
    def is_adapter(self) -> bool:
        """Whether `folder` holds an adapter, not whole weights."""
        return self.folder != self.base


def find_checkpoint(
    checkpoint: str | Path,
    *,
    base: str | Path | None = None,
    check_base: bool = True,
    world: "World | None" = None,
) -> FoundCheckpoint:
    """Return the folders that a user means by one path.

    Args:
        checkpoint: A run's output folder (its latest step is taken), a step folder, an adapter in
            PEFT's format, or a model in Hugging Face's. Where there is no such folder, the name of
            a model that ``tune download`` has put into ``./models``: its last part, or all of it.
            Of a URL (``s3://...``) a local copy is made.
        base: The adapter's base; None looks where its adapter_config.json says and, for a hub id,
            in ``./models/NAME``, where ``tune download`` puts it.
        check_base: Compare the base's weights and config.json with those that the adapter was trained
            on, where the adapter's run has recorded their sha256. Reads all weights.
        world: The processes, where several load the checkpoint. The main one decides which step is a
            run's latest, as a run that is training may save another meanwhile, and checks the base.

    Raises:
        MissingError: E-CHECKPOINT-MISSING without such a folder; E-BASE where the base is absent.
        ConfigError: E-BASE where the base has other weights, another config.json, or is given for
            whole weights.
    """
    if world is not None:
        checkpoint = on_main(world, partial(_newest, checkpoint))
    newest = _newest(checkpoint)
    folder = local_copy(newest) if is_remote(newest) else Path(newest)
    if not (folder / "adapter_config.json").is_file():
        if base is not None:
            what = "a base is for adapters; this checkpoint holds whole weights"
            raise ConfigError("E-BASE", what, where="base", do="leave it out")
        _check_is_model(folder)
        return FoundCheckpoint(folder, folder)
    found = _find_base(folder, base)
    if check_base:
        check = partial(_check_base, found, folder)
        check() if world is None else on_main(world, check)
    return FoundCheckpoint(folder, found)


def _newest(checkpoint: str | Path) -> str:
    """Return the path or URL of what is meant now: of a run's folder its newest step."""
    if is_remote(checkpoint):
        return newest_remote_step(str(checkpoint))
    given = _by_path_or_name(Path(checkpoint).expanduser())
    return str(latest_step(given) or given)


def _check_base(base: Path, adapter: Path) -> None:
    """Compare the base with what the adapter's run says of it."""
    said = run_info(adapter)
    do = "say where it is: --base DIR"
    if said.get("base_sha256") and said["base_sha256"] != weights_digest(base):
        what = f"{str(base)!r} holds other weights than the adapter was trained on"
        raise ConfigError("E-BASE", what, where=str(adapter), do=do)
    conditions = said.get("conditions", {})
    built_from_it = conditions.get("keys", {}).get("model") == "auto"
    wanted = conditions.get("facts", {}).get("config_sha256")
    if built_from_it and wanted and wanted != _config_digest(base):
        what = f"{str(base / 'config.json')!r} is not the one that the adapter was trained on"
        raise ConfigError("E-BASE", what, where=str(adapter), do=f"undo the change, or {do}")


def _config_digest(base: Path) -> str:
    import torch

    from torchtune.models import auto, config_digest

    with torch.device("meta"):
        return config_digest(auto(base).hf_config)


def _by_path_or_name(given: Path) -> Path:
    if given.exists():
        return given
    name = given.as_posix()  # a path that merely ends in a model's name is not that model's name
    folder = download_folder(name)
    named = name in (given.name, (hub_source(folder) or {}).get("repo"))
    return folder if named and folder.is_dir() else given


def _check_is_model(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise MissingError(
            "E-CHECKPOINT-MISSING", "there is no checkpoint: neither config.json nor "
            "adapter_config.json, nor a run's saved step", where=str(folder),
            do="give a run's output folder, a step folder, or a model in Hugging Face's format",
        )  # fmt: skip


def _find_base(folder: Path, given: str | Path | None) -> Path:
    said = str(given or read_adapter_config(folder).get("base_model_name_or_path") or "?")
    places, is_id = [Path(said).expanduser()], given is None and said.count("/") == 1
    if is_id:
        downloaded = download_folder(said)
        if (hub_source(downloaded) or {}).get("repo", said) == said:  # not another one's namesake
            places.append(downloaded)
    for place in places:
        if (place / "config.json").is_file():
            return place
    do = "say where it is: --base DIR"
    if is_id:
        do += f"; or `tune download {said}`"
    what = f"the adapter's base is not at {said!r}"
    raise MissingError("E-BASE", what, where=str(folder), do=do)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the adapter_config.json of an adapter's folder.

    Raises:
        ConfigError: E-FILE-DAMAGED if it is not a JSON object.
    """
    path = folder / "adapter_config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ConfigError("E-FILE-DAMAGED", f"{path.name}: {error}", where=str(path)) from None


def run_info(folder: Path) -> dict[str, Any]:
    """Return what the run that wrote a step folder says of itself; nothing for others' folders."""
    return read_info(folder) if (folder / "training_state").is_dir() else {}
