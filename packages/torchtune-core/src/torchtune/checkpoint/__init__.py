"""Weights, adapters and training state on disk: the only room that knows a file format."""

from torchtune.checkpoint.adapter import load_adapter, save_adapter
from torchtune.checkpoint.description import describe
from torchtune.checkpoint.disk import on_main
from torchtune.checkpoint.found import (
    FoundCheckpoint,
    find_checkpoint,
    read_adapter_config,
    run_info,
)
from torchtune.checkpoint.hub_download import download, download_folder, hub_source
from torchtune.checkpoint.lines import cut_lines
from torchtune.checkpoint.manifest import damaged_files, latest_step
from torchtune.checkpoint.merging import merge_adapter
from torchtune.checkpoint.model import load_model, save_model
from torchtune.checkpoint.run_folder import RehearsalFolder, RunFolder
from torchtune.checkpoint.save_schedule import SaveSchedule
from torchtune.checkpoint.step_folder import load_step, save_step
from torchtune.checkpoint.training_state import load_training_state, read_info, save_training_state
from torchtune.checkpoint.weights import Weights, read_weights, weights_digest

__all__ = [
    "FoundCheckpoint",
    "RehearsalFolder",
    "RunFolder",
    "SaveSchedule",
    "Weights",
    "cut_lines",
    "damaged_files",
    "describe",
    "download",
    "download_folder",
    "find_checkpoint",
    "hub_source",
    "latest_step",
    "load_adapter",
    "load_model",
    "load_step",
    "load_training_state",
    "merge_adapter",
    "on_main",
    "read_adapter_config",
    "read_info",
    "read_weights",
    "run_info",
    "save_adapter",
    "save_model",
    "save_step",
    "save_training_state",
    "weights_digest",
]
