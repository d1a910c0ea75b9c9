"""A checkpoint, and what the folder of its run says of how it came about."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchtune.errors import ConfigError, MissingError

__all__ = ["TrainedModel", "output_dir_of", "read_records", "read_trained_model"]

MERGED_FROM = "merged_from.json"


@dataclass(frozen=True)
class TrainedModel:
    """A whole checkpoint with the records of its run, each empty where there are none.

    Args:
        folder: The step folder or model; absolute.
        run: The run's output folder; None for a model that no run of ours wrote.
        adapter: Its adapter_config.json; empty for whole weights.
        config: The run's configuration as resolved.
        environment: What the run recorded of versions, machine, data and base.
        metrics: The lines of metrics.jsonl up to this checkpoint's step.
        progress: How far the run was: step, epoch, tokens.
        merged_from: Base and adapter of a merged model.
    """

    folder: Path
    run: Path | None = None
    adapter: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    progress: Mapping[str, Any] = field(default_factory=dict)
    merged_from: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_adapter(self) -> bool:
        """Whether these are an adapter's weights, not whole ones."""
        return bool(self.adapter)


def output_dir_of(config: str | Path) -> Path:
    """Return the folder that runs of a YAML write into.

    Raises:
        MissingError: E-NO-CONFIG if there is no such file.
        ConfigError: E-PUSH-CONFIG if it names no folder.
    """
    import yaml

    path = Path(config).expanduser()
    if not path.is_file():
        do = "give the run's YAML file, or its folder: --checkpoint DIR"
        raise MissingError("E-NO-CONFIG", f"there is no {config}", where="--config", do=do)
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        what = f"{path.name} is not YAML: {' '.join(str(error).split())}"
        raise ConfigError("E-PUSH-CONFIG", what, where=str(path)) from None
    folder = fields.get("output_dir") if isinstance(fields, dict) else None
    if not isinstance(folder, str) or "${" in folder:
        do = "name the run's folder instead: --checkpoint DIR"
        raise ConfigError("E-PUSH-CONFIG", "the file names no output_dir", where=str(path), do=do)
    return Path(folder)


def read_trained_model(checkpoint: str | Path) -> TrainedModel:
    """Find a checkpoint, see that it is whole, and read what its run says of it.

    Reads every byte of a step folder, and compares with the sha256 in its manifest.

    Args:
        checkpoint: A run's output folder (its latest step is taken), a step folder, an adapter in
            PEFT's format, or a model in Hugging Face's.

    Raises:
        MissingError: There is no checkpoint, it is not as it was saved, or its weights are not
            safetensors.
        ConfigError: E-FILE-DAMAGED for a file that is not JSON.
    """
    from torchtune.checkpoint import find_checkpoint, latest_step

    given = Path(checkpoint).expanduser()
    named = latest_step(given) or given
    folder = named.resolve()
    if not (folder / "adapter_config.json").is_file():
        find_checkpoint(named)
    _check_whole(folder)
    return read_records(folder)


def read_records(folder: Path) -> TrainedModel:
    """Read what a checkpoint's run says of it, and none of its weights.

    Raises:
        ConfigError: E-FILE-DAMAGED for a file that is not JSON.
    """
    from torchtune.checkpoint import run_info

    own = _is_step(folder) and (folder.parent / "environment.json").is_file()
    run = folder.parent if own else None
    progress = run_info(folder).get("progress", {})
    return TrainedModel(
        folder=folder,
        run=run,
        adapter=_json(folder / "adapter_config.json"),
        config=_yaml(run / "config.yaml") if run else {},
        environment=_json(run / "environment.json") if run else {},
        metrics=_metrics(run / "metrics.jsonl", progress.get("step")) if run else (),
        progress=progress,
        merged_from=_json(folder / MERGED_FROM),
    )


def _is_step(folder: Path) -> bool:
    return folder.name.startswith("step_") or (folder / "manifest.json").is_file()


def _check_whole(folder: Path) -> None:
    from torchtune.checkpoint import damaged_files, read_weights

    if _is_step(folder) and (damaged := damaged_files(folder)):
        what = f"{folder.name} is not as it was saved: {', '.join(damaged)}"
        do = "publish another step folder"
        raise MissingError("E-CHECKPOINT-DAMAGED", what, where=str(folder), do=do)
    adapter = folder / "adapter_model.safetensors"
    is_adapter = (folder / "adapter_config.json").is_file()
    if is_adapter and not adapter.is_file():
        what = f"there is no {adapter.name}; only safetensors are published, never pickles"
        raise MissingError("E-CHECKPOINT-MISSING", what, where=str(folder))
    read_weights(adapter if is_adapter else folder)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError("E-FILE-DAMAGED", f"{path.name}: {error}", where=str(path)) from None


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise ConfigError("E-FILE-DAMAGED", f"{path.name}: {error}", where=str(path)) from None


def _metrics(path: Path, last_step: int | None) -> list[dict[str, Any]]:
    """Read the lines up to a step; one that a kill cut short is passed over."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            figures = json.loads(line)
        except ValueError:
            continue
        if last_step is None or figures.get("step", 0) <= last_step:
            found.append(figures)
    return found
