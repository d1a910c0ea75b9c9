"""The model that another was made from: its name on the hub, and its licence."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtune.errors import ConfigError, MissingError

from torchtune_integrations.hub.licence import Licence, read_licence
from torchtune_integrations.hub.trained_model import TrainedModel, read_records

__all__ = ["BaseModel", "find_base", "is_repo"]

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")


@dataclass(frozen=True)
class BaseModel:
    """What is known of a base.

    Args:
        repo: Its id on the hub, ``USER/NAME``.
        revision: The commit that was downloaded.
        licence: As its own model card gives it.
        folders: Where it, and what it came from, lies here; the nearest first.
    """

    repo: str | None = None
    revision: str | None = None
    licence: Licence | None = None
    folders: tuple[Path, ...] = ()


def is_repo(text: str) -> bool:
    """Whether `text` may be a model's id on the hub, ``USER/NAME``, and is no folder here."""
    return _REPO.fullmatch(text) is not None and not Path(text).is_dir()


def find_base(model: TrainedModel, given: str | None = None) -> BaseModel:
    """Return what the run's records, the base's folder and its download say of the base.

    An adapter needs the very model that it was trained on. Whole weights name the nearest one that
    is on the hub: a run may have started from the result of another.

    Args:
        model: What was made from it.
        given: Its id on the hub, as the user says.

    Raises:
        ConfigError: E-PUSH-BASE if `given` is not where the base was downloaded from, or if it is an
            adapter's and cannot be known.
    """
    said, folders = _said(model), tuple(_lineage(model))
    source = _source(model, folders)
    if not source and said and is_repo(said):
        source = {"repo": said}
    repo = source.get("repo")
    if given and repo and given != repo:
        what = f"the base was downloaded from {repo!r}, not from {given!r}"
        raise ConfigError("E-PUSH-BASE", what, where="--base-model", do="leave it out")
    if model.is_adapter and not (given or repo):
        name = Path(said or "?").name
        what = (
            f"an adapter must name its base by its id on the hub, and that of {name!r} is unknown"
        )
        do = "say it: --base-model USER/NAME; if the base is yours alone, publish it first"
        raise ConfigError("E-PUSH-BASE", what, where="adapter_config.json", do=do)
    licence = next(filter(None, map(read_licence, folders)), None)
    return BaseModel(given or repo, source.get("revision"), licence, folders)


def _said(model: TrainedModel) -> str | None:
    """Return where the model's records say that its base is: a path or an id."""
    if model.is_adapter:
        return model.adapter.get("base_model_name_or_path") or None
    recorded = model.environment.get("base") or {}
    return recorded.get("path") or model.config.get("checkpoint") or None


def _lineage(model: TrainedModel) -> Iterator[Path]:
    """Yield the folder of the base, of its base, and so on, as far as they are here.

    A model that no run of ours made is its own: what lies in its folder may tell.
    """
    from torchtune.checkpoint import download_folder, latest_step

    seen: set[Path] = set()
    made, said = model, _said(model) or str(model.folder)
    while said:
        folder = download_folder(said) if is_repo(said) else Path(said).expanduser()
        folder = (latest_step(folder) or folder).resolve()
        if folder in seen or not _began_from(made, folder):
            return
        seen.add(folder)
        yield folder
        made = read_records(folder)
        said = _said(made) or ""


def _began_from(made: TrainedModel, folder: Path) -> bool:
    """Whether a folder holds what a run began from: by now another model may lie there."""
    from torchtune.checkpoint import weights_digest

    recorded = (made.environment.get("base") or {}).get("sha256")
    try:
        return folder.is_dir() and recorded in (None, weights_digest(folder))
    except MissingError:  # the weights were deleted
        return False


def _source(model: TrainedModel, folders: tuple[Path, ...]) -> dict[str, Any]:
    """Return where the base was downloaded from; for whole weights, the nearest that was."""
    from torchtune.checkpoint import hub_source

    if model.is_adapter:
        return dict(hub_source(folders[0]) or {}) if folders else {}
    for folder in folders:
        merged = read_records(folder).merged_from.get("base") or {}
        if source := hub_source(folder) or (merged if merged.get("repo") else None):
            return dict(source)
    return {}
